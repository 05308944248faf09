"""Measures the training step and evaluation against the reference's shape of both.

Step: the reference feeds its batches, makes six forward and four backward passes and fetches 120
histograms. Evaluation: it takes one image and two session.runs at a time. Both sides compute the
same: the benchmark fails if their results differ. They alternate in one process, so that whatever
else the machine does meets both. --part=once measures one step's time and peak memory.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import types

import numpy as np
import tensorflow.compat.v1 as tf

import data_generator
import evaluation
import make_standin_data
import masf_func
import metrics
import npu_session
import utils
from utils import POSITIVE_INT, PROBABILITY

SIDES = ("reference", "ours")
PARITY_STEPS = 2
# Of losses at the first step and after one update; golden README, with room for the machine's own
# order of sums: random weights move far under Adam.
LOSS_RTOL = (1e-4, 2e-3)
CHANGE_RTOL = 2e-3  # of the norm of each variable's change by one update, as in the golden README
EVALUATION_RTOL = 1e-4  # of cross entropies
ROLES = ("a", "a1", "b")

Data = collections.namedtuple("Data", "name sources target")


def batch_sizes(text):
    """argparse type: multiples of 3, separated by commas."""
    sizes = [int(number) for number in text.split(",")]
    if any(size < 3 or size % 3 for size in sizes):
        raise ValueError(text)
    return sizes


batch_sizes.__name__ = "multiples of 3, separated by commas"


def parse_args(argv=None):
    """Flags of the benchmark."""
    parser = npu_session.argument_parser(__doc__)
    add = parser.add_argument
    add("--part", choices=["step", "evaluation", "both", "once"], default="both",
        help="once: time and peak memory of one step, each side in a process of its own")
    add("--meta_batch_size", type=batch_sizes, default=[9],
        help="images per source; several, separated by commas, are measured in turn")
    add("--test_batch_size", type=POSITIVE_INT, default=100, help="of our evaluation")
    add("--images", type=POSITIVE_INT, default=100, help="evaluated in one repetition")
    add("--repeats", type=POSITIVE_INT,
        help="measured repetitions of each side, after one that warms up; default 20, once: 1")
    add("--keep_prob", type=PROBABILITY, default=0.5, help="of dropout")
    add("--dataroot", help="as main.py's; default: stand-in pictures in a temporary folder (speed "
                           "does not depend on the content)")
    add("--filelist_root", default=make_standin_data.DEFAULT_FOLDER, help="lists of --dataroot")
    add("--side", choices=SIDES + ("both",), default="both", help="of --part=once")
    add("--json", metavar="FILE", help="also write the results to FILE")
    npu_session.add_session_flags(parser, precision_mode="must_keep_origin_dtype")
    args = parser.parse_args(argv)
    args.repeats = args.repeats or (1 if args.part == "once" else 20)
    return args


# ---------------------------------------------------------------- measuring


def seconds_of(function):
    """[wall time, processor time of all threads] of one call.

    On a machine that does other work too, the second is what can be compared.
    """
    started = np.array([time.perf_counter(), time.process_time()])
    function()
    return np.array([time.perf_counter(), time.process_time()]) - started


def alternate(functions, repeats):
    """Calls the functions in turn, in an order that rotates.

    Returns:
      {name: float64 [repeats, 2]}, seconds_of each call.
    """
    seconds, names = {name: [] for name in functions}, list(functions)
    for repeat in range(repeats):
        for place in range(len(names)):
            name = names[(repeat + place) % len(names)]
            seconds[name].append(seconds_of(functions[name]))
    return {name: np.array(values) for name, values in seconds.items()}


def summary(seconds, units, scale):
    """What `alternate` measured, divided by units and times scale.

    Returns:
      {name: {"median", "low", "high", "processor"}} for each name: median and quartiles of the
      wall time, and median of the processor time; with both sides also "share" and
      "share_processor", ours divided by the reference's.
    """
    result = {}
    for name, values in seconds.items():
        wall, processor = (values / units * scale).T
        low, median, high = np.percentile(wall, [25, 50, 75])
        result[name] = {"median": float(median), "low": float(low), "high": float(high),
                        "processor": float(np.median(processor))}
    if set(result) == set(SIDES):
        for key, of in (("share", "median"), ("share_processor", "processor")):
            result[key] = result["ours"][of] / result["reference"][of]
    return result


def peak_memory_mb():
    """Largest memory this process has held, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2 ** (20 if sys.platform == "darwin" else 10)


