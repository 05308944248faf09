"""Draws stand-in faces with annotated points, in CelebA's folders and lists, and MAFL's lists.

They are for users without CelebA: the results are stand-in results, and are named so everywhere.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import contextlib
import multiprocessing
import numbers
import os
import shutil
import sys
import tempfile

import numpy as np
import tensorflow.compat.v1 as tf
from tqdm import tqdm

import landmark_lists
import npu_session
from landmark_lists import STANDIN_NOTE
from npu_session import InputError, argument_parser, boolean, replacing, run_main, seed_number
from standin_faces import HEIGHT, WIDTH, draw_face, send_faces

DEFAULT_FOLDER = "./standin_faces"
TRAINING_FOLDER, HELD_OUT_FOLDER = "data10w", "img_align_celeba"
SETS = ("unlabelled", "regressor", "test")  # the position is the split number of draw_face
ENTRIES = (TRAINING_FOLDER, HELD_OUT_FOLDER, landmark_lists.LANDMARK_FILE,
           landmark_lists.PARTITION_FILE, landmark_lists.TRAINING_FILE, landmark_lists.TESTING_FILE)
MAX_COUNT = 999999  # names have six digits
JPEG_QUALITY = 92
NOTE_TEXT = """\
This folder holds drawn stand-in faces. They are NOT CelebA, although folders and lists carry
CelebA's names and format. Results made with them must be called stand-in results.

