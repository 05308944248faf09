"""Freezes a trained network into one .pb for offline inference; prints the atc and msame commands.

The .pb takes `input` float32 [B, 227, 227, 3], BGR with the mean removed, and gives `out` float32
[B, 7], the logits; no dropout, nothing else to feed. --bin_dir also writes images for msame, with
the preprocessing of training, and --check_output reads the accuracy from what msame wrote.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import csv
import os
import re
import shlex
import sys

import numpy as np
import tensorflow.compat.v1 as tf
from tensorflow.core.protobuf import rewriter_config_pb2
from tensorflow.python.framework import meta_graph

import data_generator
import make_filelist
import masf_func
import metrics
import npu_session
from data_generator import CLASSES, SIDE
from npu_session import InputError
from utils import POSITIVE_INT

INPUT, OUTPUT = "input", "out"  # names of the operations, as the reference's
INPUT_TABLE = "inputs.csv"  # in --bin_dir: which image is where in which file
COLUMNS = ("file", "position", "path", "label")
RANGE = (-124, 151)  # of pixels with the mean removed
TOLERANCE = 1e-5  # largest accepted difference of a logit, as a share of the largest logit


def parse_args(argv=None):
    """Flags of the export."""
    parser = npu_session.argument_parser(__doc__)
    add = parser.add_argument
    add("--ckpt_dir", help="folder with the checkpoints: checkpoints, best_source or best_target "
                           "in a run folder of main.py, or of the reference")
    add("--output", help="the .pb to write; default <ckpt_dir>/masf.pb")
    add("--batch_size", type=POSITIVE_INT, default=1, help="images per call, fixed")
    add("--soc_version", default="Ascend310", help="atc's name of the chip")
    add("--bin_dir", metavar="FOLDER",
        help="also write the .bin files that msame reads (618 KB per image), and inputs.csv")
    add("--target_domain", choices=data_generator.DOMAINS, default="cartoon",
        help="domain whose list --bin_dir takes the images from")
    add("--images", type=POSITIVE_INT, help="take only so many images, evenly from the list")
    add("--dataroot", default=make_filelist.DEFAULT_DATAROOT, help="as main.py's")
    add("--filelist_root", default=make_filelist.DEFAULT_FOLDER, help="as main.py's")
    add("--check_output", metavar="FOLDER",
        help="instead of exporting, print the accuracy of the logits that msame wrote (.bin or "
             ".txt, in any folder below) for the files of --bin_dir")
    npu_session.add_session_flags(parser, precision_mode="must_keep_origin_dtype")
    args = parser.parse_args(argv)
    if args.check_output and not args.bin_dir:
        parser.error("--check_output needs --bin_dir, which says what the images were")
    if not args.check_output and not args.ckpt_dir:
        parser.error("--ckpt_dir is needed")
    return args


# ---------------------------------------------------------------- the frozen graph


def without_default_attributes(graph_def):
    """The same GraphDef without attributes that have their default value.

    TensorFlow 1.15 (and atc, which is built on 1.x) refuses attributes that it does not know, and
    2.x writes those it has added since, at their defaults, into every operation.
    """
    meta = tf.MetaGraphDef(graph_def=graph_def)
    meta.meta_info_def.stripped_op_list.CopyFrom(meta_graph.stripped_op_list_for_graph(graph_def))
    meta_graph.strip_graph_default_valued_attrs(meta)
    return meta.graph_def


def build_graph(batch_size):
    """The network from `input` to `out`; returns its variables, without the metric net's."""
    variables = masf_func.create_variables(masf_func.random_start(0))
    images = tf.placeholder(tf.float32, [batch_size, SIDE, SIDE, 3], INPUT)
    tf.identity(masf_func.alexnet(images, variables).logits, OUTPUT)
    return [variable for name, variable in variables.items() if name not in masf_func.METRIC]


def frozen_logits(path, batches, config=None):
    """List of logits float32 [B, 7] of a .pb for an iterable of images [B, 227, 227, 3]."""
    graph_def = tf.GraphDef()
    with open(path, "rb") as file:
        graph_def.ParseFromString(file.read())
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        with tf.Session(graph=graph, config=config) as session:
            return [session.run(OUTPUT + ":0", {INPUT + ":0": images}) for images in batches]


def unfused(config=None):
    """A copy of a tf.ConfigProto with which constants and variables are computed alike.

    TensorFlow 2.x fuses a convolution and its bias only where the bias is a constant, as in the
    .pb; the fused kernel rounds differently.
    """
    copy = tf.ConfigProto()
    if config is not None:
        copy.CopyFrom(config)
    copy.graph_options.rewrite_options.remapping = rewriter_config_pb2.RewriterConfig.OFF
    return copy


