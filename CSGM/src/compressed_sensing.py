"""Recovers MNIST images from compressed measurements y = x A + noise.

Estimators: estimators.py (VAE objective: recovery.py). Measurement matrices: measurements.py.
Flags and result folders are upstream's; hyphens and underscores in flag names are the same.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import os
import re
import sys

import numpy as np

import data_input
import e2e_def
import estimators
import figures
import lasso
import make_standin_data
import measurements
import metrics
import model_def
import npu_session
import recovery
import util
from npu_session import InputError
from recovery_store import Store, matrix_folder
from util import COUNT, POSITIVE, POSITIVE_INT, WEIGHT

DEFAULT_MEASUREMENTS = 200  # upstream's, where the measurement type leaves m open
INPUT_TYPES = ("full-input", "random-test", "gen-span")
# x_hat [N, 784]; measurement_loss and l2_loss [N]: per measurement and per pixel, squared.
Result = collections.namedtuple("Result", "x_hat measurement_loss l2_loss")


def parse_args(argv=None):
    """Flags of a recovery; upstream's names, defaults that work for MNIST."""
    parser = npu_session.argument_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--pretrained_model_dir", default="./models/mnist-vae/", help="the VAE's checkpoints")
    add("--e2e_dir", default=".", help="output folder of train_e2e.py")
    add("--data_dir", help=f"folder with the four idx files; default {data_input.DEFAULT_FOLDER}, "
                           "made with stand-in digits if it does not exist")
    add("--output_dir", default=".", help="receives estimated/")
    add("--dataset", choices=["mnist"], default="mnist", help="part of the results' path")
    add("--input_type", default="full-input", choices=INPUT_TYPES, type=hyphens,
        help="first test images, test images drawn at random, or images drawn from G")
    add("--num_input_images", type=POSITIVE_INT, default=10, help="images to recover")
    add("--batch_size", type=POSITIVE_INT, default=10,
        help="images that share a matrix; z's gradient carries 1/batch_size")
    add("--measurement_type", default="gaussian", choices=measurements.MEASUREMENT_TYPES,
        help="kind of matrix A; project: the pixels themselves")
    add("--noise_std", type=WEIGHT, default=0.1, help="of each measurement")
    add("--num_measurements", type=int, help="m; default 200, for gaussian, fixed, learned")
    add("--inpaint_size", type=int, default=1, help="pixels, side of the missing block")
    add("--superres_factor", type=int, default=2, help="side of the averaged blocks")
    add("--model_types", nargs="+", choices=estimators.MODEL_TYPES,
        help="estimators; default vae lasso, for project vae")
    add("--mloss1_weight", type=WEIGHT, default=0.0, help="of mean |y - G(z)A|")
    add("--mloss2_weight", type=WEIGHT, default=1.0, help="of mean (y - G(z)A)^2")
    add("--zprior_weight", type=WEIGHT, default=0.1, help="of |z|^2")
    add("--optimizer_type", choices=recovery.OPTIMIZERS, default="adam",
        help="minimises the objective over z")
    add("--learning_rate", type=POSITIVE, default=0.01, help="of the optimizer")
    add("--momentum", type=WEIGHT, default=0.9, help="of --optimizer-type momentum")
    add("--max_update_iter", type=POSITIVE_INT, default=1000, help="updates of every start")
    add("--num_random_restarts", type=POSITIVE_INT, default=10, help="random starts per image")
    add("--decay_lr", action="store_true", help="rate * 0.7 every 50 updates")
    add("--encoder_start", action="store_true",
        help="one more start: the encoder's z of a linear estimate")
    add("--lmbd", type=POSITIVE, default=0.1, help="Lasso's alpha")
    add("--sparse_weight", type=POSITIVE, default=0.02, help="l1 weight of vae-sparse's deviation")
    add("--omp_k", type=POSITIVE_INT, help="pixels that omp selects; default m / 4")
    add("--not_lazy", action="store_true", help="recover again what is saved already")
    add("--save_images", action="store_true", help="write k.png per image")
    add("--save_stats", action="store_true", help="write the two .pkl files of losses")
    add("--print_stats", action="store_true", help="print the mean losses per model")
    add("--checkpoint_iter", type=POSITIVE_INT, default=1, help="batches between saves")
    add("--image_matrix", type=int, choices=range(4), default=0,
        help="picture of originals and estimates: 1 show, 2 save, 3 both")
    add("--gif", action="store_true", help="save the images on their way (model vae)")
    add("--gif_iter", type=POSITIVE_INT, default=25, help="updates between frames")
    add("--gif_dir", default="", help="default <output_dir>/gif")
    add("--print_iter", type=COUNT, default=100, help="updates between progress lines; 0: none")
    add("--batches_per_run", type=POSITIVE_INT, default=1,
        help="batches recovered at once; more than 1 helps accelerators, not CPUs")
    add("--iterations_per_loop", type=POSITIVE_INT, default=50, help="updates per session.run")
    npu_session.add_flags(parser, precision_mode="must_keep_origin_dtype")
    words = sys.argv[1:] if argv is None else argv
    args = parser.parse_args([normalised(word) for word in words])
    args.num_measurements = measurement_count(args)
    args.model_types = args.model_types or (
        ["vae"] if args.measurement_type == "project" else ["vae", "lasso"])
    args.omp_k = args.omp_k or max(1, args.num_measurements // 4)
    if args.gif:
        args.iterations_per_loop = args.gif_iter
    check(args)
    return args


def check(args):
    """InputError for flags that contradict each other, before anything is computed."""
    if args.batch_size > args.num_input_images:
        raise InputError(f"--batch-size={args.batch_size} is more than "
                         f"--num-input-images={args.num_input_images}")
    if not args.mloss1_weight and not args.mloss2_weight:
        raise InputError("--mloss1-weight and --mloss2-weight are both 0: nothing would tie the "
                         "images to the measurements")
    if "omp" in args.model_types:
        lasso.check_omp_k(args.omp_k, args.num_measurements)
    if args.gif and "vae" not in args.model_types:
        raise InputError("--gif shows the search of model type vae: add it to --model-types")
    if args.gif:
        npu_session.require_one_process("--gif shows the search of one process")
    estimators.check(args)


def normalised(word):
    """--num-measurements=10 -> --num_measurements=10; values and other words stay."""
    return re.sub("^--[^=]+", lambda name: "--" + name.group()[2:].replace("-", "_"), word)


def hyphens(text):
    """Upstream spells its input types both ways."""
    return text.replace("_", "-")


def measurement_count(args):
    """m of the flags; InputError where they contradict each other."""
    wanted = args.num_measurements
    if wanted is None and args.measurement_type in measurements.CHOSEN_COUNT_TYPES:
        wanted = DEFAULT_MEASUREMENTS
    return measurements.measurement_count(args.measurement_type, wanted, args.inpaint_size,
                                          args.superres_factor)


def load_data(args):
    """MNIST as data_input.Mnist, or None where the input type needs no data."""
    if args.input_type == "gen-span":
        return None
    data = data_input.load(make_standin_data.data_folder(
        args.data_dir, data_input.DEFAULT_FOLDER, args.seed))
    if args.input_type == "full-input" and args.num_input_images > len(data.test):
        raise InputError(f"--num-input-images={args.num_input_images} is more than the "
                         f"{len(data.test)} test images")
    return data


def input_images(args, data):
    """The images to recover, float32 [N, 784]; data as of load_data."""
    random = np.random.RandomState([args.seed, 2])
    if args.input_type == "gen-span":
        z = random.standard_normal((args.num_input_images, model_def.N_Z))
        return estimators.generated_images(args, z)
    if args.input_type == "random-test":
        drawn = random.choice(len(data.test), args.num_input_images, replace=True)
        return data_input.to_float(data.test[drawn])
    return data_input.to_float(data.test[:args.num_input_images])


def measurement_matrix(args, random):
    """A float64 [784, m] of one batch, None for projection. Gaussian ones are new in each batch."""
    if args.measurement_type in ("fixed", "learned"):
        return e2e_def.restore_matrix(estimators.weights_folder(args, "learned"),
                                      args.num_measurements)
    return measurements.measurement_matrix(args.measurement_type, random, args.num_measurements,
                                           args.inpaint_size, args.superres_factor)


def make_batches(args, images):
    """Measures the images [N, 784]; matrix and noise are fixed by (seed, batch)."""
    size, batches = args.batch_size, []
    for start in range(0, len(images), size):
        wanted = images[start:start + size]
        filled = np.concatenate([wanted, np.repeat(wanted[:1], size - len(wanted), axis=0)])
        random = np.random.RandomState([args.seed, 0, len(batches)])
        matrix = measurement_matrix(args, random)
        y = measurements.observe(filled, matrix, args.noise_std, random)
        batches.append(estimators.Batch(len(batches), filled, len(wanted), matrix, y))
    return batches


def score(batch, x_hat):
    """Result of the wanted images of a batch."""
    x_hat, count = x_hat[:batch.count], batch.count
    return Result(x_hat, metrics.measurement_loss(x_hat, batch.matrix, batch.y[:count]),
                  metrics.l2_loss(x_hat, batch.images[:count]))


def recover(args, batches, known=None, after_batch=None):
    """Recovers all batches with every model of --model-types, divided among the job's processes.

    Args:
      known: dict model type -> number of batches to skip because they are saved already.
      after_batch: function(model type, batch, Result) called as soon as a batch is done.
    Returns:
      dict model type -> list of Result, one per batch that was not skipped.
    """
    results = {}
    with npu_session.Exchange(estimators.session_config(args)) as exchange:
        skipped = exchange.gather([(known or {}).get(kind, 0) for kind in args.model_types])[0]
        open_batches = {kind: batches[int(count):]
                        for kind, count in zip(args.model_types, skipped)}
        estimators.check_checkpoints(args, [kind for kind in open_batches if open_batches[kind]])
        for model_type, todo in open_batches.items():
            if not todo:
                continue
            options = {}
            if model_type == "vae" and args.gif:
                options["after_updates"] = frame_saver(args)
            if model_type == "vae-sparse" and len(results.get("vae", ())) == len(todo):
                options["generated"] = own_share([result.x_hat for result in results["vae"]])
            estimates = estimators.ESTIMATORS[model_type](args, own_share(todo), **options)
            results[model_type] = []
            of_all = gathered(estimates, exchange, len(batches[0].images))
            for batch, x_hat in zip(todo, of_all):
                results[model_type].append(score(batch, x_hat))
                if after_batch:
                    after_batch(model_type, batch, results[model_type][-1])
    return results


def own_share(batches):
    """Every size()-th of the batches (any list), in equal number for all processes.

    Where the last round has too few, the last batch is recovered by several.
    """
    rounds = -(-len(batches) // npu_session.size())
    numbers = npu_session.rank() + npu_session.size() * np.arange(rounds)
    return [batches[min(number, len(batches) - 1)] for number in numbers]


def gathered(estimates, exchange, rows):
    """Yields all processes' estimates in the order of the batches, filled up to [rows, 784]."""
    for x_hat in estimates:
        filled = np.zeros((rows,) + x_hat.shape[1:], x_hat.dtype)
        filled[:len(x_hat)] = x_hat
        yield from exchange.gather(filled)


def frame_saver(args):
    """Function for estimators.vae: writes the first start's images, <gif_dir>/<k>/<iter>.png."""
    folder = args.gif_dir or os.path.join(args.output_dir, "gif")

    def save(group, done, get_x_hat):
        for batch, x_hat in zip(group, get_x_hat()):
            for row, image in enumerate(x_hat[0, :batch.count]):
                frames = os.path.join(folder, str(batch.number * args.batch_size + row))
                os.makedirs(frames, exist_ok=True)
                util.save_image(os.path.join(frames, f"{done}.png"), image)
    return save


def measurement_title(args, data_name):
    """Title of a picture: the data and how they were measured."""
    count = {"inpaint": f"inpaint {args.inpaint_size} x {args.inpaint_size}",
             "superres": f"superres, factor {args.superres_factor}",
             "project": "project"}.get(
                 args.measurement_type, f"{args.measurement_type} A, m = {args.num_measurements}")
    return f"{data_name}: {count}, noise {args.noise_std:g}"


def save_matrix_picture(args, data_name, batches, results, path=None, show=False):
    """Rows of images: originals, what the measurements show of them, one row per model.

    Args:
      results: dict the row's name -> list of Result.
      path: of the PNG, None for none. show: open a window.
    """
    originals = np.concatenate([batch.images[:batch.count] for batch in batches])
    rows = collections.OrderedDict(Original=originals)
    visible = measurements.visible_image(args.measurement_type, originals, args.inpaint_size,
                                         args.superres_factor)
    if visible is not None:
        rows["Masked" if args.measurement_type == "inpaint" else "Blurred"] = visible
    for name, parts in results.items():
        rows[name] = np.concatenate([part.x_hat for part in parts])
    figures.image_matrix(rows, path, measurement_title(args, data_name), show)


def print_summary(model_type, summary):
    """Upstream's lines of --print-stats, with the spread and the PSNR."""
    print(model_type)
    print(f"mean measurement loss = {summary['mean_measurement_loss']}")
    print(f"mean l2 loss = {summary['mean_l2_loss']} +- {summary['l2_bar']} (95 %)")
    print(f"mean psnr = {summary['mean_psnr']} dB")


def run(args):
    """Recovers, saves and prints as the flags say; returns dict model type -> summary."""
    if args.image_matrix in (1, 3):
        figures.check_display()
    if args.image_matrix in (2, 3):
        os.makedirs(matrix_folder(args), exist_ok=True)
    data = load_data(args)
    data_name = data.name if data else "images drawn from G"
    images = input_images(args, data)
    print(f"data: {data_name}, {len(images)} images, m = {args.num_measurements}")
    batches = make_batches(args, images)
    stores = {kind: Store(args, kind, data_name, batches) for kind in args.model_types}
    known = {kind: store.complete(batches) for kind, store in stores.items()}
    report_known(known, batches)

    def after_batch(model_type, batch, result):
        stores[model_type].add(batch, result)
        done = min((batch.number + 1) * args.batch_size, len(images))
        print(f"{model_type}: Processed upto image {done} / {len(images)}", flush=True)

    try:
        results = recover(args, batches, known, after_batch)
    finally:  # what is recovered is kept, whatever stops the rest
        for store in stores.values():
            store.write()
    summaries = {kind: store.finish() for kind, store in stores.items()}
    for kind, summary in summaries.items() if args.print_stats else ():
        print_summary(kind, summary)
    if args.image_matrix:
        name = "matrix_{}.png".format("_".join(args.model_types))
        labelled = collections.OrderedDict((figures.LABELS[kind], results[kind])
                                           for kind in args.model_types)
        save_matrix_picture(args, data_name, batches, labelled,
                            os.path.join(matrix_folder(args), name) if args.image_matrix != 1
                            else None, show=args.image_matrix != 2)
    return summaries


def report_known(known, batches):
    """Says what --not-lazy would recover again."""
    for kind, count in known.items():
        if count:
            done = sum(batch.count for batch in batches[:count])
            print(f"{kind}: the first {done} images are saved already; --not-lazy recovers them "
                  "again")


def main(argv=None):
    """Parses the flags, stages ModelArts' folders and recovers; returns the exit code."""
    args = parse_args(argv)
    with npu_session.staged(args.data_url, args.train_url) as (data_dir, output_dir):
        args.data_dir = data_dir or args.data_dir
        args.output_dir = output_dir or args.output_dir
        run(args)
    return 0


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