def assert_same(ours, reference, what, rtol):
    """AssertionError unless the arrays agree; returns the largest relative difference."""
    np.testing.assert_allclose(ours, reference, rtol=rtol, atol=1e-7,
                               err_msg=f"{what}: ours and the reference's differ")
    scale = np.maximum(np.abs(reference), 1e-7)
    return float(np.max(np.abs(np.subtract(ours, reference)) / scale))


# ---------------------------------------------------------------- data and settings


@contextlib.contextmanager
def opened_data(args):
    """`with opened_data(args) as data:` Data of --dataroot, or of stand-in pictures drawn for it.

    Raises:
      InputError: see data_generator.read_lists.
    """
    with tempfile.TemporaryDirectory() as folder:
        lists, dataroot = args.filelist_root, args.dataroot
        if dataroot is None:
            lists, dataroot = os.path.join(folder, "filelist"), os.path.join(folder, "kfold")
            smallest = sum(make_standin_data.PACS_COUNTS["photo"]) * 28 / sum(
                map(sum, make_standin_data.PACS_COUNTS.values()))  # per image and class on average
            tested = args.images if args.part in ("evaluation", "both") else 0
            images = int(np.ceil(max(args.meta_batch_size + [tested]) / smallest)) + 1
            make_standin_data.make_standin_data(dataroot, lists, images, args.seed)
        domains = data_generator.DOMAINS
        read = data_generator.read_lists(lists, domains, dataroot=dataroot,
                                         at_least=max(args.meta_batch_size))
        yield Data(data_generator.data_name(dataroot), [read[name] for name in domains[:3]],
                   read[domains[3]])


def settings(args):
    """masf_func.Settings with the reference's rates."""
    return masf_func.Settings(1e-5, 1e-5, 1e-5, 10.0, 2.0, args.keep_prob, True, True, True, "kl",
                              False, args.seed)


def session_of(args):
    """A session on the current graph with all variables initialised."""
    session = tf.Session(config=npu_session.session_config(args))
    session.run(tf.global_variables_initializer())
    return session


def make_variables(args):
    """The network's variables, their values the same for both sides."""
    return masf_func.create_variables(masf_func.random_start(args.seed))


# ---------------------------------------------------------------- the step, ours


class OurStep:
    """main.py's step: tf.data makes the batches, nothing is fed, one session.run."""

    def __init__(self, args, data, batch_size):
        with npu_session.new_graph().as_default() as self.tf_graph:
            self.variables = make_variables(args)
            pipeline = data_generator.episodes(data.sources, batch_size, args.seed, args.threads)
            self._loop = npu_session.Loop(lambda: masf_func.train_step(
                *pipeline.next_batch(), self.variables, settings(args)), 1)
            self.session = session_of(args)
            self._loop.prepare(self.session)
        self.session.run(pipeline.initializer, pipeline.feed(0))
        self.tf_graph.finalize()

    def run(self):
        """masf_func.TERMS of one step."""
        return self._loop.run(self.session, 1)[0, :len(masf_func.TERMS)]


# ---------------------------------------------------------------- the step, reference-shaped


def batches_of(args, data, batch_size, count):
    """The (images, labels) of the first episodes, to feed to the reference's step."""
    with npu_session.new_graph().as_default():
        pipeline = data_generator.episodes(data.sources, batch_size, args.seed, args.threads)
        batch = pipeline.next_batch()
        with tf.Session(config=npu_session.session_config(args)) as session:
            session.run(pipeline.initializer, pipeline.feed(0))
            return [session.run(batch) for _ in range(count)]


