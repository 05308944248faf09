"""The paper's MNIST experiments in one command: train the VAE, recover, draw the figures.

Without data it draws stand-in digits first. Each finished cell (one method at one number of
measurements and noise level) is a line of metrics.jsonl; a run that was cut goes on after the last.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import argparse
import collections
import csv
import os
import sys

import numpy as np

import compressed_sensing
import data_input
import figures
import main as train_vae
import make_standin_data
import measurements
import npu_session
import train_e2e
from npu_session import InputError

MEASUREMENTS = (10, 25, 50, 100, 200, 300, 400, 500, 750)
NOISE_LEVELS = (0.01, 0.1, 1, 2, 5, 10, 20, 50)
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
LABELS = {
    "lasso": "Lasso (alpha 0.1)", "lasso-0.02": "Lasso (alpha 0.02)", "vae": "VAE",
    "vae-reg": "VAE+Reg", "vae-sparse": "VAE+Reg+sparse", "fixed": "Fixed A",
    "learned": "Learned A", "test": "From test set", "generator": "From generator",
}


def parse_args(argv=None):
    """Flags; those without a default take it from the preset."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.RawTextHelpFormatter,
        epilog="presets (" + ", ".join(Preset._fields) + "):\n" + "\n".join(
            f"  {name}: {', '.join(map(str, preset))}" for name, preset in PRESETS.items()))
    add = parser.add_argument
    add("--preset", choices=sorted(PRESETS), default="fast")
    add("--data_dir", help="folder with MNIST's four idx files; default: draw stand-in digits")
    add("--output_dir", default="results", help="receives everything")
    add("--pretrained_model_dir", help="VAE checkpoints to use instead of training")
    add("--measurements", type=train_vae.positive, nargs="+", default=list(MEASUREMENTS))
    add("--num_random_restarts", type=train_vae.positive, default=10)
    for name, value in PRESETS["fast"]._asdict().items():
        kind = npu_session.boolean if isinstance(value, bool) else type(value)
        add("--" + name, type=kind, help="default from the preset")
    npu_session.add_flags(parser, precision_mode="must_keep_origin_dtype")
    args = parser.parse_args(argv)
    for name, value in PRESETS[args.preset]._asdict().items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def trained_vae(args, data_dir):
    """Exit code and folder of the VAE; trains it, or finishes its training, if none is given."""
    if args.pretrained_model_dir:
        return 0, args.pretrained_model_dir
    folder = os.path.join(args.output_dir, "models", "mnist-vae")
    code = train_vae.main([
        f"--data_dir={data_dir}", f"--output_dir={args.output_dir}", f"--epochs={args.epochs}",
        f"--seed={args.seed}", f"--threads={args.threads}"])
    return code, folder


class Experiments:
    """The cells of all experiments: runs those that are not done, keeps the rows of all."""

    def __init__(self, args, data, data_dir, vae_dir, folder):
        self._data, self._folder = data, folder
        self._flags = [
            f"--data_dir={data_dir}", f"--pretrained_model_dir={vae_dir}",
            f"--output_dir={args.output_dir}", f"--e2e_dir={args.output_dir}",
            f"--seed={args.seed}", f"--threads={args.threads}", "--print_iter=0",
            f"--num_input_images={args.num_input_images}", f"--batch_size={args.batch_size}",
            f"--learning_rate={args.learning_rate}", f"--max_update_iter={args.max_update_iter}",
        ] + ["--encoder_start"] * args.encoder_start
        self.rows = folder.records()

    def row(self, experiment, method, m, noise_std):
        """The finished row of a cell, or None."""
        key = (experiment, method, m, noise_std)
        return next((row for row in self.rows if key == (
            row["experiment"], row["method"], row["measurements"], row["noise_std"])), None)

    def cell(self, experiment, methods, *flags):
        """Recovers with some flags unless it is done.

        Args:
          methods: dict model type -> the method's name in the results.
        Returns:
          dict model type -> images of the recovery; empty if all was done before.
        """
        args = compressed_sensing.parse_args(
            self._flags + ["--model_types"] + list(methods) + list(flags))
        todo = [kind for kind, method in methods.items()
                if not self.row(experiment, method, args.num_measurements, args.noise_std)]
        if not todo:
            return {}
        args.model_types = [kind for kind in methods if kind in todo or kind == "vae"]
        images = compressed_sensing.input_images(args, self._data)
        batches = compressed_sensing.make_batches(args, images)
        results = compressed_sensing.recover(args, batches)
        for kind in todo:
            self._record(experiment, methods[kind], args, results[kind])
        recovered = {kind: np.concatenate([part.x_hat for part in parts])
                     for kind, parts in results.items()}
        return dict(recovered, original=images, args=args)

    def _record(self, experiment, method, args, parts):
        summary = compressed_sensing.summary_of(
            np.concatenate([part.measurement_loss for part in parts]),
            np.concatenate([part.l2_loss for part in parts]))
        row = dict(summary, experiment=experiment, method=method, noise_std=args.noise_std,
                   measurements=args.num_measurements)
        self._folder.log(len(self.rows), **row)
        self.rows.append(row)
        print(f"{experiment:11s} m = {row['measurements']:3d}  noise {row['noise_std']:<5g} "
              f"{LABELS.get(method, method):19s} l2 {row['mean_l2_loss']:.4f} +- "
              f"{row['l2_bar']:.4f}  psnr {row['mean_psnr']:.1f} dB", flush=True)

    def curve(self, experiment, method, axis, **fixed):
        """x, mean and bar of a method's rows, sorted along `axis` (a column of the results)."""
        rows = sorted((row for row in self.rows
                       if row["experiment"] == experiment and row["method"] == method
                       and all(row[name] == value for name, value in fixed.items())),
                      key=lambda row: row[axis])
        return [[row[name] for row in rows] for name in (axis, "mean_l2_loss", "l2_bar")]


