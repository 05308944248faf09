"""PACS lists and images: reading, checking, and the pipelines of episodes and of evaluation.

A list line is `photo/dog/056_0022.jpg 1`. What an episode holds depends on (seed, step) only, so a
run can go on anywhere. Decoding and resizing are TensorFlow's own, as in the reference.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import contextlib
import os
import re
import struct

import numpy as np
import tensorflow.compat.v1 as tf

import npu_session
from npu_session import InputError

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")  # label order
SUFFIXES = ("", "_crossval")  # of the lists: the training fold, and the held-out tenth
STANDIN_NOTE = "STANDIN.txt"  # lies in a generated data folder and marks it as not being PACS
SIDE = 227  # pixels of an image side, AlexNet's input
MEAN_RGB = np.array([123.68, 116.779, 103.939], np.float32)  # of ImageNet, as the reference's
LIST_LINE = re.compile(r"[^\0]+ [0-9]{1,4}")
FLIP_PROBABILITY = 1 / 16  # the reference augments 1/2 of the images; of those it flips 1/4 * 1/2
PREFETCHED = 2  # batches; of uint8 pixels where no image is resized
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # of a colour type; 3 is a palette of RGB colours
CHANNEL_NAMES = {1: "a grey", 2: "a grey and alpha", 4: "an RGBA or CMYK"}
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers that state the size
JPEG_BARE = frozenset(range(0xD0, 0xD8)) | {0x01}  # markers without a length
# Numbers of the random streams, in the upper half of a 64-bit seed; shuffles add the domain's.
ROLE_STREAM, FLIP_STREAM, SHUFFLE_STREAM = 1000, 1001, 1002

# paths: list of str. labels: int32 [N]. resize: whether an image is not 227 x 227.
Images = collections.namedtuple("Images", "paths labels resize")
Pipeline = collections.namedtuple("Pipeline", "initializer next_batch feed")
Header = collections.namedtuple("Header", "height width channels whole")


# ---------------------------------------------------------------- lists


def list_path(folder, domain, suffix=""):
    """Where the list of a domain is."""
    return os.path.join(folder, domain + suffix + ".txt")


def read_list(path):
    """Entries and numbers of one list; blank lines, blanks at line ends and CRLF are passed over.

    Returns:
      (list of str, int32 [N] as in the file).
    Raises:
      InputError: no such file, no entries, or a line that is not `path number`.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the list {path} cannot be read ({error}): write the lists with "
                         "make_filelist.py, or give their folder with --filelist_root") from None
    entries, numbers = [], []
    for index, line in enumerate(lines):
        if not line:
            continue
        name, _, number = line.replace("\t", " ").rpartition(" ")
        entry = name.strip()
        if not LIST_LINE.fullmatch(f"{entry} {number}"):
            raise InputError(f"{path} line {index + 1} is {line!r}: expected `path label`, for "
                             "example `photo/dog/056_0022.jpg 1`")
        entries.append(entry)
        numbers.append(int(number))
    if not entries:
        raise InputError(f"the list {path} is empty")
    return entries, np.array(numbers, np.int32)


def label_base(numbers_by_path):
    """0 or 1: what the lists count the classes from, by all their numbers together.

    Raises:
      InputError: a number is out of range, or only 1 to 6 occur, which fits both.
    """
    for path, numbers in numbers_by_path.items():
        if numbers.max() > 7:
            raise InputError(f"{path} has the label {numbers.max()}: expected 1 to 7 or 0 to 6")
    lowest = min(numbers_by_path, key=lambda path: numbers_by_path[path].min())
    highest = max(numbers_by_path, key=lambda path: numbers_by_path[path].max())
    low, high = numbers_by_path[lowest].min(), numbers_by_path[highest].max()
    if low == 0 and high == 7:
        raise InputError(f"labels count from 0 in {lowest} but go up to 7 in {highest}: expected 1 "
                         "to 7 in all lists, or 0 to 6 in all")
    if low > 0 and high < 7:
        raise InputError(f"the lists beside {lowest} have labels from {low} to {high} only, which "
                         "may count from 0 or from 1: expected all seven classes")
    return 0 if low == 0 else 1


