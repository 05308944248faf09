"""Freezes a trained VAE into one .pb for offline inference; prints the atc and msame commands.

Reconstruction: x_ph [B, 784] and eps [B, 20] -> gen/Sigmoid (eps of zeros leaves chance out).
Sampler: x_ph_1, which is z [B, 20], -> gen_1/Sigmoid. The names are the reference's.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import os
import shlex
import sys

import numpy as np
import tensorflow.compat.v1 as tf
from tensorflow.core.protobuf import rewriter_config_pb2
from tensorflow.python.framework import meta_graph

import data_input
import model_def
import npu_session
import util
from npu_session import InputError

Part = collections.namedtuple("Part", "inputs outputs")  # names of operations
PARTS = {
    "reconstruct": Part(("x_ph", "eps"), ("gen/Sigmoid",)),
    "sample": Part(("x_ph_1",), ("gen_1/Sigmoid",)),
    "both": Part(("x_ph", "eps", "x_ph_1"), ("gen/Sigmoid", "gen_1/Sigmoid")),
}
WIDTHS = {"x_ph": model_def.N_INPUT, "eps": model_def.N_Z, "x_ph_1": model_def.N_Z}
INPUT_FILES = {"x_ph": "test_img.bin", "eps": "test_eps.bin", "x_ph_1": "test_z.bin"}
TOLERANCE = 1e-6  # largest accepted difference between the .pb's and the checkpoint's pixels


def parse_args(argv=None):
    """Flags of the export."""
    parser = npu_session.argument_parser(__doc__.splitlines()[0])
    parser.add_argument("--output_dir", default=".", help="main.py's")
    parser.add_argument("--ckpt_dir", help="folder with the VAE's checkpoints; default "
                                           "<output_dir>/models/mnist-vae")
    parser.add_argument("--output", help="the .pb to write; default <ckpt_dir>/csgm_vae.pb")
    parser.add_argument("--part", choices=PARTS, default="both", help="what the .pb can do")
    parser.add_argument("--batch_size", type=util.POSITIVE_INT, default=100,
                        help="images per call, fixed")
    parser.add_argument("--soc_version", default="Ascend310", help="atc's name of the chip")
    parser.add_argument("--data_dir", default=data_input.DEFAULT_FOLDER,
                        help="folder with the four idx files, for the next two")
    parser.add_argument("--write_inputs", metavar="FOLDER",
                        help="also write the .bin files that msame reads: the first test images, "
                             "eps of zeros, and z drawn from --seed")
    parser.add_argument("--check_output", metavar="FILE",
                        help="instead of exporting, print the pixel error of the reconstructions "
                             "that msame wrote (.txt, or .bin of float32)")
    npu_session.add_session_flags(parser, precision_mode="must_keep_origin_dtype")
    return parser.parse_args(argv)


def freeze(session, part):
    """GraphDef of a Part: its operations only, with the session's variables as constants."""
    frozen = tf.graph_util.convert_variables_to_constants(
        session, session.graph.as_graph_def(), list(part.outputs))
    return without_default_attributes(frozen)


def without_default_attributes(graph_def):
    """The same GraphDef without attributes that have their default value.

    TensorFlow 1.15 (and atc, which is built on 1.x) refuses attributes that it does not know, and
    2.x writes those it has added since, at their defaults, into every operation.
    """
    meta = tf.MetaGraphDef(graph_def=graph_def)
    meta.meta_info_def.stripped_op_list.CopyFrom(meta_graph.stripped_op_list_for_graph(graph_def))
    meta_graph.strip_graph_default_valued_attrs(meta)
    return meta.graph_def


def random_inputs(part, batch_size, seed):
    """{input: float32 [batch_size, width]}: pixels uniform in [0,1], eps and z normal."""
    random = np.random.RandomState(seed)
    draw = {"x_ph": random.uniform, "eps": random.standard_normal, "x_ph_1": random.standard_normal}
    return {name: draw[name](size=(batch_size, WIDTHS[name])).astype(np.float32)
            for name in part.inputs}


