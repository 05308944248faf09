"""Writes generated faces as a .mat file in the format of EYB_fc.mat, for trying the programs.

The pictures come from standin_faces.py and are NOT Extended Yale B: the file's key `standin` and
its first 116 bytes, which are text, say so, and the loader labels every result made with them.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import io
import multiprocessing
import numbers
import os
import sys

import numpy as np
import scipy.io
from tqdm import tqdm

from data_input import STANDIN_KEY
from npu_session import InputError, argument_parser, boolean, replacing, run_main, seed_number
from standin_faces import LIGHTS, MODALITIES, SIDE, draw_subject, send_subjects, spread_lights

FOLDER = "Data"
STANDIN_NAME = "EYB_fc"  # the file that is made where none is given
USUAL_NAMES = ("YaleB", STANDIN_NAME)  # the programs' default, and the seed's own file
SUBJECTS, IMAGES, MISSING = 38, 64, 8  # 2424 images, as many as EYB_fc.mat has
MAX_SUBJECTS = 10000
HEADER_BYTES = 116  # of text at the beginning of a MATLAB 5 file
NOTE = ("generated Lambertian faces, NOT Extended Yale B: results made with them must be called "
        "stand-in results")


def check_integer(name, value, low, high):
    """Raises InputError unless value is an integer in low..high."""
    if not isinstance(value, numbers.Integral) or not low <= value <= high:
        raise InputError(f"{name} is {value!r}, expected an integer from {low} to {high}")


def start_worker(context, tasks, readers):
    """Starts a process that draws the tasks, and appends its connection to readers.

    Returns the process.
    """
    reader, writer = context.Pipe(duplex=False)
    readers.append(reader)
    process = context.Process(target=send_subjects, args=(writer, tasks, readers), daemon=True)
    process.start()
    # Only the worker may hold the writing end: its death then shows as the end of the stream.
    writer.close()
    return process


def drawn_by_workers(tasks, workers):
    """Yields draw_subject(*task) of every task, in order, drawn in `workers` processes.

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


def drawn_subjects(tasks, workers):
    """Iterator over draw_subject(*task) of every task, in order, for any number of workers."""
    workers = min(workers, len(tasks))
    if workers == 1:
        return (draw_subject(*task) for task in tasks)
    return drawn_by_workers(tasks, workers)


def left_out(subjects, images, missing, seed):
    """Which images of which subject are drawn: bool [subjects, images], `missing` are False."""
    kept = np.ones(subjects * images, bool)
    kept[np.random.RandomState([seed, 0, 0]).permutation(len(kept))[:missing]] = False
    return kept.reshape(subjects, images)


def draw(subjects, images, missing, seed, workers):
    """Pixels uint8 [5, N, 32, 32] and labels uint16 [N], 1-based, subject after subject."""
    lights, kept = spread_lights(images), left_out(subjects, images, missing, seed)
    tasks = [(seed, subject, lights[kept[subject]].tolist()) for subject in range(subjects)]
    bar = tqdm(drawn_subjects(tasks, workers), "faces", subjects, unit="subject", disable=None)
    return (np.concatenate(list(bar), axis=1),
            np.repeat(np.arange(1, subjects + 1), kept.sum(axis=1)).astype(np.uint16))


def mat_bytes(pixels, labels, seed):
    """Content of the .mat file: pixels uint8 [M, N, 32, 32] as columns, column by column."""
    columns = np.transpose(pixels, (0, 3, 2, 1)).reshape(len(pixels), SIDE * SIDE, -1)
    content = {f"modality_{number}": matrix for number, matrix in enumerate(columns)}
    smallest = np.uint8 if labels.max() < 256 else np.uint16
    content.update({"num_modalities": len(pixels), "Label": labels.astype(smallest)[None],
                    "modality_names": np.array(list(MODALITIES), object),
                    STANDIN_KEY: f"{NOTE}; seed {seed}"})
    file = io.BytesIO()
    scipy.io.savemat(file, content, do_compression=True)
    # In place of scipy's text, which holds the time of day.
    text = f"MATLAB 5.0 MAT-file: stand-in faces, NOT Extended Yale B, seed {seed}"
    return text.ljust(HEADER_BYTES).encode("ascii") + file.getvalue()[HEADER_BYTES:]