made by = make_standin_data.py
seed = {}
unlabelled training images = {}
regressor training images = {}
test images = {}
"""


def check_integer(name, value, low, high):
    """Raises InputError unless value is an integer in low..high."""
    if not isinstance(value, numbers.Integral) or not low <= value <= high:
        raise InputError(
            f"{name} is {value!r}, expected an integer from {low} to {high}: correct it.")


def refuse_existing(folder, force):
    """InputError if the folder holds anything we would write, unless force may replace it.

    Only what this program made is ever replaced: the folder must carry its note.
    """
    present = [name for name in ENTRIES if os.path.lexists(os.path.join(folder, name))]
    made_by_us = os.path.isfile(os.path.join(folder, STANDIN_NOTE))
    if not present or (force and made_by_us):
        return
    path = os.path.join(folder, present[0])
    if made_by_us:
        raise InputError(f"{path} exists already: choose another folder, or replace the stand-in "
                         "data in it with --force")
    raise InputError(f"{path} exists and is not stand-in data (there is no {STANDIN_NOTE} beside "
                     "it): choose another folder")


# ---------------------------------------------------------------- drawing


def start_worker(context, tasks, readers):
    """Starts a process that draws the tasks, and appends its connection to readers.

    Returns the process.
    """
    reader, writer = context.Pipe(duplex=False)
    readers.append(reader)
    process = context.Process(target=send_faces, args=(writer, tasks, readers), daemon=True)
    process.start()
    # Only the worker may hold the writing end: its death then shows as the end of the stream.
    writer.close()
    return process


def received(readers, count):
    """Yields `count` results of workers that take turns."""
    try:
        for number in range(count):
            yield readers[number % len(readers)].recv()
    except EOFError:
        raise ChildProcessError("a drawing process died; try again with --workers=1") from None


@contextlib.contextmanager
def drawn_faces(tasks, workers):
    """`with drawn_faces(...) as faces:` iterator over draw_face(*task) of every task, in order.

    With more than one worker they start at once, before the block opens a TensorFlow session, whose
    threads must not be forked.
    """
    workers = min(workers, len(tasks))
    if workers == 1:
        yield (draw_face(*task) for task in tasks)
        return
    # A forked worker does not import TensorFlow again, which takes longer than many drawings.
    fork = "fork" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if fork else None)
    processes, readers = [], []
    try:
        for first in range(workers):
            processes.append(start_worker(context, tasks[first::workers], readers))
        yield received(readers, len(tasks))
    finally:
        for process in processes:
            process.kill()
            process.join()
        for reader in readers:
            reader.close()


@contextlib.contextmanager
def jpeg_encoder():
    """`with jpeg_encoder() as encode:` encode(uint8 [218, 178, 3]) gives the bytes of a JPEG."""
    with tf.Graph().as_default():
        pixels = tf.placeholder(tf.uint8, [HEIGHT, WIDTH, 3])
        encoded = tf.image.encode_jpeg(pixels, quality=JPEG_QUALITY)
        config = tf.ConfigProto(device_count={"GPU": 0}, intra_op_parallelism_threads=1,
                                inter_op_parallelism_threads=1)
        with tf.Session(config=config) as session:
            yield session.make_callable(encoded, [pixels])


# ---------------------------------------------------------------- files


def image_names(counts):
    """File names of the three sets, numbered on from set to set as in CelebA."""
    names = [f"{number:06d}.jpg" for number in range(1, sum(counts) + 1)]
    ends = np.cumsum(counts)
    return [names[end - count:end] for count, end in zip(counts, ends)]


def write_images(folder, names, seed, workers):
    """Draws all images of `names`, one list per set, below a folder.

    Returns:
      Their points, int64 [N, 5, 2], in the order of the names.
    """
    for name in (TRAINING_FOLDER, HELD_OUT_FOLDER):
        os.mkdir(os.path.join(folder, name))
    tasks = [(seed, split, number) for split, group in enumerate(names)
             for number in range(len(group))]
    paths = [os.path.join(folder, HELD_OUT_FOLDER if split == SETS.index("test")
                          else TRAINING_FOLDER, name)
             for split, group in enumerate(names) for name in group]
    points = []
    with drawn_faces(tasks, workers) as faces, jpeg_encoder() as encode:
        bar = tqdm(faces, "faces", len(tasks), unit="image", disable=None)
        for path, (image, landmarks) in zip(paths, bar):
            with open(path, "wb") as file:
                file.write(encode(image))
            points.append(landmarks)
    return np.array(points)


def write_lists(folder, names, points):
    """Writes CelebA's two lists and MAFL's two into a folder."""
    unlabelled, regressor, test = names
    path = {name: os.path.join(folder, name) for name in ENTRIES}
    landmark_lists.write_landmarks(path[landmark_lists.LANDMARK_FILE],
                                   unlabelled + regressor + test, points)
    parts = dict.fromkeys(unlabelled + regressor, landmark_lists.TRAINING)
    parts.update((name, landmark_lists.TESTING) for name in test)
    landmark_lists.write_partition(path[landmark_lists.PARTITION_FILE], parts)
    landmark_lists.write_lines(path[landmark_lists.TRAINING_FILE], regressor)
    landmark_lists.write_lines(path[landmark_lists.TESTING_FILE], test)


def move_into_place(staging, folder, note):
    """Replaces the entries of `folder` by those of `staging`.

    The note comes first: stand-in faces never lie there without it.
    """
    with replacing(os.path.join(folder, STANDIN_NOTE)) as file:
        file.write(note)
    for name in ENTRIES:
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            shutil.rmtree(path)
        os.replace(os.path.join(staging, name), path)


def make_standin_data(folder, count=4000, regressor_count=1000, test_count=250, seed=0,
                      workers=None, force=False):
    """Draws stand-in faces into `folder`, which is made if it is missing; all of them or none.

    data10w/ gets `count` unlabelled images and the images the regressor is fitted on,
    img_align_celeba/ the held-out test images; the lists stand beside them.

    Args:
      folder: str.
      count, regressor_count, test_count: int, images of the three sets; a smaller set is the
        beginning of a larger one of the same seed, only the numbers in the names differ.
      seed: int 0..2**31-1.
      workers: int, processes that draw; None takes one per processor.
      force: bool, replace stand-in data that is there.
    Raises:
      InputError: for a bad number, or if files exist that may not be replaced.
      OSError: if the folder cannot be written; what was there before is untouched.
    """
    workers = (os.cpu_count() or 1) if workers is None else workers
    counts = (count, regressor_count, test_count)
    for name, value in zip(("count", "regressor_count", "test_count"), counts):
        check_integer(name, value, 1, MAX_COUNT)
    check_integer("count + regressor_count + test_count", sum(counts), 1, MAX_COUNT)
    check_integer("seed", seed, 0, 2**31 - 1)
    check_integer("workers", workers, 1, MAX_COUNT)
    refuse_existing(folder, force)
    os.makedirs(folder, exist_ok=True)
    staging = tempfile.mkdtemp(prefix=".standin-", dir=folder)
    try:
        names = image_names(counts)
        write_lists(staging, names, write_images(staging, names, seed, workers))
        move_into_place(staging, folder, NOTE_TEXT.format(seed, *counts))
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def data_folder(data_path, default, seed=0, **counts):
    """The folder to read: data_path where it is given, else `default`.

    A missing or empty `default` is filled with stand-in faces. A folder that the user named is
    never filled: stand-in faces in place of a mistyped path would pass for the user's data.
    counts: as of make_standin_data.
    """
    if data_path is not None:
        return data_path
    if not os.path.isdir(default) or not os.listdir(default):
        npu_session.require_one_process(
            "several would draw stand-in faces over each other: run make_standin_data.py "
            "first, or name a data folder")
        print(f"no data folder given and no {default}: drawing stand-in faces (not CelebA) into "
              f"{default}", flush=True)
        make_standin_data(default, seed=seed, **counts)
    return default


def parse_args(argv=None):
    """Parses the command line; argparse ends the program on an unknown flag."""
    parser = argument_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data_path", default=DEFAULT_FOLDER, help="folder to write into")
    add("--count", type=int, default=4000, help="images for unsupervised training only")
    add("--regressor_count", type=int, default=1000,
        help="further training images, on which the landmark regressor is fitted")
    add("--test_count", type=int, default=250, help="held-out images")
    add("--seed", type=seed_number, default=0, help="same seed, same files")
    add("--workers", type=int, help="processes that draw; default: one per processor")
    add("--force", type=boolean, nargs="?", const=True, default=False, metavar="True|False",
        help="replace stand-in data that is there")
    return parser.parse_args(argv)


def main(argv=None):
    """Writes the files and names the folder."""
    args = parse_args(argv)
    make_standin_data(args.data_path, args.count, args.regressor_count, args.test_count, args.seed,
                      args.workers, args.force)
    print(f"stand-in faces (not CelebA): {args.count} + {args.regressor_count} training and "
          f"{args.test_count} test images, seed {args.seed}, in {args.data_path}")


if __name__ == "__main__":
    sys.exit(run_main(main))
