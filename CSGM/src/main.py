"""Trains the MNIST VAE that is CSGM's generative prior.

Losses: model_def.vae. Data format: data_input. Recovery from measurements:
compressed_sensing.py. Everything in one command: reproduce.py.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import functools
import os
import sys
import time

import numpy as np
import tensorflow.compat.v1 as tf
from tqdm import tqdm

import data_input
import make_standin_data
import model_def
import npu_session
import util
from npu_session import InputError
from util import POSITIVE, POSITIVE_INT

CHECKPOINT_NAME = "mnist_vae_model-%d"  # the number is the last complete epoch, as the reference's
FIXED = ("seed", "batch_size", "learning_rate", "num_samples", "data")  # a resumed run keeps these
SEED_TEST_IMAGES = 1000  # the seed's test error draws 100 of the first 1000 test images

NO_ERROR_YET = 1e4

Graph = collections.namedtuple(
    "Graph", "x eps model z sample pipeline loop epoch_loss best_error")
Errors = collections.namedtuple("Errors", "val_reconstruct_error test_reconstruct_error")


def parse_args(argv=None):
    """Flags of VAE training; defaults are the reference's."""
    parser = npu_session.argument_parser(__doc__.splitlines()[0])
    parser.add_argument("--data_dir",
                        help="folder with the four idx files, or whose MNIST-data has them; "
                             f"default {data_input.DEFAULT_FOLDER}, made with stand-in digits "
                             "if it does not exist")
    parser.add_argument("--output_dir", default=".", help="holds the next two folders")
    parser.add_argument("--ckpt_dir", help="checkpoints, metrics.jsonl, events, result.json; "
                                           "default <output_dir>/models/mnist-vae")
    parser.add_argument("--sample_dir", help="image grids; default "
                                             "<output_dir>/samples/mnist-vae")
    parser.add_argument("--epochs", type=POSITIVE_INT, default=750, help="epochs in all")
    parser.add_argument("--max_steps", type=POSITIVE_INT, help="stop after this many updates")
    parser.add_argument("--num_samples", type=POSITIVE_INT,
                        help="images that make an epoch; default: all in the training file "
                             "(60000, of which 55000 are used, so an epoch is 1.09 passes)")
    parser.add_argument("--batch_size", type=POSITIVE_INT, default=100,
                        help="images per update")
    parser.add_argument("--learning_rate", type=POSITIVE, default=0.001, help="of Adam")
    parser.add_argument("--log_every", type=POSITIVE_INT, default=100,
                        help="updates per session.run, and between step lines; 1: the "
                             "reference's line for every update")
    parser.add_argument("--summary_epoch", type=POSITIVE_INT, default=1,
                        help="epochs between reconstruction errors")
    parser.add_argument("--ckpt_epoch", type=POSITIVE_INT, default=5,
                        help="epochs between checkpoints")
    parser.add_argument("--sample_epoch", type=POSITIVE_INT, default=5,
                        help="epochs between image grids")
    parser.add_argument("--eval_epoch", type=POSITIVE_INT, default=5,
                        help="epochs between errors on the whole test set")
    npu_session.add_flags(parser, precision_mode="allow_mix_precision")
    return parser.parse_args(argv)


def schedule(args):
    """(updates per epoch, updates in all)."""
    per_epoch = args.num_samples // args.batch_size
    return per_epoch, min(args.epochs * per_epoch, args.max_steps or sys.maxsize)


def build_graph(args, data):
    """The evaluation graph on fed images, the training loop, and the run's own variables."""
    initializer = model_def.xavier_uniform(args.seed)
    evaluation = model_def.evaluation(args.batch_size, initializer)
    epoch_loss, best_error = (
        tf.get_variable(name, [], initializer=tf.constant_initializer(value), trainable=False)
        for name, value in (("progress/epoch_loss", 0.0), ("progress/best_error", NO_ERROR_YET)))
    tf.train.get_or_create_global_step()  # here, since none can be made inside the loop
    pipeline = data_input.training_pipeline(data.train, args.batch_size, model_def.N_Z, args.seed)

    def step():
        return model_def.train_step(*pipeline.next_batch(), initializer, args.learning_rate,
                                    epoch_loss)

    loop = npu_session.Loop(step, args.log_every)
    return Graph(*evaluation, pipeline, loop, epoch_loss, best_error)


def reconstruct(session, graph, images, eps):
    """G(z_mean + sigma * eps) of uint8 images [N, 784] and eps [N, 20], in batches."""
    def batch(x, noise):
        return session.run(graph.model.x_reconstr_mean, {graph.x: x, graph.eps: noise})
    return util.in_batches(batch, graph.x.shape.as_list()[0], data_input.to_float(images), eps)