def rows_of_dropout(options, step, name, first, count, total):
    """Dropout layers for rows first .. first + count of a pass of `total` rows.

    Masks are those of masf_func's pass `name`, so that both sides drop the same entries.
    """
    whole = masf_func.dropout_layers(options, step, name)

    def dropout(x, layer):
        if options.keep_prob == 1:
            return x
        return x * whole(tf.ones([total, x.shape.as_list()[1]]), layer)[first:first + count]
    return dropout


def class_by_class_kd(logits1, labels1, logits2, labels2, indicator):
    """l_global class by class, as the reference's loop: float32 scalar."""
    terms = []
    for number in range(masf_func.NUM_CLASSES):
        softened = []
        for logits, labels in ((logits1, labels1), (logits2, labels2)):
            mask = tf.tile(labels[:, number:number + 1], [1, masf_func.NUM_CLASSES])
            mean = tf.reduce_sum(logits * mask, 0) / (tf.reduce_sum(labels[:, number])
                                                      + utils.NO_SAMPLES)
            softened.append(tf.clip_by_value(tf.nn.softmax(mean / utils.TEMPERATURE),
                                             utils.SMALLEST_PROBABILITY, 1.0))
        p, q = softened
        both = tf.reduce_sum(p * tf.log(p / q)) + tf.reduce_sum(q * tf.log(q / p))
        terms.append(both / 2.0 * indicator[number])
    return tf.add_n(terms) / masf_func.NUM_CLASSES


def reference_episode(images, labels, indicators, weights, options, step):
    """One episode with a pass per batch, as the reference computes it.

    Args:
      images, labels: {"a", "a1", "b", "group": tensor}. indicators: float32 [2, 7], classes that
        occur in b and a, and in b and a1. weights: variables' values by name.
    Returns:
      What masf_func.updates takes: terms, task_gradients, meta_gradients, metric_gradients.
    """
    count = images["a"].shape.as_list()[0]
    theta = {name: weights[name] for name in weights if name not in masf_func.METRIC}

    def forward(role, values, name, passes):
        first = passes.index(role) * count
        dropout = rows_of_dropout(options, step, name, first, count, len(passes) * count)
        return masf_func.alexnet(images[role], values, dropout)

    logits = {role: forward(role, theta, "inner", ROLES[:2]).logits for role in ROLES[:2]}
    losses = {role: utils.xent(logits[role], labels[role]) for role in ROLES[:2]}
    inner = gradients_of((losses["a"] + losses["a1"]) / 2.0, theta)
    fast = masf_func.inner_step(theta, inner, options)
    source_loss = (tf.reduce_mean(losses["a"]) + tf.reduce_mean(losses["a1"])) / 2.0
    fast_logits = {role: forward(role, fast, "outer", ROLES).logits for role in ROLES}
    global_loss = tf.add_n([class_by_class_kd(
        fast_logits["b"], labels["b"], fast_logits[role], labels[role], indicators[row])
        for row, role in enumerate(ROLES[:2])]) / 2.0
    group = forward("group", fast, "group", ("group",)).features
    metric_loss = masf_func.LOCAL_WEIGHT * utils.triplet_semihard_loss(
        tf.argmax(labels["group"], 1), masf_func.embed(group, weights), options.margin)
    accuracies = [utils.accuracy(logits[role], labels[role]) for role in ROLES[:2]]
    terms = tf.stack([source_loss, tf.add_n(accuracies) / 2.0]
                     + [tf.reduce_mean(losses[role]) for role in ROLES[:2]] + accuracies
                     + [global_loss, metric_loss,
                        tf.reduce_mean(utils.xent(fast_logits["b"], labels["b"]))])
    return types.SimpleNamespace(
        terms=terms, task_gradients=gradients_of(source_loss, theta),
        meta_gradients=gradients_of(global_loss + metric_loss, weights),
        metric_gradients=gradients_of(
            metric_loss, {name: weights[name] for name in masf_func.METRIC}))


def gradients_of(loss, weights):
    """OrderedDict of the gradients that exist, in the weights' order."""
    found = zip(weights, tf.gradients(loss, list(weights.values())))
    return collections.OrderedDict(pair for pair in found if pair[1] is not None)


