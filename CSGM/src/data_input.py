"""MNIST's four idx files, the reference's order of batches, and the training pipeline.

The order is that of TensorFlow's old tutorial reader, which the reference uses (spec: golden
batches.npz); everything random depends on (seed, step) only, so a run can go on anywhere.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import gzip
import os
import zlib

import numpy as np
import tensorflow.compat.v1 as tf

import npu_session
from npu_session import InputError

DEFAULT_FOLDER = "./MNISTS-data"  # the reference's default, spelled as there
FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}
STANDIN_NOTE = "STANDIN.txt"  # lies beside generated files and marks them as not being MNIST
IMAGE_MAGIC, LABEL_MAGIC = 2051, 2049
VALIDATION_IMAGES = 5000  # the tutorial reader sets them aside; nothing uses them

Mnist = collections.namedtuple("Mnist", "name train test train_labels test_labels train_file_count")
Pipeline = collections.namedtuple("Pipeline", "initializer next_batch feed")


def to_float(pixels):
    """uint8 grey values -> float32 in [0,1], with the tutorial reader's rounding."""
    return np.multiply(pixels, np.float32(1.0 / 255.0), dtype=np.float32)


def read_idx(path, magic):
    """Reads an idx file, gzipped if its name ends in .gz.

    Args:
      path: file of images (magic 2051) or labels (magic 2049).
    Returns:
      uint8 [N, 784] or uint8 [N].
    Raises:
      InputError: not gzip, truncated, another magic number, not 28 x 28, count and size differ.
    """
    opener = gzip.open if path.endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}): download or copy it again") from None
    header_size = 16 if magic == IMAGE_MAGIC else 8
    if len(content) < header_size:
        raise InputError(f"{path} holds {len(content)} bytes, fewer than an idx header")
    header = np.frombuffer(content[:header_size], ">i4")
    if header[0] != magic:
        raise InputError(f"{path} begins with the number {header[0]}, not {magic}: it is not an "
                         f"idx file of {'images' if magic == IMAGE_MAGIC else 'labels'}")
    if magic == IMAGE_MAGIC and tuple(header[2:]) != (28, 28):
        raise InputError(f"{path} holds images of {header[2]} x {header[3]}, not 28 x 28 pixels")
    count, size = int(header[1]), 784 if magic == IMAGE_MAGIC else 1  # an int32 would overflow
    body = np.frombuffer(content, np.uint8, offset=header_size)
    if count < 1 or len(body) != count * size:
        raise InputError(f"{path} announces {count} items of {size} bytes but holds "
                         f"{len(body)} bytes: it is damaged, copy it again")
    return body.reshape(-1, 784) if magic == IMAGE_MAGIC else body


def find_folder(data_dir):
    """The folder with the four files: data_dir itself or its MNIST-data, as the scripts expect."""
    tried = [data_dir, os.path.join(data_dir, "MNIST-data")]
    for folder in tried:
        if any(_existing(folder, name) for name in FILES.values()):
            return folder
    raise InputError(
        f"no MNIST files in {' or '.join(tried)}: expected {', '.join(FILES.values())} (.gz or "
        "not). Give their folder with --data_dir, or make stand-in digits with "
        f"python src/make_standin_data.py --data_dir={data_dir}")


def _existing(folder, name):
    paths = [os.path.join(folder, name + ending) for ending in (".gz", "")]
    return next((path for path in paths if os.path.isfile(path)), None)


