"""Freezes the generators of a run into one .pb each for offline inference; prints the commands.

noise_ph [B, zdim] -> GENERATOR/output [B, dim, 1, 1]. The names are the reference's. The samples
that the chip computes come back with --check_output, which evaluates them as training does.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import shlex
import sys

import numpy as np
import tensorflow.compat.v1 as tf
from tensorflow.core.protobuf import rewriter_config_pb2
from tensorflow.python.framework import meta_graph

import adagan_gmm
import draws
import gan
import metrics
import mixture
import npu_session
import sample
from figures import Figures
from npu_session import InputError
from utils import COUNT, POSITIVE_INT

INPUT, OUTPUT = "noise_ph", "GENERATOR/output"  # names of operations
PB, NOISE, PICTURE = "generator_{:02d}.pb", "noise.bin", "output_samples"
TOLERANCE = 1e-6  # largest accepted difference of the .pb from the checkpoint, over the largest
#                   coordinate


def parse_args(argv=None):
    """Flags of the export."""
    parser = npu_session.argument_parser(__doc__.splitlines()[0])
    sample.add_run_folder(parser)
    parser.add_argument("--ckpt_dir", help="adagan_gmm.py's; default <output_dir>/ckpt")
    parser.add_argument("--component", type=COUNT, help="the only one to export, from 0; default: "
                                                        "all that are complete")
    parser.add_argument("--export_dir", help="folder for the .pb files and noise.bin; default "
                                             "<output_dir>/export")
    parser.add_argument("--batch_size", type=POSITIVE_INT,
                        help="samples per call, fixed; default: the run's samples_per_component")
    parser.add_argument("--soc_version", default="Ascend310", help="atc's name of the chip")
    parser.add_argument("--check_output", metavar="FILE", nargs="+",
                        help="instead of exporting, evaluate the samples that msame wrote (.bin "
                             "of float32, or .txt), one file for each exported component in order")
    npu_session.add_session_flags(parser, precision_mode="must_keep_origin_dtype")
    return parser.parse_args(argv)


# ---------------------------------------------------------------- the frozen graph


def build_graph(settings, batch_size):
    """(noise float32 [batch_size, zdim], samples [batch_size, dim, 1, 1]) in the current graph.

    settings: the run's flags.
    """
    kind = gan.ToyUnrolledGan if settings.unrolled else gan.ToyGan
    noise = tf.placeholder(tf.float32, [batch_size, settings.latent_space_dim], INPUT)
    samples, _ = gan.generator(noise, settings.toy_dataset_dim, kind.activation)
    return noise, samples


def restore(session, path):
    """Gives the graph's variables their values in a checkpoint.

    Raises:
      InputError: it is missing or damaged, or of another model (the variable is named).
    """
    shapes = readable(path, lambda: tf.train.load_checkpoint(path).get_variable_to_shape_map())
    for variable in tf.global_variables():
        name, shape = variable.op.name, variable.shape.as_list()
        if shapes.get(name) != shape:
            raise InputError(f"checkpoint {path} has {name} {shapes.get(name, 'missing')}, the "
                             f"run's flags ask for {shape}: its files do not belong together")
    readable(path, lambda: tf.train.Saver().restore(session, path))


def readable(path, read):
    """read(), or an InputError that names the checkpoint."""
    try:
        return read()
    except (tf.errors.OpError, ValueError) as error:
        raise InputError(f"checkpoint {path} cannot be read ({type(error).__name__}): restore it, "
                         "or export another component") from None


def freeze(session):
    """GraphDef from INPUT to OUTPUT, with the session's variables as constants."""
    frozen = tf.graph_util.convert_variables_to_constants(
        session, session.graph.as_graph_def(), [OUTPUT])
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


def run_frozen(path, noise, config=None):
    """Samples float32 [B, dim, 1, 1] of a .pb, loaded into a graph of its own.

    noise: float32 [B, zdim], B being the .pb's.
    """
    graph_def = tf.GraphDef()
    with open(path, "rb") as file:
        graph_def.ParseFromString(file.read())
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        with tf.Session(graph=graph, config=config) as session:
            return session.run(OUTPUT + ":0", {INPUT + ":0": noise})


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


