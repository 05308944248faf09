"""The .mat file of aligned modalities, its checks, and the reference's order of batches.

Keys: num_modalities; modality_0, modality_1, ...: [1024, N], a 32 x 32 image per column, pixels
in MATLAB's column-major order, 0..255; Label: N numbers, may be missing.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import os
import sys

import numpy as np
import scipy.io
import tensorflow.compat.v1 as tf

import metrics
from npu_session import InputError

SIDE = 32
STANDIN_KEY = "standin"  # a file with this key holds generated images

Data = collections.namedtuple("Data", "name images labels clusters is_standin names",
                              defaults=(None,))
Pipeline = collections.namedtuple("Pipeline", "initializer next_rows feed")


def load(path, subjects=None, clusters=None, dimension=metrics.DIMENSION, equalise=False):
    """Reads a data set.

    Args:
      path: .mat file, MATLAB 5.
      subjects: keep the first so many classes only (needs labels); None keeps all.
      clusters: K for a file without labels, or instead of the number of its classes.
      dimension: d, of a cluster's subspace: N must be above d K + 1.
      equalise: scale the images, see equalised.
    Returns:
      Data: name; images, a list of M float32 [N, 32, 32, 1] with pixels 0..255; labels int64 [N]
      1..K or None; clusters K, an int; is_standin: the images are generated, not real; names: M
      words, from the file's modality_names, or "modality 0" and so on.
    Raises:
      InputError: see the checks below; each sentence names the key.
    """
    content = read_mat(path)
    images = [unpack(path, content, number) for number in range(modality_count(path, content))]
    check_counts(path, images)
    labels = read_labels(path, content, len(images[0]))
    if subjects:
        images, labels = first_subjects(path, images, labels, subjects)
    clusters = clusters or (None if labels is None else int(labels.max()))
    check_clusters(path, clusters, len(images[0]), dimension)
    is_standin = STANDIN_KEY in content
    name = os.path.splitext(os.path.basename(path))[0]
    if subjects:
        name += f", first {subjects} subjects"
    if equalise:
        name, images = name + ", equalised", [equalised(image) for image in images]
    return Data(("stand-in faces " if is_standin else "") + name, images, labels, clusters,
                is_standin, modality_names(content, len(images)))


def read_mat(path):
    """The variables of a .mat file as a dict."""
    if not os.path.isfile(path):
        raise InputError(f"there is no data file {path}: name its folder with --data_dir and the "
                         "file, without .mat, with --mat, or make stand-in faces with python "
                         "make_standin_data.py")
    try:
        return scipy.io.loadmat(path)
    except NotImplementedError:
        raise InputError(f"{path} is a MATLAB 7.3 file: save it with -v7 or older") from None
    except MemoryError:
        raise
    except Exception as error:  # scipy raises whatever the damaged bytes lead to
        raise InputError(f"{path} cannot be read as a MATLAB file ({error}): copy or make it "
                         "again") from None


def equalised(images):
    """One modality's images scaled to the same sum of squares, its mean; black ones stay.

    The losses are plain sums of squares: without this a dark image weighs as little as it is dark.

    Args: images: float32 [N, 32, 32, 1].
    Returns:
      float32 [N, 32, 32, 1]; pixels may be above 255.
    """
    energy = np.square(images, dtype=np.float64).sum(axis=(1, 2, 3), keepdims=True)
    scale = np.sqrt(np.divide(energy.mean(), energy, out=np.ones_like(energy), where=energy > 0))
    return (images * scale).astype(np.float32)


def modality_count(path, content):
    """M, from num_modalities or, without it, from the keys modality_0, modality_1, ..."""
    found = sum(f"modality_{number}" in content for number in range(len(content)))
    if "num_modalities" not in content:
        raise InputError(f"{path} has no num_modalities; its keys are "
                         f"{', '.join(sorted(k for k in content if not k.startswith('__')))}. "
                         f"Add it (modality_ keys found: {found})")
    value = np.ravel(content["num_modalities"])
    if value.size != 1 or value.dtype.kind not in "iuf" or value[0] != int(value[0]) or (
            value[0] < 1):
        raise InputError(f"{path}: num_modalities is {value}, expected one number of at least 1")
    return int(value[0])


def modality_names(content, count):
    """The file's own names of its modalities if it has one for each, else numbers."""
    names = [str(np.ravel(name)[0]) for name in np.ravel(content.get("modality_names", []))
             if np.size(name)]
    return names if len(names) == count else [f"modality {number}" for number in range(count)]


def unpack(path, content, number):
    """float32 [N, 32, 32, 1] of modality_<number>, after checks of its shape and pixels."""
    key = f"modality_{number}"
    if key not in content:
        raise InputError(f"{path} has no {key}, though num_modalities is "
                         f"{int(np.ravel(content['num_modalities'])[0])}")
    matrix = content[key]
    if not isinstance(matrix, np.ndarray) or matrix.dtype.kind not in "iufb" or matrix.ndim != 2:
        raise InputError(f"{path}: {key} is not a matrix of real numbers, [1024, N]")
    rows, columns = matrix.shape
    if rows != SIDE * SIDE:
        side = int(round(rows ** 0.5))
        kind = f"images of {side} x {side}" if side * side == rows else "no square images"
        raise InputError(f"{path}: {key} has {rows} rows, which is {kind}: expected "
                         f"{SIDE * SIDE}, one {SIDE} x {SIDE} image per column")
    if columns < 1:
        raise InputError(f"{path}: {key} holds no image")
    pixels = np.ascontiguousarray(matrix.T, dtype=np.float32)
    check_pixels(path, key, pixels)
    return pixels.reshape(-1, SIDE, SIDE).transpose(0, 2, 1)[..., np.newaxis].copy()


