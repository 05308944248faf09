"""Finds the landmarks of every image in a folder: coordinates, pictures, a contact sheet.

Flags: VDSR.py. Landmark errors against annotations: evaluate.py.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import contextlib
import os
import sys
import time

import numpy as np
import tensorflow.compat.v1 as tf

import data_input
import evaluate
import figures
import landmark_lists
import make_standin_data
import metrics
import model_def
import npu_session
import train
import VDSR
from utils import drawing

SHEET_IMAGES = 40
STANDIN_TEST_FOLDER = "img_align_celeba"  # below the stand-in's folder: the held-out images
JPEG_QUALITY = 92
ENDING = "-outputs.jpg"  # of the pictures' names, as the reference's

# cells float32 [N, K, 2] (row, column); images of the sheet float32 [.., 128, 128, 3] in [-1, 1].
Found = collections.namedtuple("Found", "cells images checkpoint seconds_per_batch")


def find_data(args):
    """Paths of the images; sets args.data, their name."""
    folder = make_standin_data.data_folder(args.input_dir, make_standin_data.DEFAULT_FOLDER)
    if args.input_dir is None:
        folder = os.path.join(folder, STANDIN_TEST_FOLDER)
    paths = data_input.find_images(folder)
    if args.image_list:
        paths = train.chosen(paths, args.image_list, landmark_lists.TESTING)
    args.data = landmark_lists.data_name(os.path.dirname(paths[0]))
    print(f"data: {args.data}\nexamples count = {len(paths)}", flush=True)
    return paths


# ---------------------------------------------------------------- pictures


def overlays(style, images, cells, drawn):
    """Yields the uint8 pictures of a batch with its landmarks; style: see --overlay.

    Args:
      images: float32 [B, 128, 128, 3] in [-1, 1]. cells: [B, K, 2]. drawn: the reference's.
    """
    for image, points, reference in zip(images, metrics.crop_pixels(cells), drawn):
        if style == "reference":
            yield np.round(255 * np.clip(reference, 0, 1)).astype(np.uint8)
        elif style == "correct":
            yield drawing.mark_landmarks((image + 1) / 2, points)


@contextlib.contextmanager
def picture_writer(folder, paths, args):
    """`with picture_writer(...) as write:` write(path, picture) makes <name>-outputs.jpg of it."""
    stems = [os.path.splitext(os.path.basename(path))[0] for path in paths]
    unique = len(set(stems)) == len(stems)  # else 1.jpg and 1.png would share a name
    os.makedirs(folder, exist_ok=True)
    with tf.Graph().as_default():
        pixels = tf.placeholder(tf.uint8, [None, None, 3])
        encoded = tf.image.encode_jpeg(pixels, quality=JPEG_QUALITY)
        with data_input.host_session(args) as session:
            def write(path, picture):
                name = os.path.basename(path)
                name = (os.path.splitext(name)[0] if unique else name) + ENDING
                with npu_session.replacing(os.path.join(folder, name), "wb") as file:
                    file.write(session.run(encoded, {pixels: picture}))

            yield write


# ---------------------------------------------------------------- landmarks


def find_landmarks(args, paths, write):
    """Found: coordinates of all images.

    Args:
      write: function of (path of an image, uint8 picture of it with its landmarks).
    Raises:
      InputError: no readable checkpoint, or one of another K.
      FloatingPointError: coordinates that are not finite.
    """
    cells, sheet = [], []
    with npu_session.new_graph().as_default():
        pipeline = data_input.evaluation_pipeline(paths, args.batch_size, train.preparation(args),
                                                  args.threads)
        images, _ = pipeline.next_batch()
        network = model_def.build_evaluation(images, args.K, args.seed)
        drawn = network.drawn if args.overlay == "reference" else images
        checkpoints = npu_session.Checkpoints(args.checkpoint)
        with tf.Session(config=npu_session.session_config(args, args.output_dir)) as session:
            restored = checkpoints.restore(session, required=True)
            session.run(pipeline.initializer, pipeline.feed())
            started = time.time()
            for first in range(0, len(paths), args.batch_size):
                batch = session.run([images, network.coordinates, drawn])
                if not np.isfinite(batch[1]).all():
                    raise FloatingPointError(f"{restored} gives landmarks that are not finite: "
                                             "take an earlier checkpoint")
                evaluated = paths[first:first + args.batch_size]  # the last batch is filled up
                cells.append(batch[1])
                sheet.extend(batch[0][:SHEET_IMAGES - first] if first < SHEET_IMAGES else ())
                for path, picture in zip(evaluated, overlays(args.overlay, *batch)):
                    write(path, picture)
                for path in evaluated:
                    print(f"evaluated image {os.path.basename(path)}")
            seconds = (time.time() - started) / len(cells)
    return Found(np.concatenate(cells)[:len(paths)], np.array(sheet)[:len(paths)], restored,
                 seconds)


def write_results(args, paths, sizes, found):
    """Writes coordinates, contact sheet and test.json; returns their paths."""
    names = [os.path.basename(path) for path in paths]
    pixels = evaluate.original_pixels(args, found.cells, sizes)
    written = landmark_lists.write_coordinates(args.output_dir, names, found.cells, pixels)
    sheet, result = (os.path.join(args.output_dir, name)
                     for name in ("contact_sheet.jpg", "test.json"))
    count = len(found.images)
    figures.contact_sheet(sheet, (found.images + 1) / 2, metrics.crop_pixels(found.cells[:count]),
                          f"{args.K} landmarks ({args.data})")
    npu_session.write_json(result, {
        "data": args.data, "images": len(paths), "K": args.K, "checkpoint": found.checkpoint,
        "seconds_per_batch": found.seconds_per_batch, "batch_size": args.batch_size,
        "versions": npu_session.versions(), "device": npu_session.backend()})
    return written + [sheet, result]


def run(args):
    """Finds the landmarks of all images; returns the exit code."""
    args.checkpoint = args.checkpoint or args.ckpt_dir
    args.K = args.K or evaluate.checkpoint_landmarks(args.checkpoint)
    paths = find_data(args)
    sizes = data_input.image_sizes(paths, args)
    folder = os.path.join(args.output_dir, "images")
    with picture_writer(folder, paths, args) as write:
        found = find_landmarks(args, paths, write)
    print(f"rate {found.seconds_per_batch}")
    written = write_results(args, paths, sizes, found)
    if args.overlay != "none":
        written.append(os.path.join(folder, "*" + ENDING))
    print("wrote " + ", ".join(written))
    return 0


def main(argv=None):
    """VDSR.py's program in test mode; returns the exit code."""
    return VDSR.main(argv, "test")


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
