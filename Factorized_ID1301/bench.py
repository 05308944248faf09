"""Measures the training step and the input pipeline against graphs of the reference's shape.

Training: separate towers, K-channel spline warps of the index planes, fed batches, all that the
reference fetches. Input: one image after the other, warped by the full spline. Both sides compute
the same: the benchmark fails if their results differ. They alternate in one process, so that
whatever else the machine does meets both; the ratio of the medians is printed.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import json
import os
import sys
import tempfile
import time

import numpy as np
import tensorflow.compat.v1 as tf

import data_input
import landmark_lists
import model_def
import npu_session
import train
import VDSR
from make_standin_data import make_standin_data
from utils import ThinPlateSplineB as spline
from utils import warp
from VDSR import POSITIVE_INT

TRAINING_RTOL = 1e-3  # of the losses, over the updates of one repetition
INPUT_ATOL = 1e-5  # of pixels in [-1, 1]; a few at the edge of a warp may differ,
EDGE_SHARE = 1e-4  # this share of them at most
REFERENCE_TERMS = ("loss_align", "loss_diversity", "loss_decay")


def parse_args(argv=None):
    """Flags of the benchmark."""
    parser = npu_session.argument_parser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--part", choices=["training", "input", "both"], default="both")
    add("--repeats", type=POSITIVE_INT, default=20,
        help="measured repetitions of each side, after one that warms up")
    add("--steps", type=POSITIVE_INT, default=1, help="training updates in one repetition")
    add("--batch_size", type=POSITIVE_INT, default=4, help="pairs per update; the reference's is "
                                                           "32, which takes a CPU long")
    add("--K", type=POSITIVE_INT, default=8, help="landmarks")
    add("--images", type=POSITIVE_INT, default=64, help="images through the input pipeline in one "
                                                        "repetition")
    add("--input_dir", help="folder of images; default: stand-in faces, drawn for the occasion")
    add("--json", metavar="FILE", help="also write the results to FILE")
    npu_session.add_session_flags(parser, precision_mode="must_keep_origin_dtype")
    return parser.parse_args(argv)


# ---------------------------------------------------------------- measuring


def seconds_of(side):
    """[wall time, processor time of all threads] of side.run(), after side.start().

    On a machine that does other work too, the second is what can be compared. Starting a pipeline
    is not measured: training does it once in a thousand updates.
    """
    side.start()
    started = np.array([time.perf_counter(), time.process_time()])
    side.run()
    return np.array([time.perf_counter(), time.process_time()]) - started


def alternate(sides, repeats):
    """Runs the sides in turn, in an order that rotates.

    Returns:
      {name: float64 [repeats, 2]}, seconds_of each run.
    """
    seconds, names = {name: [] for name in sides}, list(sides)
    for repeat in range(repeats):
        for place in range(len(names)):
            name = names[(repeat + place) % len(names)]
            seconds[name].append(seconds_of(sides[name]))
    return {name: np.array(values) for name, values in seconds.items()}


def summary(seconds, units, scale):
    """What `alternate` measured, divided by units and times scale.

    Returns:
      {name: {"median", "low", "high", "processor"}} for each name: median and quartiles of the
      wall time, and median of the processor time.
    """
    result = {}
    for name, values in seconds.items():
        wall, processor = (values / units * scale).T
        low, median, high = np.percentile(wall, [25, 50, 75])
        result[name] = {"median": float(median), "low": float(low), "high": float(high),
                        "processor": float(np.median(processor))}
    return result


def measure(sides, repeats):
    """Warms up, then measures; AssertionError if a side's graph has grown meanwhile."""
    alternate(sides, 1)
    operations = [len(side.tf_graph.get_operations()) for side in sides.values()]
    seconds = alternate(sides, repeats)
    after = [len(side.tf_graph.get_operations()) for side in sides.values()]
    assert after == operations, f"the graphs grew from {operations} to {after} operations"
    return seconds


def assert_same(ours, reference, what, rtol=0.0, atol=0.0):
    """AssertionError with the largest difference unless the arrays agree; returns it."""
    np.testing.assert_allclose(ours, reference, rtol=rtol, atol=atol,
                               err_msg=f"{what}: ours and the reference's disagree")
    return float(np.max(np.abs(np.subtract(ours, reference))))