def run_outputs(session, part, inputs):
    """{output: float32 [batch_size, 784]} of {input: array}."""
    feed = {name + ":0": inputs[name] for name in part.inputs}
    return session.run({name: name + ":0" for name in part.outputs}, feed)


def run_frozen(path, part, inputs, config=None):
    """run_outputs of a .pb, loaded into a graph of its own."""
    graph_def = tf.GraphDef()
    with open(path, "rb") as file:
        graph_def.ParseFromString(file.read())
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        with tf.Session(graph=graph, config=config) as session:
            return run_outputs(session, part, inputs)


def unfused(config=None):
    """A copy of a tf.ConfigProto with which constants and variables are computed alike.

    TensorFlow 2.x fuses a product and its bias only where the bias is a constant, as in the .pb;
    the fused kernel rounds differently.
    """
    copy = tf.ConfigProto()
    if config is not None:
        copy.CopyFrom(config)
    copy.graph_options.rewrite_options.remapping = rewriter_config_pb2.RewriterConfig.OFF
    return copy


def largest_difference(first, second):
    """Largest |difference| of two results of run_outputs; NaN if either holds one."""
    return float(np.max([np.abs(first[name] - second[name]) for name in first]))


def export(ckpt_dir, path, part, batch_size, seed=0, config=None):
    """Writes the .pb of the newest readable checkpoint, once it computes what the checkpoint does.

    Args:
      ckpt_dir: folder with the VAE's checkpoints. path: of the .pb. part: a value of PARTS.
      batch_size: rows of every input. seed: of the inputs to compare on. config: tf.ConfigProto.
    Returns:
      (path of the checkpoint, largest difference of a pixel).
    Raises:
      InputError: no checkpoint, none readable, or one of another architecture.
      FloatingPointError: the difference is above TOLERANCE; an earlier .pb is left as it was.
      OSError: the .pb cannot be written.
    """
    inputs, config = random_inputs(part, batch_size, seed), unfused(config)
    with npu_session.new_graph().as_default():
        model_def.evaluation(batch_size, model_def.xavier_uniform(0))
        checkpoints = npu_session.Checkpoints(ckpt_dir)
        if not checkpoints.found():
            raise InputError(f"no checkpoint in {ckpt_dir}: train a VAE with python src/main.py, "
                             "or give its folder with --ckpt_dir")
        with tf.Session(config=config) as session:
            restored = checkpoints.restore(session, required=True)
            expected, graph_def = run_outputs(session, part, inputs), freeze(session, part)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with npu_session.replacing(path, "wb") as file:
        file.write(graph_def.SerializeToString())
        file.flush()
        difference = largest_difference(expected, run_frozen(file.name, part, inputs, config))
        if not difference <= TOLERANCE:
            raise FloatingPointError(
                f"the frozen graph differs from {restored} by {difference:.2g}, more than "
                f"{TOLERANCE:g}: {path} was not written. On the NPU, try "
                "--precision_mode=must_keep_origin_dtype")
    return restored, difference


def first_test_images(data_dir, count):
    """float32 [count, 784] from the start of the test set, and the name of the data."""
    data = data_input.load(data_dir)
    if count > len(data.test):
        raise InputError(f"--batch_size={count} is more than the {len(data.test)} test images")
    return data_input.to_float(data.test[:count]), data.name


def file_inputs(part, images, seed):
    """{input: float32 array} for the .bin files: the images, eps of zeros, z from the seed."""
    inputs = random_inputs(part, len(images), seed)
    values = {"x_ph": images, "eps": np.zeros((len(images), model_def.N_Z), np.float32)}
    return {name: values.get(name, inputs[name]) for name in part.inputs}


def write_inputs(folder, inputs):
    """Writes each input as raw little-endian float32, in C order; returns the paths."""
    os.makedirs(folder, exist_ok=True)
    paths = [os.path.join(folder, INPUT_FILES[name]) for name in inputs]
    for path, values in zip(paths, inputs.values()):
        with npu_session.replacing(path, "wb") as file:
            file.write(values.astype("<f4").tobytes())
    return paths


