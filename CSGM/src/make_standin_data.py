"""Writes generated digits as MNIST's four gzip idx files, for trying the programs without MNIST.

The pictures come from standin_digits.py and are NOT MNIST: the file STANDIN.txt, written beside
them, says so, and the loader labels every result made with them.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.

import contextlib
import multiprocessing
import numbers
import os
import struct
import sys
import zlib

from tqdm import tqdm

import data_input
import npu_session
from data_input import IMAGE_MAGIC, LABEL_MAGIC
from npu_session import InputError, argument_parser, boolean, run_main
from standin_digits import BLOCK, SIDE, draw_block, send_blocks

SPLITS = ("train", "t10k")  # the position is the split number of draw_block
MAX_COUNT = 2**31 - 1  # idx counts are signed 32-bit integers
COMPRESSION = 6  # level 9 makes the files 2 % smaller and takes 13 times as long
MARKER_TEXT = """\
This folder holds generated stand-in data. It is NOT MNIST, although the files carry MNIST's names
and format. Results made with it must be called stand-in results.

made by = make_standin_data.py
seed = {}
train images = {}
test images = {}
"""


def split_paths(folder, split):
    """Paths of the image and the label file of a split, "train" or "t10k"."""
    return [
        os.path.join(folder, f"{split}-{kind}-ubyte.gz")
        for kind in ("images-idx3", "labels-idx1")
    ]


def check_integer(name, value, low, high):
    """Raises InputError unless value is an integer in low..high."""
    if not isinstance(value, numbers.Integral) or not low <= value <= high:
        raise InputError(
            f"{name} is {value!r}, expected an integer from {low} to {high}: correct it."
        )


def refuse_existing(paths):
    """Raises InputError naming the first of the paths that exists."""
    for path in paths:
        if os.path.lexists(path):
            raise InputError(
                f"{path} exists already, expected a folder without it: choose another folder, or "
                "use --force to replace it with stand-in data."
            )


def split_tasks(seed, split, count):
    """Arguments of draw_block for the blocks that make up `count` images of a split number."""
    return [
        (seed, split, start // BLOCK, min(BLOCK, count - start)) for start in range(0, count, BLOCK)
    ]


def start_worker(context, tasks, readers):
    """Starts a process that draws the tasks, and appends its connection to readers.

    Returns the process.
    """
    reader, writer = context.Pipe(duplex=False)
    readers.append(reader)
    process = context.Process(target=send_blocks, args=(writer, tasks, readers), daemon=True)
    process.start()
    # Only the worker may hold the writing end: its death then shows as the end of the stream.
    writer.close()
    return process


def drawn_by_workers(tasks, workers):
    """Yields draw_block(*task) of every task, in order, drawn in `workers` processes.

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


def drawn_blocks(tasks, workers):
    """Iterator over draw_block(*task) of every task, in order, for any number of workers."""
    workers = min(workers, len(tasks))
    if workers == 1:
        return (draw_block(*task) for task in tasks)
    return drawn_by_workers(tasks, workers)


def gzip_packer():
    """A zlib compressor whose output is a gzip file without a time stamp or a name.

    The gzip module would write a header byte that differs between Python versions.
    """
    return zlib.compressobj(COMPRESSION, zlib.DEFLATED, 16 + zlib.MAX_WBITS)


def write_split(image_file, label_file, count, blocks):
    """Writes one split in idx format, gzip compressed.

    Args:
      image_file, label_file: binary files open for writing.
      count: int, total number of images in blocks.
      blocks: iterable of (images uint8 [b, 28, 28], labels uint8 [b]).
    """
    packer = gzip_packer()
    label_bytes = [struct.pack(">ii", LABEL_MAGIC, count)]
    image_file.write(packer.compress(struct.pack(">iiii", IMAGE_MAGIC, count, SIDE, SIDE)))
    for images, labels in blocks:
        image_file.write(packer.compress(images.tobytes()))
        label_bytes.append(labels.tobytes())
    image_file.write(packer.flush())
    packer = gzip_packer()
    label_file.write(packer.compress(b"".join(label_bytes)) + packer.flush())