def open_session(args, threads):
    """A session on the current graph that works with `threads` threads, variables initialised."""
    config = npu_session.session_config(args)
    config.intra_op_parallelism_threads = config.inter_op_parallelism_threads = threads
    config.use_per_session_threads = True  # else all share the pool of the first one's size
    session = tf.Session(config=config)
    session.run(tf.global_variables_initializer())
    return session


# ---------------------------------------------------------------- training


def training_args(args, *flags):
    """VDSR.py's flags with this benchmark's K, batch size, seed and threads, else its defaults."""
    return VDSR.parse_args([f"--K={args.K}", f"--batch_size={args.batch_size}",
                            f"--seed={args.seed}", f"--threads={args.threads}",
                            f"--max_steps={args.steps}", f"--summary_freq={args.steps}"]
                           + list(flags))


class PipelineTraining:
    """Ours: train.py's graph, images read by tf.data, --steps updates per session.run."""

    def __init__(self, args, paths, *flags):
        flags, self._steps = training_args(args, *flags), args.steps
        order = data_input.BatchOrder(len(paths), args.batch_size, args.seed)
        self._rows, prepared = order.rows(0, args.steps), train.preparation(flags)
        with npu_session.new_graph().as_default() as self.tf_graph:
            self._graph = train.build_graph(flags, paths, train.schedule(flags, order.per_epoch))
            self._batch = self._graph.pipeline.next_batch()[:2]
            self._warps = [tf.concat([data_input.draw_warps(1, number, prepared)[1]
                                      for number in numbers], 0)
                           for numbers in image_numbers(args.steps, args.batch_size)]
            self._session = open_session(args, args.threads)
            self._graph.loop.prepare(self._session)
        self.tf_graph.finalize()

    def start(self):
        """Starts the pipeline at the first update's images."""
        pipeline = self._graph.pipeline
        self._session.run(pipeline.initializer, pipeline.feed(self._rows, 0))

    def batches(self):
        """(images, deformed, T) of every update, to feed to the reference's graph."""
        self.start()
        return [[*self._session.run(self._batch), self._session.run(T)] for T in self._warps]

    def run(self):
        """Loss terms [steps, ..] (on the NPU, of the last update of each session.run)."""
        return self._graph.loop.run(self._session, self._steps)


def image_numbers(steps, batch_size):
    """[steps, batch_size]: the numbers by which data_input draws each image's warps."""
    return np.arange(steps * batch_size).reshape(steps, batch_size)


def reference_tower(x, layers):
    """One tower in training mode by itself.

    Returns:
      Scores [B, 42, 42, K], and the pairs (moving average, batch's value) to update.
    """
    moments = []
    for number, layer in enumerate(layers, 1):
        x = tf.nn.conv2d(x, layer.filter, [1, 1, 1, 1], "VALID")
        x, mean, variance = tf.nn.fused_batch_norm(x, layer.gamma, layer.beta,
                                                   epsilon=model_def.NORM_EPSILON)
        moments += [(layer.moving_mean, mean), (layer.moving_variance, variance)]
        x = tf.nn.relu(x)
        if number == 1:
            x = tf.nn.max_pool(x, [1, 2, 2, 1], [1, 2, 2, 1], "VALID")
    return x, moments


def reference_maps(scores):
    """Softmax over positions, [B, 42, 42, K]."""
    count = scores.shape.as_list()[3]
    flat = tf.nn.softmax(tf.reshape(scores, [-1, warp.MAP_SIZE ** 2, count]), axis=1)
    return tf.reshape(flat, [-1, warp.MAP_SIZE, warp.MAP_SIZE, count])


