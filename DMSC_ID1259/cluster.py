"""Stage 3 alone: clusters a trained matrix again with other thresholds, dimensions and powers.

Nothing is trained: C, K and the true labels, if the data had any, come from the results.npz of
affinity_fusion.py, which needs hours for what takes seconds here.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import itertools
import os
import sys
import zipfile

import numpy as np

import data_input
import metrics
import npu_session
import options
from npu_session import InputError
from options import POSITIVE, POSITIVE_INT

NEEDED = ("C", "K", "data", "steps")


def parse_args(argv=None):
    """Flags: lists of settings, of which every combination is tried."""
    parser = npu_session.argument_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--output_dir", default=".", help="the one given to training")
    add("--model", default="mymodel", help="the one given to training")
    add("--ro", type=POSITIVE, nargs="+",
        help="shares of each column of |Theta| to keep; default max(0.4 - (K-1)/100, 0.1)")
    add("--subspace_dimension", type=POSITIVE_INT, nargs="+", default=[metrics.DIMENSION],
        help="d, of a cluster's subspace")
    add("--power", type=POSITIVE, nargs="+", default=[metrics.POWER],
        help="exponents of the affinity")
    add("--starts", type=POSITIVE_INT, default=1,
        help="starts of the discretisation, of which the best by its own objective is kept")
    add("--seed", type=npu_session.seed_number, default=0, help="fixes the starts")
    add("--json", metavar="FILE", help="also write scores and labels to FILE")
    return parser.parse_args(argv)


def read_results(path):
    """The arrays of a results.npz as a dict.

    Raises:
      InputError: it is missing or damaged, or lacks something.
    """
    try:
        with np.load(path) as arrays:
            content = {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise InputError(f"there is no {path}: affinity_fusion.py writes it at its end; give the "
                         "--output_dir and --model of a finished run") from None
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged ({error}): run affinity_fusion.py again") from None
    missing = [name for name in NEEDED if name not in content]
    if missing:
        raise InputError(f"{path} has no {', '.join(missing)}: it is not of affinity_fusion.py")
    return content


def run(args):
    """Clusters by every combination of the settings; returns a list of dicts, one each."""
    path = os.path.join(options.affinity_folder(args), "results.npz")
    content = read_results(path)
    C, K, truth, found = content["C"], int(content["K"]), content.get("Label"), []
    data_input.check_clusters(path, K, len(C), max(args.subspace_dimension))
    print(f"data: {content['data']}, N = {len(C)}, K = {K}, matrix of step "
          f"{content['steps'][-1]}\n")
    print("| ro | d | power | ACC | NMI | ARI |\n|---|---|---|---|---|---|")
    for ro in args.ro or [metrics.alpha(K)]:
        kept = metrics.thrC(C, ro)
        for dimension, power in itertools.product(args.subspace_dimension, args.power):
            labels, _ = metrics.post_proC(kept, K, dimension, power,
                                          np.random.RandomState(args.seed), args.starts)
            scores = metrics.scores(truth, labels)
            cells = ["-" if score is None else f"{100 * score:.2f} %" for score in scores]
            print(f"| {ro:.4g} | {dimension} | {power:g} | {' | '.join(cells)} |", flush=True)
            found.append(dict(scores._asdict(), ro=ro, subspace_dimension=dimension, power=power,
                              labels=labels.tolist()))
    return found


def main(argv=None):
    """Parses the flags, clusters and reports; returns the exit code."""
    args = parse_args(argv)
    found = run(args)
    if args.json:
        npu_session.write_json(args.json, found)
    return 0


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
