"""Freezes trained weights into one .pb for offline inference; prints the atc and msame commands.

image_<m> [B, 32, 32, 1], grey levels 0..255 -> latent_<m> [B, 1920] and reconstruction_<m>
[B, 32, 32, 1], for one modality m or all. The joint fusions have a single latent_0 of all images.
Clusters are made from the latents of all samples, on the host: --check_latents.
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

import affinity_fusion
import baselines
import checkpoints
import data_input
import metrics
import network
import npu_session
import options
from npu_session import InputError
from options import COUNT, POSITIVE_INT

PARTS = {"encode": ("latent",), "reconstruct": ("reconstruction",),
         "both": ("latent", "reconstruction")}
IMAGE = (data_input.SIDE, data_input.SIDE, 1)
TOLERANCE = 1e-6  # of the largest output: accepted difference between .pb and checkpoint

Interface = collections.namedtuple("Interface", "inputs outputs")  # {operation: shape}


def parse_args(argv=None):
    """Flags of the export."""
    parser = npu_session.argument_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--output_dir", default=".", help="the one given to training")
    add("--model", default="mymodel", help="weights are <output_dir>/models/<model>.ckpt")
    add("--checkpoint", help="prefix of another checkpoint, without .index")
    add("--output", help="the .pb to write; default <output_dir>/models/<model>.pb")
    add("--fusion", choices=network.FUSIONS, default="affinity", help="the one given to training")
    add("--part", choices=PARTS, default="both", help="what the .pb gives")
    add("--modality", type=COUNT, help="export one modality only; default: all")
    add("--batch_size", type=POSITIVE_INT, help="images per call, fixed; default: as many samples "
                                                "as the data have, all of which are needed for "
                                                "clusters")
    add("--soc_version", default="Ascend310", help="atc's name of the chip")
    group = parser.add_argument_group("data", "for the default batch and the last three")
    group = group.add_argument
    group("--mat", default="YaleB", help="name of the data file, without .mat")
    group("--data_path", help="folder whose Data/ has the file; default: the working directory")
    group("--data_dir", help="folder that has the file; wins over --data_path")
    group("--subjects", type=POSITIVE_INT, help="use the first so many classes only")
    group("--clusters", type=POSITIVE_INT, help="K; default: the number of classes in Label")
    options.add_equalise_flag(group)
    group("--write_inputs", metavar="FOLDER", help="also write the .bin files that msame reads")
    group("--check_latents", metavar="FILE", nargs="+",
          help="instead of exporting, cluster all samples by the latents that msame wrote (.txt, "
               "or .bin of float32; one file per exported modality) and print the scores")
    group("--check_reconstructions", metavar="FILE", nargs="+",
          help="instead of exporting, print the squared errors of the images that msame wrote")
    npu_session.add_session_flags(parser, precision_mode="must_keep_origin_dtype")
    return parser.parse_args(argv)


# ---------------------------------------------------------------- graph


def modality_count(path):
    """Number of modalities of the checkpoint with this prefix; InputError if it is unreadable."""
    if not checkpoints.exists(path):
        raise InputError(f"there is no checkpoint {path}: train one with python "
                         "pretrain_affinity_fusion.py, or name it with --model or --checkpoint")
    try:
        names = tf.train.load_checkpoint(path).get_variable_to_shape_map()
    except (tf.errors.OpError, ValueError) as error:
        raise InputError(f"checkpoint {path} cannot be read ({type(error).__name__}): copy or "
                         "train it again") from None
    found = {match.group(1) for match in map(checkpoints.FIRST_KERNEL.fullmatch, names) if match}
    if not found:
        raise InputError(f"checkpoint {path} holds no encoder of this model")
    return len(found)


def choose(modality, modalities, fusion):
    """Numbers of the modalities to export; InputError for one that cannot be."""
    if modality is None:
        return list(range(modalities))
    if fusion != "affinity":
        raise InputError(f"--modality={modality}: with --fusion={fusion} one code holds all "
                         "modalities; export them together")
    if modality >= modalities:
        raise InputError(f"--modality={modality}: the checkpoint has modalities 0 to "
                         f"{modalities - 1}")
    return [modality]


def build_graph(weights, chosen, batch_size, fusion, part):
    """Adds inputs and outputs to the graph; returns the Interface.

    Args: weights: network.Weights without Coef. chosen: numbers of modalities. part: of PARTS.
    """
    weights = weights._replace(own=[weights.own[number] for number in chosen],
                               decoders=[weights.decoders[number] for number in chosen])
    images = [tf.placeholder(tf.float32, (batch_size,) + IMAGE, f"image_{number}")
              for number in chosen]
    # Pixels as network.pack arranges them.
    codes = network.encode(weights, [tf.space_to_depth(image, 2) for image in images], fusion)
    outputs = {}
    if "latent" in PARTS[part]:
        for number, code in zip(chosen, codes):
            latent = tf.reshape(code, [batch_size, -1], f"latent_{number}")
            outputs[latent.op.name] = tuple(latent.shape.as_list())
    if "reconstruction" in PARTS[part]:
        for number, made in zip(chosen, network.decode(weights, codes)):
            image = tf.depth_to_space(made, 2, f"reconstruction_{number}")
            outputs[image.op.name] = tuple(image.shape.as_list())
    return Interface({image.op.name: tuple(image.shape.as_list()) for image in images}, outputs)


def freeze(session, outputs):
    """GraphDef of what the outputs need, with the session's variables as constants."""
    frozen = tf.graph_util.convert_variables_to_constants(
        session, session.graph.as_graph_def(), list(outputs))
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


