"""Draws pictures in PACS's folder layout with their lists, for trying the programs without PACS.

The pictures come from standin_pacs.py and are NOT PACS: the file STANDIN.txt, written beside them,
says so, and every result made with them is labelled. With --weights_path it also writes random
weights in the format of bvlc_alexnet.npy, which are NOT trained.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import contextlib
import multiprocessing
import os
import pickle
import shutil
import struct
import sys

import numpy as np
import tensorflow.compat.v1 as tf
from tqdm import tqdm

import data_generator
import make_filelist
import npu_session
from data_generator import CLASSES, DOMAINS
from make_filelist import DEFAULT_DATAROOT, DEFAULT_FOLDER, STANDIN_NAME
from npu_session import InputError, argument_parser, boolean, run_main, seed_number
from standin_pacs import draw, send_pictures

# Training images of PACS per class, in the order of CLASSES; the stand-in keeps the proportions.
PACS_COUNTS = {
    "art_painting": (341, 229, 256, 165, 180, 265, 404),
    "cartoon": (350, 411, 311, 121, 291, 259, 364),
    "photo": (170, 181, 163, 167, 179, 251, 388),
    "sketch": (694, 665, 677, 547, 734, 71, 143),
}
HELD_OUT_SHARE = 1 / 9  # of the training images; PACS holds out a tenth of all
DEFAULT_IMAGES = 50
ENDINGS = dict(dict.fromkeys(DOMAINS, ".jpg"), sketch=".png")  # as in PACS
MARKER_TEXT = """\
This folder holds generated stand-in pictures. They are NOT PACS, although the folders carry PACS's
names and format. Results made with them must be called stand-in results.

made by = make_standin_data.py
seed = {}
training images per class and domain, on average = {}
"""
# Shapes of bvlc_alexnet.npy, in the order of the file; (weights, biases) each.
WEIGHT_SHAPES = {
    "fc6": (9216, 4096), "fc7": (4096, 4096), "fc8": (4096, 1000), "conv3": (3, 3, 256, 384),
    "conv2": (5, 5, 48, 256), "conv1": (11, 11, 3, 96), "conv5": (3, 3, 192, 256),
    "conv4": (3, 3, 192, 384),
}
DRAWN_ROWS = 2 ** 22  # numbers drawn at a time


# ---------------------------------------------------------------- which pictures


def counts(images):
    """{domain: [(training, held-out) images of each class]} for `images` per class on average."""
    scale = images * len(DOMAINS) * len(CLASSES) / sum(map(sum, PACS_COUNTS.values()))
    result = {}
    for domain, originals in PACS_COUNTS.items():
        training = [max(1, int(round(scale * original))) for original in originals]
        result[domain] = [(count, max(1, int(round(HELD_OUT_SHARE * count))))
                          for count in training]
    return result


def entry(domain, label, number):
    """Path of a picture below the data folder."""
    return f"{domain}/{CLASSES[label]}/{STANDIN_NAME}{number + 1:04d}{ENDINGS[domain]}"


def folds(images):
    """The stand-in's lists, in the form of make_filelist.drawn_folds."""
    result = {}
    for domain, classes in counts(images).items():
        training, held = [], []
        for label, (count, held_count) in enumerate(classes):
            entries = [(entry(domain, label, number), label)
                       for number in range(count + held_count)]
            training += entries[:count]
            held += entries[count:]
        result[domain] = {"": training, "_crossval": held}
    return result


def draw_tasks(images, seed):
    """Arguments of standin_pacs.draw for all pictures: [(seed, domain, label, number)]."""
    return [(seed, DOMAINS.index(domain), label, number)
            for domain, classes in counts(images).items()
            for label, pair in enumerate(classes) for number in range(sum(pair))]


# ---------------------------------------------------------------- drawing in several processes


def start_worker(context, tasks, readers):
    """Starts a process that draws the tasks, and appends its connection to readers.

    Returns the process.
    """
    reader, writer = context.Pipe(duplex=False)
    readers.append(reader)
    process = context.Process(target=send_pictures, args=(writer, tasks, readers), daemon=True)
    process.start()
    # Only the worker may hold the writing end: its death then shows as the end of the stream.
    writer.close()
    return process


def drawn_by_workers(tasks, workers):
    """Yields draw(*task) of every task, in order, drawn in `workers` processes.

    Raises:
      ChildProcessError: if a worker dies, for example for lack of memory.
    """
    # A forked worker does not import TensorFlow again, which takes longer than the drawing.
    fork = "fork" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if fork else None)
    processes, readers = [], []
    try:
        for first in range(workers):
            processes.append(start_worker(context, tasks[first::workers], readers))
        for number in range(len(tasks)):
            yield readers[number % workers].recv()
    except EOFError:
        raise ChildProcessError("a drawing process died; try again with --workers=1") from None
    finally:
        for process in processes:
            process.kill()
            process.join()
        for reader in readers:
            reader.close()