def make_standin_data(path, subjects=SUBJECTS, images=IMAGES, missing=None, seed=0, workers=None,
                      force=False):
    """Draws stand-in faces into the .mat file `path`; its folder is made if missing.

    Args:
      path: str.
      subjects: int; a small set's subjects are the first of a larger one's.
      images: int 1..64 per subject, under lights spread evenly over the 64 of Extended Yale B.
      missing: int, randomly chosen images left out; None: 8 of the full 38 x 64, else none.
      seed: int 0..2^31-1; the file depends on it and the counts only.
      workers: int, processes that draw; None takes one per processor.
      force: bool, replace an existing file.
    Returns:
      Number of samples, int.
    Raises:
      InputError: for a bad number, or if the file exists and force is off.
      OSError: if the file cannot be written; one already there is untouched.
    """
    workers = (os.cpu_count() or 1) if workers is None else workers
    check_integer("subjects", subjects, 1, MAX_SUBJECTS)
    check_integer("images", images, 1, len(LIGHTS))
    if missing is None:
        missing = MISSING if (subjects, images) == (SUBJECTS, IMAGES) else 0
    check_integer("missing", missing, 0, subjects * images - 1)
    check_integer("seed", seed, 0, 2**31 - 1)
    check_integer("workers", workers, 1, MAX_SUBJECTS)
    if os.path.lexists(path) and not force:
        raise InputError(f"{path} exists already: choose another name, or use --force to replace "
                         "it with stand-in faces")
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    pixels, labels = draw(subjects, images, missing, seed, workers)
    with replacing(path, "wb") as file:
        file.write(mat_bytes(pixels, labels, seed))
    return len(labels)


def data_file(folder, mat, seed=0):
    """Path of the .mat file to load: <folder>/<mat>.mat.

    Without a folder it is looked for in Data/; if neither it nor EYB_fc.mat is there, stand-in
    faces are drawn into Data/EYB_fc.mat. Where the user named a folder or an unusual file nothing
    is made: stand-in faces in place of a mistyped path would pass for the user's data.
    """
    path = os.path.join(FOLDER if folder is None else folder, mat + ".mat")
    if folder is not None or mat not in USUAL_NAMES or os.path.exists(path):
        return path
    standin = os.path.join(FOLDER, STANDIN_NAME + ".mat")
    if os.path.exists(standin):
        print(f"no {path}: using {standin}", flush=True)
    else:
        print(f"no --data_dir and no {path}: drawing stand-in faces (not Extended Yale B) into "
              f"{standin}", flush=True)
        make_standin_data(standin, seed=seed)
    return standin


def parse_args(argv=None):
    """Parses the command line; argparse ends the program on an unknown flag."""
    parser = argument_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--output", default=os.path.join(FOLDER, STANDIN_NAME + ".mat"), help="file to write")
    add("--subjects", type=int, default=SUBJECTS, help="persons")
    add("--images", type=int, default=IMAGES, help="per person, 1 to 64")
    add("--missing", type=int, help="images left out at random; default: 8 of the full 38 x 64, "
                                    "which leaves 2424, else none")
    add("--seed", type=seed_number, default=0, help="same seed, same file")
    add("--workers", type=int, help="processes that draw; default: one per processor")
    add("--force", type=boolean, nargs="?", const=True, default=False, metavar="True|False",
        help="replace an existing file")
    return parser.parse_args(argv)


def main(argv=None):
    """Writes the file and names it."""
    args = parse_args(argv)
    samples = make_standin_data(args.output, args.subjects, args.images, args.missing, args.seed,
                                args.workers, args.force)
    print(f"stand-in faces (not Extended Yale B): {args.subjects} subjects, {samples} samples of "
          f"{len(MODALITIES)} modalities, seed {args.seed}, in {args.output}")


if __name__ == "__main__":
    sys.exit(run_main(main))
