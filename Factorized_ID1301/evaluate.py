"""Measures unsupervised landmarks: error of regressed points, and equivariance on held-out images.

The network stays as it was trained; a linear map from its K landmarks to the annotated points is
fitted on one set of images and tried on another (Thewlis et al. 2017, section 4). Needs the lists
of CelebA or MAFL, or stand-in faces. Measures: metrics.py.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import contextlib
import csv
import os
import sys

import numpy as np
import tensorflow.compat.v1 as tf

import data_input
import figures
import landmark_lists
import make_standin_data
import metrics
import model_def
import npu_session
from landmark_lists import POINTS
from npu_session import InputError
from utils import warp
from VDSR import DEFAULT_OUTPUT, POSITIVE_INT, WEIGHT, check_sizes

LAST_FILTER = "cnn_tower/layer_6/conv/filter"  # its last dimension is K
SHEET_IMAGES, PAIR_IMAGES = 16, 6  # held-out images in the two contact sheets
METHODS = {"no_bias": "no bias", "bias": "bias", "mean_shape": "mean shape"}

Data = collections.namedtuple(
    "Data", "name names paths points train_count test_count source")
Found = collections.namedtuple("Found", "cells deformed warps step checkpoint")


def parse_args(argv=None):
    """Flags of the evaluation."""
    parser = npu_session.argument_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add_data_flags(parser)
    add("--output_dir", default=DEFAULT_OUTPUT, help="of training")
    add("--checkpoint", help="folder with the checkpoint; default <output_dir>/ckpt")
    add("--result_dir", help="receives coordinates, errors, pictures and result.json; default "
                             "<output_dir>/evaluation")
    add("--K", type=POSITIVE_INT, help="landmarks; default: as many as the checkpoint has")
    add("--batch_size", type=POSITIVE_INT, default=32, help="images at a time")
    add("--pair_warp", type=WEIGHT, default=warp.PAIR_WARP,
        help="strength of the warps on which equivariance is measured")
    npu_session.add_session_flags(parser, precision_mode="allow_mix_precision")
    args = parser.parse_args(argv)
    check_sizes(args)
    return args


def add_data_flags(parser):
    """Adds the flags that load_data and image_pipeline read."""
    add = parser.add_argument
    add("--data_path", help="folder with the lists and, below it, the images; default "
                            f"{make_standin_data.DEFAULT_FOLDER}, filled with stand-in faces if it "
                            "does not exist")
    add("--image_dir", help="folder of the images; default: the data folder or one of "
                            + ", ".join(filter(None, landmark_lists.IMAGE_FOLDERS))
                            + " in it, wherever an image is")
    add("--landmark_list", help="annotated points in CelebA's format; default "
                                f"{landmark_lists.LANDMARK_FILE} in the data folder")
    add("--train_list", help="names of the images to fit on; default training.txt in the data "
                             "folder, else the training part of list_eval_partition.txt")
    add("--test_list", help="names of the held-out images; default testing.txt, else the testing "
                            "part")
    add("--scale_size", type=POSITIVE_INT, default=146, help="as in training")
    add("--crop_size", type=POSITIVE_INT, default=146, help="as in training; the centre is cropped")


# ---------------------------------------------------------------- data and checkpoint


def load_data(args):
    """Data: names, paths and points of the training images, then of the held-out ones.

    Raises:
      InputError: lists that are missing, wrong or do not belong to the images.
    """
    folder = make_standin_data.data_folder(args.data_path, make_standin_data.DEFAULT_FOLDER)
    if not os.path.isdir(folder):
        raise InputError(f"there is no folder {folder}: give the one with the lists of CelebA with "
                         "--data_path, or make stand-in faces with python make_standin_data.py")
    split = landmark_lists.split_names(folder, args.train_list, args.test_list)
    name = landmark_lists.LANDMARK_FILE
    path = args.landmark_list or landmark_lists.find_list(folder, name)
    if path is None:
        raise InputError(f"{folder} has no {name}: copy CelebA's list there, or give it with "
                         "--landmark_list")
    names = split.training + split.testing
    points = landmark_lists.select(landmark_lists.read_landmarks(path), names, path)
    paths = landmark_lists.find_images(folder, names, args.image_dir)
    return Data(landmark_lists.data_name(folder), names, paths, points, len(split.training),
                len(split.testing), split.source)


def checkpoint_landmarks(folder):
    """K of the newest checkpoint in a folder whose index is readable.

    Raises:
      InputError: there is none, or it is not a landmark network's.
    """
    for path in reversed(npu_session.Checkpoints(folder, [tf.Variable(0.0)]).found()):
        with contextlib.suppress(tf.errors.OpError):
            shapes = tf.train.load_checkpoint(path).get_variable_to_shape_map()
            if LAST_FILTER not in shapes:
                raise InputError(f"checkpoint {path} has no {LAST_FILTER}: it was made by another "
                                 "program")
            return shapes[LAST_FILTER][3]
    raise InputError(f"no checkpoint in {folder}: train with python train.py, or give the folder "
                     "with --checkpoint")


# ---------------------------------------------------------------- finding landmarks


def draw_warps(count, args):
    """T float32 [count, 2, 7] of affine warps as training draws them, fixed by the seed."""
    random = np.random.RandomState(args.seed)
    normal, uniform = random.standard_normal((count, 3)), random.uniform(size=(count, 2))
    with tf.Graph().as_default(), data_input.host_session(args) as session:
        draws = warp.draw(tf.constant(normal, tf.float32), tf.constant(uniform, tf.float32),
                          args.pair_warp)
        return session.run(warp.transformations(draws))


def preparation(args):
    """How data_input prepares the images: as in training, without chance."""
    return data_input.Preparation(args.scale_size, args.crop_size, pair_warp=0.0, tps_weight=0.0,
                                  exact_coordinates=True, seed=args.seed)


def image_pipeline(paths, args):
    """data_input.evaluation_pipeline of (images, indices)."""
    return data_input.evaluation_pipeline(paths, args.batch_size, preparation(args), args.threads)


def pair_pipeline(paths, args, warps):
    """The same of (images, deformed, indices); warps: T of every image, float32 [N, 2, 7]."""
    prepared = preparation(args)

    def finish(frames, indices):
        second = tf.gather(warps, tf.minimum(indices, len(paths) - 1))
        images, deformed, _ = data_input.make_pairs(frames, None, second, prepared)
        return images, deformed, indices

    return data_input.evaluation_pipeline(paths, args.batch_size, prepared, args.threads, finish)


def collect(session, pipeline, count, values, indices):
    """Runs a pipeline to its end: rows of `values` [B, ...] by image number, float32 [count, ...].

    Rows of numbers from `count` on, which fill up the last batch, are dropped.
    """
    session.run(pipeline.initializer, pipeline.feed())
    rows = np.full([count] + values.shape.as_list()[1:], np.nan, np.float32)
    for _ in range(-(-count // values.shape.as_list()[0])):
        found, numbers = session.run([values, indices])
        kept = numbers < count
        rows[numbers[kept]] = found[kept]
    return rows


def find_landmarks(args, data):
    """Found: landmarks of all images, and of the held-out ones' deformed copies.

    Raises:
      InputError: no readable checkpoint, or one of another K.
      FloatingPointError: coordinates that are not finite.
    """
    held_out = data.paths[data.train_count:]
    warps = draw_warps(len(held_out), args)
    with npu_session.new_graph().as_default():
        layers = model_def.create_variables(args.K, args.seed)
        step = tf.train.get_or_create_global_step()
        singles, pairs = image_pipeline(data.paths, args), pair_pipeline(held_out, args, warps)
        images, numbers = singles.next_batch()
        _, deformed, pair_numbers = pairs.next_batch()
        coordinates = [model_def.evaluate(batch, layers).coordinates
                       for batch in (images, deformed)]
        checkpoints = npu_session.Checkpoints(
            args.checkpoint, [variable for layer in layers for variable in layer] + [step])
        config = npu_session.session_config(args, args.result_dir)
        with tf.Session(config=config) as session:
            restored = checkpoints.restore(session, required=True)
            cells = collect(session, singles, len(data.paths), coordinates[0], numbers)
            deformed_cells = collect(session, pairs, len(held_out), coordinates[1], pair_numbers)
            reached = int(session.run(step))
    for found in (cells, deformed_cells):
        if not np.isfinite(found).all():
            raise FloatingPointError(f"{restored} gives landmarks that are not finite: take an "
                                     "earlier checkpoint")
    return Found(cells, deformed_cells, warps, reached, restored)


# ---------------------------------------------------------------- measuring


def original_pixels(args, cells, sizes):
    """(x, y) float64 [N, K, 2] in the originals, whose (height, width) are `sizes` [N, 2]."""
    offset = (args.scale_size - args.crop_size) // 2 + warp.CUT_START
    return metrics.to_pixels(cells, sizes[:, 1], sizes[:, 0], args.scale_size, offset)


def measure_points(data, pixels):
    """Measured (see metrics.evaluate) and the regressed points of the held-out images, no bias."""
    count = data.train_count
    fitted = metrics.fit(pixels[:count], data.points[:count])
    return (metrics.evaluate(pixels[:count], data.points[:count], pixels[count:],
                             data.points[count:]), metrics.predict(pixels[count:], fitted))


def measure_equivariance(args, found, held_out_cells):
    """How far landmarks are from where the warp sends them, in pixels of the network's input.

    Returns:
      dict of floats: means over held-out images and landmarks whose place is on the heat map, in
      the deformed image and, back, in the image; the same for landmarks that ignore the warp; the
      share of landmarks whose place is on the map. NaN where no place is.
    """
    forward, back, inside = metrics.equivariance(held_out_cells, found.deformed, found.warps,
                                                 args.crop_size)
    ignoring, _, _ = metrics.equivariance(held_out_cells, held_out_cells, found.warps,
                                          args.crop_size)
    if not inside.any():
        return dict.fromkeys(("forward", "median", "backward", "ignoring_the_warp"),
                             float("nan"), share_on_the_map=0.0)
    return {"forward": float(forward[inside].mean()), "median": float(np.median(forward[inside])),
            "backward": float(back[inside].mean()),
            "ignoring_the_warp": float(ignoring[inside].mean()),
            "share_on_the_map": float(inside.mean())}


# ---------------------------------------------------------------- report


def write_errors(path, measured):
    """CSV: a row per method, percent of the inter-ocular distance per point and in the mean."""
    with npu_session.replacing(path, newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("method",) + POINTS + ("mean",))
        for name, errors in measured._asdict().items():
            row = list(errors.per_point) + [errors.mean]
            writer.writerow([METHODS[name]] + [f"{value:.4f}" for value in row])


def table(measured):
    """Lines of a table in Markdown."""
    lines = ["| error, % of inter-ocular distance | " + " | ".join(POINTS) + " | mean |",
             "|---" * (len(POINTS) + 2) + "|"]
    for name, errors in measured._asdict().items():
        values = " | ".join(f"{value:.2f}" for value in list(errors.per_point) + [errors.mean])
        lines.append(f"| {METHODS[name]} | {values} |")
    return lines


def read_originals(paths, args):
    """The images as they lie on disk: list of uint8 [H, W, 3]."""
    with tf.Graph().as_default(), data_input.host_session(args) as session:
        path = tf.placeholder(tf.string, [])
        image = data_input.decode(tf.read_file(path))
        return [session.run(image, {path: name}) for name in paths]


def read_pairs(paths, args, warps):
    """What the network sees of the first images and deformed copies: float32 in [0, 1], twice."""
    with tf.Graph().as_default(), data_input.host_session(args) as session:
        pipeline = pair_pipeline(paths, args, warps)
        images, deformed, _ = pipeline.next_batch()
        session.run(pipeline.initializer, pipeline.feed())
        pairs = session.run([images, deformed])
    return [(pair[:PAIR_IMAGES] + 1) / 2 for pair in pairs]


def draw_pictures(args, data, found, pixels, predicted, measured):
    """Writes errors.png, contact_sheet.jpg and equivariance.jpg; returns their paths."""
    first, count = data.train_count, min(SHEET_IMAGES, data.test_count)
    paths = [os.path.join(args.result_dir, name)
             for name in ("errors.png", "contact_sheet.jpg", "equivariance.jpg")]
    note = f"{data.name}: K = {args.K}, step {found.step}"
    figures.error_bars(paths[0], {METHODS[name]: errors
                                  for name, errors in measured._asdict().items()}, POINTS,
                       f"{note}, {data.test_count} held-out images")
    figures.contact_sheet(
        paths[1], read_originals(data.paths[first:first + count], args), pixels[first:][:count],
        f"{note}. Below: regressed points (crosses) and annotated ones (rings)",
        predicted[:count], data.points[first:][:count])
    held_out = data.paths[first:]
    images, deformed = read_pairs(held_out, args, found.warps)
    count = min(PAIR_IMAGES, data.test_count)
    matrix, shift = metrics.affine_cells(found.warps[:count], args.crop_size)
    cells = found.cells[first:][:count]
    sent = metrics.apply_inverse(matrix, shift, cells)
    figures.equivariance_sheet(
        paths[2], images[:count], deformed[:count], metrics.crop_pixels(cells),
        metrics.crop_pixels(found.deformed[:count]), metrics.crop_pixels(sent),
        f"{note}: images, and deformed copies with the warped places (rings)")
    return paths


def write_result(args, data, found, measured, equivariance):
    """result.json, written last: the sign that the evaluation is complete."""
    npu_session.write_json(os.path.join(args.result_dir, "result.json"), {
        "data": data.name, "lists": data.source, "checkpoint": found.checkpoint,
        "step": found.step, "K": args.K, "seed": args.seed, "training_images": data.train_count,
        "test_images": data.test_count, "points": POINTS,
        "error_percent": {name: errors.mean for name, errors in measured._asdict().items()},
        "error_percent_per_point": {name: errors.per_point.tolist()
                                    for name, errors in measured._asdict().items()},
        "equivariance_pixels": equivariance, "device": npu_session.backend(),
        "versions": npu_session.versions()})


def run(args):
    """Evaluates a checkpoint; returns the exit code."""
    data = load_data(args)
    args.K = args.K or checkpoint_landmarks(args.checkpoint)
    print(f"data: {data.name}\nimages: {data.train_count} to fit on, {data.test_count} held out, "
          f"by {data.source}")
    sizes = data_input.image_sizes(data.paths, args)
    found = find_landmarks(args, data)
    pixels = original_pixels(args, found.cells, sizes)
    measured, predicted = measure_points(data, pixels)
    equivariance = measure_equivariance(args, found, found.cells[data.train_count:])
    print(f"checkpoint: {found.checkpoint}, step {found.step}, K = {args.K}")
    print("\n".join(table(measured)))
    print("equivariance error {forward:.2f} pixels of 128 (median {median:.2f}, back "
          "{backward:.2f}); landmarks that ignore the warp would have "
          "{ignoring_the_warp:.2f}; {share_on_the_map:.0%} of the places are on the heat map"
          .format(**equivariance))
    with contextlib.suppress(FileNotFoundError):
        os.remove(os.path.join(args.result_dir, "result.json"))
    written = landmark_lists.write_coordinates(args.result_dir, data.names, found.cells, pixels)
    written.append(os.path.join(args.result_dir, "errors.csv"))
    write_errors(written[-1], measured)
    written += draw_pictures(args, data, found, pixels, predicted, measured)
    write_result(args, data, found, measured, equivariance)
    print("wrote " + ", ".join(written))
    return 0


def main(argv=None):
    """Parses the flags and evaluates; returns the exit code."""
    args = parse_args(argv)
    args.checkpoint = args.checkpoint or os.path.join(args.output_dir, "ckpt")
    args.result_dir = args.result_dir or os.path.join(args.output_dir, "evaluation")
    try:
        os.makedirs(args.result_dir, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to the folder {args.result_dir}: "
                         f"{error.strerror}") from None
    return run(args)


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