def load(data_dir, log=print):
    """Reads MNIST, or the stand-in in its format, from data_dir (see find_folder).

    Args:
      data_dir: folder.
      log: function that gets the line `Extracting <path>` for each file.
    Returns:
      Mnist: name ("MNIST" or "stand-in digits"), train uint8 [55000, 784] (without the validation
      images), test uint8 [10000, 784], labels uint8, train_file_count 60000.
    Raises:
      InputError: see find_folder and read_idx; labels and images of different counts.
    """
    folder, parts = find_folder(data_dir), {}
    for part, name in FILES.items():
        path = _existing(folder, name)
        if path is None:
            raise InputError(f"{folder} has no {name}.gz: all of {', '.join(FILES.values())} are "
                             "needed")
        log(f"Extracting {path}")
        parts[part] = read_idx(path, IMAGE_MAGIC if part.endswith("images") else LABEL_MAGIC)
    for split in ("train", "test"):
        images, labels = len(parts[split + "_images"]), len(parts[split + "_labels"])
        if images != labels:
            raise InputError(f"{folder} holds {images} {split} images but {labels} {split} labels")
        if parts[split + "_labels"].max() > 9:
            raise InputError(f"{folder}: a {split} label is {parts[split + '_labels'].max()}, "
                             "digits are 0 to 9")
    count = len(parts["train_images"])
    first = min(VALIDATION_IMAGES, count // 12)  # 5000 of 60000, in proportion for smaller sets
    standin = os.path.exists(os.path.join(folder, STANDIN_NOTE))
    return Mnist("stand-in digits" if standin else "MNIST", parts["train_images"][first:],
                 parts["test_images"], parts["train_labels"][first:], parts["test_labels"], count)


class BatchOrder:
    """Which images make up which batch, as the tutorial reader decides it.

    Each pass permutes the order of the pass before; batches run on across the end of a pass.

    Args:
      count: images. batch_size: at most count. seed: of numpy's RandomState.
    """

    def __init__(self, count, batch_size, seed):
        if batch_size > count:
            raise InputError(f"--batch_size={batch_size} is more than the {count} training images")
        self._count, self._batch_size, self._seed = count, batch_size, seed
        self._restart()

    def _restart(self):
        self._random = np.random.RandomState(self._seed)
        self._order, self._pass = np.arange(self._count, dtype=np.int32), -1

    def _pass_order(self, number):
        if number < self._pass:
            self._restart()
        while self._pass < number:
            permutation = np.arange(self._count)
            self._random.shuffle(permutation)
            self._order, self._pass = self._order[permutation], self._pass + 1
        return self._order

    def rows(self, first_batch, batches):
        """int32 [batches, batch_size]: image numbers of the batches from first_batch (0, 1, ..)."""
        start, stop = first_batch * self._batch_size, (first_batch + batches) * self._batch_size
        pieces = []
        for number in range(start // self._count, (stop - 1) // self._count + 1):
            begin = number * self._count
            pieces.append(self._pass_order(number)[max(start - begin, 0):stop - begin])
        return np.concatenate(pieces).reshape(batches, self._batch_size)


def plain_options():
    """tf.data options without graph rewriting, which would copy all images at each restart."""
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    if hasattr(options, "autotune"):  # TensorFlow 2.x
        options.autotune.enabled = False
    else:
        options.experimental_optimization.autotune = False
    return options


def training_pipeline(images, batch_size, n_z, seed):
    """tf.data pipeline of (x float32 [b, 784], eps float32 [b, n_z]), b = batch_size.

    Of several processes each gets its share of every batch, b = batch_size / processes.

    It is (re)started with `session.run(pipeline.initializer, pipeline.feed(rows, first_step))`,
    rows int32 [steps, batch_size]; eps is drawn from (seed, step). It runs on the host: on the NPU
    only dense operations are left for the device.
    """
    image_source = tf.placeholder(tf.uint8, [None, images.shape[1]])
    row_source = tf.placeholder(tf.int32, [None, batch_size])
    first_step, part = tf.placeholder(tf.int64, []), npu_session.share(batch_size)

    def batch(index):
        pixels = tf.gather(image_source, row_source[index][part])
        eps = tf.random.stateless_normal([batch_size, n_z], seed=tf.stack(
            [tf.constant(seed, tf.int64), first_step + index]))[part]
        return tf.cast(pixels, tf.float32) * np.float32(1.0 / 255.0), eps

    count = tf.cast(tf.shape(row_source)[0], tf.int64)
    dataset = tf.data.Dataset.range(count).map(batch).prefetch(8).with_options(plain_options())
    iterator = tf.data.make_initializable_iterator(dataset)

    def feed(rows, step):
        return {image_source: images, row_source: rows, first_step: step}

    return Pipeline(iterator.initializer, iterator.get_next, feed)
