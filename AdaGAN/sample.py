"""Draws samples from the mixture that a run of adagan_gmm.py left: .npy or .csv, and a picture.

A sample is a stored sample of a component that is chosen by weight, as in training.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import argparse
import json
import os
import sys

import numpy as np

import adagan_gmm
import metrics
import mixture
import npu_session
from figures import Figures
from npu_session import InputError
from utils import POSITIVE_INT

# Flags of a run that decide its data and its generators.
NEEDED = ("seed", "reference_stream", "dataset", "gmm_modes_num", "toy_dataset_dim",
          "toy_dataset_size", "gmm_max_val", "random_seed", "unrolled", "batch_size",
          "latent_space_dim", "latent_space_distr", "samples_per_component", "eval_points_num")
SHOWN = 2000  # samples in the picture: more would hide one another


def parse_args(argv=None):
    """Flags of the sampling."""
    parser = npu_session.argument_parser(__doc__.splitlines()[0])
    add_run_folder(parser)
    parser.add_argument("--count", type=POSITIVE_INT, default=1000, help="samples to draw")
    parser.add_argument("--components", type=POSITIVE_INT,
                        help="draw from the mixture as it was after this many; default: all")
    parser.add_argument("--output", help=".npy: float32 [count, dim]; .csv: a line each; default "
                                         "<output_dir>/mixture_samples.npy. The picture goes "
                                         "beside it")
    parser.add_argument("--seed", type=npu_session.seed_number, default=1, help="of the draws")
    return parser.parse_args(argv)


def add_run_folder(parser):
    """Adds the flag that names the folder of a run."""
    parser.add_argument("--output_dir", "--workdir", "--work_dir", default="results",
                        help="adagan_gmm.py's")


def run_settings(folder):
    """The flags (argparse.Namespace) that the run in a folder was started with.

    Raises:
      InputError: no run of adagan_gmm.py is there, or its config.json is damaged.
    """
    path = os.path.join(folder, "config.json")
    flags = npu_session.read_json(path, lambda file: dict(json.load(file)["flags"]))
    if flags is None:
        raise InputError(f"{folder} holds no config.json: give the folder of a run of "
                         "adagan_gmm.py with --output_dir")
    missing = [name for name in NEEDED if name not in flags]
    if missing:
        raise InputError(f"{path} has no {missing[0]}: it is not from a run of adagan_gmm.py")
    return argparse.Namespace(**flags)


def training_data(settings):
    """datahandler.Data of a run, drawn again."""
    return adagan_gmm.load_data(settings, adagan_gmm.make_draws(settings))


def write_samples(path, samples):
    """Writes samples float32 [n, dim] as .npy, or as .csv with a head line x0,x1,...

    Raises:
      InputError: another ending. OSError: the file cannot be written.
    """
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    if path.endswith(".npy"):
        mixture.write_array(path, samples)
    else:
        head = ",".join(f"x{axis}" for axis in range(samples.shape[1]))
        with npu_session.replacing(path) as file:  # 9 digits: float32 numbers are kept exactly
            np.savetxt(file, samples, "%.9g", ",", header=head, comments="")


def truth_line(samples, data):
    """What the true mixture says about samples, in one line."""
    found = metrics.mixture_metrics(samples, data.means, data.variance)
    places = len(metrics.distinct_modes(data.means)[0])
    return (f"modes covered {found.modes_covered} of {places}, high quality "
            f"{found.high_quality:.3f}, kl {found.kl:.3f}, log_density {found.log_density:.3f}, "
            f"rarest mode {found.rarest_mode:.2f}")


def run(args):
    """Samples, writes, draws and says what was made."""
    settings = run_settings(args.output_dir)
    mixed = mixture.load(args.output_dir, args.components)
    samples = mixed.sample(args.count, np.random.RandomState(args.seed))
    samples = samples.reshape(args.count, -1)
    write_samples(args.output, samples)
    data = training_data(settings)
    picture = os.path.splitext(args.output)[0]
    title = f"{min(args.count, SHOWN)} samples of {len(mixed.weights)} components"
    Figures(os.path.dirname(picture) or ".", data).scatter(os.path.basename(picture), title,
                                                           samples[:SHOWN])
    print(f"{args.count} samples of {len(mixed.weights)} components -> {args.output}, "
          f"{picture}.png")
    print(truth_line(samples, data))


def main(argv=None):
    """Parses the flags and samples."""
    args = parse_args(argv)
    args.output = args.output or os.path.join(args.output_dir, "mixture_samples.npy")
    if not args.output.endswith((".npy", ".csv")):
        raise InputError(f"--output={args.output}: expected a name that ends in .npy or .csv")
    run(args)


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