def picture(args, name, images, methods):
    """Grid of 10 images: originals, what the measurements show, and each method's estimates."""
    if not images:
        return
    flags, rows = images["args"], collections.OrderedDict(Original=images["original"])
    visible = measurements.visible_image(flags.measurement_type, images["original"],
                                         flags.inpaint_size, flags.superres_factor)
    if visible is not None:
        rows["Masked" if flags.measurement_type == "inpaint" else "Blurred"] = visible
    rows.update((LABELS[method], images[kind]) for kind, method in methods.items())
    figures.image_matrix(rows, os.path.join(args.output_dir, "figures", name + ".png"))


def measurement_sweep(args, experiments):
    """Error against m: Lasso, VAE, VAE+Reg, and VAE+Reg with a sparse deviation."""
    for m in args.measurements:
        count = f"--num_measurements={m}"
        methods = {"lasso": "lasso", "vae": "vae-reg", "vae-sparse": "vae-sparse"}
        images = experiments.cell("reconstr", methods, count, f"--lmbd={LASSO_ALPHAS[0]}")
        picture(args, f"mnist_reconstr_{m}_orig_lasso_vae", images, methods)
        experiments.cell("reconstr", {"lasso": f"lasso-{LASSO_ALPHAS[1]}"}, count,
                         f"--lmbd={LASSO_ALPHAS[1]}")
        experiments.cell("reconstr", {"vae": "vae"}, count, "--zprior_weight=0")


def generator_range(args, experiments):
    """The same for images that G can make: what is left is the search's error, not G's."""
    for m in args.measurements:
        experiments.cell("gen_range", {"vae": "generator"}, f"--num_measurements={m}",
                         "--input_type=gen-span")


def noise_sweep(experiments):
    """Error against the noise: Lasso with m = 500, VAE+Reg with m = 100 and 500, two starts."""
    for noise in NOISE_LEVELS:
        flags = (f"--noise_std={noise}", "--num_random_restarts=2")
        experiments.cell("noise", {"lasso": "lasso", "vae": "vae-reg"}, "--num_measurements=500",
                         *flags)
        experiments.cell("noise", {"vae": "vae-reg"}, "--num_measurements=100", *flags)


def other_measurements(args, experiments):
    """Inpainting and super-resolution grids, and the projection: G's representation error."""
    methods = {"vae": "vae-reg"}
    picture(args, "mnist_inpaint", experiments.cell(
        "inpaint", methods, "--measurement_type=inpaint", "--inpaint_size=10"), methods)
    picture(args, "mnist_superres", experiments.cell(
        "superres", methods, "--measurement_type=superres", "--superres_factor=2"), methods)
    experiments.cell("project", {"vae": "vae"}, "--measurement_type=project", "--noise_std=0",
                     "--zprior_weight=0", "--learning_rate=0.1")


