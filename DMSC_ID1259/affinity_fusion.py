"""Stages 2 and 3 of DMSC: trains the shared self-expression matrix, clusters it, and scores that.

Starts from the weights that pretrain_affinity_fusion.py made. Losses: network. Clustering and
scores: metrics. Data format: data_input. Stage 3 repeats at steps 200, 210, ...; the headline is
the last step's score, since picking the best step takes the true labels.
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

import baselines
import checkpoints
import data_input
import figures
import make_standin_data
import metrics
import network
import npu_session
import options
import results
from npu_session import InputError

# A resumed run keeps these.
FIXED = ("seed", "data", "fusion", "reconstruction_weights", "self_expression_weights",
         "learning_rate", "reg_constant1", "reg_constant2", "eval_from", "eval_every", "ro",
         "subspace_dimension", "power", "starts", "clusters", "compute_dtype")
CHECKPOINT_NAME = "step-%d"
SHOWN_SAMPLES = 8  # in the picture of reconstructions
DEMO_SUBJECTS, DEMO_IMAGES = 10, 32
DEMO_NAME = f"standin_{DEMO_SUBJECTS}x{DEMO_IMAGES}"

Graph = collections.namedtuple(
    "Graph", "weights codes loop theta_before shown reconstructed fill feed")


def parse_args(argv=None):
    """Flags of stages 2 and 3; defaults are the reference's."""
    parser = npu_session.argument_parser(__doc__.splitlines()[0])
    options.add_shared_flags(parser, "multimodal", 150000,
                             "highest number of steps; --affinity_steps ends sooner")
    options.add_affinity_flags(parser)
    return parser.parse_args(argv)


def load_data(args, dimension=metrics.DIMENSION):
    """The data that the flags name; stand-in faces where they name none and there is none.

    dimension: of a cluster's subspace, see data_input.load.
    """
    folder = options.data_folder(args)
    if folder is None and args.mat == DEMO_NAME:
        folder = os.path.join(args.output_dir, "Data")
        path = os.path.join(folder, DEMO_NAME + ".mat")
        if not os.path.exists(path):
            print(f"drawing stand-in faces (not Extended Yale B) into {path}", flush=True)
            make_standin_data.make_standin_data(path, DEMO_SUBJECTS, DEMO_IMAGES)
    data = data_input.load(make_standin_data.data_file(folder, args.mat, args.seed),
                           args.subjects, args.clusters, dimension, args.equalise)
    print(f"data: {data.name}")
    return data


def settle(args, data):
    """Fills in the flags whose default depends on the data."""
    args.data, args.clusters = data.name, data.clusters
    if args.reg_constant2 is None:
        args.reg_constant2 = network.default_residual_weight(data.clusters)
    if args.ro is None:
        args.ro = metrics.alpha(data.clusters)
    options.set_steps_per_call(args, len(data.images[0]), args.eval_from, args.eval_every,
                               args.save_every, last_step(args))


def last_step(args):
    """Number of the last step."""
    return args.max_train_steps or min(args.epoch, args.affinity_steps)


def is_evaluated(args, step):
    """Whether Theta is clustered at this step (1, 2, ...)."""
    due = step >= args.eval_from and (step - args.eval_from) % args.eval_every == 0
    return due or step == last_step(args)


def next_pause(args, step):
    """The next step after `step` at which the loop evaluates or saves."""
    return next(number for number in range(step + 1, last_step(args) + 1)
                if is_evaluated(args, number) or number % args.save_every == 0)


def next_call(args, step):
    """Number of steps that the next session.run makes after `step`."""
    return min(args.steps_per_call - step % args.steps_per_call, next_pause(args, step) - step)


def check_calls(args, loop):
    """InputError unless the device can run the steps in pieces of the schedule's length."""
    step = 0
    while step < last_step(args):
        count = next_call(args, step)
        loop.check(count)
        step += count


# ---------------------------------------------------------------- graph


def build_graph(args, data):
    """The images, all variables, the training loop, and the reconstructions of some samples."""
    modalities, samples = len(data.images), len(data.images[0])
    constants = network.Constants(
        network.spread(args.reconstruction_weights, modalities),
        network.spread(args.self_expression_weights, modalities),
        args.reg_constant1, args.reg_constant2)
    images, fill, feed = data_input.resident(
        [network.pack(image) for image in data.images])
    weights = network.create_weights(modalities, samples, args.seed, args.fusion)
    theta_before = tf.get_variable("theta_before", [samples, samples], trainable=False,
                                   initializer=tf.zeros_initializer())
    tf.train.get_or_create_global_step()  # here, since none can be made inside the loop
    network.get_counter()

    def step():
        return network.affinity_step(weights, images, constants, args.learning_rate, theta_before,
                                     args.fusion, tf.as_dtype(args.compute_dtype))

    loop = npu_session.Loop(step, args.steps_per_call)
    theta = network.without_diagonal(weights.coef)
    shown = np.linspace(0, samples - 1, min(SHOWN_SAMPLES, samples)).astype(np.int32)
    result = network.forward(weights, images, theta, args.fusion, rows=shown)
    return Graph(weights, result.codes, loop, theta_before, shown, result.reconstructed, fill, feed)