def run_outputs(session, interface, inputs):
    """{output: float32 array} of {input: array}."""
    feed = {name + ":0": inputs[name] for name in interface.inputs}
    return session.run({name: name + ":0" for name in interface.outputs}, feed)


def run_frozen(path, interface, inputs, config=None):
    """run_outputs of a .pb, loaded into a graph of its own."""
    graph_def = tf.GraphDef()
    with open(path, "rb") as file:
        graph_def.ParseFromString(file.read())
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        with tf.Session(graph=graph, config=config) as session:
            return run_outputs(session, interface, inputs)


def unfused(config=None):
    """A copy of a tf.ConfigProto with which constants and variables are computed alike.

    TensorFlow 2.x fuses a layer and its bias only where the bias is a constant, as in the .pb;
    the fused kernel rounds differently.
    """
    copy = tf.ConfigProto()
    if config is not None:
        copy.CopyFrom(config)
    copy.graph_options.rewrite_options.remapping = rewriter_config_pb2.RewriterConfig.OFF
    return copy


def largest_difference(first, second):
    """Largest |difference| of two results of run_outputs as a share of the largest magnitude of
    the same output; NaN if either holds one."""
    return float(np.max([np.max(np.abs(first[name] - second[name]))
                         / max(np.max(np.abs(first[name])), np.finfo(np.float32).tiny)
                         for name in first]))


def export(checkpoint, path, batch_size, fusion="affinity", part="both", modality=None, seed=0,
           config=None):
    """Writes the .pb of a checkpoint, once it computes what the checkpoint does.

    Args:
      checkpoint: prefix of a file of trained weights. path: of the .pb. batch_size: images per
        call. fusion, part, modality: see the flags. seed: of the images to compare on. config:
        tf.ConfigProto.
    Returns:
      (Interface, largest_difference).
    Raises:
      InputError: no checkpoint, an unreadable one, or one of another architecture.
      FloatingPointError: the difference is above TOLERANCE; an earlier .pb is left as it was.
      OSError: the .pb cannot be written.
    """
    modalities, config = modality_count(checkpoint), unfused(config)
    chosen = choose(modality, modalities, fusion)
    with npu_session.new_graph().as_default():
        weights = network.create_weights(modalities, None, seed, fusion)
        interface = build_graph(weights, chosen, batch_size, fusion, part)
        values = checkpoints.read(checkpoint, network.autoencoder_variables(weights))
        random = np.random.RandomState(seed)
        inputs = {name: random.uniform(0, 255, shape).astype(np.float32)
                  for name, shape in interface.inputs.items()}
        with tf.Session(config=config) as session:
            checkpoints.load(session, values)
            expected = run_outputs(session, interface, inputs)
            graph_def = freeze(session, interface.outputs)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with npu_session.replacing(path, "wb") as file:
        file.write(graph_def.SerializeToString())
        file.flush()
        difference = largest_difference(expected, run_frozen(file.name, interface, inputs, config))
        if not difference <= TOLERANCE:
            raise FloatingPointError(
                f"the frozen graph differs from {checkpoint} by {difference:.2g}, more than "
                f"{TOLERANCE:g}: {path} was not written. On the NPU, try "
                "--precision_mode=must_keep_origin_dtype")
    return interface, difference


# ---------------------------------------------------------------- files for and from the chip


def load_data(args, modalities=None):
    """The data of the flags; InputError if they have not as many modalities as the checkpoint."""
    data = affinity_fusion.load_data(args)
    if modalities not in (None, len(data.images)):
        raise InputError(f"the data have {len(data.images)} modalities, the checkpoint "
                         f"{modalities}: choose the data it was trained on")
    return data


def write_inputs(folder, interface, data):
    """Writes the first images of the data as little-endian float32, in C order; returns paths."""
    os.makedirs(folder, exist_ok=True)
    paths = []
    for name, shape in interface.inputs.items():
        images = data.images[int(name.split("_")[1])]
        if len(images) < shape[0]:
            raise InputError(f"--batch_size={shape[0]} is more than the {len(images)} samples")
        paths.append(os.path.join(folder, name + ".bin"))
        with npu_session.replacing(paths[-1], "wb") as file:
            file.write(images[:shape[0]].astype("<f4").tobytes())
    return paths


