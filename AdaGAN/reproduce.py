"""The paper's experiments in one command: trains many mixtures, makes their tables and pictures.

quick: boosting against bagging. table1: the paper's Table 1. default: the reference's settings with
many seeds. beyond: the preset that is closer to the data than they are. Every mixture is a run of
adagan_gmm.py in runs/; one that is complete is never trained again, in whichever experiment.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import contextlib
import csv
import json
import os
import subprocess
import sys
import time
import zlib

import numpy as np

import adagan_gmm
import datahandler
import figures
import metrics
import mixture
import npu_session
import sample
from npu_session import InputError
from utils import POSITIVE_INT

PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "adagan_gmm.py")
MODES = (1, 2, 3, 5, 7, 10)  # of the paper's Table 1
EARLY = 3  # components after which the table shows the boosted mixture too
TRUTH_REPEATS = 5  # of exact samples, whose C varies by some hundredths
POLL_SECONDS = 0.1
LOG, COMPONENTS = "log.txt", "components.json"  # in the folder of a run

# families of runs, numbers of modes, number of seeds, components.
Experiment = collections.namedtuple("Experiment", "families modes seeds steps")
EXPERIMENTS = {
    "quick": Experiment(("bagging", "star"), (10,), 1, 10),
    "table1": Experiment(("bagging", "topk", "star"), MODES, 5, 10),
    "default": Experiment(("star",), (10,), 10, 10),
    "beyond": Experiment(("star", "sharp"), (10,), 3, 10),
}
FAMILIES = {  # flags of adagan_gmm.py
    "star": [],
    "bagging": ["--is_bagging=True"],
    "topk": ["--weights_heur=topk", "--topk_constant=0.5"],
    "sharp": ["--preset=sharp"],
}
LABELS = {"star": "boosted", "bagging": "ensemble (bagging)", "topk": "TopK 0.5",
          "sharp": "boosted, preset sharp"}
# Median coverage in the paper's Table 1, for MODES.
PAPER = {
    "vanilla": (0.97, 0.88, 0.63, 0.72, 0.58, 0.59),
    "best of 10": (0.99, 0.99, 0.98, 0.80, 0.87, 0.71),
    "ensemble of 10": (1.0, 0.99, 1.0, 0.91, 0.88, 0.89),
    "TopK 0.5, T = 10": (0.99, 0.98, 0.98, 0.99, 0.99, 1.0),
    "boosted, T = 3": (0.99, 0.99, 0.98, 0.91, 0.91, 0.86),
    "boosted, T = 10": (1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
}
METRICS = ("C", "log_p") + metrics.MixtureMetrics._fields

Run = collections.namedtuple("Run", "family modes seed")


def parse_args(argv=None):
    """Flags; those without a default take it from the experiment."""
    parser = npu_session.argument_parser(
        __doc__.splitlines()[0],
        epilog="experiments (" + ", ".join(Experiment._fields) + "):\n" + "\n".join(
            "  {}: {}; {}; {}; {}".format(name, " ".join(found.families), " ".join(
                map(str, found.modes)), found.seeds, found.steps)
            for name, found in EXPERIMENTS.items()))
    add = parser.add_argument
    add("--experiment", choices=sorted(EXPERIMENTS), default="quick", help="see below")
    add("--output_dir", default="results", help="receives everything; experiments may share it")
    add("--modes", type=POSITIVE_INT, nargs="+", metavar="N",
        help="numbers of Gaussians; default from the experiment")
    add("--seeds", type=POSITIVE_INT, help="number of runs of each kind, with the seeds --seed, "
                                           "--seed + 1, ..; default from the experiment")
    add("--steps", type=POSITIVE_INT, help="components; default from the experiment; may be more "
                                           "in a finished folder")
    add("--epochs", type=POSITIVE_INT, help="of each component; default adagan_gmm.py's")
    add("--toy_dataset_size", type=POSITIVE_INT, help="training points; default adagan_gmm.py's")
    add("--workers", type=POSITIVE_INT,
        help="runs at the same time, on an NPU or GPU each on a device of its own; default: one "
             "per CPU thread, 1 on an NPU or GPU")
    npu_session.add_flags(parser, precision_mode="allow_fp32_to_fp16")
    args = parser.parse_args(argv)
    for name in ("modes", "seeds", "steps"):
        if getattr(args, name) is None:
            setattr(args, name, getattr(EXPERIMENTS[args.experiment], name))
    args.modes = sorted(set(args.modes))
    return args


# ---------------------------------------------------------------- runs


def runs_of(args):
    """The Runs that the experiment consists of, in the order they are started."""
    return [Run(family, modes, args.seed + number) for number in range(args.seeds)
            for modes in args.modes for family in EXPERIMENTS[args.experiment].families]


def name_of(run):
    """Name of a run and of its folder."""
    return f"{run.family}_modes{run.modes:02d}_seed{run.seed}"


def folder_of(args, run):
    """Folder of a run."""
    return os.path.join(args.output_dir, "runs", name_of(run))


def flags_of(args, run):
    """The flags of adagan_gmm.py for a run. Pictures are drawn for the first seed."""
    sizes = [f"--{name}={getattr(args, name)}" for name in ("epochs", "toy_dataset_size")
             if getattr(args, name)]
    session = [f"--{name}={getattr(args, name)}" for name in (
        "precision_mode", "over_dump", "data_dump_flag", "data_dump_step", "profiling")]
    return FAMILIES[run.family] + sizes + session + [
        f"--output_dir={folder_of(args, run)}", f"--modes={run.modes}", f"--seed={run.seed}",
        f"--steps={args.steps}", f"--threads={1 if args.workers > 1 else args.threads}",
        f"--plots={run.seed == args.seed}", "--plot_every=0", "--verbose=False"]


def complete(args, run):
    """Whether a run has all its components."""
    result = npu_session.read_json(os.path.join(folder_of(args, run), "result.json"))
    return result is not None and result["steps"] >= args.steps


def start(args, run, device):
    """Starts or resumes a run in a process of its own on the device of this number (0, 1, ..).

    What it prints goes to its log.
    """
    folder = folder_of(args, run)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, LOG), "a") as log:
        # A session of its own: Ctrl-C comes from here only, once, and lets it save.
        return subprocess.Popen([sys.executable, PROGRAM] + flags_of(args, run), stdout=log,
                                stderr=subprocess.STDOUT, start_new_session=True,
                                env=dict(os.environ, **npu_session.device_environment(device)))


def train_all(args, runs, stop):
    """Trains the runs that are not complete, args.workers at a time.

    Returns:
      The exit code: that of a signal, or of the first run that failed; the runs in progress are
      then stopped and go on from there another time.
    """
    waiting = [run for run in runs if not complete(args, run)]
    active, free, done, total = {}, list(range(args.workers)), 0, len(waiting)
    if total < len(runs):
        print(f"{len(runs) - total} of {len(runs)} runs are complete already", flush=True)
    try:
        while (waiting or active) and not stop.code:
            while waiting and free:
                active[waiting[0]] = start(args, waiting[0], free[0]), free.pop(0), time.time()
                del waiting[0]
            time.sleep(POLL_SECONDS)
            for run, (process, device, started) in list(active.items()):
                if process.poll() is not None:
                    del active[run]
                    free.append(device)
                    if process.returncode:
                        return failed(args, run, process.returncode)
                    done += 1
                    print(progress_line(args, run, time.time() - started, done, total), flush=True)
    finally:
        for process, _, _ in active.values():
            process.terminate()
        for process, _, _ in active.values():
            process.wait()
    return stop.code


def failed(args, run, code):
    """Says why a run failed; returns its exit code, 1 if it was killed."""
    path = os.path.join(folder_of(args, run), LOG)
    with open(path, errors="replace") as file:
        last = file.read().strip().splitlines()[-1:] or ["it printed nothing"]
    print(f"error: the run {name_of(run)} failed: {last[0]}\nits log: {path}", file=sys.stderr)
    return code if code > 0 else 1


def progress_line(args, run, seconds, done, total):
    """What a complete run found."""
    last = step_records(args, run)[-1]
    return (f"  {LABELS[run.family]:21s} {run.modes:2d} modes, seed {run.seed}: C {last['C']:.3f}  "
            f"log_p {last['log_p']:8.3f}  modes covered {last['modes_covered']:2d}  "
            f"({seconds:.0f} s, {done} of {total})")


# ---------------------------------------------------------------- their numbers


def step_records(args, run):
    """Records (dict) of the mixture after each component, of a complete run."""
    path = os.path.join(folder_of(args, run), "metrics.jsonl")
    records = npu_session.read_json(path, lambda file: [json.loads(line) for line in file]) or []
    found = [record for record in records if "C" in record][:args.steps]
    if len(found) < args.steps:
        raise InputError(f"{path} has {len(found)} of {args.steps} steps: remove the folder, then "
                         "the run is made anew")
    return found


def component_records(args, run):
    """Metrics (dict) of every single component of a complete run; computed once."""
    path = os.path.join(folder_of(args, run), COMPONENTS)
    found = npu_session.read_json(path, lambda file: list(json.load(file))) or []
    if len(found) < args.steps:
        settings = sample.run_settings(folder_of(args, run))
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            data = sample.training_data(settings)
        components = mixture.load(folder_of(args, run), args.steps).components
        found = [component_record(settings, data, number, samples)
                 for number, samples in enumerate(components)]
        npu_session.write_json(path, found)
    return found[:args.steps]


def component_record(settings, data, number, samples):
    """Metrics (dict) of one component alone, as adagan_gmm.py computes those of a mixture."""
    random = np.random.RandomState([settings.seed, zlib.crc32(b"component"), number])
    single = mixture.Mixture()
    single.add(samples, 1.0)
    fake = single.sample(settings.eval_points_num, random)
    more = single.sample(adagan_gmm.EVALUATED_POINTS, random)
    found = metrics.evaluate(data.points[:adagan_gmm.EVALUATED_POINTS], fake, more)
    truth = metrics.mixture_metrics(single.sample(adagan_gmm.TEST_SAMPLES, random), data.means,
                                    data.variance)
    return dict(truth._asdict(), C=found.C, log_p=found.log_p)


def methods(args, modes):
    """{label of a method: (components, records of its runs)} for a number of modes.

    vanilla is every component of every bagging run, alone; best of T is a run's component with the
    largest C.
    """
    def runs(family):
        return [run for run in runs_of(args) if (run.family, run.modes) == (family, modes)]

    def after(family, components):
        return components, [step_records(args, run)[components - 1] for run in runs(family)]

    steps, families = args.steps, EXPERIMENTS[args.experiment].families
    found = collections.OrderedDict()
    if "bagging" in families:
        single = [component_records(args, run) for run in runs("bagging")]
        found["vanilla"] = 1, [record for records in single for record in records]
        found[f"best of {steps}"] = 1, [max(records, key=lambda record: record["C"])
                                        for records in single]
        found[f"ensemble of {steps}"] = after("bagging", steps)
    if "topk" in families:
        found[f"TopK 0.5, T = {steps}"] = after("topk", steps)
    for family in ("star", "sharp"):
        for components in sorted({EARLY, steps} if steps > EARLY else {steps}):
            if family in families:
                found[f"{LABELS[family]}, T = {components}"] = after(family, components)
    return found


def rows_of(args):
    """One row (dict) for each method and number of modes: medians and percentiles over its runs."""
    rows = []
    for modes in args.modes:
        for method, (components, records) in methods(args, modes).items():
            row = collections.OrderedDict(method=method, modes=modes, components=components,
                                          runs=len(records))
            for name in METRICS:
                values = metrics.median_and_band([record[name] for record in records])
                row.update(zip((name, name + "_p5", name + "_p95"), map(float, values)))
            rows.append(row)
    return rows


def step_rows(args):
    """One row (dict) for every step of every run."""
    names = METRICS + ("beta", "seconds", "iterations_per_second")
    return [collections.OrderedDict(run._asdict(), components=number + 1,
                                    **{name: record[name] for name in names})
            for run in runs_of(args) for number, record in enumerate(step_records(args, run))]


def curves(args, modes):
    """{label: {metric: float64 [seeds, steps]}} of the families, for a number of modes."""
    found = collections.OrderedDict()
    for family in EXPERIMENTS[args.experiment].families:
        records = [step_records(args, run) for run in runs_of(args)
                   if (run.family, run.modes) == (family, modes)]
        found[LABELS[family]] = {
            name: np.array([[record[name] for record in run] for run in records])
            for name in ("C", "log_p", "modes_covered")}
    return found


def truth(args, modes):
    """What exact samples of the data's distribution score, on average: {metric: value}."""
    options = adagan_gmm.parse_args([])
    sizes = np.cumsum([options.eval_points_num] + 2 * [adagan_gmm.EVALUATED_POINTS])
    found = []
    for repeat in range(TRUTH_REPEATS):
        points = datahandler.load(
            options.dataset, modes, options.toy_dataset_dim, sizes[-1], options.gmm_max_val,
            options.random_seed, np.random.RandomState([args.seed, repeat])).points
        fake, more, real = np.split(points, sizes[:-1])
        found.append(metrics.evaluate(real, fake, more))
    return {"C": float(np.mean([evaluation.C for evaluation in found])),
            "log_p": float(np.mean([evaluation.log_p for evaluation in found])),
            "modes_covered": modes}


