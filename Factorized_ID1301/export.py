"""Freezes a trained network into one .pb for offline inference; prints the atc and msame commands.

images float32 [B, 128, 128, 3] in [-1, 1] -> coordinates [B, K, 2], (row, column) in heat-map
cells, and heat_maps [B, 42, 42, K]. The graph is that of test mode, with moving averages; its last
convolution block keeps the reference's name, cnn_tower/layer_6/BatchNorm/Relu.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import glob
import os
import shlex
import sys

import numpy as np
import tensorflow.compat.v1 as tf
from tensorflow.core.protobuf import rewriter_config_pb2
from tensorflow.python.framework import meta_graph

import data_input
import evaluate
import model_def
import npu_session
from npu_session import InputError
from utils.warp import INPUT_SIZE, MAP_SIZE
from VDSR import DEFAULT_OUTPUT, POSITIVE_INT, check_sizes

INPUT = "images"
OUTPUTS = ("coordinates", "heat_maps")  # in this order also in the converted model
TOLERANCE = {"coordinates": 1e-3, "heat_maps": 1e-5}  # cells, and probability: of the .pb's values
BATCH_NAME = "batch_%06d.bin"
OUTPUT_ENDING = "_output_0.bin"  # msame's name of a batch's first output


def parse_args(argv=None):
    """Flags of the export."""
    parser = npu_session.argument_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--output_dir", default=DEFAULT_OUTPUT, help="of training")
    add("--checkpoint", help="folder with the checkpoint; default <output_dir>/ckpt")
    add("--output", help="the .pb to write; default <output_dir>/landmarks.pb")
    add("--K", type=POSITIVE_INT, help="landmarks; default: as many as the checkpoint has")
    add("--batch_size", type=POSITIVE_INT, default=32, help="images per call, fixed")
    add("--soc_version", default="Ascend310", help="atc's name of the chip")
    group = parser.add_argument_group("data, for the next two")
    evaluate.add_data_flags(group)
    add("--write_inputs", metavar="FOLDER",
        help="also write the .bin files that msame reads, a batch each: first the images to fit "
             "the landmark regressor on, then the held-out ones")
    add("--check_output", metavar="FOLDER",
        help="instead of exporting, print the landmark error of the coordinates that msame wrote "
             f"(batch_..{OUTPUT_ENDING}, float32) for these inputs")
    npu_session.add_session_flags(parser, precision_mode="must_keep_origin_dtype")
    args = parser.parse_args(argv)
    check_sizes(args)
    return args


# ---------------------------------------------------------------- the frozen graph


def freeze(session):
    """GraphDef of the outputs' operations only, with the session's variables as constants."""
    frozen = tf.graph_util.convert_variables_to_constants(
        session, session.graph.as_graph_def(), list(OUTPUTS))
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


def random_images(batch_size, seed):
    """float32 [batch_size, 128, 128, 3] uniform in [-1, 1]."""
    shape = (batch_size, INPUT_SIZE, INPUT_SIZE, 3)
    return np.random.RandomState(seed).uniform(-1, 1, size=shape).astype(np.float32)


def run_outputs(session, images):
    """{output: array} of a batch of images."""
    return session.run({name: name + ":0" for name in OUTPUTS}, {INPUT + ":0": images})


def run_frozen(path, images, config=None):
    """run_outputs of a .pb, loaded into a graph of its own."""
    graph_def = tf.GraphDef()
    with open(path, "rb") as file:
        graph_def.ParseFromString(file.read())
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        with tf.Session(graph=graph, config=config) as session:
            return run_outputs(session, images)


def unfused(config=None):
    """A copy of a tf.ConfigProto with which constants and variables are computed alike.

    Where weights are constants, as in the .pb, TensorFlow 2.x fuses convolution, normalisation and
    ReLU into one kernel, which rounds differently.
    """
    copy = tf.ConfigProto()
    if config is not None:
        copy.CopyFrom(config)
    copy.graph_options.rewrite_options.remapping = rewriter_config_pb2.RewriterConfig.OFF
    return copy


def differences(first, second):
    """{output: largest |difference|} of two results of run_outputs; NaN if either holds one."""
    return {name: float(np.max(np.abs(first[name] - second[name]))) for name in OUTPUTS}


def build(batch_size, K, seed=0):
    """The evaluation graph from a fixed batch of images; returns its variables."""
    images = tf.placeholder(tf.float32, [batch_size, INPUT_SIZE, INPUT_SIZE, 3], INPUT)
    layers = model_def.create_variables(K, seed)
    outputs = model_def.evaluate(images, layers)
    for name in OUTPUTS:
        tf.identity(getattr(outputs, name), name)
    return [variable for layer in layers for variable in layer]


def export(checkpoint, path, K, batch_size, seed=0, config=None):
    """Writes the .pb of the newest readable checkpoint, once it computes what the checkpoint does.

    Args:
      checkpoint: folder with checkpoints. path: of the .pb. K: landmarks. batch_size: images per
      call. seed: of the images to compare on. config: tf.ConfigProto.
    Returns:
      (path of the checkpoint, {output: largest difference}).
    Raises:
      InputError: no checkpoint, none readable, or one of another K.
      FloatingPointError: a difference is above TOLERANCE; an earlier .pb is left as it was.
      OSError: the .pb cannot be written.
    """
    images, config = random_images(batch_size, seed), unfused(config)
    with npu_session.new_graph().as_default():
        checkpoints = npu_session.Checkpoints(checkpoint, build(batch_size, K))
        with tf.Session(config=config) as session:
            restored = checkpoints.restore(session, required=True)
            expected, graph_def = run_outputs(session, images), freeze(session)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with npu_session.replacing(path, "wb") as file:
        file.write(graph_def.SerializeToString())
        file.flush()
        found = differences(expected, run_frozen(file.name, images, config))
        if not all(found[name] <= TOLERANCE[name] for name in OUTPUTS):
            raise FloatingPointError(
                f"the frozen graph differs from {restored} by {found}, more than {TOLERANCE}: "
                f"{path} was not written. On the NPU, try "
                "--precision_mode=must_keep_origin_dtype")
    return restored, found


# ---------------------------------------------------------------- files for msame


def write_inputs(folder, data, args):
    """Writes every batch of the images as raw little-endian float32; returns how many.

    The last batch is filled up with copies of the last image. The preparation is that of test
    mode: decoded, resized by area to scale_size, the centre cropped, cut to 128 x 128.

    Raises:
      InputError: the folder holds files of that kind already.
    """
    if glob.glob(os.path.join(glob.escape(folder), "batch_*.bin")):
        raise InputError(f"{folder} holds batch_*.bin already: give an empty folder")
    os.makedirs(folder, exist_ok=True)
    batches = -(-len(data.paths) // args.batch_size)
    with tf.Graph().as_default(), data_input.host_session(args) as session:
        pipeline = evaluate.image_pipeline(data.paths, args)
        images, _ = pipeline.next_batch()
        session.run(pipeline.initializer, pipeline.feed())
        for number in range(batches):
            with npu_session.replacing(os.path.join(folder, BATCH_NAME % number), "wb") as file:
                file.write(session.run(images).astype("<f4").tobytes())
    return batches


def find_outputs(folder):
    """Paths of msame's first outputs in a folder, or in the newest folder it made there.

    Raises:
      InputError: there are none.
    """
    pattern = "batch_*" + OUTPUT_ENDING
    for place in ("", "*"):  # msame makes a folder named by the time
        found = glob.glob(os.path.join(glob.escape(folder), place, pattern))
        if found:
            newest = os.path.dirname(max(found, key=os.path.getmtime))
            return sorted(path for path in found if os.path.dirname(path) == newest)
    raise InputError(f"{folder} holds no {pattern}: give the folder that msame wrote with --outfmt "
                     "BIN")


def read_outputs(folder, count, batch_size):
    """Coordinates that msame wrote for write_inputs' files: float32 [count, K, 2].

    Raises:
      InputError: other numbers of files or of values, or values that are not finite.
    """
    paths = find_outputs(folder)
    batches = -(-count // batch_size)
    if len(paths) != batches:
        raise InputError(f"{os.path.dirname(paths[0])} holds {len(paths)} outputs, expected "
                         f"{batches}: {count} images in batches of --batch_size={batch_size}")
    arrays = [np.fromfile(path, "<f4") for path in paths]
    for path, values in zip(paths, arrays):
        if not values.size or values.size % (2 * batch_size) or values.size != arrays[0].size:
            raise InputError(f"{path} holds {values.size} numbers, expected {batch_size} x K x 2: "
                             f"give the --batch_size of the export, and its output "
                             f"{OUTPUTS[0]}, as float32")
        if not np.isfinite(values).all():
            raise InputError(f"{path} holds numbers that are not finite")
    return np.concatenate(arrays).reshape(batches * batch_size, -1, 2)[:count]


def check_output(args):
    """Prints the landmark errors of what msame wrote; returns the exit code."""
    data = evaluate.load_data(args)
    sizes = data_input.image_sizes(data.paths, args)
    cells = read_outputs(args.check_output, len(data.paths), args.batch_size)
    measured, _ = evaluate.measure_points(data, evaluate.original_pixels(args, cells, sizes))
    print(f"data: {data.name}\nlandmarks: {args.check_output}, K = {cells.shape[1]}")
    print("\n".join(evaluate.table(measured)))
    return 0


# ---------------------------------------------------------------- report


def tensor_lines(K, batch_size):
    """One line per input and output: name and shape."""
    side = INPUT_SIZE
    return [f"input  {INPUT}:0  float32 [{batch_size}, {side}, {side}, 3]",
            f"output coordinates:0  float32 [{batch_size}, {K}, 2]",
            f"output heat_maps:0  float32 [{batch_size}, {MAP_SIZE}, {MAP_SIZE}, {K}]"]


def command_lines(path, batch_size, soc_version, input_folder):
    """The atc command that converts the .pb and the msame command that runs the result."""
    base = os.path.splitext(path)[0]
    folder = os.path.join(os.path.dirname(path) or ".", "om_output")
    outputs = ";".join(name + ":0" for name in OUTPUTS)
    shape = f"{INPUT}:{batch_size},{INPUT_SIZE},{INPUT_SIZE},3"
    return [f"atc --model={shlex.quote(path)} --framework=3 --output={shlex.quote(base)} "
            f"--soc_version={soc_version} --input_shape=\"{shape}\" --input_format=NHWC "
            f"--out_nodes=\"{outputs}\"",
            f"./msame --model {shlex.quote(base + '.om')} --input {shlex.quote(input_folder)} "
            f"--output {shlex.quote(folder)} --outfmt BIN --loop 1"]


def run(args):
    """Exports, and writes the input files if asked to; returns the exit code."""
    data = evaluate.load_data(args) if args.write_inputs else None
    if data:
        data_input.image_sizes(data.paths, args)
    args.K = args.K or evaluate.checkpoint_landmarks(args.checkpoint)
    config = npu_session.session_config(args, args.output_dir)
    restored, found = export(args.checkpoint, args.output, args.K, args.batch_size, args.seed,
                             config)
    print(f"{restored} -> {args.output} ({os.path.getsize(args.output)} bytes)")
    print("largest difference from the checkpoint's output: "
          + ", ".join(f"{name} {value:.3g}" for name, value in found.items()))
    print("\n".join(tensor_lines(args.K, args.batch_size)))
    if data:
        count = write_inputs(args.write_inputs, data, args)
        print(f"data: {data.name}\nwrote {count} batches of {args.batch_size} images to "
              f"{args.write_inputs}")
    print("\n".join(command_lines(args.output, args.batch_size, args.soc_version,
                                  args.write_inputs or "<folder of .bin files>")))
    return 0


def main(argv=None):
    """Parses the flags and exports or checks; returns the exit code."""
    args = parse_args(argv)
    args.checkpoint = args.checkpoint or os.path.join(args.output_dir, "ckpt")
    args.output = args.output or os.path.join(args.output_dir, "landmarks.pb")
    return check_output(args) if args.check_output else run(args)


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