# ---------------------------------------------------------------- clustering


def cluster(args, theta, number):
    """Stage 3 for the evaluation with this number (0, 1, ...).

    Draws continue those of the evaluations before, as the reference's do.

    Args: theta: float32 [N, N] without diagonal.
    Returns:
      (labels int [N] 1..K, affinity float64 [N, N]).
    """
    random = np.random.RandomState(args.seed)
    for _ in range(2 * number):
        random.uniform(size=len(theta))
        random.randint(len(theta))
    return metrics.post_proC(metrics.thrC(theta, args.ro), args.clusters, args.subspace_dimension,
                             args.power, random, args.starts)


def evaluate(args, data, folder, history, theta, terms, step, seconds, log):
    """Clusters theta, prints the seed's lines and writes one record.

    Args:
      history: results.LabelHistory. theta: as it was before this step's update, like terms, the
      values of network.AFFINITY_TERMS. seconds: per step.
    """
    labels, _ = cluster(args, theta, len(history.labels))
    scores = metrics.scores(data.labels, labels)
    log(f"epoch: {step} cost: {float(terms[0]) / len(labels):.8f}")
    if data.labels is not None:
        log(f"accuracy: {100 * scores.accuracy:.2f}%")
    folder.log(step, **dict(zip(network.AFFINITY_TERMS, terms.tolist())),
               label_change=history.add(step, labels), seconds_per_step=seconds,
               **{name: value for name, value in scores._asdict().items() if value is not None})


def cluster_plainly(args, theta):
    """Labels int [N] by spectral clustering of |Theta| + |Theta'| as it is.

    Much of what such methods reach comes from stage 3's thresholds and powers (Haeffele, You and
    Vidal 2021); this leaves them out.
    """
    random = np.random.RandomState(args.seed)
    start, row = random.uniform(-1, 1, len(theta)), random.randint(len(theta))
    weights = np.abs(theta.astype(np.float64))
    embedding = metrics.spectral_embedding(weights + weights.T, args.clusters, start)
    return metrics.discretize(embedding, [row], random) + 1


# ---------------------------------------------------------------- training


def train(args, data, folder, history, session, graph, saver, step):
    """The training loop, from a step to the last. Returns (exit code, step)."""
    last, began, first = last_step(args), time.time(), step
    bar = tqdm(total=last, initial=step, unit="step", disable=not sys.stderr.isatty())
    log = bar.write if sys.stderr.isatty() else functools.partial(print, flush=True)
    with npu_session.Stop() as stop, bar:
        while step < last and not stop.code:
            begin, end, seconds = step, next_pause(args, step), 0.0
            while step < end and not stop.code:
                count = next_call(args, step)
                started = time.time()
                terms = graph.loop.run(session, count)
                seconds += time.time() - started
                npu_session.check_finite(terms, network.AFFINITY_TERMS, step, folder.folder)
                step += count
                bar.update(count)
            if step == end and is_evaluated(args, step):
                if step == args.eval_from:
                    log(f"time used per step: {(time.time() - began) / (step - first):.4f}")
                evaluate(args, data, folder, history, session.run(graph.theta_before), terms[-1],
                         step, seconds / (step - begin), log)
            if stop.code or step % args.save_every == 0 or step == last:
                saver.save(session, CHECKPOINT_NAME % step)
    return (0 if step >= last else stop.code), step


def run(args):
    """Trains or resumes stage 2, clusters, and writes the results; returns the exit code."""
    data = load_data(args, args.subspace_dimension)
    settle(args, data)
    weights_path = options.model_path(args)
    if not checkpoints.exists(weights_path):
        raise InputError(f"there are no weights {weights_path}: pre-train with python "
                         "pretrain_affinity_fusion.py, or name its model with --model=mymodel")
    options.print_settings(args)
    with npu_session.new_graph().as_default():
        graph = build_graph(args, data)
        restored = checkpoints.read(weights_path, network.autoencoder_variables(graph.weights))
        check_calls(args, graph.loop)
        with npu_session.RunFolder(options.affinity_folder(args), args, FIXED) as folder:
            return run_session(args, data, graph, folder, restored)


