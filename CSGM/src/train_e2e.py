"""Trains the end-to-end baseline: a learned (or fixed) measurement matrix with its decoder.

Graph: e2e_def. Data format: data_input. Recovery with its checkpoints: compressed_sensing.py,
measurement types `learned` and `fixed`.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import os
import sys
import time

import numpy as np
import tensorflow.compat.v1 as tf
from tqdm import tqdm

import data_input
import e2e_def
import make_standin_data
import model_def
import npu_session
import util
from util import POSITIVE, POSITIVE_INT, WEIGHT

CHECKPOINT_NAME = "snapshot.ckpt-%d"  # the number counts the updates done, as the reference's
FIXED = ("seed", "num_measurements", "fixed_matrix", "noise_std", "batch_size", "learning_rate",
         "data")  # a resumed run keeps these

Graph = collections.namedtuple("Graph", "x noise model pipeline loop")


def parse_args(argv=None):
    """Flags of end-to-end training; defaults are the reference's."""
    parser = npu_session.argument_parser(__doc__.splitlines()[0])
    parser.add_argument("--data_dir",
                        help="folder with the four idx files, or whose MNIST-data has them; "
                             f"default {data_input.DEFAULT_FOLDER}, made with stand-in digits "
                             "if it does not exist")
    parser.add_argument("--output_dir", default=".", help="holds the next two folders")
    parser.add_argument("--ckpt_dir",
                        help="checkpoints, metrics.jsonl, events, result.json; default "
                             "<output_dir>/optimization/mnist-e2e/checkpoints/"
                             "adam_<rate>_<measurements>_<True if A is learned>")
    parser.add_argument("--sample_dir", help="image grids; default <output_dir>/samples/mnist-e2e/"
                                             "<name of the checkpoint folder>")
    parser.add_argument("--num_measurements", type=POSITIVE_INT, default=30,
                        help="m, the columns of A; the reference's curve has 10, 20 and 30")
    parser.add_argument("--fixed_matrix", type=npu_session.boolean, nargs="?", const=True,
                        default=False, metavar="True|False",
                        help="keep A as drawn and train the decoder only")
    parser.add_argument("--noise_std", type=WEIGHT, default=0.0,
                        help="standard deviation of the noise added to each measurement")
    parser.add_argument("--max_steps", type=POSITIVE_INT, default=50000, help="updates in all")
    parser.add_argument("--batch_size", type=POSITIVE_INT, default=64,
                        help="images per update")
    parser.add_argument("--learning_rate", type=POSITIVE, default=e2e_def.LEARNING_RATE,
                        help="of Adam")
    parser.add_argument("--log_every", type=POSITIVE_INT, default=100,
                        help="updates per session.run, and between step lines")
    parser.add_argument("--save_every", type=POSITIVE_INT, default=2000,
                        help="updates between checkpoints, test errors and image grids")
    npu_session.add_flags(parser, precision_mode="allow_mix_precision")
    return parser.parse_args(argv)


def build_graph(args, data):
    """The evaluation graph on fed images and the training loop."""
    x = tf.placeholder(tf.float32, [args.batch_size, model_def.N_INPUT], "x")
    noise = tf.placeholder(tf.float32, [args.batch_size, args.num_measurements], "noise")
    settings = (args.noise_std, not args.fixed_matrix, args.seed)
    model = e2e_def.end_to_end(x, noise, *settings)
    tf.train.get_or_create_global_step()  # here, since none can be made inside the loop
    pipeline = data_input.training_pipeline(data.train, args.batch_size, args.num_measurements,
                                            args.seed)

    def step():
        return e2e_def.train_step(*pipeline.next_batch(), *settings, args.learning_rate)

    return Graph(x, noise, model, pipeline, npu_session.Loop(step, args.log_every))


def reconstruct(session, graph, images):
    """x_hat [N, 784] of uint8 images [N, 784], always with the same measurement noise."""
    def batch(x, noise):
        return session.run(graph.model.x_hat, {graph.x: x, graph.noise: noise})
    batch_size, measurements = graph.noise.shape.as_list()
    noise = np.random.RandomState(0).standard_normal((len(images), measurements))
    return util.in_batches(batch, batch_size, data_input.to_float(images), noise)


def evaluate(args, data, session, graph, step):
    """Error on all test images; writes the grids of the first 100 and of their reconstructions."""
    images, reconstructed = data_input.to_float(data.test), reconstruct(session, graph, data.test)
    for name, grid in (("orig", images), ("reconstr", reconstructed)):
        util.save_image_grid(os.path.join(args.sample_dir, f"{name}_{step:06d}.png"), grid[:100])
    return util.reconstruction_error(reconstructed, images)


