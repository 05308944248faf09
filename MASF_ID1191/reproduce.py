"""The paper's table in one command: all target domains x methods x seeds, means and deviations.

Every flag that is not listed here goes to main.py (see main.py --help). Each finished cell is a
line of metrics.jsonl; a run that was cut goes on with the cell it was in. With --warm_up all
methods of a target and seed start from the same weights, of a short plain training: MASF aligns
what a network knows already, and one that starts at random knows nothing.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import csv
import os
import shutil
import sys
import time

import data_generator
import figures
import main as training
import metrics
import npu_session
from npu_session import InputError
from utils import POSITIVE_INT

# The rows of the paper's ablation table: what is switched on.
METHODS = collections.OrderedDict([
    ("deepall", ""), ("masf-E", "E"), ("masf-G", "G"), ("masf-L", "L"), ("masf-GL", "GL"),
    ("masf-EG", "EG"), ("masf-EL", "EL"), ("masf", "EGL"),
])
START = "start"  # the plain training that --warm_up asks for; a row of the table too
WARM_UP_SEEDS = 1000  # added to its seed: the runs shall not begin with the same images again
LABELS = {START: "start", "deepall": "DeepAll", "masf": "MASF"}
RULES = ("last", "best_source", "best_target")
COMPARED = "last"  # the rule of the picture: nothing is chosen


def parse_args(argv=None):
    """(flags of this program, list of the flags for main.py)."""
    parser = npu_session.argument_parser(__doc__)
    add = parser.add_argument
    add("--output_dir", default="results", help="receives everything")
    add("--targets", nargs="+", choices=data_generator.DOMAINS, metavar="DOMAIN",
        default=list(data_generator.DOMAINS), help="unseen domains, each a training of its own")
    add("--methods", nargs="+", choices=list(METHODS), metavar="METHOD",
        default=["deepall", "masf"], help="of: " + ", ".join(METHODS) + "; E: episodic, G: "
                                          "global alignment, L: local clustering")
    add("--seeds", nargs="+", type=npu_session.seed_number, default=[1, 2, 3], metavar="SEED",
        help="each a training of its own")
    add("--warm_up", type=POSITIVE_INT, metavar="ITERATIONS",
        help="of plain training on the sources, from which all methods start; default: none")
    add("--dataroot", help="see main.py; default: stand-in images in <output_dir>/kfold")
    add("--filelist_root", help="see main.py")
    add("--keep_checkpoints", type=npu_session.boolean, nargs="?", const=True, default=False,
        metavar="True|False", help="keep those of finished trainings: 0.7 to 1.3 GB each")
    add("--data_url", help="ModelArts: data, obs://, s3:// or a local folder")
    add("--train_url", help="ModelArts: results, obs://, s3:// or a local folder")
    return parser.parse_known_args(argv)


def cell_flags(args, further, method, target, seed):
    """main.py's flags for one cell, as it parses them, with run_dir."""
    place, first = ("runs", seed) if method != START else ("warm_up", WARM_UP_SEEDS + seed)
    own = [f"--{switch}={letter in METHODS.get(method, '')}"
           for letter, switch in zip("EGL", training.SWITCHES)]
    own += [f"--dataroot={args.dataroot}", f"--filelist_root={args.filelist_root}",
            f"--target_domain={target}", f"--seed={first}",
            f"--output_dir={os.path.join(args.output_dir, place, f'seed{seed}')}"]
    if method == START:
        own += [f"--{flag}={args.warm_up}" for flag in ("train_iterations", "test_print_interval")]
    elif args.warm_up:
        own.append("--weights_path=" + os.path.join(
            cell_flags(args, further, START, target, seed).run_dir, "checkpoints"))
    flags = training.parse_args(further + own)
    training.check(flags)
    return flags


def cells(args):
    """All (method, target, seed): seed by seed, so that what a cut run has is comparable."""
    return [(method, target, seed) for seed in args.seeds for target in args.targets
            for method in methods(args)]


def methods(args):
    """Rows of the table."""
    return [START] * bool(args.warm_up) + args.methods


def check(args, further):
    """InputError for what main.py would refuse, before the first training."""
    own = [flag for flag in further if flag.split("=")[0] in (
        "--target_domain", "--seed", "--method", "--train", "--predict", "--checkpoint",
        *("--" + name for name in training.SWITCHES))]
    if own:
        raise InputError(f"{own[0]} cannot be given here: this program sets it; see --methods, "
                         "--targets and --seeds")
    for method, target, seed in cells(args):
        cell_flags(args, further, method, target, seed)