def print_shapes(args, data, graph):
    """The seed's first lines: modalities, images, samples, codes, checkpoint."""
    print(len(data.images))
    for images in data.images:
        print(images.shape)
    print(len(data.images[0]))
    for code in graph.codes:
        print("(?, {}, {}, {})".format(*code.shape.as_list()[1:]))
    print(options.model_path(args))


def run_session(args, data, graph, folder, restored):
    """Restores, trains, and writes the result; returns the exit code."""
    saver = npu_session.Checkpoints(folder.folder, keep=2)
    config = npu_session.session_config(args, args.output_dir, options.MIXLIST,
                                        iterations_per_loop=args.steps_per_call)
    print_shapes(args, data, graph)
    with tf.Session(config=config) as session:
        session.run(graph.fill, graph.feed)
        step = npu_session.begin(session, args, graph.loop, saver, folder)
        if step == 0:
            checkpoints.load(session, restored)
            print("model restored", flush=True)
        history = results.LabelHistory(
            folder.folder, [record["step"] for record in folder.records()])
        code, step = train(args, data, folder, history, session, graph, saver, step)
        if code:
            print(f"stopped by a signal after step {step}: continue with --resume")
            return code
        theta, reconstructed = session.run([graph.theta_before, graph.reconstructed])
    reconstructed = [network.unpack(images) for images in reconstructed]
    originals = [images[graph.shown] for images in data.images]
    finish(args, data, folder, history, theta, originals, reconstructed)
    return 0


def finish(args, data, folder, history, theta, originals, reconstructed):
    """Writes and prints the results.

    Args:
      history: results.LabelHistory. theta: float32 [N, N] that the last step's labels are of.
      originals, reconstructed: lists of M float32 [n, 32, 32, 1].
    """
    records, last, chosen = folder.records(), max(history.labels), history.most_typical()
    labels, label_free = history.labels[last], history.labels[chosen]
    results.write(folder.folder, theta, labels, label_free, data, records)
    draw(args, data, folder.folder, records, theta, labels, chosen, originals, reconstructed)
    scores, free_scores, plain_scores = (metrics.scores(data.labels, found) for found in (
        labels, label_free, cluster_plainly(args, theta)))
    best = None if data.labels is None else max(record["accuracy"] for record in records)
    if best is not None:
        print(f"Max ACC: {100 * best:.2f}%")
    print(results.sentence(f"last step {last}", scores))
    print(results.sentence(f"label-free choice, step {chosen}", free_scores))
    print(results.sentence(f"last step {last} without post-processing", plain_scores))
    raw = compare_raw_pixels(args, data)
    print(f"data: {data.name}; results, pictures and records are in {folder.folder}")
    folder.finish(data=data.name, standin=data.is_standin, step=last, seed=args.seed,
                  clusters=data.clusters, samples=len(labels), fusion=args.fusion,
                  max_accuracy=best, label_free_step=chosen, label_free=free_scores._asdict(),
                  without_post_processing=plain_scores._asdict(), raw_pixels=raw,
                  **scores._asdict())


def compare_raw_pixels(args, data):
    """Prints and returns the scores of the raw pixels: {modality: {score: value}}."""
    weights, raw = network.spread(args.self_expression_weights, len(data.images)), {}
    for baseline in baselines.compare(data.images, data.clusters, data.labels, weights, data.names):
        print(results.sentence(f"raw pixels, {baseline.name}", baseline.scores), flush=True)
        raw[baseline.name] = baseline.scores._asdict()
    return raw


def draw(args, data, folder, records, theta, labels, chosen, originals, reconstructed):
    """The four pictures of the run."""
    def path(name):
        return os.path.join(folder, name + ".png")

    last = records[-1]["step"]
    note = f"{data.name}, {args.fusion} fusion, step {last}"
    _, affinity = cluster(args, theta, len(records) - 1)
    figures.reordered_affinity(path("affinity"), affinity, labels, data.labels, note)
    figures.coefficient_blocks(path("coefficients"), theta,
                               labels if data.labels is None else data.labels, note)
    figures.reconstructions(path("reconstructions"), originals, reconstructed, data.names, note)
    names = [name for name in results.SCORES if data.labels is not None]
    figures.score_curves(
        path("scores"), [record["step"] for record in records],
        {name: [record[name] for record in records] for name in names},
        {name: [record[name] for record in records] for name in ("cost", "relative_residual")},
        {"label-free choice": chosen}, f"{data.name}, {args.fusion} fusion")


def main(argv=None):
    """Parses the flags, stages ModelArts' folders, trains and clusters; returns the exit code."""
    args = parse_args(argv)
    options.check_rank_size(args)
    options.check_compute_dtype(args)
    with npu_session.staged(args.data_url, args.train_url) as (data_dir, output_dir):
        args.data_dir = data_dir or args.data_dir
        args.output_dir = output_dir or args.output_dir
        return run(args)


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
