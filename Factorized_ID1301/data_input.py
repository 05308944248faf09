"""Folders of JPEG and PNG images as pairs for training, and one by one for evaluation.

Everything random depends on (seed, step) only, so a run can go on anywhere. Decoding, resizing
and warping are TensorFlow operations on the host; the device gets dense tensors of fixed shapes.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import argparse
import collections
import os
import sys

import numpy as np
import tensorflow.compat.v1 as tf
from tqdm import tqdm

import npu_session
from landmark_lists import IMAGE_FOLDERS
from npu_session import InputError
from utils import warp
from utils.warp import CUT_START, INPUT_SIZE

ENDINGS = (".jpg", ".jpeg", ".png")
SMALLEST_FRAME = CUT_START + INPUT_SIZE
PREFETCHED = 4  # batches

Preparation = collections.namedtuple(
    "Preparation", "scale_size crop_size pair_warp tps_weight exact_coordinates seed")
Pipeline = collections.namedtuple("Pipeline", "initializer next_batch feed")


# ---------------------------------------------------------------- files


def find_images(folder):
    """Paths of the images in a folder, or in the first of landmark_lists.IMAGE_FOLDERS below it
    that has any, sorted by number if all names are numbers.

    Raises:
      InputError: there is no such folder, or no image in it.
    """
    if not os.path.isdir(folder):
        raise InputError(f"there is no folder {folder}: give the folder of images with --input_dir")
    for place in (os.path.join(folder, name) for name in IMAGE_FOLDERS):
        names = [name for name in (os.listdir(place) if os.path.isdir(place) else [])
                 if name.lower().endswith(ENDINGS) and not name.startswith(".")]
        if names:
            stems = {name: os.path.splitext(name)[0] for name in names}
            numeric = all(stem.isdigit() for stem in stems.values())
            names.sort(key=lambda name: (int(stems[name]), name) if numeric else name)
            return [os.path.join(place, name) for name in names]
    raise InputError(f"{folder} holds no images: expected {', '.join(ENDINGS)} in it or in "
                     f"{', '.join(filter(None, IMAGE_FOLDERS))} below it")


class BatchOrder:
    """Which images make up which batch: every epoch is a new permutation, its remainder dropped.

    Args:
      count: images. batch_size: at most count. seed: with the epoch, fixes the permutation.
    """

    def __init__(self, count, batch_size, seed):
        if batch_size > count:
            raise InputError(f"--batch_size={batch_size} is more than the {count} images")
        self.per_epoch = count // batch_size
        self._count, self._batch_size, self._seed = count, batch_size, seed

    def rows(self, first_step, steps):
        """int32 [steps, batch_size]: image numbers of the batches of these steps (0, 1, ..)."""
        last = first_step + steps
        epochs = range(first_step // self.per_epoch, (last - 1) // self.per_epoch + 1)
        rows = np.concatenate([self._epoch(number) for number in epochs])
        start = first_step - epochs[0] * self.per_epoch
        return rows[start:start + steps]

    def _epoch(self, number):
        order = np.random.RandomState([self._seed, number]).permutation(self._count)
        used = order[:self.per_epoch * self._batch_size].astype(np.int32)
        return used.reshape(self.per_epoch, self._batch_size)


# ---------------------------------------------------------------- one image


def decode(content):
    """RGB of a JPEG or PNG file's bytes, uint8 [height, width, 3]; grey, CMYK, alpha converted."""
    return tf.image.decode_jpeg(content, channels=3)  # knows a PNG by its first bytes


def resize(image, side):
    """uint8 [h, w, 3] -> float32 [side, side, 3] in [-1, 1] by area; the aspect ratio is lost."""
    scaled = tf.image.convert_image_dtype(image, tf.float32) * 2 - 1
    resized = tf.image.resize_images(scaled, [side, side], tf.image.ResizeMethod.AREA)
    return tf.ensure_shape(resized, [side, side, 3])


def read_frame(path, side):
    """The image file as float32 [side, side, 3] in [-1, 1]."""
    return resize(decode(tf.read_file(path)), side)


def cut(frames):
    """What the network sees of frames [B, n, n, 3]: float32 [B, 128, 128, 3] in [-1, 1]."""
    end = CUT_START + INPUT_SIZE
    return tf.clip_by_value(frames[:, CUT_START:end, CUT_START:end], -1.0, 1.0)


# ---------------------------------------------------------------- pairs