def run_cell(args, further, method, target, seed):
    """Trains one cell, or finishes its training. Returns (exit code, row of the results)."""
    flags = cell_flags(args, further, method, target, seed)
    if method != START and args.warm_up and not os.path.isdir(flags.weights_path):
        code, _ = run_cell(args, further, START, target, seed)  # its checkpoint was removed
        if code:
            return code, None
    code = training.run(flags)
    if code:
        return code, None
    result = npu_session.read_json(os.path.join(flags.run_dir, "result.json"))
    if method != START:
        remove_checkpoints(args, flags)
    row = {"method": method, "target": target, "seed": seed, "data": result["data"],
           "weights": result["weights"], "iterations": result["iterations"]}
    row.update((rule, result["selection"][rule]["target_accuracy"])
               for rule in RULES if rule in result["selection"])
    return 0, row


def remove_checkpoints(args, flags):
    """Removes those of a cell, unless they shall be kept. flags: of cell_flags."""
    for group in () if args.keep_checkpoints else training.GROUPS:
        shutil.rmtree(os.path.join(flags.run_dir, group), ignore_errors=True)


def table(args, rows, rule):
    """{method: accuracies [targets, seeds]} of the methods all of whose cells are done."""
    done = {(row["method"], row["target"], row["seed"]): row.get(rule) for row in rows}
    values = {method: [[done.get((method, target, seed)) for seed in args.seeds]
                       for target in args.targets] for method in methods(args)}
    return {method: matrix for method, matrix in values.items()
            if all(value is not None for line in matrix for value in line)}


def lines(args, found):
    """The table as text: a line per method, mean +- standard deviation over the seeds in %."""
    names = [f"{target:>13s}" for target in args.targets + ["average"]]
    text = [f"{'':10s} {' '.join(names)}"]
    for method, matrix in found.items():
        averages = [sum(column) / len(column) for column in zip(*matrix)]
        entries = [metrics.mean_std(values) for values in matrix + [averages]]
        text.append(f"{LABELS.get(method, method):10s} " + " ".join(
            f"{100 * mean:6.2f}+-{100 * deviation:5.2f}" for mean, deviation in entries))
    return text


def write_table(path, rows):
    """All rows as CSV, whole or not at all."""
    names = ["method", "target", "seed", *RULES, "iterations", "weights", "data"]
    with npu_session.replacing(path, newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def finish(args, folder, rows, seconds):
    """Table, picture, result.json and the log's last lines."""
    warm_up = f"{args.warm_up} iterations of warm-up, then " if args.warm_up else ""
    about = (f"{rows[0]['data']}, {warm_up}{rows[-1]['iterations']} iterations from "
             f"{rows[0]['weights']}, {len(args.seeds)} seeds")
    print(f"\naccuracy on the unseen domain in %, mean +- standard deviation: {about}")
    tables = {rule: table(args, rows, rule) for rule in RULES}
    for rule, found in tables.items():
        if found:
            print("\n".join([f"\n{rule}:"] + lines(args, found)))
    picture = os.path.join(args.output_dir, "comparison.png")
    figures.comparison(picture, {LABELS.get(method, method): matrix
                                 for method, matrix in tables[COMPARED].items()},
                       args.targets, f"{about}, last iterate")
    write_table(os.path.join(args.output_dir, "results.csv"), rows)
    folder.finish(rows=rows, tables=tables, targets=args.targets, seeds=args.seeds)
    print(f"\n{len(rows)} trainings, {seconds:.0f} s of it now\nnumbers: "
          f"{os.path.join(args.output_dir, 'results.csv')}\npicture: {picture}", flush=True)


def run(args, further):
    """All cells that are not done, then the table; returns the exit code."""
    check(args, further)
    args.resume, args.seed, args.further = "auto", args.seeds[0], further
    with npu_session.RunFolder(args.output_dir, args, ("further", "dataroot", "warm_up")) as folder:
        folder.rewind(sys.maxsize)
        args.dataroot, args.filelist_root = training.data_folders(args, args.output_dir)
        rows = [{name: record[name] for name in record if name != "step"}
                for record in folder.records()]
        started, done = time.time(), {(row["method"], row["target"], row["seed"]) for row in rows}
        todo = [cell for cell in cells(args) if cell not in done]
        for number, (method, target, seed) in enumerate(todo):
            print(f"\ncell {number + 1} of {len(todo)}: {method}, target {target}, seed {seed}",
                  flush=True)
            code, row = run_cell(args, further, method, target, seed)
            if code:
                return code
            folder.log(len(rows), **row)
            rows.append(row)
            if args.warm_up and method == args.methods[-1]:
                remove_checkpoints(args, cell_flags(args, further, START, target, seed))
        finish(args, folder, rows, time.time() - started)
    return 0


def main(argv=None):
    """Parses the flags, stages ModelArts' folders and runs; returns the exit code."""
    args, further = parse_args(argv)
    npu_session.require_one_process("reproduce.py runs its programs one after the other")
    with npu_session.staged(args.data_url, args.train_url) as (data_dir, output_dir):
        args.output_dir = output_dir or args.output_dir
        if data_dir:
            args.dataroot = args.dataroot or os.path.join(data_dir, "kfold")
            args.filelist_root = args.filelist_root or os.path.join(data_dir, "filelist")
        return run(args, further)


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