def relative_difference(first, second):
    """Largest |difference| of two arrays as a share of the largest |value|; NaN if one has NaN."""
    scale = max(float(np.max(np.abs(second))), 1e-30)
    return float(np.max(np.abs(np.subtract(first, second)))) / scale


def export(ckpt_dir, path, batch_size, seed=0, config=None):
    """Writes the .pb of the newest readable checkpoint, once it computes what the checkpoint does.

    Args:
      ckpt_dir: folder with checkpoints. path: of the .pb. batch_size: images per call.
      seed: of the random images to compare on. config: tf.ConfigProto.
    Returns:
      (path of the checkpoint, largest difference of a logit as a share of the largest logit).
    Raises:
      InputError: no checkpoint, none readable, or one of another network.
      FloatingPointError: the difference is above TOLERANCE; an earlier .pb is left as it was.
      OSError: the .pb cannot be written.
    """
    images = np.random.RandomState(seed).uniform(*RANGE, size=(batch_size, SIDE, SIDE, 3))
    config = unfused(config)
    with npu_session.new_graph().as_default() as graph:
        checkpoints = npu_session.Checkpoints(ckpt_dir, build_graph(batch_size))
        if not checkpoints.found():
            raise InputError(f"no checkpoint in {ckpt_dir}: train with main.py and give the folder "
                             "checkpoints, best_source or best_target of its run folder")
        with tf.Session(config=config) as session:
            restored = checkpoints.restore(session, required=True)
            expected = session.run(OUTPUT + ":0", {INPUT + ":0": images})
            frozen = without_default_attributes(tf.graph_util.convert_variables_to_constants(
                session, graph.as_graph_def(), [OUTPUT]))
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with npu_session.replacing(path, "wb") as file:
        file.write(frozen.SerializeToString())
        file.flush()
        difference = relative_difference(frozen_logits(file.name, [images], config)[0], expected)
        if not difference <= TOLERANCE:
            raise FloatingPointError(
                f"the frozen graph's logits differ from those of {restored} by {difference:.2g} of "
                f"the largest, more than {TOLERANCE:g}: {path} was not written. On the NPU, try "
                "--precision_mode=must_keep_origin_dtype")
    return restored, difference


# ---------------------------------------------------------------- files for msame


def chosen_images(args):
    """data_generator.Images of the target domain's list, thinned to --images."""
    images = data_generator.read_lists(args.filelist_root, [args.target_domain],
                                       dataroot=args.dataroot)[args.target_domain]
    return data_generator.thinned(images, args.images or len(images.paths))


def preprocessed_batches(images, batch_size, threads=0, config=None):
    """Yields (images float32 [batch_size, 227, 227, 3], how many of them count), as in training."""
    with npu_session.new_graph().as_default():
        pipeline = data_generator.evaluation(batch_size, len(images.paths), threads,
                                             images.resize)
        batch = pipeline.next_batch()
        with tf.Session(config=config) as session, data_generator.naming_files(images.paths):
            session.run(pipeline.initializer, pipeline.feed(images))
            for _ in range(data_generator.batch_count(len(images.paths), batch_size)):
                pixels, _, valid = session.run(batch)
                yield pixels, int(valid.sum())


def write_inputs(folder, images, batch_size, threads=0, config=None):
    """Writes the images for msame: raw little-endian float32 in C order, batch_size to a file.

    Args:
      folder: receives bins/00000.bin, .. and INPUT_TABLE. images: data_generator.Images. The last
        file is filled up with its last image.
    Returns:
      The paths of the .bin files.
    """
    os.makedirs(os.path.join(folder, "bins"), exist_ok=True)
    rows, paths = [], []
    for pixels, count in preprocessed_batches(images, batch_size, threads, config):
        name = f"{len(paths):05d}.bin"
        paths.append(os.path.join(folder, "bins", name))
        with npu_session.replacing(paths[-1], "wb") as file:
            file.write(pixels.astype("<f4").tobytes())
        for position in range(count):
            rows.append((name, position, images.paths[len(rows)], int(images.labels[len(rows)])))
    with npu_session.replacing(os.path.join(folder, INPUT_TABLE), newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    return paths


def read_table(folder):
    """{.bin name: labels int [n]} of a folder that write_inputs filled; InputError otherwise."""
    path = os.path.join(folder, INPUT_TABLE)
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        table = {}
        for row in rows:
            table.setdefault(row["file"], []).append(int(row["label"]))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error!r}): give the folder that --bin_dir "
                         "wrote") from None
    if not table:
        raise InputError(f"{path} lists no images")
    return table


def found_outputs(folder):
    """{name without endings: path} of msame's outputs in any folder below.

    msame calls the output of 00000.bin 00000_output_0.bin (or .txt), in a folder with the date.
    """
    found = {}
    for place, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            match = re.match(r"(\d{5})(_output_0|_0)?\.(bin|txt)$", name)
            if match:
                found[match.group(1)] = os.path.join(place, name)  # the latest run's
    return found