def sampled_error(session, graph, images, random):
    """The seed's error of uint8 images [N, 784], z freshly sampled with `random`."""
    eps = random.standard_normal((len(images), model_def.N_Z))
    return util.reconstruction_error(reconstruct(session, graph, images, eps),
                                     data_input.to_float(images))


def seed_test_images(args, data, epoch):
    """The test images of the seed's error after an epoch, and the RandomState that drew them.

    A batch of them is drawn with replacement from the first 1000 test images.
    """
    random = np.random.RandomState([args.seed, epoch])
    first = min(SEED_TEST_IMAGES, len(data.test))
    return data.test[random.randint(0, first, size=args.batch_size)], random


def full_test_errors(session, graph, data):
    """Errors on all test images with one fixed noise, and with z = z_mean."""
    noise = np.random.RandomState(0).standard_normal((len(data.test), model_def.N_Z))
    images = data_input.to_float(data.test)
    return {name: util.reconstruction_error(reconstruct(session, graph, data.test, eps), images)
            for name, eps in (("full_test_error_sampled_z", noise),
                              ("full_test_error_mean_z", np.zeros_like(noise)))}


def save_samples(session, graph, data, folder, epoch, batch):
    """Writes orig, reconstr and sampled grids: the same test images and z every time."""
    count = graph.x.shape.as_list()[0]
    shown = data.test[:min(count, 100)]
    z = np.random.RandomState(0).standard_normal((count, model_def.N_Z))
    grids = {"orig": data_input.to_float(shown),
             "reconstr": reconstruct(session, graph, shown, np.zeros((len(shown), model_def.N_Z))),
             "sampled": session.run(graph.sample, {graph.z: z})[:100]}
    for name, images in grids.items():
        util.save_image_grid(os.path.join(folder, f"{name}_{epoch:02d}_{batch:04d}.png"), images)


def train(args, data, order, folder, session, graph, checkpoints, step):
    """The training loop, from a step to the last. Returns (exit code, step)."""
    per_epoch, last_step = schedule(args)
    saved = step
    bar = tqdm(total=last_step, initial=step, unit="step", disable=not sys.stderr.isatty())
    log = bar.write if sys.stderr.isatty() else functools.partial(print, flush=True)
    log("start training" if step < last_step else f"nothing left to train: {step} steps are done")
    with npu_session.Stop() as stop, bar:
        while step < last_step and not stop.code:
            epoch, first = divmod(step, per_epoch)
            stop_at = min(step + per_epoch - first, last_step)
            rows = order.rows(step, per_epoch)  # one shape, though a resumed epoch needs fewer
            session.run(graph.pipeline.initializer, graph.pipeline.feed(rows, step))
            last_rows = rows[stop_at - step - 1]
            while step < stop_at and not stop.code:
                count = min(args.log_every - step % args.log_every, stop_at - step)
                started = time.time()
                terms = graph.loop.run(session, count)
                seconds = (time.time() - started) / count
                npu_session.check_finite(terms, model_def.LOSS_TERMS, step, args.ckpt_dir)
                step += count
                bar.update(count)
                rate = args.batch_size / seconds
                log(f"step {step - 1}, loss = {terms[-1, 0]:.2f} "
                    f"({rate:.1f} examples/sec; {seconds:.3f} sec/batch)")
                folder.log(step, epoch=epoch, examples_per_second=rate,
                           **dict(zip(model_def.LOSS_TERMS, terms[-1].tolist())))
            if step % per_epoch == 0:
                end_epoch(args, data, folder, session, graph, epoch, last_rows, log)
                if epoch % args.ckpt_epoch == 0 and step < last_step:
                    checkpoints.save(session, CHECKPOINT_NAME % epoch)
                    saved = step
        epoch, first = divmod(step, per_epoch)
        if saved < step:
            checkpoints.save(session, CHECKPOINT_NAME % (epoch - 1) if first == 0
                             else (CHECKPOINT_NAME + ".step%d") % (epoch, step))
    return (stop.code if step < last_step else 0), step


def end_epoch(args, data, folder, session, graph, epoch, last_rows, log):
    """Errors, image grids and log lines at the end of an epoch."""
    per_epoch, _ = schedule(args)
    step, last = (epoch + 1) * per_epoch, epoch == args.epochs - 1
    values = {"epoch_loss": float(session.run(graph.epoch_loss)) / per_epoch}
    graph.epoch_loss.load(0.0, session)
    if epoch % args.summary_epoch == 0 or last:
        images, random = seed_test_images(args, data, epoch)
        errors = Errors(sampled_error(session, graph, data.train[last_rows], random),
                        sampled_error(session, graph, images, random))
        log(f"{epoch}\n================val_reconstruct_error==================== "
            f"{errors.val_reconstruct_error}\n"
            f"================test_reconstruct_error==================== "
            f"{errors.test_reconstruct_error}")
        graph.best_error.load(min(session.run(graph.best_error), errors.test_reconstruct_error),
                              session)
        values.update(errors._asdict(),
                      min_reconstruct_error=float(session.run(graph.best_error)))
    if epoch % args.eval_epoch == 0 or last:
        values.update(full_test_errors(session, graph, data))
    npu_session.check_finite(np.array([list(values.values())]), values, step - 1, args.ckpt_dir)
    if epoch % args.sample_epoch == 0 or last:
        save_samples(session, graph, data, args.sample_dir, epoch, per_epoch - 1)
    log("Epoch: {:04d} Avg loss = {:.9f}".format(epoch + 1, values["epoch_loss"]))
    folder.log(step, epoch=epoch, **values)