def train(args, data, order, folder, session, graph, checkpoints, step):
    """The training loop, from a step to the last. Returns (exit code, step)."""
    bar = tqdm(total=args.max_steps, initial=step, unit="step", disable=not sys.stderr.isatty())
    log = bar.write if sys.stderr.isatty() else print
    log("start training")
    with npu_session.Stop() as stop, bar:
        while step < args.max_steps and not stop.code:
            stop_at = min(step - step % args.save_every + args.save_every, args.max_steps)
            rows = order.rows(step, args.save_every)  # one shape, though a resumed run needs fewer
            session.run(graph.pipeline.initializer, graph.pipeline.feed(rows, step))
            while step < stop_at and not stop.code:
                count = min(args.log_every - step % args.log_every, stop_at - step)
                started = time.time()
                terms = graph.loop.run(session, count)
                seconds = (time.time() - started) / count
                npu_session.check_finite(terms, ("loss",), step, args.ckpt_dir)
                step += count
                bar.update(count)
                rate, loss = args.batch_size / seconds, float(terms[-1, 0])
                log(f"step {step - 1}, loss = {loss:.4f} "
                    f"({rate:.1f} examples/sec; {seconds:.5f} sec/batch)")
                folder.log(step, loss=loss, examples_per_second=rate)
            if step == stop_at:
                error = evaluate(args, data, session, graph, step)
                log(f"full_test_error {error:.5f}")
                folder.log(step, full_test_error=error)
            checkpoints.save(session, CHECKPOINT_NAME % step)
    return (stop.code if step < args.max_steps else 0), step


def print_settings(args):
    """The flags, device and versions, in alphabetical order."""
    settings = dict(vars(args), device=npu_session.backend(), **npu_session.versions())
    print("\n" + "\n".join(f"{name} = {settings[name]}" for name in sorted(settings)) + "\n")


def run(args):
    """Trains or resumes one model; returns the exit code."""
    npu_session.require_one_process("train_e2e.py trains in one process")
    data = data_input.load(make_standin_data.data_folder(
        args.data_dir, data_input.DEFAULT_FOLDER, args.seed))
    print(f"data: {data.name}\ntest_data {data.test.shape}")
    args.data = data.name
    order = data_input.BatchOrder(len(data.train), args.batch_size, args.seed)
    print_settings(args)
    with npu_session.new_graph().as_default():
        graph = build_graph(args, data)
        for count in (args.save_every, args.max_steps):
            graph.loop.check(count)
        os.makedirs(args.sample_dir, exist_ok=True)
        with npu_session.RunFolder(args.ckpt_dir, args, FIXED) as folder:
            return run_session(args, data, order, graph, folder)


def run_session(args, data, order, graph, folder):
    """Restores, trains, evaluates and writes the result; returns the exit code."""
    checkpoints = npu_session.Checkpoints(args.ckpt_dir)
    config = npu_session.session_config(args, args.output_dir, iterations_per_loop=args.log_every)
    with tf.Session(config=config) as session:
        step = npu_session.begin(session, args, graph.loop, checkpoints, folder)
        code, step = train(args, data, order, folder, session, graph, checkpoints, step)
        if code:
            print(f"stopped by a signal after step {step - 1}: continue with --resume")
            return code
        error = evaluate(args, data, session, graph, step)
    print(f"full_test_error {error:.5f} ({data.name}, m = {args.num_measurements}, "
          f"A {'fixed' if args.fixed_matrix else 'learned'})")
    folder.finish(data=data.name, step=step, seed=args.seed, full_test_error=error,
                  num_measurements=args.num_measurements, matrix_is_learned=not args.fixed_matrix)
    return 0


def main(argv=None):
    """Parses the flags, stages ModelArts' folders and trains; returns the exit code."""
    args = parse_args(argv)
    with npu_session.staged(args.data_url, args.train_url) as (data_dir, output_dir):
        args.data_dir = data_dir or args.data_dir
        args.output_dir = output_dir or args.output_dir
        args.ckpt_dir = args.ckpt_dir or e2e_def.checkpoint_folder(
            args.output_dir, args.num_measurements, not args.fixed_matrix, args.learning_rate)
        name = os.path.basename(os.path.abspath(args.ckpt_dir))
        args.sample_dir = args.sample_dir or os.path.join(args.output_dir, "samples", "mnist-e2e",
                                                          name)
        return run(args)


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