def histograms(variables, gradients, options):
    """The reference's summaries of a step: six scalars and 120 histograms, merged."""
    clipped = masf_func.clipped(gradients.meta_gradients, options.clip_norm)
    made = [tf.summary.scalar(name, gradients.terms[index])
            for index, name in enumerate(masf_func.TERMS) if name.startswith("metatrain")]
    for name, variable in variables.items():
        groups = {"feature_extractor_var": variable, "gradients": variable,
                  "gradients_clipped": variable, "feature_extractor_var_norm": tf.norm(variable),
                  "gradients_norm": tf.norm(gradients.meta_gradients[name]),
                  "gradients_norm_clipped": tf.norm(clipped[name])}
        made += [tf.summary.histogram(f"{group}/{name}", value) for group, value in groups.items()]
    return tf.summary.merge(made)


class ReferenceStep:
    """The reference's training call: four batches, indicators and labels fed, all summaries.

    The batches are handed to it ready-made, a little to our disadvantage.
    """

    def __init__(self, args, batches, batch_size):
        self._feeds, self._calls, options = [], 0, settings(args)
        with npu_session.new_graph().as_default() as self.tf_graph:
            self.variables = make_variables(args)
            self._images = {role: tf.placeholder(tf.float32, [batch_size, 227, 227, 3])
                            for role in ROLES + ("group",)}
            self._labels = {role: tf.placeholder(tf.float32, [batch_size, 7])
                            for role in ROLES + ("group",)}
            self._indicators = tf.placeholder(tf.float32, [2, 7])
            weights = collections.OrderedDict(
                (name, variable.read_value()) for name, variable in self.variables.items())
            step = tf.identity(tf.train.get_global_step())
            found = reference_episode(self._images, self._labels, self._indicators, weights,
                                      options, step)
            self._fetches = [found.terms, masf_func.updates(found, self.variables, options),
                             histograms(self.variables, found, options)]
            self.session = session_of(args)
        self.tf_graph.finalize()
        self._feeds = [self._feed(images, labels) for images, labels in batches]

    def _feed(self, images, labels):
        third = images.shape[1] // 3
        batches = dict(zip(ROLES, images), group=np.concatenate(images[:, :third]))
        answers = dict(zip(ROLES, labels), group=np.concatenate(labels[:, :third]))
        present = [np.eye(7)[answers[role].argmax(1)].max(0) for role in ROLES]
        return {**{self._images[role]: batches[role] for role in batches},
                **{self._labels[role]: answers[role] for role in answers},
                self._indicators: [present[2] * present[0], present[2] * present[1]]}

    def run(self):
        """masf_func.TERMS of one step; the batches take turns."""
        feed = self._feeds[self._calls % len(self._feeds)]
        self._calls += 1
        terms, _, _ = self.session.run(self._fetches, feed)
        with open(os.devnull, "w") as log:
            print("\n".join(f"{name}: {value}" for name, value in zip(masf_func.TERMS, terms)),
                  file=log)
        return terms


# ---------------------------------------------------------------- comparisons


def changes(side, before):
    """L2 norms of the variables' changes since `before`, float64, and their values now."""
    now = side.session.run(list(side.variables.values()))
    return np.array([np.linalg.norm((array - old).astype(np.float64).ravel())
                     for array, old in zip(now, before)]), now


def assert_parity(sides):
    """Both sides make PARITY_STEPS steps from the same weights; AssertionError if they differ.

    Returns:
      The largest relative difference of a loss, and of a variable's change by the first step.
    """
    before = sides["ours"].session.run(list(sides["ours"].variables.values()))
    losses, moved = [], 0.0
    for step in range(PARITY_STEPS):
        found = {name: side.run() for name, side in sides.items()}
        losses.append(assert_same(found["ours"], found["reference"], f"losses at step {step}",
                                  LOSS_RTOL[step]))
        if step == 0:
            moved = assert_same(*(changes(sides[name], before)[0] for name in ("ours",
                                                                               "reference")),
                                "changes of the variables", CHANGE_RTOL)
    return {"largest_loss_difference": max(losses), "largest_change_difference": moved}