def random_key(seed, number, kind):
    """Seed of a stateless draw for the number-th image of the run: kind 0 and 1 warps, 2 crop."""
    return tf.stack([tf.constant(seed, tf.int64), 3 * tf.cast(number, tf.int64) + kind])


def random_crop(frame, number, preparation):
    """The frame cut to crop_size at a place that depends on (seed, number)."""
    size, space = preparation.crop_size, preparation.scale_size - preparation.crop_size
    if not space:
        return frame
    place = tf.random.stateless_uniform([2], random_key(preparation.seed, number, 2),
                                        maxval=float(space + 1))
    start = tf.concat([tf.minimum(tf.cast(place, tf.int32), space), [0]], 0)
    return tf.slice(frame, start, [size, size, 3])


def draw_warps(count, number, preparation):
    """(T of the first warp, T of the pair's warp), float32 [count, 2, 7].

    Training draws one for each image: count 1, number that of the image in the whole run.
    """
    normal = tf.random.stateless_normal([2 * count, 3 + 8],
                                        random_key(preparation.seed, number, 0))
    uniform = tf.random.stateless_uniform([2 * count, 2], random_key(preparation.seed, number, 1))
    strengths = np.repeat(np.float32([0, preparation.pair_warp]), count)
    bending = None
    if preparation.tps_weight:
        bending = preparation.tps_weight * tf.reshape(normal[:, 3:], [2 * count, 2, 4])
    T = warp.transformations(warp.draw(normal[:, :3], uniform, strengths), bending)
    return T[:count], T[count:]


def make_pairs(frames, first, second, preparation):
    """Pairs of pictures and where each cell of the second comes from.

    Args:
      frames: float32 [B, n, n, 3] in [-1, 1].
      first: T that moves the frames before anything else, [B, 2, 7]; None (test mode): nothing.
      second: T that makes the deformed pictures of the moved frames, [B, 2, 7].
    Returns:
      images, deformed float32 [B, 128, 128, 3]; positions float32 [B, 42, 42, 2], see
      warp.warped_cells.
    """
    is_affine = not preparation.tps_weight
    if first is not None:
        frames = warp.image_warping2(frames, first, is_affine)
    deformed = warp.image_warping2(frames, second, is_affine, (CUT_START, INPUT_SIZE))
    if preparation.exact_coordinates:
        positions = warp.warped_cells_exactly(second, preparation.crop_size, is_affine)
    else:
        positions = warp.warped_cells(second, is_affine)
    return cut(frames), tf.clip_by_value(deformed, -1.0, 1.0), positions


# ---------------------------------------------------------------- pipelines


def plain_options():
    """tf.data options without graph rewriting, which would copy all images at each restart."""
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    if hasattr(options, "autotune"):  # TensorFlow 2.x
        options.autotune.enabled = False
    else:
        options.experimental_optimization.autotune = False
    return options


def workers(threads):
    """Images decoded at a time for --threads."""
    return threads or os.cpu_count() or 1


def plain_map(dataset, function, threads=1):
    """dataset.map without autograph, which takes seconds and is not needed here."""
    return dataset.map(tf.autograph.experimental.do_not_convert(function), workers(threads))