def reference_warp(images, T):
    """The spline at every pixel, then four gathers of clipped neighbours and their products.

    Args:
      images: float32 [B, n, n, C]. T: float32 [B, 2, 7].
    Returns:
      float32 [B, n, n, C].
    """
    batch, side, channels = tf.shape(images)[0], *images.shape.as_list()[2:]
    line = tf.linspace(-1.0, 1.0, side)
    x, y = tf.tile(line[None], [1, side]), tf.reshape(tf.tile(line[:, None], [1, side]), [1, -1])
    points = tf.constant(warp.CORNERS)
    rows = tf.concat([tf.ones_like(x), x, y, spline.radial(
        tf.square(x - points[:, :1]) + tf.square(y - points[:, 1:]))], 0)  # [7, n * n]
    source = tf.matmul(T, tf.tile(rows[None], [batch, 1, 1]))
    x, y = ((part + 1.0) * side / 2.0 for part in tf.unstack(source, axis=1))
    left, right, top, bottom = (tf.clip_by_value(v, 0, side - 1) for v in (
        tf.floor(x), tf.floor(x) + 1, tf.floor(y), tf.floor(y) + 1))
    pixels, first = tf.reshape(images, [-1, channels]), tf.range(batch)[:, None] * side ** 2

    def neighbour(column, row, weight):
        place = first + tf.cast(row * side + column, tf.int32)
        return weight[:, :, None] * tf.gather(pixels, place)

    upper = (neighbour(left, top, (right - x) * (bottom - y))
             + neighbour(right, top, (x - left) * (bottom - y)))
    lower = (neighbour(left, bottom, (right - x) * (y - top))
             + neighbour(right, bottom, (x - left) * (y - top)))
    return tf.reshape(upper + lower, tf.shape(images))


def reference_alignment(maps_a, maps_b, T):
    """L_align in its expanded form: index planes repeated K times and warped by the full spline."""
    planes = [tf.tile(plane[None, :, :, None], [tf.shape(T)[0], 1, 1, maps_a.shape[3]])
              for plane in tf.unstack(warp.cells(), axis=2)]
    edge = warp.PADDING
    around = [[0, 0], [edge, edge], [edge, edge], [0, 0]]
    moved = [reference_warp(tf.pad(plane, around), T)[:, edge:-edge, edge:-edge]
             for plane in planes]
    squares = [sum(tf.square(plane) for plane in part) for part in (planes, moved)]
    spread = sum(tf.reduce_sum(square * maps, [1, 2])
                 for square, maps in zip(squares, (maps_a, maps_b)))
    product = sum(tf.reduce_sum(plane * maps_a, [1, 2]) * tf.reduce_sum(other * maps_b, [1, 2])
                  for plane, other in zip(planes, moved))
    return tf.reduce_mean(spread - 2 * product)


def reference_diversity(maps, window):
    """K - mean over images of the sum over positions of the highest pooled map."""
    pooled = tf.nn.avg_pool(maps, [1, window, window, 1], [1, 1, 1, 1], "VALID")
    highest = tf.reduce_sum(tf.reduce_max(pooled, 3), [1, 2])
    return maps.shape.as_list()[3] - tf.reduce_mean(highest)


class FedTraining:
    """The reference's graph and loop: one session.run per update, which fetches everything.

    The batches are handed to it ready-made, a little to our disadvantage.
    """

    def __init__(self, args, batches):
        self._batches, flags = batches, training_args(args)
        with npu_session.new_graph().as_default() as self.tf_graph:
            self._inputs = [tf.placeholder(tf.float32, array.shape) for array in batches[0]]
            self._fetches = self._build(flags, *self._inputs)
            self._session = open_session(args, args.threads)
        self.tf_graph.finalize()

    def _build(self, flags, images, deformed, T):
        layers = model_def.create_variables(flags.K, flags.seed)
        (scores_a, moments_a), (scores_b, moments_b) = (
            reference_tower(batch, layers) for batch in (images, deformed))
        maps = [reference_maps(scores) for scores in (scores_a, scores_b)]
        align = reference_alignment(*maps, T)
        diversity = sum(reference_diversity(part, flags.M) for part in maps)
        decay = flags.weight_decay * tf.add_n([tf.nn.l2_loss(layer.filter) for layer in layers])
        total = flags.align_weight * align + flags.diversity_weight * diversity + decay
        update = tf.train.AdamOptimizer(flags.learning_rate, flags.beta1).minimize(
            total, tf.train.get_or_create_global_step())
        for moments in (moments_a, moments_b):  # A, then B
            with tf.control_dependencies([update]):
                update = tf.group(*[
                    moving.assign_sub((1 - model_def.NORM_DECAY) * (moving.read_value() - value))
                    for moving, value in moments])
        return [update, [align, diversity, decay], images, deformed, T] + maps

    def start(self):
        """Nothing to start."""

    def run(self):
        """Loss terms [steps, 3]."""
        terms = []
        for batch in self._batches:
            found = self._session.run(self._fetches, dict(zip(self._inputs, batch)))
            terms.append(found[1])
        return np.array(terms)