def read_output(path, count):
    """Pixels [count, 784] that msame wrote, as float32 (.bin) or as numbers in text (else).

    Raises:
      InputError: unreadable, not numbers, another count, or not finite.
    """
    try:
        if path.endswith(".bin"):
            values = np.fromfile(path, "<f4")
        else:
            with open(path) as file:
                values = np.array(file.read().split(), np.float32)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as msame's output ({error})") from None
    if values.size != count * model_def.N_INPUT:
        raise InputError(f"{path} holds {values.size} numbers, expected {count} x "
                         f"{model_def.N_INPUT}: give the file of gen/Sigmoid and the --batch_size "
                         "of the export")
    if not np.isfinite(values).all():
        raise InputError(f"{path} holds numbers that are not finite")
    return values.reshape(count, model_def.N_INPUT)


def tensor_lines(part, batch_size):
    """One line per input and output: name and shape."""
    return [f"input  {name}:0  float32 [{batch_size}, {WIDTHS[name]}]" for name in part.inputs] + [
        f"output {name}:0  float32 [{batch_size}, {model_def.N_INPUT}]" for name in part.outputs]


def command_lines(path, part, batch_size, soc_version, input_folder):
    """The atc command that converts the .pb and the msame command that runs the result."""
    base = os.path.splitext(path)[0]
    shapes = ";".join(f"{name}:{batch_size},{WIDTHS[name]}" for name in part.inputs)
    outputs = ";".join(name + ":0" for name in part.outputs)
    files = ",".join(os.path.join(input_folder, INPUT_FILES[name]) for name in part.inputs)
    folder = os.path.join(os.path.dirname(path) or ".", "om_output")
    return [f"atc --model={shlex.quote(path)} --framework=3 --output={shlex.quote(base)} "
            f"--soc_version={soc_version} --input_shape=\"{shapes}\" --out_nodes=\"{outputs}\"",
            f"./msame --model {shlex.quote(base + '.om')} --input {shlex.quote(files)} "
            f"--output {shlex.quote(folder)} --outfmt TXT --loop 1"]


def check_output(args):
    """Prints the seed's reconstruction error of what msame wrote; returns the exit code."""
    images, name = first_test_images(args.data_dir, args.batch_size)
    error = util.reconstruction_error(read_output(args.check_output, args.batch_size), images)
    print(f"data: {name}\nreconstruct_error of {args.check_output} {error:.6f} "
          f"({args.batch_size} images)")
    return 0


def run(args):
    """Exports, and writes and tries the input files if asked to; returns the exit code."""
    part, config = PARTS[args.part], npu_session.session_config(args, args.output_dir)
    images = None
    if args.write_inputs:
        images, data_name = first_test_images(args.data_dir, args.batch_size)
    restored, difference = export(args.ckpt_dir, args.output, part, args.batch_size, args.seed,
                                  config)
    print(f"{restored} -> {args.output} ({os.path.getsize(args.output)} bytes)")
    print(f"largest difference from the checkpoint's output {difference:.3g}")
    print("\n".join(tensor_lines(part, args.batch_size)))
    if args.write_inputs:
        inputs = file_inputs(part, images, args.seed)
        print("wrote " + ", ".join(write_inputs(args.write_inputs, inputs)))
        reconstruction = run_frozen(args.output, part, inputs, config).get("gen/Sigmoid")
        if reconstruction is not None:
            error = util.reconstruction_error(reconstruction, images)
            print(f"data: {data_name}\nreconstruct_error of {args.output} {error:.6f} "
                  f"({args.batch_size} images)")
    print("\n".join(command_lines(args.output, part, args.batch_size, args.soc_version,
                                  args.write_inputs or ".")))
    return 0


def main(argv=None):
    """Parses the flags and exports or checks; returns the exit code."""
    args = parse_args(argv)
    args.ckpt_dir = args.ckpt_dir or os.path.join(args.output_dir, "models", "mnist-vae")
    args.output = args.output or os.path.join(args.ckpt_dir, "csgm_vae.pb")
    return check_output(args) if args.check_output else run(args)


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
