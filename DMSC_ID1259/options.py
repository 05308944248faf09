"""Flags that both programs share, their types, and where the files of a run are."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os

import numpy as np
import tensorflow.compat.v1 as tf

import metrics
import network
import npu_session
from npu_session import InputError

MIXLIST = os.path.join(os.path.dirname(os.path.abspath(__file__)), "ops_info.json")
COMPUTE_DTYPES = ("float32", "bfloat16")
ROWS_PER_CALL = 6400  # default steps per session.run times samples: some ten seconds on a CPU


def flag_type(convert, accepts, text):
    """argparse type that converts and accepts only some values, described by `text`."""
    def parse(value):
        number = convert(value)
        if not accepts(number):
            raise ValueError(value)
        return number
    parse.__name__ = text
    return parse


POSITIVE_INT = flag_type(int, lambda number: number > 0, "integer above 0")
COUNT = flag_type(int, lambda number: number >= 0, "integer of at least 0")
POSITIVE = flag_type(float, lambda number: 0 < number < np.inf, "number above 0")
WEIGHT = flag_type(float, lambda number: 0 <= number < np.inf, "number of at least 0")


def add_shared_flags(parser, model, epoch, epoch_help):
    """Adds the flags of both programs; model and epoch are the reference's defaults."""
    add = parser.add_argument
    add("--mat", default="YaleB", help="name of the data file, without .mat")
    add("--data_path", help="folder whose Data/ has the file; default: the working directory")
    add("--data_dir", help="folder that has the file; wins over --data_path")
    add("--subjects", type=POSITIVE_INT, help="use the first so many classes only; default: all")
    add("--clusters", type=POSITIVE_INT, help="K; default: the number of classes in Label")
    add_equalise_flag(add)
    add("--output_dir", default=".", help="receives models/, logs/ and results/")
    add("--model", default=model, help="weights are <output_dir>/models/<model>.ckpt")
    add("--epoch", type=POSITIVE_INT, default=epoch, help=epoch_help)
    add("--max_train_steps", type=POSITIVE_INT, help="steps in all, instead of --epoch")
    add("--rank_size", type=int, default=1, help="processes; only 1 is supported")
    add("--learning_rate", type=POSITIVE, default=1e-3, help="of Adam, in both stages")
    add("--fusion", choices=network.FUSIONS, default="affinity",
        help="affinity: one code per modality and one shared matrix; the others join the "
             "modalities before, after the first or after the last encoder layer")
    add("--reconstruction_weights", type=WEIGHT, nargs="+", metavar="W",
        default=list(network.RECONSTRUCTION_WEIGHTS),
        help="one per modality, or two: of the first and of each other")
    add("--compute_dtype", choices=COMPUTE_DTYPES, default="float32",
        help="of the layers and the product with the matrix; variables, losses and updates are "
             "float32 in any case; bfloat16 saves much time on CPUs that multiply it in hardware "
             "(AMX), with TensorFlow 2.x")
    add("--steps_per_call", type=POSITIVE_INT,
        help="steps per session.run; a signal waits for its end. Default: the first of 10, 5, 2, "
             f"1 that is at most {ROWS_PER_CALL} / N and divides the schedule")
    npu_session.add_flags(parser, precision_mode="allow_mix_precision")
    parser.set_defaults(seed=0)  # the reference's


def add_equalise_flag(add):
    """Adds --equalise; add: a parser's add_argument."""
    add("--equalise", type=npu_session.boolean, nargs="?", const=True, default=False,
        metavar="True|False", help="scale every image to the same sum of squares, so that dark "
                                   "images weigh as much as bright ones")


def add_affinity_flags(parser):
    """Adds the flags of stage 2 (self-expression) and 3 (spectral clustering)."""
    add = parser.add_argument_group("stage 2 and 3").add_argument
    add("--affinity_steps", type=POSITIVE_INT, default=800, help="steps of stage 2")
    add("--eval_from", type=POSITIVE_INT, default=200, help="step of the first clustering")
    add("--eval_every", type=POSITIVE_INT, default=10, help="steps between clusterings")
    add("--save_every", type=POSITIVE_INT, default=50, help="steps between checkpoints")
    add("--self_expression_weights", type=WEIGHT, nargs="+", metavar="W",
        default=list(network.SELF_EXPRESSION_WEIGHTS),
        help="one per modality, or two: of the first and of each other")
    add("--reg_constant1", type=WEIGHT, default=1.0, help="weight of |Theta|^2")
    add("--reg_constant2", type=WEIGHT,
        help="weight of |Z - Theta Z|^2; default 10^(K/10-3); made for pixels of 0..255")
    add("--ro", type=POSITIVE, help="share of each column of |Theta| to keep; default "
                                    "max(0.4 - (K-1)/100, 0.1)")
    add("--subspace_dimension", type=POSITIVE_INT, default=metrics.DIMENSION,
        help="d, of a cluster's subspace: the affinity has rank d K + 1, so N must be larger")
    add("--power", type=POSITIVE, default=metrics.POWER, help="exponent of the affinity")
    add("--starts", type=POSITIVE_INT, default=1,
        help="starts of the discretisation, of which the best by its own objective is kept")


def check_rank_size(args):
    """InputError unless this is the only process."""
    if args.rank_size != 1 or npu_session.size() > 1:
        count = args.rank_size if args.rank_size != 1 else npu_session.size()
        raise InputError(f"--rank_size={count}: all samples share one matrix, so training is not "
                         "distributed; use --rank_size=1")


def computes_in(dtype):
    """Whether this TensorFlow computes in one of COMPUTE_DTYPES on this device.

    1.x is not even tried: it would hand the products to XLA's device, which is far slower.
    """
    return dtype == "float32" or not (
        tf.__version__.startswith("1.") or npu_session.backend() == "npu")


def check_compute_dtype(args):
    """InputError unless this TensorFlow computes in --compute_dtype."""
    if not computes_in(args.compute_dtype):
        raise InputError(f"--compute_dtype={args.compute_dtype}: not with TensorFlow "
                         f"{tf.__version__} on {npu_session.backend()}; leave the flag out (on an "
                         "NPU --precision_mode decides)")


def set_steps_per_call(args, samples, *counts):
    """Sets --steps_per_call if it was not given; counts: steps that it should divide."""
    if args.steps_per_call is None:
        args.steps_per_call = next(
            number for number in (10, 5, 2, 1) if number == 1 or (
                number * samples <= ROWS_PER_CALL and not any(count % number for count in counts)))


def data_folder(args):
    """The folder that --data_dir, --data_path or ModelArts' --data_url names; None without any."""
    if args.data_dir is not None:
        return args.data_dir
    return None if args.data_path is None else os.path.join(args.data_path, "Data")


def model_path(args):
    """Prefix of the weights' checkpoint, without .index and .data."""
    return os.path.join(args.output_dir, "models", args.model + ".ckpt")


def pretrain_folder(args):
    """Run folder of stage 1."""
    return os.path.join(args.output_dir, "logs", args.model)


def affinity_folder(args):
    """Run folder of stage 2 and 3."""
    return os.path.join(args.output_dir, "results", args.model)


def print_settings(args):
    """The flags, device and versions, in alphabetical order."""
    settings = dict(vars(args), device=npu_session.backend(), **npu_session.versions())
    print("\n" + "\n".join(f"{name} = {settings[name]}" for name in sorted(settings)) + "\n")