def largest_difference(found, expected):
    """Largest |difference| over the largest |expected|; NaN if there is one."""
    return float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))


def export(checkpoint, path, settings, noise, config=None):
    """Writes the .pb of one component, once it computes what the checkpoint does.

    Args:
      checkpoint: its path, without ending. path: of the .pb. settings: the run's flags.
      noise: float32 [B, zdim], to compare on; B becomes the .pb's. config: tf.ConfigProto.
    Returns:
      The largest difference, see largest_difference.
    Raises:
      InputError: see restore.
      FloatingPointError: the difference is above TOLERANCE; an earlier .pb is left as it was.
      OSError: the .pb cannot be written.
    """
    config = unfused(config)
    with npu_session.new_graph().as_default():
        source, samples = build_graph(settings, len(noise))
        with tf.Session(config=config) as session:
            restore(session, checkpoint)
            expected, graph_def = session.run(samples, {source: noise}), freeze(session)
    with npu_session.replacing(path, "wb") as file:
        file.write(graph_def.SerializeToString(deterministic=True))
        file.flush()
        difference = largest_difference(run_frozen(file.name, noise, config), expected)
        if not difference <= TOLERANCE:
            raise FloatingPointError(
                f"the frozen graph differs from {checkpoint} by {difference:.2g}, more than "
                f"{TOLERANCE:g}: {path} was not written. On the NPU, try "
                "--precision_mode=must_keep_origin_dtype")
    return difference


# ---------------------------------------------------------------- files for the chip and from it


def make_noise(settings, count, seed):
    """Latent vectors float32 [count, zdim] as the run draws them."""
    return draws.noise(np.random.RandomState(seed), count, settings.latent_space_dim,
                       settings.latent_space_distr)


def write_noise(path, noise):
    """Writes noise as raw little-endian float32, in C order."""
    with npu_session.replacing(path, "wb") as file:
        file.write(noise.astype("<f4").tobytes())


def read_noise(path, settings):
    """float32 [B, zdim] of write_noise; InputError if it cannot be that."""
    values = read_numbers(path)
    if not values.size or values.size % settings.latent_space_dim:
        raise InputError(f"{path} holds {values.size} numbers, expected rows of "
                         f"{settings.latent_space_dim}: export again")
    return values.reshape(-1, settings.latent_space_dim)


def read_output(path, settings, count):
    """Samples float32 [count, dim, 1, 1] that msame wrote.

    Raises:
      InputError: unreadable, not numbers, another count, or not finite.
    """
    values, dim = read_numbers(path), settings.toy_dataset_dim
    if values.size != count * dim:
        raise InputError(f"{path} holds {values.size} numbers, expected {count} x {dim}: give the "
                         f"file of {OUTPUT} and the folder of the export with --export_dir")
    return values.reshape(count, dim, 1, 1)


def read_numbers(path):
    """float32 [n] of a .bin of float32, or of any other file with numbers in text."""
    try:
        if path.endswith(".bin"):
            values = np.fromfile(path, "<f4")
        else:
            with open(path) as file:
                values = np.array(file.read().split(), np.float32)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as float32 numbers ({error})") from None
    if not np.isfinite(values).all():
        raise InputError(f"{path} holds numbers that are not finite")
    return values


def command_lines(folder, component, shape, soc_version):
    """The atc command that converts a .pb and the msame command that runs the result.

    shape: (B, zdim) of the noise.
    """
    path = os.path.join(folder, PB.format(component))
    base, size = os.path.splitext(path)[0], ",".join(map(str, shape))
    return [f"atc --model={shlex.quote(path)} --framework=3 --output={shlex.quote(base)} "
            f"--soc_version={soc_version} --input_shape=\"{INPUT}:{size}\" "
            f"--out_nodes=\"{OUTPUT}:0\"",
            f"./msame --model {shlex.quote(base + '.om')} "
            f"--input {shlex.quote(os.path.join(folder, NOISE))} "
            f"--output {shlex.quote(base + '_output')} --outfmt BIN --loop 1"]


