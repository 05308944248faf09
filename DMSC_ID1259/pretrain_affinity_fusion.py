"""Stage 1 of DMSC: pre-trains the autoencoders; then, by default, clusters with affinity_fusion.

Losses: network. Data format: data_input. The shared matrix Coef is trained along while the rows
are reshuffled at every step, as the reference does; --autoencoder leaves it out.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import argparse
import collections
import functools
import sys
import time

import numpy as np
import tensorflow.compat.v1 as tf
from tqdm import tqdm

import affinity_fusion
import checkpoints
import data_input
import network
import npu_session
import options
from npu_session import InputError
from options import POSITIVE_INT, WEIGHT

MODES = ("train", "evaluate", "train_and_evaluate")
# A resumed run keeps these.
FIXED = ("seed", "data", "fusion", "reconstruction_weights", "learning_rate", "autoencoder",
         "batch_size", "compute_dtype")
# What --demo changes: minutes on two cores.
DEMO = {"mat": affinity_fusion.DEMO_NAME, "autoencoder": True, "batch_size": 64, "epoch": 400,
        "affinity_steps": 400, "eval_from": 50, "eval_every": 25}
CHECKPOINT_NAME = "step-%d"
NO_COST_YET = 1e30

Graph = collections.namedtuple("Graph", "weights pipeline loop best_cost window fill feed writer")


def parse_args(argv=None):
    """Flags of pre-training and of what follows it; defaults are the reference's."""
    parser = npu_session.argument_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--mode", choices=MODES, default="train_and_evaluate",
        help="train: stage 1; evaluate: stages 2 and 3 from the weights; the default: all")
    options.add_shared_flags(parser, "mymodel", 100000,
                             "passes over the data in stage 1, each one step unless --autoencoder "
                             "makes smaller batches")
    add("--autoencoder", type=npu_session.boolean, nargs="?", const=True, default=False,
        metavar="True|False", help="pre-train without the N x N matrix, which leads to the same "
                                   "kind of optimum much sooner and allows --batch_size")
    add("--batch_size", type=POSITIVE_INT, help="samples per step, with --autoencoder only; "
                                                "default: all, as the matrix demands")
    add("--log_every", type=POSITIVE_INT, default=50, help="epochs between log lines and saves")
    add("--target_cost", type=WEIGHT, default=0.0,
        help="stop when the cost falls below it; 0: never. The reference's rule: 0.001")
    add("--save_coef", type=npu_session.boolean, nargs="?", const=True, default=False,
        metavar="True|False", help="save Coef with the weights, as the reference does; nothing "
                                   "but continued pre-training needs it")
    add("--demo", type=npu_session.boolean, nargs="?", const=True, default=False,
        metavar="True|False", help="see it work: other defaults, namely " + ", ".join(
            f"--{name}={value}" for name, value in DEMO.items()) + "; the stand-in faces are "
        "drawn into <output_dir>/Data")
    options.add_affinity_flags(parser)
    if parser.parse_args(argv).demo:
        parser.set_defaults(**DEMO)
    return parser.parse_args(argv)


def schedule(args, samples):
    """(steps per epoch, steps in all)."""
    per_epoch = samples // args.batch_size
    return per_epoch, args.max_train_steps or args.epoch * per_epoch


def check_batch_size(args, samples):
    """Sets the default --batch_size; InputError for one that cannot be."""
    if args.batch_size not in (None, samples) and not args.autoencoder:
        raise InputError(f"--batch_size={args.batch_size}: Coef has a row for each of the "
                         f"{samples} samples, so a step takes them all; smaller batches need "
                         "--autoencoder")
    args.batch_size = args.batch_size or samples
    return data_input.BatchOrder(samples, args.batch_size, args.seed)


def build_graph(args, data):
    """The images, all variables, and the training loop."""
    modalities, samples = len(data.images), len(data.images[0])
    loss_weights = network.spread(args.reconstruction_weights, modalities)
    images, fill, feed = data_input.resident(
        [network.pack(image) for image in data.images])
    weights = network.create_weights(modalities, None if args.autoencoder else samples,
                                     args.seed, args.fusion)
    best_cost = tf.get_variable("progress/best_cost", [], trainable=False,
                                initializer=tf.constant_initializer(NO_COST_YET))
    window = tf.get_variable("progress/window", [1 + modalities], trainable=False,
                             initializer=tf.zeros_initializer())
    tf.train.get_or_create_global_step()  # here, since none can be made inside the loop
    network.get_counter()
    pipeline = data_input.row_pipeline(args.batch_size)

    def step():
        rows = pipeline.next_rows()
        train_op, terms = network.pretrain_step(
            weights, [tf.gather(image, rows) for image in images], loss_weights,
            args.learning_rate, args.fusion, tf.as_dtype(args.compute_dtype))
        return tf.group(train_op, window.assign_add(terms)), terms

    loop = npu_session.Loop(step, args.steps_per_call)
    saved = network.autoencoder_variables(weights)
    if args.save_coef and not args.autoencoder:
        saved.append(weights.coef)
    writer = checkpoints.Writer(options.model_path(args), saved)
    return Graph(weights, pipeline, loop, best_cost, window, fill, feed, writer)


def restore_weights(graph, session, path):
    """Starts from the weights in `path`, as the reference does, if there are any."""
    if not checkpoints.exists(path):
        return
    coef = [] if graph.weights.coef is None else [graph.weights.coef]
    checkpoints.load(session, checkpoints.read(
        path, network.autoencoder_variables(graph.weights), coef))
    print(f"model restored\nstarting from the weights in {path}")