def bench_training(args, paths):
    """Milliseconds per update of the sides."""
    ours = PipelineTraining(args, paths)
    reference = FedTraining(args, ours.batches())
    ours.start()
    our_terms, terms = ours.run()[:, :len(REFERENCE_TERMS)], reference.run()
    every = len(terms) // len(our_terms)
    difference = assert_same(our_terms, terms[every - 1::every], "losses", rtol=TRAINING_RTOL)
    sides = {"reference": reference, "ours": ours}
    if not tf.__version__.startswith("1."):
        sides["ours_bfloat16"] = PipelineTraining(args, paths, "--conv_dtype=bfloat16")
    result = summary(measure(sides, args.repeats), args.steps, 1e3)
    return {"unit": "ms per update", "batch_size": args.batch_size, "K": args.K,
            "steps": args.steps, **result, **ratios(result, "ours"),
            "pairs_per_second": {name: 1e3 * args.batch_size / result[name]["median"]
                                 for name in result},
            "largest_loss_difference": difference}


def ratios(result, side):
    """How many times longer the reference takes than a side of ours, wall and processor time."""
    return {name: result["reference"][key] / result[side][key]
            for name, key in (("ratio", "median"), ("ratio_processor", "processor"))}


# ---------------------------------------------------------------- input


class Input:
    """A pipeline whose batches are read one after the other, with nothing done in between.

    build: function that makes it and returns (initializer, batch, function that gives the feed).
    """

    def __init__(self, args, threads, build):
        self._count = args.images // args.batch_size
        with tf.Graph().as_default() as self.tf_graph:
            self._initializer, batch, feed = build()
            self._batch, self._feed = batch[:2], feed()
            self._made = tf.group(*[tensor.op for tensor in batch])
            self._session = open_session(args, threads)
        self.tf_graph.finalize()

    def start(self):
        """Starts the pipeline at the first image."""
        self._session.run(self._initializer, self._feed)

    def run(self):
        """Makes all batches, and leaves them in the graph, where training would take them."""
        for _ in range(self._count):
            self._session.run(self._made)

    def pictures(self):
        """Images and deformed images of all batches, [batches, B, 128, 128, 3] each."""
        self.start()
        batches = [self._session.run(self._batch) for _ in range(self._count)]
        return [np.stack(part) for part in zip(*batches)]


def our_input(args, paths, threads):
    """train.py's pipeline with a number of threads, as an Input."""
    def build():
        pipeline = data_input.training_pipeline(
            paths, args.batch_size, train.preparation(training_args(args)), threads)
        return (pipeline.initializer, pipeline.next_batch(),
                lambda: pipeline.feed(input_rows(args, paths), 0))
    return Input(args, threads, build)


def sequential_input(args, paths):
    """The reference's, as an Input: one map call after the other, every warp the full spline."""
    prepared = train.preparation(training_args(args))

    def pair(number, path):
        first, second = data_input.draw_warps(1, number, prepared)
        frame = data_input.read_frame(path, prepared.scale_size)[None]
        moved = reference_warp(frame, first)
        deformed = reference_warp(moved, second)
        return data_input.cut(moved)[0], data_input.cut(deformed)[0], second[0]

    def build():
        source = tf.placeholder(tf.string, [None])
        count = tf.shape(source, out_type=tf.int64)[0]
        dataset = tf.data.Dataset.zip((tf.data.Dataset.range(count),
                                       tf.data.Dataset.from_tensor_slices(source)))
        dataset = dataset.map(tf.autograph.experimental.do_not_convert(pair))
        iterator = tf.data.make_initializable_iterator(
            dataset.batch(args.batch_size, drop_remainder=True)
            .with_options(data_input.plain_options()))
        chosen = np.array(paths)[input_rows(args, paths).ravel()]
        return iterator.initializer, iterator.get_next(), lambda: {source: chosen}
    return Input(args, 1, build)


def input_rows(args, paths):
    """int32 [images // B, B]: the images, over and over."""
    count = args.images // args.batch_size * args.batch_size
    return np.resize(np.arange(len(paths), dtype=np.int32), count).reshape(-1, args.batch_size)


def assert_same_pictures(ours, reference):
    """AssertionError unless all but a few pixels agree; returns the share that does not.

    Where a sample's position is a whole number, rounding decides if it is inside the image.
    """
    apart = np.mean([np.mean(np.abs(a - b) > INPUT_ATOL) for a, b in zip(ours, reference)])
    assert apart <= EDGE_SHARE, f"{apart:.2g} of the pixels differ: ours and the reference's"
    return float(apart)