def check_pixels(path, key, pixels):
    """InputError for NaN, infinity or values far outside 0..255; a warning for 0..1."""
    if not np.isfinite(pixels).all():
        row, pixel = np.argwhere(~np.isfinite(pixels))[0]
        raise InputError(f"{path}: {key} has {pixels[row, pixel]} at pixel {pixel} of image {row} "
                         "(from 0): expected numbers of 0..255")
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > 255:
        raise InputError(f"{path}: {key} has values from {low:g} to {high:g}, expected grey "
                         "levels of 0..255")
    if high <= 1:
        print(f"WARNING: {path}: {key} has values from {low:g} to {high:g}; the weights of the "
              "losses assume 0..255: multiply the images by 255, or set --reg_constant1 and "
              "--reg_constant2", file=sys.stderr)


def check_counts(path, images):
    """InputError unless all modalities have the same number of images."""
    counts = [len(image) for image in images]
    if len(set(counts)) > 1:
        text = ", ".join(f"modality_{number} {count}" for number, count in enumerate(counts))
        raise InputError(f"{path}: the modalities have different numbers of images ({text}): "
                         "column n must be the same sample in each")


def read_labels(path, content, samples):
    """int64 [N], 1..K without gaps, in the order of the file's own labels; None without Label."""
    if "Label" not in content:
        return None
    labels = np.ravel(content["Label"])
    if labels.size != samples:
        raise InputError(f"{path}: Label has {labels.size} numbers for {samples} images")
    if labels.dtype.kind not in "iufb" or not np.isfinite(labels.astype(np.float64)).all() or (
            labels != np.round(labels)).any():
        raise InputError(f"{path}: Label holds something else than whole numbers")
    return np.unique(labels.astype(np.int64), return_inverse=True)[1].reshape(-1) + 1


def first_subjects(path, images, labels, subjects):
    """Images and labels of the classes 1..subjects."""
    if labels is None:
        raise InputError(f"--subjects={subjects}: {path} has no Label to choose by")
    if subjects > labels.max():
        raise InputError(f"--subjects={subjects}: {path} has only {labels.max()} classes")
    kept = labels <= subjects
    return [image[kept] for image in images], labels[kept]


def check_clusters(path, clusters, samples, dimension):
    """InputError unless K is known, at least 2 and small enough for the spectral step."""
    if clusters is None:
        raise InputError(f"{path} has no Label: give the number of clusters with --clusters")
    if clusters < 2:
        raise InputError(f"{path}: {clusters} cluster; there is nothing to tell apart")
    if samples <= dimension * clusters + 1:
        raise InputError(
            f"{path}: {samples} images for {clusters} clusters; more than {dimension} K + 1 = "
            f"{dimension * clusters + 1} are needed, for the affinity has that rank")


# ---------------------------------------------------------------- order of batches


class BatchOrder:
    """Which samples make up which batch of stage 1, as the reference decides it.

    The first pass is in file order; before each later one the rows are shuffled once more. What is
    left of a pass after its last whole batch is dropped.

    Args:
      samples: N. batch_size: at most N. seed: of NumPy's RandomState.
    """

    def __init__(self, samples, batch_size, seed):
        if not 1 <= batch_size <= samples:
            raise InputError(f"batches of {batch_size} from {samples} samples: choose 1 to "
                             f"{samples}")
        self._samples, self._batch_size, self._seed = samples, batch_size, seed
        self.per_pass = samples // batch_size
        self._restart()

    def _restart(self):
        self._random = np.random.RandomState(self._seed)
        self._order, self._pass = np.arange(self._samples, dtype=np.int32), 0

    def _pass_order(self, number):
        if number < self._pass:
            self._restart()
        while self._pass < number:
            permutation = np.arange(self._samples)
            self._random.shuffle(permutation)
            self._order, self._pass = self._order[permutation], self._pass + 1
        return self._order

    def rows(self, first_batch, batches):
        """int32 [batches, batch_size]: sample numbers of the batches from first_batch (0, ...)."""
        found = []
        for batch in range(first_batch, first_batch + batches):
            number, place = divmod(batch, self.per_pass)
            begin = place * self._batch_size
            found.append(self._pass_order(number)[begin:begin + self._batch_size])
        return np.stack(found)


def plain_options():
    """tf.data options without graph rewriting, which would copy the rows at each restart."""
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    if hasattr(options, "autotune"):  # TensorFlow 2.x
        options.autotune.enabled = False
    else:
        options.experimental_optimization.autotune = False
    return options


def row_pipeline(batch_size):
    """tf.data pipeline of int32 [batch_size] rows, (re)started with
    `session.run(pipeline.initializer, pipeline.feed(rows))`, rows int32 [batches, batch_size]."""
    source = tf.placeholder(tf.int32, [None, batch_size])
    dataset = tf.data.Dataset.from_tensor_slices(source).prefetch(2).with_options(plain_options())
    iterator = tf.data.make_initializable_iterator(dataset)
    return Pipeline(iterator.initializer, iterator.get_next, lambda rows: {source: rows})


def resident(arrays):
    """Variables that keep float32 arrays on the device: filled once, in no checkpoint.

    Returns:
      (list of variables, operation that fills them, the feed it needs).
    """
    sources = [tf.placeholder(tf.float32, array.shape) for array in arrays]
    variables = [tf.get_variable(f"resident/{number}", initializer=source, trainable=False,
                                 collections=[tf.GraphKeys.LOCAL_VARIABLES])
                 for number, source in enumerate(sources)]
    fill = tf.group(*[variable.initializer for variable in variables])
    return variables, fill, dict(zip(sources, arrays))