def learned_matrices(args, experiments, data_dir):
    """The end-to-end baseline: trains decoders for random and for learned matrices."""
    for m in E2E_MEASUREMENTS if args.e2e_steps else ():
        for method in ("fixed", "learned"):
            if experiments.row("reconstr", method, m, 0.0):
                continue
            code = train_e2e.main([
                f"--num_measurements={m}", f"--data_dir={data_dir}",
                f"--max_steps={args.e2e_steps}", f"--output_dir={args.output_dir}",
                f"--seed={args.seed}", f"--threads={args.threads}",
                f"--fixed_matrix={method == 'fixed'}"])
            if code:
                return code
            experiments.cell("reconstr", {"learned": method}, f"--num_measurements={m}",
                             f"--measurement_type={method}", "--noise_std=0")
    return 0


def draw_curves(args, experiments, note):
    """The paper's figures from the finished rows; returns their paths."""
    def path(name):
        return os.path.join(args.output_dir, "figures", name + ".png")

    def reconstruction(methods):
        curves = {LABELS[method]: experiments.curve("reconstr", method, "measurements")
                  for method in methods}
        return {label: curve for label, curve in curves.items() if curve[0]}

    projection = experiments.curve("project", "vae", "measurements")[1]
    floor = {"G's representation error": projection[0]} if projection else None
    figures.error_curves(path("mnist_reconstr_l2"), reconstruction(
        ("lasso", "vae", "vae-reg", "vae-sparse")), note=note, baselines=floor)
    figures.error_curves(path("mnist_reconstr_l2_all"), reconstruction(
        ("lasso", "lasso-0.02", "vae", "vae-reg", "vae-sparse", "fixed", "learned")), note=note)
    figures.error_curves(path("mnist_gen_range"), {
        LABELS["test"]: experiments.curve("reconstr", "vae-reg", "measurements"),
        LABELS["generator"]: experiments.curve("gen_range", "generator", "measurements")},
        note=note)
    figures.error_curves(path("mnist_noise_l2"), {
        f"{label}, m = {m}": experiments.curve("noise", method, "noise_std", measurements=m)
        for label, method, m in (("Lasso", "lasso", 500), ("VAE+Reg", "vae-reg", 100),
                                 ("VAE+Reg", "vae-reg", 500))},
        x_label="Standard deviation of noise", note=note)
    return [path(name) for name in ("mnist_reconstr_l2", "mnist_gen_range", "mnist_noise_l2")]


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
    columns = sorted({name for row in rows for name in row} - {"step"})
    with open(path + ".tmp", "w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(path + ".tmp", path)


def run(args):
    """All experiments; returns the exit code."""
    if args.batch_size > args.num_input_images:
        raise InputError(f"--batch_size={args.batch_size} is more than "
                         f"--num_input_images={args.num_input_images}")
    folder = npu_session.RunFolder(args.output_dir, args, (
        "seed", "preset", "num_random_restarts", "pretrained_model_dir", "data_dir")
        + Preset._fields)
    data_dir = make_standin_data.data_folder(
        args.data_dir, os.path.join(args.output_dir, "standin-digits"), args.seed)
    code, vae_dir = trained_vae(args, data_dir)
    if code:
        return code
    data = data_input.load(data_dir, log=lambda _: None)
    print(f"\nrecovery on {data.name}, {args.num_input_images} test images, preset {args.preset}")
    folder.rewind(sys.maxsize)
    experiments = Experiments(args, data, data_dir, vae_dir, folder)
    measurement_sweep(args, experiments)
    generator_range(args, experiments)
    noise_sweep(experiments)
    other_measurements(args, experiments)
    code = learned_matrices(args, experiments, data_dir)
    if code:
        return code
    paths = draw_curves(args, experiments, "{}: {} images, Adam {} x {}, {} starts".format(
        data.name, args.num_input_images, args.learning_rate, args.max_update_iter,
        args.num_random_restarts + args.encoder_start))
    table = os.path.join(args.output_dir, "results.csv")
    write_table(table, experiments.rows)
    print(f"\non {data.name}:")
    for m, error, method, enough in savings(experiments):
        print(f"the error {error:.4f} that Lasso needs m = {m} for, {LABELS[method]} reaches with "
              f"m = {enough}")
    folder.finish(data=data.name, rows=experiments.rows, figures=paths)
    print("numbers: {}\npictures: {}".format(table, os.path.join(args.output_dir, "figures")))
    return 0


def main(argv=None):
    """Parses the flags, stages ModelArts' folders and runs; returns the exit code."""
    args = parse_args(argv)
    with npu_session.staged(args.data_url, args.train_url) as (data_dir, output_dir):
        args.data_dir = data_dir or args.data_dir
        args.output_dir = output_dir or args.output_dir
        return run(args)


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