def train(args, samples, order, folder, session, graph, saver, step):
    """The training loop, from a step to the last. Returns (exit code, step)."""
    per_epoch, last_step = schedule(args, samples)
    window, names = args.log_every * per_epoch, term_names(graph)
    bar = tqdm(total=last_step, initial=step, unit="step", disable=not sys.stderr.isatty())
    log = bar.write if sys.stderr.isatty() else functools.partial(print, flush=True)
    with npu_session.Stop() as stop, bar:
        while step < last_step and not stop.code and not reached(args, session, graph):
            begin, end = step, min(step - step % window + window, last_step)
            session.run(graph.pipeline.initializer, graph.pipeline.feed(order.rows(step, window)))
            seconds = 0.0
            while step < end and not stop.code:
                count = min(args.steps_per_call - step % args.steps_per_call, end - step)
                started = time.time()
                terms = graph.loop.run(session, count)
                seconds += time.time() - started
                npu_session.check_finite(terms, names, step, folder.folder)
                step += count
                bar.update(count)
            if step == end:
                display(args, samples, folder, session, graph, step, terms[-1],
                        seconds / (step - begin), log)
            saver.save(session, CHECKPOINT_NAME % step)
            if step == end:
                write_if_best(folder, session, graph, log)
        done = step >= last_step or reached(args, session, graph)
    return (0 if done else stop.code), step


def term_names(graph):
    """Names of the values a step reports."""
    return ("loss",) + tuple(f"mse_{number}" for number in range(len(graph.weights.own)))


def reached(args, session, graph):
    """Whether the cost has fallen below --target_cost."""
    return float(session.run(graph.best_cost)) < args.target_cost


def display(args, samples, folder, session, graph, step, terms, seconds, log):
    """The seed's three lines and a record; forgets the window's sums.

    cost: the weighted error / N of the last step before its update; of small batches, which
    scatter, the mean over the window.
    """
    per_epoch, _ = schedule(args, samples)
    steps = (step - 1) % (args.log_every * per_epoch) + 1
    if args.batch_size < samples:
        terms = session.run(graph.window) / steps
    graph.window.load(np.zeros(len(terms), np.float32), session)
    cost = float(terms[0]) / samples
    log(f"epoch: {(step - 1) // per_epoch}\ncost: {cost:.8f}\nperf: {seconds:.4f}")
    report_overflow(session, step, log)
    graph.best_cost.load(min(np.float32(cost), session.run(graph.best_cost)), session)
    folder.log(step, epoch=(step - 1) // per_epoch, cost=cost, seconds_per_step=seconds,
               images_per_second=args.batch_size / seconds,
               **dict(zip(term_names(graph), terms.tolist())))


def report_overflow(session, step, log):
    """The seed's line when updates were skipped; needs the loss scale, which only an NPU has."""
    scale = [variable for variable in tf.global_variables() if variable.op.name == "loss_scale"]
    if scale and session.run(network.get_counter()) < step:
        log(f"overflow ls is {int(session.run(scale[0]))}")


def write_if_best(folder, session, graph, log):
    """Writes the weights if the newest record has the lowest cost of all."""
    records = folder.records()
    if records and np.float32(records[-1]["cost"]) == session.run(graph.best_cost):
        graph.writer.write(session)
        log(f"model saved in file: {graph.writer.path}")


def run(args):
    """Pre-trains or resumes; returns the exit code."""
    data = affinity_fusion.load_data(args, args.subspace_dimension)
    args.data, samples = data.name, len(data.images[0])
    order = check_batch_size(args, samples)
    per_epoch, last_step = schedule(args, samples)
    window = args.log_every * per_epoch
    options.set_steps_per_call(args, samples, last_step, window)
    options.print_settings(args)
    with npu_session.new_graph().as_default():
        graph = build_graph(args, data)
        for count in (last_step, window):
            graph.loop.check(count)
        with npu_session.RunFolder(options.pretrain_folder(args), args, FIXED) as folder:
            return run_session(args, samples, order, graph, folder)


def run_session(args, samples, order, graph, folder):
    """Restores, trains and writes the result; returns the exit code."""
    saver = npu_session.Checkpoints(folder.folder, keep=2)
    config = npu_session.session_config(args, args.output_dir, options.MIXLIST,
                                        iterations_per_loop=args.steps_per_call)
    with tf.Session(config=config) as session:
        session.run(graph.fill, graph.feed)
        step = npu_session.begin(session, args, graph.loop, saver, folder)
        if step == 0:
            restore_weights(graph, session, graph.writer.path)
        else:  # a run killed between the checkpoint and the weights has still to write these
            write_if_best(folder, session, graph, print)
        code, step = train(args, samples, order, folder, session, graph, saver, step)
        if code:
            print(f"stopped by a signal after step {step - 1}: continue with --resume")
            return code
        best = float(session.run(graph.best_cost))
    folder.finish(data=args.data, step=step, seed=args.seed, best_cost=best,
                  weights=graph.writer.path, autoencoder=args.autoencoder)
    print("finish")
    return 0


def main(argv=None):
    """Parses the flags, stages ModelArts' folders and runs the stages of --mode."""
    args = parse_args(argv)
    options.check_rank_size(args)
    options.check_compute_dtype(args)
    with npu_session.staged(args.data_url, args.train_url) as (data_dir, output_dir):
        args.data_dir = data_dir or args.data_dir
        args.output_dir = output_dir or args.output_dir
        code = 0 if args.mode == "evaluate" else run(argparse.Namespace(**vars(args)))
        if code or args.mode == "train":
            return code
        args.epoch = args.affinity_steps
        if args.mode == "train_and_evaluate":  # then they were meant for stage 1
            args.max_train_steps = args.steps_per_call = None
        return affinity_fusion.run(args)


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
