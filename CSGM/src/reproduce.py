"""The paper's MNIST experiments in one command: train the VAE, recover, draw the figures.

Without data it draws stand-in digits first. Each finished cell (one method at one number of
measurements and noise level) is a line of metrics.jsonl; a run that was cut goes on after the last.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import csv
import os
import sys
import time

import numpy as np

import compressed_sensing
import data_input
import estimators
import figures
import main as train_vae
import make_standin_data
import npu_session
import recovery_store
import train_e2e
from npu_session import InputError
from util import COUNT, POSITIVE, POSITIVE_INT

MEASUREMENTS = (10, 25, 50, 100, 200, 300, 400, 500, 750)
NOISE_LEVELS = (0.01, 0.1, 1, 2, 5, 10, 20, 50)
NOISE_RESTARTS = 2  # starts of the search against the noise, as upstream's
E2E_MEASUREMENTS = (10, 20, 30)
# Lasso's alpha: the paper's, and the one of the sparse deviation for a fair comparison with it.
LASSO_ALPHAS = (0.1, 0.02)

# epochs of the VAE; images and batch; updates, rate and starts of the search; steps of the learned
# matrix (0: left out).
Preset = collections.namedtuple(
    "Preset", "epochs num_input_images batch_size max_update_iter learning_rate encoder_start "
              "e2e_steps")
PRESETS = {
    "fast": Preset(10, 20, 20, 300, 0.1, True, 0),
    "paper": Preset(100, 300, 50, 1000, 0.01, False, 50000),
}
FLAG_TYPES = Preset(POSITIVE_INT, POSITIVE_INT, POSITIVE_INT, POSITIVE_INT, POSITIVE,
                    npu_session.boolean, COUNT)
LABELS = {
    "lasso": "Lasso (alpha 0.1)", "lasso-0.02": "Lasso (alpha 0.02)", "vae": "VAE",
    "vae-reg": "VAE+Reg", "vae-sparse": "VAE+Reg+sparse", "fixed": "Fixed A, no noise",
    "learned": "Learned A, no noise", "test": "From test set", "generator": "From generator",
}
STYLES = {label: number for number, label in enumerate(
    LABELS[method] for method in
    ("lasso", "vae", "vae-reg", "vae-sparse", "lasso-0.02", "fixed", "learned"))}


def parse_args(argv=None):
    """Flags; those without a default take it from the preset."""
    parser = npu_session.argument_parser(
        __doc__.splitlines()[0],
        epilog="presets (" + ", ".join(Preset._fields) + "):\n" + "\n".join(
            f"  {name}: {', '.join(map(str, preset))}" for name, preset in PRESETS.items()))
    add = parser.add_argument
    add("--preset", choices=sorted(PRESETS), default="fast", help="see below")
    add("--data_dir", help="folder with MNIST's four idx files; default: draw stand-in digits")
    add("--output_dir", default="results", help="receives everything")
    add("--pretrained_model_dir", help="VAE checkpoints to use instead of training")
    add("--measurements", type=POSITIVE_INT, nargs="+", default=list(MEASUREMENTS), metavar="M",
        help="numbers of measurements; more may be added to a finished run")
    add("--num_random_restarts", type=POSITIVE_INT, default=10, help="random starts per image")
    for name, kind in FLAG_TYPES._asdict().items():
        add("--" + name, type=kind, help="default from the preset")
    npu_session.add_flags(parser, precision_mode="must_keep_origin_dtype")
    args = parser.parse_args(argv)
    for name, value in PRESETS[args.preset]._asdict().items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def shared_flags(args):
    """Flags that every program started from here gets as they are."""
    return [f"--{name}={getattr(args, name)}" for name in (
        "seed", "threads", "over_dump", "data_dump_flag", "data_dump_step", "profiling")]


def trained_vae(args, data_dir):
    """Exit code and folder of the VAE; trains it, or finishes its training, if none is given."""
    if args.pretrained_model_dir:
        return 0, args.pretrained_model_dir
    folder = os.path.join(args.output_dir, "models", "mnist-vae")
    trained = npu_session.read_json(os.path.join(folder, "result.json")) or {}
    if trained.get("epoch") == args.epochs - 1:
        print(f"the VAE in {folder} is trained already")
        return 0, folder
    print(f"training the VAE, {args.epochs} epochs", flush=True)
    code = train_vae.main([f"--data_dir={data_dir}", f"--output_dir={args.output_dir}",
                           f"--epochs={args.epochs}"] + shared_flags(args))
    return code, folder


class Experiments:
    """The cells of all experiments: runs those that are not done, keeps the rows of all."""

    def __init__(self, args, data, data_dir, vae_dir, folder):
        self._data, self._folder, self._output_dir = data, folder, args.output_dir
        self._flags = shared_flags(args) + [
            f"--data_dir={data_dir}", f"--pretrained_model_dir={vae_dir}",
            f"--output_dir={args.output_dir}", f"--e2e_dir={args.output_dir}",
            f"--precision_mode={args.precision_mode}", "--print_iter=0",
            f"--num_input_images={args.num_input_images}", f"--batch_size={args.batch_size}",
            f"--learning_rate={args.learning_rate}", f"--max_update_iter={args.max_update_iter}",
            f"--num_random_restarts={args.num_random_restarts}",
        ] + ["--encoder_start"] * args.encoder_start
        self.rows = [{name: record[name] for name in record if name != "step"}
                     for record in folder.records()]

    def row(self, experiment, method, m, noise_std):
        """The finished row of a cell, or None."""
        key = (experiment, method, m, noise_std)
        return next((row for row in self.rows if key == (
            row["experiment"], row["method"], row["measurements"], row["noise_std"])), None)

    def cell(self, experiment, methods, *flags, picture=None):
        """Recovers with some flags unless it is done.

        Args:
          methods: dict model type -> the method's name in the results.
          picture: name of a grid of 10 images to draw, or None.
        """
        args = compressed_sensing.parse_args(
            self._flags + ["--model_types"] + list(methods) + list(flags))
        todo = [kind for kind, method in methods.items()
                if not self.row(experiment, method, args.num_measurements, args.noise_std)]
        if not todo:
            return
        args.model_types = list(methods) if picture else [
            kind for kind in methods if kind in todo or kind == "vae"]
        images = compressed_sensing.input_images(args, self._data)
        batches = compressed_sensing.make_batches(args, images)
        results = compressed_sensing.recover(args, batches)
        if picture:  # before the rows: a run that is cut in between draws it later
            compressed_sensing.save_matrix_picture(
                args, self._data.name, batches,
                collections.OrderedDict((LABELS[methods[kind]], parts)
                                        for kind, parts in results.items()),
                os.path.join(self._output_dir, "figures", picture + ".png"))
        for kind in todo:
            self._record(experiment, methods[kind], args, results[kind])

    def _record(self, experiment, method, args, parts):
        summary = recovery_store.summary_of(
            np.concatenate([part.measurement_loss for part in parts]),
            np.concatenate([part.l2_loss for part in parts]))
        row = dict(summary, experiment=experiment, method=method, noise_std=args.noise_std,
                   measurements=args.num_measurements)
        self._folder.log(len(self.rows), **row)
        self.rows.append(row)
        print(f"  m = {row['measurements']:3d}  noise {row['noise_std']:<5g} "
              f"{LABELS[method]:19s} l2 {row['mean_l2_loss']:.4f} +- {row['l2_bar']:.4f}  "
              f"psnr {row['mean_psnr']:.1f} dB", flush=True)

    def curve(self, experiment, method, axis, **fixed):
        """x, mean and bar of a method's rows, sorted along `axis` (a column of the results)."""
        rows = sorted((row for row in self.rows
                       if row["experiment"] == experiment and row["method"] == method
                       and all(row[name] == value for name, value in fixed.items())),
                      key=lambda row: row[axis])
        return [[row[name] for row in rows] for name in (axis, "mean_l2_loss", "l2_bar")]