def read_lists(folder, domains, suffix="", dataroot=".", labels="auto", at_least=1):
    """Reads and checks the lists of some domains and the headers of their images.

    Args:
      folder: of the lists <domain><suffix>.txt. domains: names of DOMAINS.
      suffix: "", or "_crossval" for the held-out lists.
      dataroot: what the entries are relative to.
      labels: "auto": classes 0..6, whether the lists count from 0 or from 1; "reference": 1..7, as
        the reference takes them, so that the one-hot row of the last class is all zeros.
      at_least: entries a list must have, the meta batch size of training.
    Returns:
      {domain: Images}, in the order of `domains`.
    Raises:
      InputError: see read_list, label_base and check_images; too few entries; a class is missing
        in a training list; a label contradicts its class folder; a held-out entry is trained on.
    """
    paths = [list_path(folder, domain, ending) for domain in DOMAINS for ending in SUFFIXES]
    wanted = {domain: list_path(folder, domain, suffix) for domain in domains}
    contents = {path: read_list(path) for path in paths
                if os.path.exists(path) or path in wanted.values()}
    base = label_base({path: numbers for path, (_, numbers) in contents.items()})
    result = {}
    for domain, path in wanted.items():
        entries, numbers = contents[path]
        classes = numbers - base
        check_entries(path, entries, classes, at_least, every_class=not suffix)
        check_held_out(path, entries, contents.get(list_path(folder, domain)), suffix)
        files = [os.path.join(dataroot, entry) for entry in entries]
        resize = not check_images(files, f"{path}: ")
        result[domain] = Images(files, classes + (labels == "reference"), resize)
    return result


def check_entries(path, entries, classes, at_least, every_class):
    """InputError unless a list has enough entries, its classes, and labels that fit the folders."""
    if len(entries) < at_least:
        raise InputError(f"{path} has {len(entries)} images, fewer than one batch of {at_least}: "
                         "use a smaller --meta_batch_size")
    counts = np.bincount(classes, minlength=len(CLASSES))
    if every_class and not counts.all():
        raise InputError(f"{path} has no image of the class {CLASSES[int(counts.argmin())]}: "
                         "every domain needs all seven")
    for entry, label in zip(entries, classes):
        folder = os.path.basename(os.path.dirname(entry))
        if folder in CLASSES and folder != CLASSES[label]:
            raise InputError(f"{path} gives {entry} the label of {CLASSES[label]}: its folder says "
                             f"{folder}. Write the lists with make_filelist.py")


def check_held_out(path, entries, training, suffix):
    """InputError if a held-out list shares an entry with the training list of its domain."""
    shared = set(entries).intersection(training[0]) if suffix and training else ()
    if shared:
        raise InputError(f"{path} holds {min(shared)}, which is in the training list too: held-out "
                         "images must not be trained on. Write the lists with make_filelist.py")


def thinned(images, count):
    """At most `count` of some Images, evenly from their list: the classes keep their shares."""
    size = len(images.paths)
    rows = np.arange(min(count, size)) * size // min(count, size)
    return images._replace(paths=[images.paths[row] for row in rows], labels=images.labels[rows])


def data_name(dataroot):
    """What results on the data must be called: "PACS", or "stand-in for PACS"."""
    standin = os.path.exists(os.path.join(dataroot, STANDIN_NOTE))
    return "stand-in for PACS" if standin else "PACS"


# ---------------------------------------------------------------- image files


def png_header(content):
    """Header of a PNG file's bytes; None if there is none."""
    if len(content) < 26 or content[12:16] != b"IHDR":
        return None
    width, height = struct.unpack(">II", content[16:24])
    return Header(height, width, PNG_CHANNELS.get(content[25], 0), b"IEND" in content[-64:])