def drawn_pictures(tasks, workers):
    """Iterator over draw(*task) of every task, in order, for any number of workers."""
    workers = min(workers, len(tasks))
    if workers == 1:
        return (draw(*task) for task in tasks)
    return drawn_by_workers(tasks, workers)


# ---------------------------------------------------------------- files


@contextlib.contextmanager
def encoders():
    """`with encoders() as encode:` encode(uint8 [H, W, 3], ".jpg" or ".png") gives the bytes."""
    with tf.Graph().as_default():
        pixels = tf.placeholder(tf.uint8, [None, None, 3])
        content = {".jpg": tf.image.encode_jpeg(pixels, format="rgb"),
                   ".png": tf.image.encode_png(pixels)}
        with tf.Session() as session:
            yield lambda picture, ending: session.run(content[ending], {pixels: picture})


@contextlib.contextmanager
def complete_folder(folder):
    """`with complete_folder(folder) as path:` fills path, which becomes `folder` if all goes well.

    If the block fails, path is removed and nothing else has changed.
    """
    folder = os.path.abspath(folder)
    temporary = f"{folder}.{os.getpid()}.tmp"
    try:
        os.makedirs(temporary)
        yield temporary
        if os.path.isdir(folder):  # empty, or stand-in pictures: see check_folder
            shutil.rmtree(folder)
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_folder(dataroot, force):
    """InputError unless pictures may be written: no such folder, empty, or force and stand-in."""
    if not os.path.lexists(dataroot) or os.path.isdir(dataroot) and not os.listdir(dataroot):
        return
    if not os.path.exists(os.path.join(dataroot, data_generator.STANDIN_NOTE)):
        raise InputError(f"{dataroot} exists and is no folder of stand-in pictures: choose another "
                         "--dataroot")
    if not force:
        raise InputError(f"{dataroot} holds stand-in pictures already: use them, choose another "
                         "--dataroot, or replace them with --force")


def write_pictures(folder, tasks, pictures):
    """Encodes the pictures of the tasks into a folder."""
    for domain in DOMAINS:
        for class_name in CLASSES:
            os.makedirs(os.path.join(folder, domain, class_name))
    with encoders() as encode:
        for (_, domain, label, number), picture in zip(tasks, pictures):
            name = entry(DOMAINS[domain], label, number)
            with npu_session.replacing(os.path.join(folder, name), "wb") as file:
                file.write(encode(picture, os.path.splitext(name)[1]))


def make_standin_data(dataroot, filelist_root, images=DEFAULT_IMAGES, seed=0, workers=None,
                      force=False):
    """Writes the pictures with the file that marks them as stand-in, and their lists.

    Args:
      dataroot: folder to write, its parents made if missing. filelist_root: folder of the lists.
      images: training images per class and domain, on average; the classes have PACS's shares.
      seed: int 0..2**31-1. workers: processes that draw; None takes one per processor.
      force: replace stand-in pictures that are there.
    Raises:
      InputError: the folder or the lists hold other data, or stand-in pictures and force is off.
      OSError: a file cannot be written; what was there before is untouched.
    """
    check_folder(dataroot, force)
    make_filelist.check_replaceable(filelist_root, folds(images))
    tasks = draw_tasks(images, seed)
    with complete_folder(dataroot) as folder:
        with open(os.path.join(folder, data_generator.STANDIN_NOTE), "w") as file:
            file.write(MARKER_TEXT.format(seed, images))
        pictures = drawn_pictures(tasks, workers or os.cpu_count() or 1)
        write_pictures(folder, tasks, tqdm(pictures, total=len(tasks), unit="picture",
                                           disable=None))
    make_filelist.write_lists(filelist_root, folds(images))


def data_root(dataroot, default=DEFAULT_DATAROOT, filelist_root=DEFAULT_FOLDER, seed=0,
              images=DEFAULT_IMAGES):
    """The data folder: dataroot where it is given (not None), else `default`.

    A missing or empty `default` is filled with stand-in pictures, and filelist_root with their
    lists. A folder that the user named is never filled: stand-in pictures in place of a mistyped
    path would pass for the user's data.
    """
    if dataroot is not None:
        return dataroot
    if not os.path.isdir(default) or not os.listdir(default):
        npu_session.require_one_process(
            "several would draw stand-in pictures over each other: run make_standin_data.py "
            "first, or name a data folder")
        print(f"no --dataroot and no {default}: drawing stand-in pictures (not PACS) into "
              f"{default}", flush=True)
        make_standin_data(default, filelist_root, images, seed)
    return default


# ---------------------------------------------------------------- weights