# ---------------------------------------------------------------- results


def settings_note(args):
    """Which runs the numbers come from, in a line."""
    options = [adagan_gmm.parse_args(flags_of(args, run)) for run in runs_of(args)]
    epochs = sorted({found.gan_epoch_num for found in options})
    return (f"{args.seeds} {'seeds' if args.seeds > 1 else 'seed'}, {args.steps} components, "
            f"{' or '.join(map(str, epochs))} epochs of {options[0].toy_dataset_size} points")


def draw(args, rows, truths):
    """The table and the curves as pictures; returns their paths. truths: number of modes -> truth.
    """
    folder, note = os.path.join(args.output_dir, "figures"), settings_note(args)
    table = os.path.join(folder, args.experiment + "_table.png")
    cells = {(row["method"], row["modes"]): (row["C"], row["C_p5"], row["C_p95"]) for row in rows}
    labels = list(collections.OrderedDict.fromkeys(row["method"] for row in rows))
    paper = {(method, modes): PAPER[method][MODES.index(modes)] for method, modes in cells
             if method in PAPER and modes in MODES}
    figures.coverage_table(table, labels, args.modes, cells, paper,
                           f"Coverage C, median (5 %; 95 %)\n{note}")
    paths = [table]
    for modes in args.modes:
        paths.append(os.path.join(folder, f"{args.experiment}_steps_{modes}_modes.png"))
        figures.coverage_over_steps(paths[-1], curves(args, modes), truths[modes],
                                    f"{modes} {'modes' if modes > 1 else 'mode'}, {note}")
    return paths