@contextlib.contextmanager
def complete_files(paths):
    """Opens a temporary file beside each path; if the block succeeds, moves all to their names.

    If it fails, the temporary files are removed and nothing else has changed.
    """
    temporary = [f"{path}.{os.getpid()}.tmp" for path in paths]
    try:
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(open(path, "wb")) for path in temporary]
        for source, target in zip(temporary, paths):
            os.replace(source, target)
    finally:
        for path in temporary:
            if os.path.exists(path):
                os.remove(path)


def make_standin_data(
    folder, train_count=60000, test_count=10000, seed=0, workers=None, force=False
):
    """Generates stand-in digits into `folder`, which is made if it is missing.

    Args:
      folder: str.
      train_count, test_count: int, images of the two sets; a smaller set is the beginning of a
        larger one of the same seed.
      seed: int 0..2**32-1; the files depend on it and the counts only.
      workers: int, processes that draw; None takes one per processor.
      force: bool, replace files of the same names.
    Raises:
      InputError: for a bad number, or if a file exists and force is off.
      OSError: if the folder cannot be written; files already there are untouched.
    """
    workers = (os.cpu_count() or 1) if workers is None else workers
    counts = (train_count, test_count)
    for name, count in zip(("train_count", "test_count"), counts):
        check_integer(name, count, 1, MAX_COUNT)
    check_integer("seed", seed, 0, 2**32 - 1)
    check_integer("workers", workers, 1, MAX_COUNT)
    paths = [path for split in SPLITS for path in split_paths(folder, split)]
    if not force:
        refuse_existing(paths)
    os.makedirs(folder, exist_ok=True)
    # The marker moves into place first: stand-in files never lie there without it.
    with complete_files([os.path.join(folder, data_input.STANDIN_NOTE)] + paths) as files:
        files[0].write(MARKER_TEXT.format(seed, *counts).encode("ascii"))
        for number, count in enumerate(counts):
            tasks = split_tasks(seed, number, count)
            blocks = drawn_blocks(tasks, workers)
            bar = tqdm(blocks, SPLITS[number], len(tasks), unit="block", disable=None)
            write_split(files[1 + 2 * number], files[2 + 2 * number], count, bar)


def data_folder(data_dir, default, seed=0):
    """The folder to load: data_dir where it is given, else `default`.

    A missing or empty `default` is filled with stand-in digits. A folder that the user named is
    never filled: stand-in digits in place of a mistyped path would pass for the user's data.
    """
    if data_dir is not None:
        return data_input.find_folder(data_dir)
    if not os.path.isdir(default) or not os.listdir(default):
        npu_session.require_one_process(
            "several would draw stand-in digits over each other: run make_standin_data.py "
            "first, or name a data folder")
        print(f"no --data_dir and no {default}: drawing stand-in digits (not MNIST) into {default}",
              flush=True)
        make_standin_data(default, seed=seed)
    return data_input.find_folder(default)


def parse_args(argv=None):
    """Parses the command line; argparse ends the program on an unknown flag."""
    parser = argument_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data_dir", default=data_input.DEFAULT_FOLDER, help="folder to write into")
    add("--train_count", type=int, default=60000, help="training images")
    add("--test_count", type=int, default=10000, help="test images")
    add("--seed", type=int, default=0, help="same seed, same files")
    add("--workers", type=int, help="processes that draw; default: one per processor")
    add("--force", type=boolean, nargs="?", const=True, default=False,
        help="replace existing files of the same names")
    return parser.parse_args(argv)


def main(argv=None):
    """Writes the files and names the folder."""
    args = parse_args(argv)
    make_standin_data(
        args.data_dir, args.train_count, args.test_count, args.seed, args.workers, args.force
    )
    print(
        f"stand-in data (not MNIST): {args.train_count} training and {args.test_count} test images,"
        f" seed {args.seed}, in {args.data_dir}"
    )


if __name__ == "__main__":
    sys.exit(run_main(main))