def bench_step(args, data, batch_size):
    """Seconds per step of both sides."""
    batches = batches_of(args, data, batch_size, PARITY_STEPS)
    sides = {"reference": ReferenceStep(args, batches, batch_size),
             "ours": OurStep(args, data, batch_size)}
    differences = assert_parity(sides)  # also warms up
    operations = {name: len(side.tf_graph.get_operations()) for name, side in sides.items()}
    seconds = alternate({name: side.run for name, side in sides.items()}, args.repeats)
    for side in sides.values():
        side.session.close()
    return {"unit": "s per step", "meta_batch_size": batch_size, "graph_operations": operations,
            **differences, **summary(seconds, 1, 1)}


class ImageByImage:
    """The reference's evaluation: an image is fetched by one session.run and fed to another."""

    def __init__(self, session, images, variables):
        self._session, self._data, self._images = session, images, tf.placeholder(
            tf.float32, [1, 227, 227, 3])
        self._labels = tf.placeholder(tf.float32, [1, 7])
        logits, _, _ = masf_func.evaluation(self._images, variables)
        self._fetches = [utils.xent(logits, self._labels), tf.nn.softmax(logits)]
        self._pipeline = data_generator.evaluation(1, len(images.labels), 1, images.resize)
        self._next = self._pipeline.next_batch()

    def run(self):
        """Cross entropies [N] and predictions [N]."""
        self._session.run(self._pipeline.initializer, self._pipeline.feed(self._data))
        results = []
        for _ in self._data.paths:
            image, label, _ = self._session.run(self._next)
            results.append(self._session.run(self._fetches,
                                             {self._images: image, self._labels: label}))
        losses, probabilities = (np.concatenate(part) for part in zip(*results))
        return losses, probabilities.argmax(1)


def bench_evaluation(args, data):
    """Milliseconds per image of both sides."""
    count = min(args.images, len(data.target.paths))
    images = data.target._replace(paths=data.target.paths[:count],
                                  labels=data.target.labels[:count])
    with npu_session.new_graph().as_default() as tf_graph:
        variables = make_variables(args)
        batched = evaluation.build(variables, args.test_batch_size, [images], args.threads)
        with tf.Session(config=npu_session.session_config(args)) as session:
            single = ImageByImage(session, images, variables)
            session.run(tf.global_variables_initializer())
            tf_graph.finalize()

            def ours():
                found = evaluation.outputs(session, batched, images)
                return found.loss, found.logits.argmax(1)

            (losses, classes), (expected, expected_classes) = ours(), single.run()
            difference = assert_same(losses, expected, "cross entropies", EVALUATION_RTOL)
            seconds = alternate({"reference": single.run, "ours": ours}, args.repeats)
    return {"unit": "ms per image", "images": count, "test_batch_size": args.test_batch_size,
            "largest_loss_difference": difference,
            "same_predictions": metrics.accuracy(classes, expected_classes),
            **summary(seconds, count, 1e3)}


def once(args, data, batch_size):
    """Time and peak memory of one step of --side, after one that warms up."""
    if args.side == "ours":
        side = OurStep(args, data, batch_size)
    else:
        side = ReferenceStep(args, batches_of(args, data, batch_size, 1), batch_size)
    first = seconds_of(side.run)
    seconds = np.array([seconds_of(side.run) for _ in range(args.repeats)])
    return {**summary({args.side: seconds}, 1, 1)[args.side], "first": float(first[0]),
            "peak_memory_mb": peak_memory_mb()}


def bench_once(args, data, batch_size):
    """`once` of each side asked for; of both, each in a process of its own."""
    if args.side != "both":
        return {"unit": "s per step", "meta_batch_size": batch_size,
                args.side: once(args, data, batch_size)}
    found = {}
    for side in SIDES:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "once.json")
            flags = {"part": "once", "side": side, "meta_batch_size": batch_size,
                     "repeats": args.repeats, "keep_prob": args.keep_prob, "seed": args.seed,
                     "threads": args.threads, "filelist_root": args.filelist_root, "json": path}
            if args.dataroot is not None:
                flags["dataroot"] = args.dataroot
            subprocess.run([sys.executable, os.path.abspath(__file__)] + [
                f"--{name}={value}" for name, value in flags.items()], check=True,
                stdout=subprocess.DEVNULL)
            with open(path) as file:
                found[side] = json.load(file)["once"][0][side]
    share = {"share": found["ours"]["median"] / found["reference"]["median"],
             "share_processor": found["ours"]["processor"] / found["reference"]["processor"]}
    return {"unit": "s per step", "meta_batch_size": batch_size, **found, **share}