def write_table(path, rows):
    """Rows as CSV, whole or not at all."""
    with npu_session.replacing(path, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def check(args):
    """InputError for what can be known to fail, before the output folder is touched."""
    for run in runs_of(args):
        adagan_gmm.check(adagan_gmm.parse_args(flags_of(args, run)))


def run(args):
    """Trains what is not complete, then writes tables and pictures; returns the exit code."""
    args.workers = args.workers or npu_session.branches(npu_session.session_config(args))
    check(args)
    fixed = ("epochs", "toy_dataset_size")
    with npu_session.RunFolder(args.output_dir, args, fixed) as folder:
        before = npu_session.read_json(os.path.join(args.output_dir, "result.json")) or {}
        started, runs = time.time(), runs_of(args)
        print(f"{args.experiment}: {len(runs)} runs, {args.workers} at a time; "
              f"{settings_note(args)}", flush=True)
        with npu_session.Stop() as stop:
            code = train_all(args, runs, stop)
        if code:
            print("not complete: the same command goes on")
            return code
        rows, steps = rows_of(args), step_rows(args)
        truths = {modes: truth(args, modes) for modes in args.modes}
        pictures = draw(args, rows, truths)
        write_table(os.path.join(args.output_dir, args.experiment + ".csv"), rows)
        write_table(os.path.join(args.output_dir, args.experiment + "_steps.csv"), steps)
        folder.finish(**dict(before, **{args.experiment: {
            "data": "gmm", "settings": settings_note(args), "seeds": args.seeds, "rows": rows,
            "steps": steps, "exact_samples": truths, "figures": pictures}}))
        report(args, rows, steps, truths)
        print(f"{time.time() - started:.0f} s\npictures: {', '.join(pictures)}", flush=True)
    return 0


def report(args, rows, steps, truths):
    """The closing lines: what was found, and where it is."""
    print("\n| modes | method | C: median (5 %; 95 %) | log_p | modes covered |\n"
          "|---|---|---|---|---|")
    for row in rows:
        print("| {modes} | {method} | {C:.3f} ({C_p5:.3f}; {C_p95:.3f}) | {log_p:.3f} "
              "({log_p_p5:.3f}; {log_p_p95:.3f}) | {modes_covered:g} |".format(**row))
    print()
    for modes in args.modes:
        print("{modes} modes: exact samples of the data's distribution score C {C:.3f}, log_p "
              "{log_p:.3f}".format(modes=modes, **truths[modes]))
    for family in EXPERIMENTS[args.experiment].families:
        last = [row for row in steps
                if row["family"] == family and row["components"] == args.steps]
        print("{}, T = {}, all runs: C at least {:.3f}, on average {:.3f}; log_p at least {:.3f}; "
              "{}".format(LABELS[family], args.steps, min(row["C"] for row in last),
                          np.mean([row["C"] for row in last]), min(row["log_p"] for row in last),
                          covered(last)))
    first = folder_of(args, runs_of(args)[-1]._replace(seed=args.seed))
    print(f"the mixture step by step: {os.path.join(first, 'mixture*.png')}\n"
          f"numbers: {os.path.join(args.output_dir, args.experiment)}.csv, "
          f"{args.experiment}_steps.csv, result.json")


def covered(rows):
    """How many of the rows cover all modes."""
    complete_ones = sum(row["modes_covered"] == row["modes"] for row in rows)
    return f"all modes covered in {complete_ones} of {len(rows)}"


def main(argv=None):
    """Parses the flags, stages ModelArts' folders and runs; returns the exit code."""
    args = parse_args(argv)
    npu_session.require_one_process("reproduce.py starts its runs itself, see --workers")
    with npu_session.staged(None, args.train_url) as (_, output_dir):
        args.output_dir = output_dir or args.output_dir
        return run(args)


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