# ---------------------------------------------------------------- the program


def chosen_components(args, mixed):
    """Numbers of the components to export; InputError if there is no such one."""
    complete = len(mixed.weights)
    if args.component is None:
        return list(range(complete))
    if args.component >= complete:
        raise InputError(f"--component={args.component}: {args.output_dir} has components 0 to "
                         f"{complete - 1}")
    return [args.component]


def run(args, settings, mixed):
    """Exports, writes the noise and prints the commands."""
    config = npu_session.session_config(args, args.output_dir)
    noise = make_noise(settings, args.batch_size or settings.samples_per_component, args.seed)
    os.makedirs(args.export_dir, exist_ok=True)
    commands = []
    for component in chosen_components(args, mixed):
        checkpoint = os.path.join(args.ckpt_dir, f"component-{component:02d}")
        path = os.path.join(args.export_dir, PB.format(component))
        difference = export(checkpoint, path, settings, noise, config)
        print(f"{checkpoint} -> {path} ({os.path.getsize(path)} bytes), largest difference "
              f"{difference:.3g}")
        commands += command_lines(args.export_dir, component, noise.shape, args.soc_version)
    write_noise(os.path.join(args.export_dir, NOISE), noise)
    print(f"input  {INPUT}:0  float32 {list(noise.shape)}  {os.path.join(args.export_dir, NOISE)}")
    print(f"output {OUTPUT}:0  float32 [{len(noise)}, {settings.toy_dataset_dim}, 1, 1]")
    print("\n".join(commands))


def check_output(args, settings, mixed):
    """Compares what msame wrote with the .pb files, evaluates it and draws it.

    Files of all components, or of the first ones, make the mixture as it was after them.
    """
    components = chosen_components(args, mixed)
    if len(args.check_output) > len(components):
        raise InputError(f"--check_output: {len(args.check_output)} files for {len(components)} "
                         "components")
    noise = read_noise(os.path.join(args.export_dir, NOISE), settings)
    computed = mixture.Mixture()
    for component, path in zip(components, args.check_output):
        samples = read_output(path, settings, len(noise))
        difference = largest_difference(samples, frozen_samples(args, component, noise))
        print(f"{path}: component {component}, largest difference from the .pb {difference:.3g}")
        computed.add(samples, 1.0 if len(computed.weights) == 0 else mixed.betas[component])
    evaluate(args, settings, computed)


def frozen_samples(args, component, noise):
    """What an exported .pb makes of the noise."""
    path = os.path.join(args.export_dir, PB.format(component))
    if not os.path.isfile(path):
        raise InputError(f"no {path} to compare with: export it, or give its folder with "
                         "--export_dir")
    return run_frozen(path, noise, npu_session.session_config(args, args.output_dir))


def evaluate(args, settings, computed):
    """The log lines of training for a Mixture, and a picture."""
    data, random = sample.training_data(settings), np.random.RandomState(args.seed)
    fake, more = (computed.sample(count, random) for count in (
        settings.eval_points_num, adagan_gmm.EVALUATED_POINTS))
    found = metrics.evaluate(data.points[:adagan_gmm.EVALUATED_POINTS], fake, more)
    print(f"Evaluating: log_p={found.log_p:.3f}, C={found.C:.3f}")
    print(sample.truth_line(computed.sample(adagan_gmm.TEST_SAMPLES, random), data))
    title = f"Computed by the chip: {len(computed.weights)} components"
    Figures(args.export_dir, data).scatter(PICTURE, title, fake)
    print(f"picture {os.path.join(args.export_dir, PICTURE)}.png")


def main(argv=None):
    """Parses the flags and exports or checks."""
    args = parse_args(argv)
    args.export_dir = args.export_dir or os.path.join(args.output_dir, "export")
    args.ckpt_dir = args.ckpt_dir or os.path.join(args.output_dir, "ckpt")
    settings = sample.run_settings(args.output_dir)
    mixed = mixture.load(args.output_dir)
    (check_output if args.check_output else run)(args, settings, mixed)


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