def read_output(path, count):
    """The first `count` logits [count, 7] of a file: float32 (.bin) or numbers in text (.txt).

    Raises:
      InputError: unreadable, not numbers, not rows of 7, too few, or not finite.
    """
    try:
        if path.endswith(".bin"):
            values = np.fromfile(path, "<f4")
        else:
            with open(path) as file:
                values = np.array(file.read().split(), np.float32)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as msame's output ({error})") from None
    if values.size % len(CLASSES) or values.size < count * len(CLASSES):
        raise InputError(f"{path} holds {values.size} numbers, expected {len(CLASSES)} for each of "
                         f"{count} images: give the outputs for the files of --bin_dir")
    if not np.isfinite(values).all():
        raise InputError(f"{path} holds numbers that are not finite")
    return values.reshape(-1, len(CLASSES))[:count]


def report(labels, logits, what):
    """Lines: accuracy and per-class accuracy of logits [N, 7] for labels [N]."""
    classes = logits.argmax(1)
    recalls = metrics.per_class_accuracy(metrics.confusion_matrix(labels, classes))
    return [f"accuracy of {what} {metrics.accuracy(labels, classes):.6f} ({len(labels)} images)",
            "per class: " + ", ".join(map("{} {:.4f}".format, CLASSES, recalls))]


def check_output(args):
    """Prints the accuracy of what msame wrote; returns the exit code.

    Raises:
      InputError: an output is missing; see read_table and read_output.
    """
    table, found = read_table(args.bin_dir), found_outputs(args.check_output)
    labels, logits = [], []
    for name, own in table.items():
        stem = os.path.splitext(name)[0]
        if stem not in found:
            raise InputError(f"no output for {name} below {args.check_output}: expected "
                             f"{stem}_output_0.bin or .txt, as msame names it")
        labels += own
        logits.append(read_output(found[stem], len(own)))
    print("\n".join(report(np.array(labels), np.concatenate(logits), args.check_output)))
    return 0


# ---------------------------------------------------------------- program


def command_lines(path, batch_size, soc_version, bin_dir):
    """The atc command that converts the .pb and the msame command that runs the result."""
    base = os.path.splitext(path)[0]
    outputs = os.path.join(bin_dir, "output")
    return [f"atc --model={shlex.quote(path)} --framework=3 --output={shlex.quote(base)} "
            f"--soc_version={soc_version} --input_shape=\"{INPUT}:{batch_size},{SIDE},{SIDE},3\" "
            f"--out_nodes=\"{OUTPUT}:0\"",
            f"./msame --model {shlex.quote(base + '.om')} --input "
            f"{shlex.quote(os.path.join(bin_dir, 'bins'))} --output {shlex.quote(outputs)} "
            "--outfmt BIN --loop 1",
            f"python export.py --check_output={shlex.quote(outputs)} "
            f"--bin_dir={shlex.quote(bin_dir)}"]


def run(args):
    """Exports, and writes and tries the input files if asked to; returns the exit code."""
    config = npu_session.session_config(args)
    images = chosen_images(args) if args.bin_dir else None
    restored, difference = export(args.ckpt_dir, args.output, args.batch_size, args.seed, config)
    print(f"{restored} -> {args.output} ({os.path.getsize(args.output)} bytes)\n"
          f"largest difference from the checkpoint's logits {difference:.3g} of the largest\n"
          f"input  {INPUT}:0  float32 [{args.batch_size}, {SIDE}, {SIDE}, 3]\n"
          f"output {OUTPUT}:0  float32 [{args.batch_size}, {len(CLASSES)}]")
    if args.bin_dir:
        paths = write_inputs(args.bin_dir, images, args.batch_size, args.threads, config)
        print(f"wrote {len(paths)} files to {args.bin_dir}/bins and {INPUT_TABLE}\n"
              f"data: {data_generator.data_name(args.dataroot)}, {args.target_domain}")
        shape = (args.batch_size, SIDE, SIDE, 3)
        pixels = (np.fromfile(path, "<f4").reshape(shape) for path in paths)
        logits = np.concatenate(frozen_logits(args.output, pixels, config))[:len(images.labels)]
        print("\n".join(report(images.labels, logits, args.output)))
    print("\n".join(command_lines(args.output, args.batch_size, args.soc_version,
                                  args.bin_dir or "bin_dir")))
    return 0


def main(argv=None):
    """Parses the flags and exports or checks; returns the exit code."""
    args = parse_args(argv)
    if args.check_output:
        return check_output(args)
    args.output = args.output or os.path.join(args.ckpt_dir, "masf.pb")
    return run(args)


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
