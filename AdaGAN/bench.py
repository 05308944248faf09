"""Measures training against the reference's loop: eight session.runs and their feeds an iteration.

Both sides compute the same: the benchmark fails if their variables differ. They alternate in one
process, so that whatever else the machine does meets both; the ratio of the medians is printed.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import json
import os
import sys
import time

import numpy as np
import tensorflow.compat.v1 as tf

import adagan
import adagan_gmm
import datahandler
import draws
import gan
import npu_session
from mixture import Mixture
from utils import POSITIVE_INT

TOLERANCE = 1e-4  # of variables after an epoch with the same draws, over their largest value
SCALE_OF_SAMPLES = 8.0  # standard deviation of what the classifier is to tell from the data
PARTS = {"training": (gan.GENERATOR, gan.DISCRIMINATOR, gan.COPY), "classifier": (gan.CLASSIFIER,)}


def parse_args(argv=None):
    """Flags of the benchmark."""
    parser = npu_session.argument_parser(__doc__.splitlines()[0])
    parser.add_argument("--part", choices=sorted(PARTS) + ["both"], default="both",
                        help="of a component, or of the classifier of data against mixture")
    parser.add_argument("--repeats", type=POSITIVE_INT, default=20,
                        help="measured epochs of each side, after one that warms up")
    parser.add_argument("--toy_dataset_size", type=int, default=64000,
                        help="training points; an epoch has one iteration for every batch of them")
    parser.add_argument("--batch_size", type=POSITIVE_INT, default=64, help="points per iteration")
    parser.add_argument("--epochs", type=POSITIVE_INT, default=15,
                        help="of a whole component, whose seconds are reported")
    parser.add_argument("--mixture_c_epoch_num", type=POSITIVE_INT, default=5,
                        help="of a whole classifier's training, likewise")
    parser.add_argument("--log_every", type=POSITIVE_INT, default=500,
                        help="our iterations per session.run")
    parser.add_argument("--json", metavar="FILE", help="also write the results to FILE")
    npu_session.add_session_flags(parser, precision_mode="must_keep_origin_dtype")
    return parser.parse_args(argv)


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


def summary(seconds, iterations):
    """Iterations per second and processor time of what `alternate` measured.

    Returns:
      {name: {"median", "low", "high", "processor_ms"}}: median and quartiles of the iterations per
      second of wall time, and median milliseconds of processor time per iteration.
    """
    result = {}
    for name, values in seconds.items():
        low, median, high = np.percentile(iterations / values[:, 0], [25, 50, 75])
        result[name] = {"median": float(median), "low": float(low), "high": float(high),
                        "processor_ms": float(1e3 * np.median(values[:, 1]) / iterations)}
    return result


def memory_mb():
    """Megabytes the process holds now; 0 where the system does not tell (it is not Linux)."""
    if not os.path.exists("/proc/self/statm"):
        return 0.0
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2 ** 20


def measure(functions, repeats, graphs):
    """Warms up, then measures; also what memory and graphs gained between the two.

    Raises:
      AssertionError: a graph has grown.
    """
    alternate(functions, 1)
    before, operations = memory_mb(), [len(graph.get_operations()) for graph in graphs]
    seconds = alternate(functions, repeats)
    after = [len(graph.get_operations()) for graph in graphs]
    assert after == operations, f"the graphs grew from {operations} to {after} operations"
    return seconds, {"graph_operations": operations,
                     "memory_mb_before": round(before, 1),
                     "memory_mb_gained": round(memory_mb() - before, 1)}


def assert_same(ours, reference):
    """AssertionError unless the dicts of arrays agree; returns the largest relative difference."""
    differences = {name: float(np.max(np.abs(ours[name] - reference[name]))
                               / np.max(np.abs(reference[name]))) for name in reference}
    worst = max(differences, key=differences.get)
    assert differences[worst] <= TOLERANCE, (
        f"ours and the reference loop disagree: {worst} by {differences[worst]:.2g}")
    return differences[worst]


# ---------------------------------------------------------------- ours


class OurTraining:
    """adagan.AdaGan with the flags' default component, epoch by epoch, without pictures.

    Args:
      options: the flags of adagan_gmm.py. data: datahandler.Data. weights: of the points.
    """

    def __init__(self, options, data, weights):
        self._options, self._data, self._weights = options, data, weights
        self._epochs = 0
        with npu_session.new_graph().as_default() as self.tf_graph:
            self._gan = gan.build(options, len(data.points))
            self._variables = {variable.op.name: variable for variable in tf.global_variables()}
            self._session = open_session(options, options.log_every, 1)
            for loop in (self._gan.loop, self._gan.classifier_loop):
                loop.prepare(self._session)
        self.tf_graph.finalize()

    def start(self, draw):
        """A fresh component that is trained on these draws."""
        self._boosting = adagan.AdaGan(self._options, self._data, self._gan, self._session, draw,
                                       None, Mixture(), npu_session.Stop(), lambda *_, **__: None)
        self._gan.initialise(self._session, 0)
        self._draw, self._epochs = draw, 0
        draw.weigh(self._weights)

    def values(self, scopes):
        """{name: array} of the variables in some scopes."""
        return self._session.run({name: variable for name, variable in self._variables.items()
                                  if name.split("/")[0] in scopes})

    def train(self):
        """The component's next epoch, with the losses at its end."""
        per_epoch = adagan.iterations_per_epoch(self._options)
        done, self._epochs = self._epochs * per_epoch, self._epochs + 1
        self._options.max_steps = self._epochs * per_epoch
        self._boosting.train(done)

    def train_classifier(self, samples):
        """An epoch of the classifier on samples [N, dim, 1, 1]."""
        self._draw.weigh(self._weights)  # forgets the epoch's draws: they are part of the work
        self._boosting.train_classifier(samples)