def read_output(path, samples):
    """float32 [samples, D] that msame wrote, as float32 (.bin) or as numbers in text (else).

    Raises:
      InputError: unreadable, not numbers, not so many for each sample, or not finite.
    """
    try:
        if path.endswith(".bin"):
            values = np.fromfile(path, "<f4")
        else:
            with open(path) as file:
                values = np.array(file.read().split(), np.float32)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as msame's output ({error})") from None
    if not values.size or values.size % samples:
        raise InputError(f"{path} holds {values.size} numbers, which is not the same count for "
                         f"each of {samples} samples: give outputs of all samples, and the data "
                         "they are of")
    if not np.isfinite(values).all():
        raise InputError(f"{path} holds numbers that are not finite")
    return values.reshape(samples, -1)


def check_latents(paths, data, seed):
    """Clusters by the self-expression of the latents in these files; returns the report's lines.

    Without stage 2: C is the closed form of baselines.self_expression on the latents.
    """
    latents = [read_output(path, len(data.images[0])) for path in paths]
    weights = [1.0] * len(paths)
    if len(paths) == len(data.images):
        weights = network.spread(network.SELF_EXPRESSION_WEIGHTS, len(paths))
    labels = baselines.ridge(latents, data.clusters, weights, random=np.random.RandomState(seed))
    sizes = ", ".join(map(str, np.bincount(labels)[1:]))
    lines = [f"{len(labels)} samples in {data.clusters} clusters of {sizes}"]
    if data.labels is not None:
        lines.append("self-expression of the latents: ACC {:.2f}% NMI {:.2f}% ARI {:.2f}%".format(
            *(100 * score for score in metrics.scores(data.labels, labels))))
    return lines


def check_reconstructions(paths, data, modality):
    """Mean squared error, in squared grey levels, of the images in each file; report's lines."""
    first, lines = modality or 0, []
    if first + len(paths) > len(data.images):
        raise InputError(f"{len(paths)} files of reconstructions from modality {first} on, but "
                         f"the data have {len(data.images)} modalities")
    for number, path in enumerate(paths, first):
        samples = len(data.images[number])
        made = read_output(path, samples)
        if made.shape[1] != int(np.prod(IMAGE)):
            raise InputError(f"{path} holds {made.size} numbers, expected {samples} images of "
                             f"{int(np.prod(IMAGE))} pixels")
        error = np.mean(np.square(made - data.images[number].reshape(made.shape), dtype=np.float64))
        lines.append(f"modality {number}: mean squared error {error:.4f} of {path}")
    return lines


def tensor_lines(interface):
    """One line per input and output: name and shape."""
    return [f"{kind} {name}:0  float32 {list(shape)}"
            for kind, part in (("input ", interface.inputs), ("output", interface.outputs))
            for name, shape in part.items()]


def command_lines(path, interface, soc_version, input_folder):
    """The atc command that converts the .pb and the msame command that runs the result."""
    base = os.path.splitext(path)[0]
    shapes = ";".join("{}:{}".format(name, ",".join(map(str, shape)))
                      for name, shape in interface.inputs.items())
    outputs = ";".join(name + ":0" for name in interface.outputs)
    files = ",".join(os.path.join(input_folder, name + ".bin") for name in interface.inputs)
    folder = os.path.join(os.path.dirname(path) or ".", "om_output")
    return [f"atc --model={shlex.quote(path)} --framework=3 --output={shlex.quote(base)} "
            f"--soc_version={soc_version} --input_shape=\"{shapes}\" --out_nodes=\"{outputs}\"",
            f"./msame --model {shlex.quote(base + '.om')} --input {shlex.quote(files)} "
            f"--output {shlex.quote(folder)} --outfmt BIN --loop 1"]


def run(args):
    """Exports, and writes the input files if asked to; returns the exit code."""
    modalities, data = modality_count(args.checkpoint), None
    if args.write_inputs or args.batch_size is None:
        data = load_data(args, modalities)
        args.batch_size = args.batch_size or len(data.images[0])
    config = npu_session.session_config(args, args.output_dir)
    interface, difference = export(args.checkpoint, args.output, args.batch_size, args.fusion,
                                   args.part, args.modality, args.seed, config)
    print(f"{args.checkpoint} -> {args.output} ({os.path.getsize(args.output)} bytes)")
    print(f"largest difference from the checkpoint's output {difference:.3g} of its magnitude")
    print("\n".join(tensor_lines(interface)))
    if args.write_inputs:
        print("wrote " + ", ".join(write_inputs(args.write_inputs, interface, data)))
    print("\n".join(command_lines(args.output, interface, args.soc_version,
                                  args.write_inputs or ".")))
    return 0


def check(args):
    """Prints what the files say that msame wrote; returns the exit code."""
    data = load_data(args)
    if args.check_latents:
        print("\n".join(check_latents(args.check_latents, data, args.seed)))
    if args.check_reconstructions:
        print("\n".join(check_reconstructions(args.check_reconstructions, data, args.modality)))
    return 0


def main(argv=None):
    """Parses the flags and exports or checks; returns the exit code."""
    args = parse_args(argv)
    weights = options.model_path(args)
    args.output = args.output or os.path.splitext(weights)[0] + ".pb"
    args.checkpoint = args.checkpoint or weights
    return check(args) if args.check_latents or args.check_reconstructions else run(args)


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