def jpeg_header(content):
    """Header of a JPEG file's bytes; None if there is none."""
    size, position = None, 2
    while position + 9 < len(content) and content[position] == 0xFF:
        marker = content[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker in JPEG_BARE:
            position += 2
        elif marker == 0xDA:  # pixels follow; in them, FF D9 can only be the end
            whole = content.rfind(b"\xff\xd9") > position
            return size and Header(*size, whole=whole)
        else:
            if marker in JPEG_FRAMES:
                size = struct.unpack(">HHB", content[position + 5:position + 10])
            position += 2 + struct.unpack(">H", content[position + 2:position + 4])[0]
    return None


def read_header(path):
    """Header of a JPEG or PNG file, None if it is neither; OSError if it cannot be read."""
    with open(path, "rb") as file:
        content = file.read()
    if content.startswith(PNG_SIGNATURE):
        return png_header(content)
    return jpeg_header(content) if content.startswith(b"\xff\xd8") else None


def check_images(paths, place="", decode_all=False):
    """Checks files by their headers; what looks damaged, or all, also by decoding.

    Args:
      paths: of the files. place: begins the error's sentence, for example the list's name.
      decode_all: decode every file: milliseconds each, and finds all damage.
    Returns:
      Whether all images are 227 x 227, so that none is resized.
    Raises:
      InputError: names the first file that is missing, is not a whole JPEG or PNG image, or has
        not three colour channels.
    """
    suspects, same_size = [], True
    for path in paths:
        try:
            header = read_header(path)
        except OSError as error:
            raise InputError(f"{place}the image {path} cannot be read ({error.strerror}): check "
                             "the list and --dataroot") from None
        if header is None:
            raise InputError(f"{place}{path} is not a JPEG or PNG image: replace it, or take it "
                             "out of the list")
        if header.channels != 3:
            kind = CHANNEL_NAMES.get(header.channels, "not an RGB")
            raise InputError(f"{place}{path} is {kind} image: expected RGB. Convert it")
        same_size &= (header.height, header.width) == (SIDE, SIDE)
        if decode_all or not header.whole:
            suspects.append(path)
    for _ in decoded(suspects, resize=True):
        pass
    return same_size


@contextlib.contextmanager
def naming_files(paths):
    """`with naming_files(paths):` a file that cannot be decoded any more becomes an InputError.

    TensorFlow's error about it does not say which one it is.
    """
    try:
        yield
    except tf.errors.OpError:
        check_images(paths, decode_all=True)
        raise


def decoded(paths, resize, threads=0, config=None):
    """Yields the RGB pixels of each file in turn, decoded by tf.data in parallel; see decode.

    Args:
      config: tf.ConfigProto of the session that does it.
    Raises:
      InputError: names the file that cannot be decoded.
    """
    if not len(paths):
        return
    with tf.Graph().as_default():
        source = tf.placeholder(tf.string, [None])
        dataset = tf.data.Dataset.from_tensor_slices(source)
        dataset = dataset.map(lambda path: decode(path, resize), parallel_calls(threads))
        iterator = tf.data.make_initializable_iterator(dataset.with_options(plain_options()))
        pixels = iterator.get_next()
        with tf.Session(config=config) as session:
            session.run(iterator.initializer, {source: paths})
            for path in paths:
                try:
                    yield session.run(pixels)
                except tf.errors.OpError as error:
                    raise InputError(f"the image {path} cannot be decoded, it is damaged or gone "
                                     f"({type(error).__name__}): replace it, or take it out of "
                                     "the list") from None


def read_pixels(sources, threads=0, config=None):
    """All images of some Images, one after the other, for `pixels` of the pipelines.

    Args:
      sources: list of Images. config: tf.ConfigProto of the session that decodes.
    Returns:
      uint8 [N, 227, 227, 3] RGB; float32 if an image is resized.
    Raises:
      InputError: names the file that cannot be decoded.
    """
    paths = [path for images in sources for path in images.paths]
    resize = any(images.resize for images in sources)
    pixels = np.empty((len(paths), SIDE, SIDE, 3), np.float32 if resize else np.uint8)
    for row, image in zip(pixels, decoded(paths, resize, threads, config)):
        row[...] = image
    return pixels


def fits_in_memory(sources):
    """Whether read_pixels' result and TensorFlow's copy of it take less than half the free memory.

    False where the system does not tell.
    """
    if not hasattr(os, "sysconf") or "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return False
    count = sum(len(images.paths) for images in sources)
    size = 4 if any(images.resize for images in sources) else 1
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2 * count * SIDE * SIDE * 3 * size < free / 2


# ---------------------------------------------------------------- pixels in the graph


def decode(path, resize):
    """RGB pixels [227, 227, 3] of an image file, in the graph.

    Args:
      path: string scalar. JPEG or PNG: the PNG decoder reads both, as the reference uses it.
      resize: False: uint8, and the file must be 227 x 227. True: float32, resized bilinearly on
        TensorFlow's legacy grid (no half-pixel centres), which leaves 227 x 227 as it is.
    """
    pixels = tf.image.decode_png(tf.io.read_file(path), channels=3)
    if not resize:
        return tf.ensure_shape(pixels, [SIDE, SIDE, 3])
    return tf.cast(tf.image.resize_images(pixels, [SIDE, SIDE]), tf.float32)


def preprocess(pixels):
    """RGB [..., 3], uint8 or float32 0..255, -> float32 BGR with ImageNet's mean removed."""
    return tf.reverse(tf.cast(pixels, tf.float32) - MEAN_RGB, axis=[-1])


def one_hot(labels):
    """int32 [...] -> float32 [..., 7]; a label outside 0..6 gives zeros (as in the reference)."""
    return tf.one_hot(labels, len(CLASSES), dtype=tf.float32)


def parallel_calls(threads):
    """Images decoded at the same time."""
    return threads or os.cpu_count() or 1


def plain_options():
    """tf.data options without graph rewriting, which would copy all images at each restart."""
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    if hasattr(options, "autotune"):  # TensorFlow 2.x
        options.autotune.enabled = False
    else:
        options.experimental_optimization.autotune = False
    return options


class Pool:
    """Where a pipeline gets images from by their number: files, or pixels in memory; and labels.

    Args:
      resize: whether an image is not 227 x 227. cached: whether pixels are fed instead of paths.
    """

    def __init__(self, resize, cached):
        self._resize, self._cached = resize, cached
        pixel_type = tf.float32 if resize else tf.uint8
        self._images = (tf.placeholder(pixel_type, [None, SIDE, SIDE, 3]) if cached
                        else tf.placeholder(tf.string, [None]))
        self._labels = tf.placeholder(tf.int32, [None])

    def pixels(self, index):
        """RGB [227, 227, 3] of one image."""
        image = self._images[index]
        return image if self._cached else decode(image, self._resize)

    def one_hot(self, indexes):
        """float32 [..., 7]."""
        return one_hot(tf.gather(self._labels, indexes))

    def feed(self, sources, pixels):
        """What to feed: a list of Images, and read_pixels' result of them if cached."""
        images = pixels if self._cached else [path for part in sources for path in part.paths]
        return {self._images: images,
                self._labels: np.concatenate([part.labels for part in sources])}


# ---------------------------------------------------------------- episodes


def uniform(shape, seed, stream, number):
    """float32 `shape` in [0, 1) from (seed, stream, number); number: int64 scalar, of the step."""
    return tf.random.stateless_uniform(
        shape, seed=tf.stack([tf.constant(seed + (stream << 32), tf.int64), number]))


def permutation(count, seed, stream, number):
    """int32 [count], a random order of 0 .. count - 1."""
    return tf.argsort(uniform([count], seed, stream, number))  # equal draws keep their order


def roles(seed, step):
    """int32 [3]: the numbers of the sources that are a, a1 (meta-train) and b (meta-test)."""
    return permutation(3, seed, ROLE_STREAM, step)


def episode_rows(counts, batch_size, seed, step):
    """Which images make up an episode: int32 [3, batch_size] numbers in the pool, by role.

    Each source is passed through in a new order per epoch of count // batch_size batches; what is
    left over waits for the next epoch.
    """
    rows, first = [], 0
    for number, count in enumerate(counts):
        batches = count // batch_size
        order = permutation(count, seed, SHUFFLE_STREAM + number, step // batches)
        start = tf.cast(step % batches, tf.int32) * batch_size
        rows.append(first + order[start:start + batch_size])
        first += count
    return tf.reshape(tf.gather(tf.stack(rows), roles(seed, step)), [3, batch_size])


def episodes(sources, batch_size, seed, threads=0, pixels=None, flip_probability=FLIP_PROBABILITY):
    """The endless pipeline of episodes.

    It is (re)started with `session.run(pipeline.initializer, pipeline.feed(step))`.
    `pipeline.next_batch()` gives the tensors of the next step:
      images float32 [3, b, 227, 227, 3], BGR, mean removed, in the order of `roles`;
      one-hot labels float32 [3, b, 7];
    b = batch_size, or of several processes its share. It runs on the host: on the NPU only dense
    operations are left for the device.

    Args:
      sources: list of three Images. batch_size: images per source, at most as many as it has.
      seed: of everything random. threads: that decode; 0: one per core.
      pixels: read_pixels(sources), or None to decode the files at each use.
      flip_probability: of mirroring an image.
    """
    counts, part = [len(images.labels) for images in sources], npu_session.share(batch_size, 3)
    own = batch_size // npu_session.size()
    pool = Pool(any(images.resize for images in sources), cached=pixels is not None)
    first_step = tf.placeholder(tf.int64, [])

    def slices(step):
        rows = episode_rows(counts, batch_size, seed, step)
        flips = uniform([3 * batch_size], seed, FLIP_STREAM, step) < flip_probability
        flips = tf.reshape(flips, [3, batch_size])
        return tf.data.Dataset.from_tensor_slices(tuple(
            tf.reshape(array[:, part], [3 * own]) for array in (rows, flips)))

    def image(row, flip):
        rgb = pool.pixels(row)
        return tf.cond(flip, lambda: tf.reverse(rgb, axis=[1]), lambda: rgb), pool.one_hot(row)

    def batch(images, labels):
        return (tf.reshape(preprocess(images), [3, own, SIDE, SIDE, 3]),
                tf.reshape(labels, [3, own, len(CLASSES)]))

    dataset = tf.data.Dataset.range(first_step, np.iinfo(np.int64).max).flat_map(slices)
    dataset = dataset.map(image, parallel_calls(threads)).batch(3 * own, drop_remainder=True)
    # Floats are made last: prefetched pixels stay uint8, a quarter of the memory.
    dataset = dataset.prefetch(PREFETCHED).map(batch).with_options(plain_options())
    iterator = tf.data.make_initializable_iterator(dataset)

    def feed(step):
        return {**pool.feed(sources, pixels), first_step: step}

    return Pipeline(iterator.initializer, iterator.get_next, feed)


# ---------------------------------------------------------------- evaluation


def batch_count(count, batch_size):
    """Batches of `evaluation` over `count` images."""
    return -(-count // batch_size)


def evaluation(batch_size, capacity, threads=0, resize=False, cached=False):
    """A pipeline that passes once through any Images, in batches of one size.

    It is started with `session.run(pipeline.initializer, pipeline.feed(images, pixels))`, pixels
    being read_pixels([images]) if cached, and ends after batch_count batches.
    `pipeline.next_batch()` gives the tensors:
      images float32 [batch_size, 227, 227, 3], BGR, mean removed;
      one-hot labels float32 [batch_size, 7];
      valid float32 [batch_size], 0 for what fills up the last batch (its last image again).

    Args:
      capacity: most images that are evaluated in one pass. What is fed is filled up to so many:
        the NPU wants feeds of one shape.
      resize: whether any image to be evaluated is not 227 x 227.
    """
    pool, count = Pool(resize, cached), tf.placeholder(tf.int64, [])
    last = count - 1

    def image(index):
        row = tf.minimum(index, last)
        return pool.pixels(row), pool.one_hot(row), tf.cast(index <= last, tf.float32)

    batches = last // batch_size + 1
    dataset = tf.data.Dataset.range(batches * batch_size).map(image, parallel_calls(threads))
    dataset = dataset.batch(batch_size, drop_remainder=True).prefetch(PREFETCHED)
    dataset = dataset.map(lambda pixels, labels, valid: (preprocess(pixels), labels, valid))
    iterator = tf.data.make_initializable_iterator(dataset.with_options(plain_options()))

    def feed(images, pixels=None):
        rows = np.minimum(np.arange(capacity), len(images.labels) - 1)
        filled = Images([images.paths[row] for row in rows], images.labels[rows], images.resize)
        return {**pool.feed([filled], None if pixels is None else pixels[rows]),
                count: len(images.labels)}

    return Pipeline(iterator.initializer, iterator.get_next, feed)