# ---------------------------------------------------------------- report


def table(results):
    """Markdown lines: one row per measurement, median (quartiles)."""
    lines = ["| what | unit | reference-shaped | ours | ours / reference | of processor time |",
             "|---|---|---|---|---|---|"]
    rows = [(f"step, meta batch {part['meta_batch_size']}", part)
            for part in results.get("step", [])]
    rows += [(f"one step, meta batch {part['meta_batch_size']}", part)
             for part in results.get("once", [])]
    if "evaluation" in results:
        part = results["evaluation"]
        rows.append((f"evaluation, batch {part['test_batch_size']} against 1", part))
    for name, part in rows:
        cells = ["{median:.4g} ({low:.4g} to {high:.4g})".format(**part[side])
                 if side in part else "not measured" for side in SIDES]
        shares = [f"{part[key]:.2f}" if key in part else ""
                  for key in ("share", "share_processor")]
        lines.append("| " + " | ".join([name, part["unit"]] + cells + shares) + " |")
    return lines


def remarks(results):
    """What the table does not say: processor time, agreement, graph sizes, memory."""
    lines = []
    for part in results.get("step", []) + results.get("once", []):
        name = f"step, meta batch {part['meta_batch_size']}"
        lines += [f"{name}: {side}: {part[side]['processor']:.4g} s of processor time"
                  + (f", peak memory {part[side]['peak_memory_mb']:.0f} MB"
                     if "peak_memory_mb" in part[side] else "") for side in SIDES if side in part]
        if "graph_operations" in part:
            lines.append(f"{name}: losses agree to {part['largest_loss_difference']:.2g}, changes "
                         f"of variables to {part['largest_change_difference']:.2g}; operations of "
                         "the graph: reference {reference}, ours {ours}".format(
                             **part["graph_operations"]))
    if "evaluation" in results:
        lines.append("evaluation: cross entropies agree to "
                     f"{results['evaluation']['largest_loss_difference']:.2g}")
    return lines


def run(args):
    """Measures the parts asked for; returns everything that goes into the JSON."""
    if args.part == "once" and args.side == "both" and args.dataroot is None:
        # Each process draws its own pictures, the same ones.
        measured = {"once": [bench_once(args, None, size) for size in args.meta_batch_size]}
        name = "stand-in for PACS"
    else:
        with opened_data(args) as data:
            measured, name = measure(args, data), data.name
    return {"data": name, "weights": "random", "seed": args.seed, "repeats": args.repeats,
            "keep_prob": args.keep_prob, "device": npu_session.backend(),
            "threads": args.threads or os.cpu_count(), "versions": npu_session.versions(),
            **measured}


def measure(args, data):
    """{part: results} of the parts asked for, on opened data."""
    measured = {}
    if args.part in ("step", "both"):
        measured["step"] = [bench_step(args, data, size) for size in args.meta_batch_size]
    if args.part in ("evaluation", "both"):
        measured["evaluation"] = bench_evaluation(args, data)
    if args.part == "once":
        measured["once"] = [bench_once(args, data, size) for size in args.meta_batch_size]
    return measured


def main(argv=None):
    """Parses the flags, measures and reports; returns the exit code."""
    args = parse_args(argv)
    results = run(args)
    print("data: {data}; weights: {weights}; device: {device}; threads: {threads}; median of "
          "{repeats} (quartiles)".format(**results))
    print(", ".join(f"{name} {value}" for name, value in results["versions"].items()) + "\n")
    print("\n".join(table(results) + [""] + remarks(results)))
    print(json.dumps(results, sort_keys=True))
    if args.json:
        npu_session.write_json(args.json, results)
    return 0


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