def write_weights(path, seed=0, shapes=None):
    """Writes random weights as bvlc_alexnet.npy has them: He's normals, all biases 0.

    The file is a 0-d object array holding {layer: [weights, biases]}, pickled as Python 2 did
    (protocol 2, arrays as byte strings), which today's pickle cannot write.

    Args:
      shapes: {layer: shape of its weights}; default: AlexNet's, 244 MB.
    """
    random = np.random.RandomState(seed)
    with npu_session.replacing(path, "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(pickle.PROTO + b"\x02" + array_head((), "O8", (3, "|", None, None, None, -1, -1,
                                                                  63)))
        file.write(pickle.EMPTY_LIST + pickle.EMPTY_DICT)
        for layer, shape in (shapes or WEIGHT_SHAPES).items():
            file.write(pickled(layer, unicode=True) + pickle.EMPTY_LIST)
            scale = np.float32(np.sqrt(2 / np.prod(shape[:-1])))
            write_array(file, shape, (scale * block for block in normals(random, shape)))
            write_array(file, shape[-1:], [np.zeros(shape[-1], np.float32)])
            file.write(pickle.SETITEM)
        file.write(pickle.APPEND + pickle.TUPLE + pickle.BUILD + pickle.STOP)


def normals(random, shape):
    """Standard normal numbers, float32, as many as the shape has, in blocks."""
    left = int(np.prod(shape))
    while left:
        count = min(left, DRAWN_ROWS)
        yield random.standard_normal(count).astype(np.float32)
        left -= count


TUPLES = {0: pickle.EMPTY_TUPLE, 1: pickle.TUPLE1, 2: pickle.TUPLE2, 3: pickle.TUPLE3}


def pickled(value, unicode=False):
    """Python 2's pickle of None, a bool, an int, a str (as bytes unless unicode) or a tuple."""
    if value is None or isinstance(value, bool):
        return {None: pickle.NONE, True: pickle.NEWTRUE, False: pickle.NEWFALSE}[value]
    if isinstance(value, int):
        return pickle.BININT + struct.pack("<i", value)
    if isinstance(value, str):
        text = value.encode("ascii")
        if unicode:
            return pickle.BINUNICODE + struct.pack("<I", len(text)) + text
        return pickle.SHORT_BINSTRING + struct.pack("<B", len(text)) + text
    items = b"".join(map(pickled, value))
    return (items + TUPLES[len(value)] if len(value) in TUPLES
            else pickle.MARK + items + pickle.TUPLE)


def pickled_name(module, name):
    """Python 2's pickle of a class or function of a module."""
    return pickle.GLOBAL + f"{module}\n{name}\n".encode("ascii")


def array_head(shape, kind, kind_state):
    """Python 2's pickle of a NumPy array up to its content, inside an open tuple."""
    kind = (pickled_name("numpy", "dtype") + pickled((kind, 0, 1)) + pickle.REDUCE
            + pickled(kind_state) + pickle.BUILD)
    empty = (pickled_name("numpy.core.multiarray", "_reconstruct")
             + pickled_name("numpy", "ndarray") + pickled((0,)) + pickled("b") + pickle.TUPLE3
             + pickle.REDUCE)
    return empty + pickle.MARK + pickled(1) + pickled(tuple(shape)) + kind + pickled(False)


def write_array(file, shape, blocks):
    """Appends a float32 array, given as blocks of its numbers in C order, to a pickled list."""
    file.write(array_head(shape, "f4", (3, "<", None, None, None, -1, -1, 0)))
    file.write(pickle.BINSTRING + struct.pack("<i", 4 * int(np.prod(shape))))
    for block in blocks:
        file.write(block.astype("<f4").tobytes())
    file.write(pickle.TUPLE + pickle.BUILD + pickle.APPEND)


# ---------------------------------------------------------------- program


def positive(text):
    """argparse type: an integer above 0."""
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def parse_args(argv=None):
    """Parses the command line; argparse ends the program on an unknown flag."""
    parser = argument_parser(__doc__)
    add = parser.add_argument
    add("--dataroot", default=DEFAULT_DATAROOT, help="folder to write the pictures into")
    add("--filelist_root", default=DEFAULT_FOLDER, help="folder to write the lists into")
    add("--images", type=positive, default=DEFAULT_IMAGES,
        help="training images per class and domain, on average: classes keep PACS's shares; a "
             "ninth of them more is held out")
    add("--seed", type=seed_number, default=0, help="same seed, same pictures")
    add("--workers", type=positive, help="processes that draw; default: one per processor")
    add("--force", type=boolean, nargs="?", const=True, default=False,
        help="replace stand-in pictures in --dataroot")
    add("--weights_path", metavar="FILE",
        help="also write random weights in the format of bvlc_alexnet.npy (244 MB) to this file, "
             "which must not exist")
    return parser.parse_args(argv)


def main(argv=None):
    """Writes the files and names the folder."""
    args = parse_args(argv)
    if args.weights_path and os.path.lexists(args.weights_path):
        raise InputError(f"{args.weights_path} exists: random weights do not replace a file")
    make_standin_data(args.dataroot, args.filelist_root, args.images, args.seed, args.workers,
                      args.force)
    for domain, classes in counts(args.images).items():
        print(f"{domain}: {sum(count for count, _ in classes)} training and "
              f"{sum(held for _, held in classes)} held-out pictures")
    print(f"stand-in data (not PACS), seed {args.seed}, in {args.dataroot}, lists in "
          f"{args.filelist_root}")
    if args.weights_path:
        write_weights(args.weights_path, args.seed)
        print(f"random weights (not trained) in {args.weights_path}")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
