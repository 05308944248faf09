"""Trains the landmark network on a folder of images, without annotations.

Losses: model_def.losses. Pairs: data_input.make_pairs. Flags: VDSR.py. Landmark errors of the
result: evaluate.py.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import contextlib
import functools
import math
import os
import sys
import time

import numpy as np
import tensorflow.compat.v1 as tf
from tqdm import tqdm

import data_input
import figures
import landmark_lists
import make_standin_data
import metrics
import model_def
import npu_session
import VDSR
from npu_session import InputError

CHECKPOINT_NAME = "model-%d"  # the number is the updates made
LONGEST_RUN = 20  # updates per session.run at most: between them a signal is looked for
SEGMENT = 1000  # updates, about, for which the pipeline is told its images at a time
PICTURED, SUMMARISED = 16, 3  # images in the sheets of landmarks, and in TensorBoard
FIXED = ("seed", "K", "batch_size", "learning_rate", "lower_rate_after", "beta1", "M",
         "align_weight", "diversity_weight", "weight_decay", "scale_size", "crop_size", "pair_warp",
         "tps_weight", "exact_coordinates", "conv_dtype", "cache_images", "images",
         "data")  # kept by --resume
RESULT_STEPS = 100  # the result's losses are means over the records of so many last updates

Graph = collections.namedtuple("Graph", "pipeline loop")
Pictures = collections.namedtuple("Pictures", "coordinates summary feed folder writer name")
Schedule = collections.namedtuple("Schedule", "per_epoch steps log_every save_every per_run")


def schedule(args, per_epoch):
    """Schedule: updates per epoch, in all, between log lines, between checkpoints, and per
    session.run; the last divides the three before it unless --iterations_per_loop is given."""
    steps = min(args.max_epochs * per_epoch, args.max_steps or sys.maxsize)
    log_every, save_every = (every if every > 0 else steps
                             for every in (args.summary_freq, args.save_freq))
    common = functools.reduce(math.gcd, (steps, log_every, save_every))
    fitting = max(count for count in range(1, LONGEST_RUN + 1) if common % count == 0)
    return Schedule(per_epoch, steps, log_every, save_every, args.iterations_per_loop or fitting)


def preparation(args):
    """What data_input needs to know of the flags."""
    return data_input.Preparation(**{name: getattr(args, name)
                                     for name in data_input.Preparation._fields})


# ---------------------------------------------------------------- graph and pictures


def build_graph(args, source, plan, layers=None):
    """The pipeline of pairs and the loop of updates.

    Args:
      source: paths or decoded images, see data_input.training_pipeline.
      plan: of schedule. layers: of model_def.create_variables, made here by default.
    """
    layers = layers or model_def.create_variables(args.K, args.seed)
    tf.train.get_or_create_global_step()  # here, since none can be made inside the loop
    pipeline = data_input.training_pipeline(source, args.batch_size, preparation(args),
                                            args.threads)

    def step():
        return model_def.train_step(*pipeline.next_batch(), layers, args)

    return Graph(pipeline, npu_session.Loop(step, plan.per_run))


def example_pairs(paths, args):
    """The first images as they are, and deformed by step 0's warps: float32 [N, 128, 128, 3]."""
    paths, prepared = paths[:PICTURED], preparation(args)

    def finish(frames, _):
        _, second = data_input.draw_warps(len(paths), 0, prepared)
        return data_input.make_pairs(frames, None, second, prepared)[:2]

    with tf.Graph().as_default(), data_input.host_session(args) as session:
        pipeline = data_input.evaluation_pipeline(paths, len(paths), prepared, args.threads, finish)
        following = pipeline.next_batch()
        session.run(pipeline.initializer, pipeline.feed())
        return session.run(following)


def build_pictures(args, pairs, layers):
    """What shows how far the network is: landmarks of the same images every time.

    TensorBoard gets the reference's four pictures: Input, Deformed, PredA and Landmark.
    """
    places = [tf.placeholder(tf.float32, array.shape) for array in pairs]
    found = model_def.evaluate(places[0], layers)
    maps = tf.reduce_mean(found.heat_maps, 3, keepdims=True)
    shown = {"Input": (places[0] + 1) / 2, "Deformed": (places[1] + 1) / 2,
             "PredA": maps / tf.reduce_max(maps, [1, 2, 3], keepdims=True),
             "Landmark": found.drawn}
    summary = tf.summary.merge([tf.summary.image(name, images, SUMMARISED)
                                for name, images in shown.items()])
    return Pictures(found.coordinates, summary, dict(zip(places, pairs)),
                    os.path.join(args.output_dir, "images"),
                    tf.summary.FileWriter(os.path.join(args.output_dir, "logs")), args.data)