def print_settings(args):
    """The reference's first lines: its hyper-parameters in alphabetical order."""
    settings = {
        "batch_size": args.batch_size, "ckpt_dir": args.ckpt_dir, "ckpt_epoch": args.ckpt_epoch,
        "learning_rate": args.learning_rate, "n_hidden_gener_1": model_def.N_HIDDEN,
        "n_hidden_gener_2": model_def.N_HIDDEN, "n_hidden_recog_1": model_def.N_HIDDEN,
        "n_hidden_recog_2": model_def.N_HIDDEN, "n_input": model_def.N_INPUT,
        "n_z": model_def.N_Z, "num_samples": args.num_samples, "sample_dir": args.sample_dir,
        "summary_epoch": args.summary_epoch, "training_epochs": args.epochs,
        "transfer_fct": "softplus", "seed": args.seed, "device": npu_session.backend(),
        **npu_session.versions()}
    print("\n" + "\n".join(f"{name} = {settings[name]}" for name in sorted(settings)) + "\n")


def run(args):
    """Trains or resumes one VAE; returns the exit code."""
    data = data_input.load(make_standin_data.data_folder(
        args.data_dir, data_input.DEFAULT_FOLDER, args.seed))
    print(f"data: {data.name}\ntest_data {data.test.shape}")
    args.data, args.num_samples = data.name, args.num_samples or data.train_file_count
    if args.num_samples < args.batch_size:
        raise InputError(f"--num_samples={args.num_samples} is less than one batch of "
                         f"{args.batch_size}")
    order = data_input.BatchOrder(len(data.train), args.batch_size, args.seed)
    print_settings(args)
    with npu_session.new_graph().as_default():
        graph = build_graph(args, data)
        for count in schedule(args):
            graph.loop.check(count)
        os.makedirs(args.sample_dir, exist_ok=True)
        with npu_session.RunFolder(args.ckpt_dir, args, FIXED) as folder:
            return run_session(args, data, order, graph, folder)


def run_session(args, data, order, graph, folder):
    """Restores, trains, evaluates and writes the result; returns the exit code."""
    checkpoints = npu_session.Checkpoints(args.ckpt_dir)
    print("\n".join(variable.name for variable in tf.global_variables()) + "\n")
    config = npu_session.session_config(args, args.output_dir, iterations_per_loop=args.log_every)
    with npu_session.open_session(config) as session:
        step = npu_session.begin(session, args, graph.loop, checkpoints, folder)
        code, step = train(args, data, order, folder, session, graph, checkpoints, step)
        if code:
            print(f"stopped by a signal after step {step - 1}: continue with --resume")
            return code
        write_result(args, data, session, graph, folder, step)
    return 0


def write_result(args, data, session, graph, folder, step):
    """Errors of the trained VAE: result.json and the log's last lines."""
    epoch, result = (step - 1) // schedule(args)[0], full_test_errors(session, graph, data)
    best = float(session.run(graph.best_error))
    if best == NO_ERROR_YET:  # stopped by --max_steps within the first epoch
        best = sampled_error(session, graph, *seed_test_images(args, data, epoch))
    npu_session.check_finite(np.array([list(result.values())]), result, step - 1, args.ckpt_dir)
    for name, value in result.items():
        print(f"{name} {value:.5f}")
    folder.finish(data=data.name, step=step, epoch=epoch, seed=args.seed,
                  min_reconstruct_error=best, **result)
    print(f"===============min_reconstruct_error_in_epoch:{epoch},reis{best:.5f}"
          "====================")


def main(argv=None):
    """Parses the flags, stages ModelArts' folders and trains; returns the exit code."""
    args = parse_args(argv)
    with npu_session.staged(args.data_url, args.train_url) as (data_dir, output_dir):
        args.data_dir = data_dir or args.data_dir
        args.output_dir = output_dir or args.output_dir
        if npu_session.rank():  # only the first process writes where the flags say
            args.ckpt_dir = args.sample_dir = None
        args.ckpt_dir = args.ckpt_dir or os.path.join(args.output_dir, "models", "mnist-vae")
        args.sample_dir = args.sample_dir or os.path.join(args.output_dir, "samples", "mnist-vae")
        return run(args)


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