def bench_input(args, paths):
    """Milliseconds per image of the reference's map and of ours with one and two threads."""
    sides = {"reference": sequential_input(args, paths), "ours": our_input(args, paths, 1),
             "ours_two_threads": our_input(args, paths, 2)}
    pictures = {name: side.pictures() for name, side in sides.items()}
    apart = max(assert_same_pictures(pictures[name], pictures["reference"]) for name in pictures)
    result = summary(measure(sides, args.repeats),
                     args.images // args.batch_size * args.batch_size, 1e3)
    medians = {name: result[name]["median"] for name in sides}
    return {"unit": "ms per image", "images": args.images, **result, **ratios(result, "ours"),
            "ratio_two_threads": medians["reference"] / medians["ours_two_threads"],
            "scaling": medians["ours"] / medians["ours_two_threads"],
            "images_per_second": {name: 1e3 / median for name, median in medians.items()},
            "images_per_processor_second": {name: 1e3 / result[name]["processor"]
                                            for name in sides},
            "share_of_pixels_apart": apart}


# ---------------------------------------------------------------- report


def table(results):
    """Markdown lines: a row per part and side of ours, median (quartiles)."""
    lines = ["| part | unit | reference | ours | ratio | ratio of processor time |",
             "|---|---|---|---|---|---|"]
    rows = (("training", "ours", "training"),
            ("training", "ours_bfloat16", "training, --conv_dtype=bfloat16"),
            ("input", "ours", "input, one thread"),
            ("input", "ours_two_threads", "input, two threads"))
    for part, side, label in rows:
        if side in results.get(part, ()):
            result = results[part]
            cells = ["{median:.4g} ({low:.4g} to {high:.4g})".format(**result[name])
                     for name in ("reference", side)]
            lines.append("| {} | {} | {} | {} | {ratio:.2f} | {ratio_processor:.2f} |".format(
                label, result["unit"], *cells, **ratios(result, side)))
    return lines


def remarks(results):
    """What the table does not say: rates and agreement."""
    lines = []
    if "training" in results:
        result = results["training"]
        lines.append("training: {reference:.2f} pairs/s by the reference's graph, {ours:.2f} by "
                     "ours".format(**result["pairs_per_second"]))
        lines.append("training: losses agree to {:.2g}".format(result["largest_loss_difference"]))
    if "input" in results:
        result = results["input"]
        for key, unit in (("images_per_second", "images/s"),
                          ("images_per_processor_second", "images per second of processor time")):
            lines.append("input: {reference:.0f} {unit} by the reference's map, {ours:.0f} by ours "
                         "with one thread, {ours_two_threads:.0f} with two".format(
                             unit=unit, **result[key]))
        lines.append("input: two threads are {:.2f} times as fast as one; {:.2g} of the pixels "
                     "differ".format(result["scaling"], result["share_of_pixels_apart"]))
    return lines


def run(args, folder):
    """Measures the parts asked for on the images of a folder; returns what goes into the JSON."""
    paths = data_input.find_images(folder)
    results = {"data": landmark_lists.data_name(os.path.dirname(paths[0])), "seed": args.seed,
               "repeats": args.repeats, "device": npu_session.backend(),
               "threads": args.threads or os.cpu_count(), "versions": npu_session.versions()}
    if args.part in ("training", "both"):
        results["training"] = bench_training(args, paths)
    if args.part in ("input", "both"):
        results["input"] = bench_input(args, paths)
    return results


def main(argv=None):
    """Parses the flags, measures and reports; returns the exit code."""
    args = parse_args(argv)
    if args.images < args.batch_size:
        raise npu_session.InputError(f"--images={args.images} is less than one batch of "
                                     f"{args.batch_size}")
    with tempfile.TemporaryDirectory() as folder:
        if not args.input_dir:
            make_standin_data(folder, max(args.images, args.batch_size), 1, 1, workers=1)
        results = run(args, args.input_dir or folder)
    print("data: {data}; device: {device}; threads: {threads}; median of {repeats} "
          "(quartiles)".format(**results))
    print(", ".join(f"{name} {value}" for name, value in results["versions"].items()) + "\n")
    print("\n".join(table(results) + [""] + remarks(results)))
    print(json.dumps(results, sort_keys=True))
    if args.json:
        npu_session.write_json(args.json, results)
    return 0


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