def open_session(options, iterations_per_loop=1, inter_op_threads=0):
    """A session on the current graph with all variables initialised."""
    config = npu_session.session_config(options, iterations_per_loop=iterations_per_loop)
    config.inter_op_parallelism_threads = inter_op_threads
    session = tf.Session(config=config)
    session.run(tf.global_variables_initializer())
    return session


# ---------------------------------------------------------------- the reference's loop


class ReferenceTraining:
    """The same component, one session.run for each of the eight operations of an iteration.

    Host work as the reference's: a weighted choice without replacement and a multivariate normal
    draw per iteration. Its pictures and its progress bar are left out.
    Args: as OurTraining.
    """

    def __init__(self, options, data, weights):
        self._options, self._data, self._weights = options, data, weights
        with npu_session.new_graph().as_default() as self.tf_graph:
            self._build()
            self._variables = {variable.op.name: variable for variable in tf.global_variables()}
            self._session = open_session(options)
        self.tf_graph.finalize()

    def _build(self):
        options, act = self._options, gan.ToyUnrolledGan.activation
        shape = [None, options.toy_dataset_dim, 1, 1]
        self._real, self._fake = (tf.placeholder(tf.float32, shape) for _ in range(2))
        self._noise = tf.placeholder(tf.float32, [None, options.latent_space_dim])
        made, variables = gan.generator(self._noise, options.toy_dataset_dim, act)
        parameters, losses = {gan.GENERATOR: variables}, {}
        for scope, samples in ((gan.DISCRIMINATOR, made), (gan.COPY, made),
                               (gan.CLASSIFIER, self._fake)):
            real, parameters[scope] = gan.critic(scope, self._real, act)
            fake, _ = gan.critic(scope, samples, act)
            losses[scope] = gan.cross_entropy(real, 1) + gan.cross_entropy(fake, 0)
        losses[gan.GENERATOR] = -losses[gan.COPY]
        rates = {gan.GENERATOR: options.opt_g_learning_rate,
                 gan.CLASSIFIER: options.opt_learning_rate}
        flat = {scope: [variable for layer in layers for variable in layer]
                for scope, layers in parameters.items()}
        self._steps = {scope: tf.train.GradientDescentOptimizer(
            rates.get(scope, options.opt_d_learning_rate)).minimize(loss, var_list=flat[scope])
            for scope, loss in losses.items()}
        self._roll_back = tf.group(*[copy.assign(variable) for copy, variable in zip(
            flat[gan.COPY], flat[gan.DISCRIMINATOR])])

    def start(self, random, values):
        """A component with these variables {name: array} that draws from a RandomState."""
        self._random = random
        for name, value in values.items():
            self._variables[name].load(value, self._session)

    def values(self, scopes):
        """{name: array} of the variables in some scopes."""
        return self._session.run({name: variable for name, variable in self._variables.items()
                                  if name.split("/")[0] in scopes})

    def train(self):
        """An epoch."""
        options, points, run = self._options, self._data.points, self._session.run
        size, dim = options.batch_size, options.latent_space_dim
        mean, covariance = np.zeros(dim), np.identity(dim)
        for _ in range(adagan.iterations_per_epoch(options)):
            ids = self._random.choice(len(points), size, replace=False, p=self._weights)
            noise = self._random.multivariate_normal(mean, covariance, size).astype(np.float32)
            feeds = {self._real: points[ids].astype(np.float64), self._noise: noise}
            run(self._steps[gan.DISCRIMINATOR], feeds)
            run(self._roll_back)
            for _ in range(options.unrolling_steps):
                run(self._steps[gan.COPY], feeds)
            run(self._steps[gan.GENERATOR], feeds)

    def train_classifier(self, samples):
        """An epoch of the classifier on samples [N, dim, 1, 1]."""
        points, size = self._data.points, self._options.batch_size
        for _ in range(adagan.iterations_per_epoch(self._options)):
            fake = self._random.choice(len(samples), size, replace=False)
            real = self._random.choice(len(points), size, replace=False)
            self._session.run(self._steps[gan.CLASSIFIER], {
                self._real: points[real].astype(np.float64), self._fake: samples[fake]})


# ---------------------------------------------------------------- the benchmark