def measurement_sweep(args, experiments):
    """Error against m: Lasso, VAE, VAE+Reg, and VAE+Reg with a sparse deviation."""
    say("error against the number of measurements m, test images")
    for m in args.measurements:
        count = f"--num_measurements={m}"
        experiments.cell("reconstr", {"lasso": "lasso", "vae": "vae-reg",
                                      "vae-sparse": "vae-sparse"}, count,
                         f"--lmbd={LASSO_ALPHAS[0]}", picture=f"mnist_reconstr_{m}_orig_lasso_vae")
        experiments.cell("reconstr", {"lasso": f"lasso-{LASSO_ALPHAS[1]}"}, count,
                         f"--lmbd={LASSO_ALPHAS[1]}")
        experiments.cell("reconstr", {"vae": "vae"}, count, "--zprior_weight=0")


def generator_range(args, experiments):
    """The same for images that G can make: what is left is the search's error, not G's."""
    say("the same for images drawn from G: what is left is the search's error, not G's")
    for m in args.measurements:
        experiments.cell("gen_range", {"vae": "generator"}, f"--num_measurements={m}",
                         "--input_type=gen-span")


def noise_sweep(experiments):
    """Error against the noise: Lasso with m = 500, VAE+Reg with m = 100 and 500."""
    say("error against the noise")
    for noise in NOISE_LEVELS:
        flags = (f"--noise_std={noise}", f"--num_random_restarts={NOISE_RESTARTS}")
        experiments.cell("noise", {"lasso": "lasso", "vae": "vae-reg"}, "--num_measurements=500",
                         *flags)
        experiments.cell("noise", {"vae": "vae-reg"}, "--num_measurements=100", *flags)