def save_pictures(pictures, session, step):
    """Writes images/landmarks_<step>.jpg and TensorBoard's pictures; returns the path."""
    cells, summary = session.run([pictures.coordinates, pictures.summary], pictures.feed)
    pictures.writer.add_summary(summary, step)
    pictures.writer.flush()
    images, _ = pictures.feed.values()
    path = os.path.join(pictures.folder, f"landmarks_{step:07d}.jpg")
    figures.contact_sheet(path, (images + 1) / 2, metrics.crop_pixels(cells),
                          f"{cells.shape[1]} landmarks after {step} updates ({pictures.name})")
    return path


# ---------------------------------------------------------------- training


def train(args, plan, order, folder, session, graph, pictures, checkpoints, step):
    """The training loop, from a step to the last. Returns (exit code, step)."""
    first, saved, segment_end, began = step, step, step, time.time()
    bar = tqdm(total=plan.steps, initial=step, unit="step", disable=not sys.stderr.isatty())
    log = bar.write if sys.stderr.isatty() else functools.partial(print, flush=True)
    with npu_session.Stop() as stop, bar:
        while step < plan.steps and not stop.code:
            if step == segment_end:
                length = plan.per_run * -(-SEGMENT // plan.per_run)
                rows = order.rows(step, length)  # one shape, though the last steps need fewer
                session.run(graph.pipeline.initializer, graph.pipeline.feed(rows, step))
                segment_end += length
            count = min(plan.per_run - step % plan.per_run, segment_end - step, plan.steps - step)
            started = time.time()
            terms = graph.loop.run(session, count)
            npu_session.check_finite(terms, model_def.LOSS_TERMS, step, args.ckpt_dir)
            step += count
            bar.update(count)
            if step % plan.log_every == 0 or step == plan.steps:
                report(args, plan, step, first, began, terms, log)
                rate = count * args.batch_size / (time.time() - started)
                folder.log(step, images_per_second=rate,
                           **dict(zip(model_def.LOSS_TERMS, terms.mean(0).tolist())))
            if step % plan.save_every == 0 and step < plan.steps:
                save(session, checkpoints, step, log)
                save_pictures(pictures, session, step)
                saved = step
        if saved < step:
            save(session, checkpoints, step, log)
    return (stop.code if step < plan.steps else 0), step


def save(session, checkpoints, step, log):
    """Writes a checkpoint and says so in the reference's two lines."""
    log("saving model...")
    checkpoints.save(session, CHECKPOINT_NAME % step)
    log(os.path.join(checkpoints.folder, CHECKPOINT_NAME % step))


def report(args, plan, step, first, began, terms, log):
    """The reference's log lines: the losses of the last update, and below them some means."""
    rate = (step - first) * args.batch_size / (time.time() - began)
    remaining = (plan.steps - step) * args.batch_size / rate / 60
    log(f"progress  epoch {-(-step // plan.per_epoch)}  step {(step - 1) % plan.per_epoch + 1}  "
        f"image/sec {rate:.1f}  remaining {int(remaining)}m")
    for name, value in zip(model_def.LOSS_TERMS[:3], terms[-1]):
        log(f"{name} {value}")
    align, diversity, _, _, spread, distance = terms.mean(0)
    log(f"mean of {len(terms)} updates: align {align:.3f} = spread {spread:.3f} + distance "
        f"{distance:.3f}, diversity {diversity:.4f}")
    log("-" * 30)


# ---------------------------------------------------------------- a run


def find_data(args):
    """Paths of the training images; sets args.data (a name) and args.images (their number)."""
    folder = make_standin_data.data_folder(args.input_dir, make_standin_data.DEFAULT_FOLDER)
    paths = data_input.find_images(folder)
    if args.image_list:
        paths = chosen(paths, args.image_list)
    args.data, args.images = landmark_lists.data_name(os.path.dirname(paths[0])), len(paths)
    print(f"data: {args.data}\n----------------------examples count = {len(paths)}")
    return paths


def chosen(paths, list_path, part=landmark_lists.TRAINING):
    """The paths whose names a list has.

    Args:
      list_path: of a list of names, or of CelebA's list_eval_partition.txt.
      part: the number in the latter whose images are taken.
    Raises:
      InputError: the list is wrong, or names images that are not there.
    """
    lines = landmark_lists.read_lines(list_path)
    if lines and len(lines[0].split()) == 2:
        parts = landmark_lists.read_partition(list_path)
        names = [name for name in parts if parts[name] == part]
    else:
        names = landmark_lists.read_names(list_path)
    wanted = set(names)
    kept = [path for path in paths if os.path.basename(path) in wanted]
    missing = wanted - {os.path.basename(path) for path in kept}
    if missing or not kept:
        raise InputError(f"{list_path} names {len(wanted)} images for this, of which {len(kept)} "
                         f"are in {os.path.dirname(paths[0])}"
                         + (f", {min(missing)} for one is not" if missing else ""))
    return kept


def check_convolutions(args):
    """InputError unless this TensorFlow convolves what --conv_dtype asks for.

    1.x is not even tried: it would hand the convolutions to XLA's device, which is far slower.
    """
    with tf.Graph().as_default(), data_input.host_session(args) as session:
        x, kernel = (tf.ones(shape, tf.as_dtype(args.conv_dtype))
                     for shape in ([1, 8, 8, 4], [5, 5, 4, 4]))
        gradients = tf.gradients(tf.nn.conv2d(x, kernel, [1, 1, 1, 1], "VALID"), [x, kernel])
        if not tf.__version__.startswith("1."):
            with contextlib.suppress(tf.errors.OpError):
                session.run(gradients)
                return
    raise InputError(f"--conv_dtype={args.conv_dtype}: TensorFlow {tf.__version__} has no such "
                     "convolutions for this device; leave the flag out")


def run(args):
    """Trains or resumes; returns the exit code."""
    if args.conv_dtype != "float32":
        check_convolutions(args)
    paths = find_data(args)
    order = data_input.BatchOrder(len(paths), args.batch_size, args.seed)
    plan = schedule(args, order.per_epoch)
    print(f"max epochs:  {args.max_epochs}\nmax steps :  {plan.steps}", flush=True)
    if args.cache_images:
        source = data_input.load_images(paths, args)
    else:
        data_input.image_sizes(paths, args)  # every image is tried before training begins
        source = paths
    pairs = example_pairs(paths, args)
    with npu_session.new_graph().as_default():
        layers = model_def.create_variables(args.K, args.seed)
        graph = build_graph(args, source, plan, layers)
        for count in plan[1:]:
            graph.loop.check(count)
        with npu_session.RunFolder(args.output_dir, args, FIXED) as folder:
            pictures = build_pictures(args, pairs, layers)
            try:
                return run_session(args, plan, order, graph, pictures, folder)
            except tf.errors.OpError:
                data_input.image_sizes(paths, args)  # names an image that went bad meanwhile
                raise
            finally:
                pictures.writer.close()


def run_session(args, plan, order, graph, pictures, folder):
    """Restores, trains and writes the result; returns the exit code."""
    os.makedirs(args.ckpt_dir, exist_ok=True)
    checkpoints = npu_session.Checkpoints(args.ckpt_dir)
    others = args.checkpoint and npu_session.Checkpoints(args.checkpoint)
    count = sum(int(np.prod(variable.shape.as_list())) for variable in tf.trainable_variables())
    print(f"parameter_count = {count}")
    config = npu_session.session_config(args, args.output_dir, iterations_per_loop=plan.per_run)
    with npu_session.open_session(config) as session:
        step = npu_session.begin(session, args, graph.loop, checkpoints, folder)
        if others and not step:
            step = start_from(others, session, graph)
        code, step = train(args, plan, order, folder, session, graph, pictures, checkpoints, step)
        if code:
            print(f"stopped by a signal after step {step}: continue with --resume")
            return code
        finish(args, step, folder, save_pictures(pictures, session, step))
    return 0


def start_from(checkpoints, session, graph):
    """Restores another run's newest checkpoint; returns its step."""
    path = checkpoints.restore(session, required=True)
    step = int(session.run(tf.train.get_or_create_global_step(session.graph)))
    graph.loop.check(step)
    print(f"Succesfully loaded model from {path} at counter = {step}")
    return step


def finish(args, step, folder, sheet):
    """Writes the loss curves and result.json, and the log's last lines."""
    records = [record for record in folder.records() if "loss" in record]
    curves = os.path.join(args.output_dir, "images", "loss_curves.png")
    figures.loss_curves(curves, records, f"{args.data}, K = {args.K}, batch {args.batch_size}")
    last = [record for record in records if record["step"] > step - RESULT_STEPS]
    means = {name: float(np.mean([record[name] for record in last]))
             for name in model_def.LOSS_TERMS if last}
    for name, value in means.items():
        print(f"{name} of the last updates, mean: {value:.4f}")
    print(f"checkpoint {os.path.join(args.ckpt_dir, CHECKPOINT_NAME % step)}\n"
          f"pictures {sheet}, {curves}")
    folder.finish(data=args.data, step=step, seed=args.seed, K=args.K, images=args.images, **means)


def main(argv=None):
    """VDSR.py's program; returns the exit code."""
    return VDSR.main(argv, "train")


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