def training_pipeline(source, batch_size, preparation, threads=0):
    """tf.data pipeline of (images, deformed, positions), see make_pairs.

    Of several processes each gets its share of every batch. It is (re)started with
    `session.run(pipeline.initializer, pipeline.feed(rows, first_step))`, rows int32
    [steps, batch_size] of image numbers.

    Args:
      source: list of paths; or decoded images, uint8 [N, scale_size, scale_size, 3].
    """
    is_cached = isinstance(source, np.ndarray)
    source = source if is_cached else np.array(source)
    all_images = tf.placeholder(tf.uint8 if is_cached else tf.string, (None,) + source.shape[1:])
    row_source = tf.placeholder(tf.int32, [None, batch_size])
    first_step, part = tf.placeholder(tf.int64, []), npu_session.share(batch_size)
    numbers = tf.reshape(tf.range(tf.size(row_source)), tf.shape(row_source))
    rows, places = (tf.reshape(array[:, part], [-1]) for array in (row_source, numbers))

    def pair(index):
        # One image at a time: the arrays of a whole batch would not stay in a core's cache.
        number = first_step * batch_size + tf.cast(places[index], tf.int64)
        image = all_images[rows[index]]
        if is_cached:
            frame = tf.image.convert_image_dtype(image, tf.float32) * 2 - 1
        else:
            frame = read_frame(image, preparation.scale_size)
        frame = random_crop(frame, number, preparation)
        first, second = draw_warps(1, number, preparation)
        return tuple(tensor[0] for tensor in make_pairs(frame[None], first, second, preparation))

    dataset = tf.data.Dataset.range(tf.shape(rows, out_type=tf.int64)[0])
    dataset = plain_map(dataset, pair, threads)
    dataset = dataset.batch(batch_size // npu_session.size(), drop_remainder=True)
    dataset = dataset.prefetch(PREFETCHED)
    iterator = tf.data.make_initializable_iterator(dataset.with_options(plain_options()))

    def feed(rows, step):
        return {all_images: source, row_source: rows, first_step: step}

    return Pipeline(iterator.initializer, iterator.get_next, feed)


def cut_images(frames, indices):
    """What evaluation_pipeline delivers by default."""
    return cut(frames), indices


def evaluation_pipeline(paths, batch_size, preparation, threads=0, finish=cut_images):
    """tf.data pipeline of (images float32 [B, 128, 128, 3], indices int64 [B]) over all paths.

    Each image comes once, in order, its centre cropped; the last batch is filled up with copies of
    the last image whose indices are len(paths) and more. Started with
    `session.run(pipeline.initializer, pipeline.feed())`.

    Args:
      finish: function of (frames [B, n, n, 3], indices) that makes what is delivered instead.
    """
    source = tf.placeholder(tf.string, [None])
    batches = -(-len(paths) // batch_size)
    start = (preparation.scale_size - preparation.crop_size) // 2
    end = start + preparation.crop_size

    def frame(index):
        path = source[tf.minimum(index, len(paths) - 1)]
        return read_frame(path, preparation.scale_size)[start:end, start:end], index

    dataset = plain_map(tf.data.Dataset.range(batches * batch_size), frame, threads)
    dataset = dataset.batch(batch_size, drop_remainder=True)
    dataset = plain_map(dataset, finish).prefetch(PREFETCHED)
    iterator = tf.data.make_initializable_iterator(dataset.with_options(plain_options()))
    return Pipeline(iterator.initializer, iterator.get_next, lambda: {source: np.array(paths)})


# ---------------------------------------------------------------- before training


def host_session(args):
    """A session that stays on the host, and writes no dumps or profiles, where there is an NPU."""
    plain = argparse.Namespace(**dict(vars(args), over_dump=False, data_dump_flag=False,
                                      profiling=False))
    return tf.Session(config=npu_session.session_config(plain, use_off_line=False))


def each_image(paths, args, load):
    """Yields `load(path)`, a tensor, of every image in order, computed on the host.

    Raises:
      InputError: a file cannot be read or decoded (it is named).
    """
    with tf.Graph().as_default(), host_session(args) as session:
        source = tf.placeholder(tf.string, [None])
        dataset = plain_map(tf.data.Dataset.from_tensor_slices(source), load, args.threads)
        iterator = tf.data.make_initializable_iterator(dataset.prefetch(64))
        following = iterator.get_next()
        session.run(iterator.initializer, {source: np.array(paths)})
        for path in tqdm(paths, "reading images", unit="image",
                         disable=not sys.stderr.isatty()):
            try:
                yield session.run(following)
            except tf.errors.OpError as error:
                raise InputError(f"{path} cannot be used: {reason(error)}. Expected a whole JPEG "
                                 "or PNG image: copy it again, or remove it") from None


def image_sizes(paths, args):
    """Decodes every image once, to find out before anything else that all can be used.

    Returns:
      int32 [N, 2]: height and width of the images as they lie on disk.
    Raises:
      InputError: see each_image.
    """
    return np.array(list(each_image(
        paths, args, lambda path: tf.shape(decode(tf.read_file(path)))[:2])))


def load_images(paths, args):
    """All images in memory: uint8 [N, scale_size, scale_size, 3], rounded after resizing.

    Raises:
      InputError: see each_image.
    """
    def load(path):
        return tf.cast(tf.round((read_frame(path, args.scale_size) + 1) * 127.5), tf.uint8)

    images = np.empty((len(paths), args.scale_size, args.scale_size, 3), np.uint8)
    for number, image in enumerate(each_image(paths, args, load)):
        images[number] = image
    return images


def reason(error):
    """The first sentence of a TensorFlow error."""
    return error.message.split("\n")[0].split("\t")[0].strip().rstrip(".")