def component_options(args):
    """The flags of adagan_gmm.py for its default component, in the sizes of the benchmark."""
    same = ("toy_dataset_size", "batch_size", "log_every", "seed", "threads", "precision_mode")
    options = adagan_gmm.parse_args([f"--{name}={getattr(args, name)}" for name in same] + [
        "--verbose=False", "--use_tqdm=False", "--mixture_c_epoch_num=1"])
    adagan_gmm.check(options)
    options.gan_epoch_num = sys.maxsize  # max_steps ends every epoch
    options.ckpt_dir = "."
    return options


def compare(ours, reference, part, samples, options):
    """Trains both for an epoch with the reference's draws; returns assert_same."""
    ours.start(draws.ReferenceDraws(options.seed, options))
    reference.start(np.random.RandomState(options.seed), ours.values(sum(PARTS.values(), ())))
    for side in (ours, reference):
        one_epoch(side, part, samples)()
    return assert_same(ours.values(PARTS[part]), reference.values(PARTS[part]))


def one_epoch(side, part, samples):
    """Function that trains one epoch of a part."""
    return side.train if part == "training" else lambda: side.train_classifier(samples)


def bench(args, options, part, sides, samples):
    """Compares, then measures a part; returns what goes into the JSON."""
    ours, reference = sides["ours"], sides["reference"]
    difference = compare(ours, reference, part, samples, options)
    ours.start(draws.SeededDraws(args.seed, options))
    reference.start(np.random.RandomState(args.seed), {})
    seconds, growth = measure({name: one_epoch(side, part, samples)
                               for name, side in sides.items()},
                              args.repeats, [side.tf_graph for side in sides.values()])
    iterations = adagan.iterations_per_epoch(options)
    result = summary(seconds, iterations)
    epochs = args.epochs if part == "training" else args.mixture_c_epoch_num
    total = {name: epochs * iterations / side["median"] for name, side in result.items()}
    return {"unit": "iterations per second", "iterations": iterations, "epochs": epochs, **result,
            "ratio": result["ours"]["median"] / result["reference"]["median"],
            "ratio_processor": (result["reference"]["processor_ms"]
                                / result["ours"]["processor_ms"]),
            "seconds_of_all_epochs": total, "largest_difference": difference, **growth}


def make_inputs(args, options):
    """datahandler.Data, weights of its points and samples for the classifier."""
    random = np.random.RandomState(args.seed)
    data = datahandler.load(options.dataset, options.gmm_modes_num, options.toy_dataset_dim,
                            options.toy_dataset_size, options.gmm_max_val, options.random_seed,
                            random)
    weights = random.uniform(size=len(data.points)) ** 2
    samples = SCALE_OF_SAMPLES * random.standard_normal(data.points.shape)
    return data, weights / weights.sum(), samples.astype(np.float32)


def run(args):
    """Measures the parts asked for; returns everything that goes into the JSON."""
    options = component_options(args)
    data, weights, samples = make_inputs(args, options)
    sides = {"reference": ReferenceTraining(options, data, weights),
             "ours": OurTraining(options, data, weights)}
    results = {"points": len(data.points), "batch_size": options.batch_size,
               "seed": args.seed, "repeats": args.repeats,
               "device": npu_session.backend(), "threads": args.threads or os.cpu_count(),
               "versions": npu_session.versions()}
    for part in PARTS if args.part == "both" else (args.part,):
        results[part] = bench(args, options, part, sides, samples)
    return results


# ---------------------------------------------------------------- report


def table(results):
    """Markdown lines: one row per part, median (quartiles)."""
    lines = ["| part | unit | reference loop | ours | ratio | ratio of processor time |",
             "|---|---|---|---|---|---|"]
    for part in PARTS:
        if part in results:
            result = results[part]
            cells = ["{median:.4g} ({low:.4g} to {high:.4g})".format(**result[side])
                     for side in ("reference", "ours")]
            lines.append("| {} | {} | {} | {} | {:.2f} | {:.2f} |".format(
                part, result["unit"], *cells, result["ratio"], result["ratio_processor"]))
    return lines


def remarks(results):
    """What the table does not say: seconds of all epochs, agreement, memory."""
    lines = []
    for part in (part for part in PARTS if part in results):
        result = results[part]
        lines.append("{}: {} epochs of {} iterations take {reference:.1f} s by the reference loop, "
                     "{ours:.1f} s by ours".format(part, result["epochs"], result["iterations"],
                                                   **result["seconds_of_all_epochs"]))
        lines.append("{}: variables agree to {largest_difference:.2g} after an epoch with the same "
                     "draws; memory {memory_mb_before:.0f} MB {memory_mb_gained:+.1f} MB while "
                     "measured, graph operations unchanged".format(part, **result))
    return lines


def main(argv=None):
    """Parses the flags, measures and reports; returns the exit code."""
    args = parse_args(argv)
    results = run(args)
    print("{points} points, batches of {batch_size}; device: {device}; threads: {threads}; median "
          "of {repeats} epochs (quartiles)".format(**results))
    print(", ".join(f"{name} {value}" for name, value in results["versions"].items()) + "\n")
    print("\n".join(table(results) + [""] + remarks(results)))
    print(json.dumps(results, sort_keys=True))
    if args.json:
        npu_session.write_json(args.json, results)
    return 0


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