def other_measurements(experiments):
    """Inpainting and super-resolution grids, and the projection: G's representation error."""
    say("inpainting a block of 10 x 10, super-resolution by 2, and the best that G can do at all")
    experiments.cell("inpaint", {"vae": "vae-reg"}, "--measurement_type=inpaint",
                     "--inpaint_size=10", picture="mnist_inpaint")
    experiments.cell("superres", {"vae": "vae-reg"}, "--measurement_type=superres",
                     "--superres_factor=2", picture="mnist_superres")
    experiments.cell("project", {"vae": "vae"}, "--measurement_type=project", "--noise_std=0",
                     "--zprior_weight=0", "--learning_rate=0.1")


def learned_matrices(args, experiments, data_dir):
    """The end-to-end baseline: trains decoders for random and for learned matrices."""
    if args.e2e_steps:
        say("decoders trained end to end, for a fixed and for a learned matrix")
    for m in E2E_MEASUREMENTS if args.e2e_steps else ():
        for method in ("fixed", "learned"):
            if experiments.row("reconstr", method, m, 0.0):
                continue
            code = train_e2e.main([
                f"--num_measurements={m}", f"--data_dir={data_dir}",
                f"--max_steps={args.e2e_steps}", f"--output_dir={args.output_dir}",
                f"--fixed_matrix={method == 'fixed'}"] + shared_flags(args))
            if code:
                return code
            experiments.cell("reconstr", {"learned": method}, f"--num_measurements={m}",
                             f"--measurement_type={method}", "--noise_std=0")
    return 0


def say(what):
    """Announces an experiment."""
    print(f"\n{what}", flush=True)


def draw_curves(args, experiments, data_name):
    """The paper's figures from the finished rows."""
    def draw(name, curves, restarts=args.num_random_restarts, **options):
        note = (f"{data_name}: {args.num_input_images} images, 95 % bars; Adam "
                f"{args.learning_rate:g} x {args.max_update_iter}, "
                f"{restarts + args.encoder_start} starts")
        figures.error_curves(os.path.join(args.output_dir, "figures", name + ".png"),
                             {label: curve for label, curve in curves.items() if curve[0]},
                             note=note, **options)

    def reconstruction(*methods):
        return {LABELS[method]: experiments.curve("reconstr", method, "measurements")
                for method in methods}

    floor = experiments.curve("project", "vae", "measurements")[1]
    draw("mnist_reconstr_l2", reconstruction("lasso", "vae", "vae-reg", "vae-sparse"),
         baselines={"G's representation error": floor[0]}, styles=STYLES)
    draw("mnist_reconstr_l2_all", reconstruction(
        "lasso", "lasso-0.02", "vae", "vae-reg", "vae-sparse", "fixed", "learned"), styles=STYLES)
    draw("mnist_gen_range", {
        LABELS["test"]: experiments.curve("reconstr", "vae-reg", "measurements"),
        LABELS["generator"]: experiments.curve("gen_range", "generator", "measurements")})
    draw("mnist_noise_l2", {
        f"{label}, m = {m}": experiments.curve("noise", method, "noise_std", measurements=m)
        for label, method, m in (("Lasso", "lasso", 500), ("VAE+Reg", "vae-reg", 100),
                                 ("VAE+Reg", "vae-reg", 500))},
         NOISE_RESTARTS, x_label="Standard deviation of noise")


def savings(experiments):
    """How few measurements reach Lasso's error: list of (Lasso's m and error, method, its m)."""
    found = []
    lasso = experiments.curve("reconstr", "lasso", "measurements")
    for m, error, _ in zip(*lasso):
        for method in ("vae-reg", "vae-sparse"):
            curve = experiments.curve("reconstr", method, "measurements")
            enough = [count for count, own, _ in zip(*curve) if own <= error and count < m]
            if enough and m >= 200:
                found.append((m, error, method, enough[0]))
    return found


def write_table(path, rows):
    """All rows as CSV, whole or not at all."""
    with npu_session.replacing(path, newline="") as file:
        writer = csv.DictWriter(file, sorted(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def check(args):
    """InputError for what can be known to fail, before the output folder is touched."""
    if args.batch_size > args.num_input_images:
        raise InputError(f"--batch_size={args.batch_size} is more than "
                         f"--num_input_images={args.num_input_images}")
    if args.pretrained_model_dir:
        estimators.check_checkpoints(args, ["vae"])
    if args.data_dir:
        check_test_images(args, data_input.load(args.data_dir, log=lambda _: None))


def check_test_images(args, data):
    """InputError if there are fewer than are to be recovered."""
    if args.num_input_images > len(data.test):
        raise InputError(f"--num_input_images={args.num_input_images} is more than the "
                         f"{len(data.test)} test images")


def run(args):
    """All experiments; returns the exit code."""
    check(args)
    fixed = ("seed", "preset", "num_random_restarts", "pretrained_model_dir", "data_dir")
    with npu_session.RunFolder(args.output_dir, args, fixed + Preset._fields) as folder:
        data_dir = make_standin_data.data_folder(
            args.data_dir, os.path.join(args.output_dir, "standin-digits"), args.seed)
        code, vae_dir = trained_vae(args, data_dir)
        return code or run_experiments(args, data_dir, vae_dir, folder)


def run_experiments(args, data_dir, vae_dir, folder):
    """All cells that are not done, then the figures and tables; returns the exit code."""
    started, data = time.time(), data_input.load(data_dir, log=lambda _: None)
    check_test_images(args, data)
    print(f"\nrecovery on {data.name}, {args.num_input_images} test images, preset {args.preset}; "
          "l2: mean squared error per pixel +- 95 %")
    folder.rewind(sys.maxsize)
    experiments = Experiments(args, data, data_dir, vae_dir, folder)
    before = len(experiments.rows)
    measurement_sweep(args, experiments)
    generator_range(args, experiments)
    noise_sweep(experiments)
    other_measurements(experiments)
    code = learned_matrices(args, experiments, data_dir)
    if code:
        return code
    draw_curves(args, experiments, data.name)
    write_table(os.path.join(args.output_dir, "results.csv"), experiments.rows)
    figure_dir = os.path.join(args.output_dir, "figures")
    folder.finish(data=data.name, rows=experiments.rows, figures=sorted(
        os.path.join(figure_dir, name) for name in os.listdir(figure_dir)))
    report(args, data.name, experiments, before, time.time() - started)
    return 0


def report(args, data_name, experiments, before, seconds):
    """The closing lines: what was found, how long it took, where it is."""
    found = savings(experiments)
    print(f"\non {data_name}:" if found else "")
    for m, error, method, enough in found:
        print(f"Lasso's error {error:.4f} at m = {m}: {LABELS[method]} needs m = {enough}")
    new = len(experiments.rows) - before
    print(f"{new} results in {seconds:.0f} s" + (f", {before} were there before" if before else ""))
    print(f"numbers: {os.path.join(args.output_dir, 'results.csv')}")
    figure_dir = os.path.join(args.output_dir, "figures")
    print(f"pictures: {figure_dir} ({len(os.listdir(figure_dir))}; first look at "
          "mnist_reconstr_l2.png)", flush=True)


def main(argv=None):
    """Parses the flags, stages ModelArts' folders and runs; returns the exit code."""
    args = parse_args(argv)
    npu_session.require_one_process("reproduce.py runs its programs one after the other")
    with npu_session.staged(args.data_url, args.train_url) as (data_dir, output_dir):
        args.data_dir = data_dir or args.data_dir
        args.output_dir = output_dir or args.output_dir
        return run(args)


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
