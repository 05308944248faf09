"""Measures training and recovery against plain loops: one session.run and one log line per update.

Both sides compute the same: the benchmark fails if their results differ. They alternate in one
process, so that whatever else the machine does meets both; the ratio of the medians is printed.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import json
import os
import sys
import tempfile
import time

import numpy as np
import tensorflow.compat.v1 as tf

import data_input
import main as training
import measurements
import model_def
import npu_session
import recovery
from util import POSITIVE_INT

UPDATES_PER_RUN, UPDATES_PER_EPOCH = 100, 600  # of main.py with its defaults
RECOVERY_BATCH, RESTARTS, MEASUREMENTS, NOISE = 10, 10, 100, 0.1  # the reference's quick script
TRAINING_RTOL = 1e-4  # of the losses, over the updates of one repetition
RECOVERY_ATOL = 1e-4  # of pixels and objective, after the updates of one repetition,
RECOVERY_RTOL = 1e-6  # plus float32's rounding of objectives far above 1
RANDOM_IMAGES = 55000

Data = collections.namedtuple("Data", "name train test")
Recovered = collections.namedtuple("Recovered", "x_hat total_loss")


def parse_args(argv=None):
    """Flags of the benchmark."""
    parser = npu_session.argument_parser(__doc__.splitlines()[0])
    parser.add_argument("--part", choices=["training", "recovery", "both"], default="both")
    parser.add_argument("--repeats", type=POSITIVE_INT, default=20,
                        help="measured repetitions of each side, after one that warms up")
    parser.add_argument("--steps", type=POSITIVE_INT, default=100,
                        help="training updates in one repetition")
    parser.add_argument("--updates", type=POSITIVE_INT, default=50,
                        help="updates of each start in one repetition; time grows linearly")
    parser.add_argument("--batch_size", type=POSITIVE_INT, default=100, help="of training")
    parser.add_argument("--data_dir", help="folder with the four idx files; default: random images "
                                           "(speed does not depend on the content)")
    parser.add_argument("--ckpt_dir", help="folder with a VAE's checkpoints, for recovery; "
                                           "default: random weights, likewise")
    parser.add_argument("--json", metavar="FILE", help="also write the results to FILE")
    npu_session.add_session_flags(parser, precision_mode="must_keep_origin_dtype")
    args = parser.parse_args(argv)
    args.learning_rate, args.log_every = 0.001, min(args.steps, UPDATES_PER_RUN)
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
      wall time, and median of the processor time.
    """
    result = {}
    for name, values in seconds.items():
        wall, processor = (values / units * scale).T
        low, median, high = np.percentile(wall, [25, 50, 75])
        result[name] = {"median": float(median), "low": float(low), "high": float(high),
                        "processor": float(np.median(processor))}
    return result


def ratios(result):
    """How many times longer the reference loop takes than ours, of the medians in a summary."""
    return {name: result["reference"][key] / result["ours"][key]
            for name, key in (("ratio", "median"), ("ratio_processor", "processor"))}


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


def assert_same(ours, reference, what, rtol=0.0, atol=0.0):
    """AssertionError with the largest difference unless the arrays agree; returns it."""
    np.testing.assert_allclose(ours, reference, rtol=rtol, atol=atol,
                               err_msg=f"{what}: ours and the reference loop disagree")
    return float(np.max(np.abs(np.subtract(ours, reference))))


# ---------------------------------------------------------------- training


def load_data(args):
    """Data with train and test uint8 [N, 784]: from --data_dir, or random and about 80 % black."""
    if args.data_dir:
        data = data_input.load(args.data_dir, log=lambda _: None)
        return Data(data.name, data.train, data.test)
    random = np.random.RandomState(args.seed)
    some = np.clip(0.9 * random.standard_normal((RANDOM_IMAGES // 11, 784)) - 0.75, 0, 1)
    images = np.tile(np.round(255 * some).astype(np.uint8), (11, 1))
    return Data("random images (speed does not depend on the content)", images, images[:1000])


def open_session(args, iterations_per_loop=1):
    """A session on the current graph with all variables initialised."""
    config = npu_session.session_config(args, iterations_per_loop=iterations_per_loop)
    session = tf.Session(config=config)
    session.run(tf.global_variables_initializer())
    return session


def epoch_loss_variable():
    """The variable of model_def.train_step, as main.py makes it."""
    return tf.get_variable("progress/epoch_loss", [], initializer=tf.zeros_initializer(),
                           trainable=False)


class PipelineTraining:
    """Ours: main.py's graph, --log_every updates per session.run, batches made by tf.data.

    restarts: seconds that each run spent on (re)starting the pipeline, which main.py does once per
    epoch.
    """

    def __init__(self, args, data):
        self._order = data_input.BatchOrder(len(data.train), args.batch_size, args.seed)
        self._steps, self._per_run, self.restarts = args.steps, args.log_every, []
        with npu_session.new_graph().as_default() as self.tf_graph:
            self._graph = training.build_graph(args, data)
            self._next_batch = self._graph.pipeline.next_batch()
            self._session = open_session(args, self._per_run)
            self._graph.loop.prepare(self._session)
        self.tf_graph.finalize()

    def _restart(self):
        pipeline = self._graph.pipeline
        self._session.run(pipeline.initializer,
                          pipeline.feed(self._order.rows(0, self._steps), 0))

    def batches(self):
        """The (x, eps) of every update, to feed to the reference loop."""
        self._restart()
        return [self._session.run(self._next_batch) for _ in range(self._steps)]

    def run(self):
        """Losses [steps] (on the NPU, of the last update of each session.run)."""
        self.restarts.append(seconds_of(self._restart))
        counts = [min(self._per_run, self._steps - done)
                  for done in range(0, self._steps, self._per_run)]
        terms = [self._graph.loop.run(self._session, count) for count in counts]
        return np.concatenate(terms)[:, 0]


class FedTraining:
    """The reference's loop: x and eps fed, one session.run and one printed line per update.

    The batches are handed to it ready-made, a little to our disadvantage.
    """

    def __init__(self, args, batches):
        self._batches = batches
        with npu_session.new_graph().as_default() as self.tf_graph:
            self._x, self._eps = (tf.placeholder(tf.float32, array.shape) for array in batches[0])
            self._step = model_def.train_step(self._x, self._eps,
                                              model_def.xavier_uniform(args.seed),
                                              args.learning_rate, epoch_loss_variable())
            self._session = open_session(args)
        self.tf_graph.finalize()

    def run(self):
        """Losses [steps]."""
        losses = []
        with open(os.devnull, "w") as log:
            for number, (x, eps) in enumerate(self._batches):
                started = time.time()
                _, terms = self._session.run([self._step.train_op, self._step.loss_terms],
                                             {self._x: x, self._eps: eps})
                seconds = time.time() - started
                print(f"step {number}, loss = {terms[0]:.2f} ({len(x) / seconds:.1f} examples/sec; "
                      f"{seconds:.3f} sec/batch)", file=log)
                losses.append(terms[0])
        return losses


class StepOnly:
    """The bare update: one batch held in the graph, all updates in one session.run."""

    def __init__(self, args, batch):
        self._steps = args.steps
        with npu_session.new_graph().as_default() as self.tf_graph:
            epoch_loss = epoch_loss_variable()
            x, eps = (tf.get_variable(name, initializer=array, trainable=False)
                      for name, array in zip(("x", "eps"), batch))

            def step():
                return model_def.train_step(x.read_value(), eps.read_value(),
                                            model_def.xavier_uniform(args.seed),
                                            args.learning_rate, epoch_loss)

            self._loop = npu_session.Loop(step, args.steps)
            self._session = open_session(args, args.steps)
            self._loop.prepare(self._session)
        self.tf_graph.finalize()

    def run(self):
        """Runs the updates."""
        self._loop.run(self._session, self._steps)


def bench_training(args, data):
    """Milliseconds per update of both loops, and how much of it is not the update itself."""
    ours = PipelineTraining(args, data)
    batches = ours.batches()
    reference, step_only = FedTraining(args, batches), StepOnly(args, batches[0])
    our_losses, losses = ours.run(), reference.run()
    every = len(losses) // len(our_losses)
    difference = assert_same(our_losses, losses[every - 1::every], "losses", rtol=TRAINING_RTOL)
    sides = {"reference": reference, "ours": ours, "step_only": step_only}
    seconds, growth = measure({name: side.run for name, side in sides.items()}, args.repeats,
                              [side.tf_graph for side in sides.values()])
    restarts = np.array(ours.restarts[-args.repeats:])
    seconds["ours"] += restarts * (args.steps / UPDATES_PER_EPOCH - 1)  # as many as main.py has
    result = summary(seconds, args.steps, 1e3)
    bare = result["step_only"]["median"]
    medians = {name: result[name]["median"] for name in ("reference", "ours")}
    return {
        "unit": "ms per update", "batch_size": args.batch_size, "steps": args.steps, **result,
        **ratios(result),
        "overhead_ms": {name: median - bare for name, median in medians.items()},
        "examples_per_second": {name: 1e3 * args.batch_size / median
                                for name, median in medians.items()},
        "pipeline_restart_ms": 1e3 * float(np.median(restarts[:, 0])),
        "largest_loss_difference": difference, **growth}


# ---------------------------------------------------------------- recovery


def recovery_settings(updates):
    """The reference's quick script mnist_reconstr, with another number of updates."""
    return recovery.Settings(
        mloss1_weight=0.0, mloss2_weight=1.0, zprior_weight=0.1, optimizer_type="adam",
        learning_rate=0.01, momentum=0.9, decay_lr=False, max_update_iter=updates,
        num_random_restarts=RESTARTS)


def write_random_vae(folder, seed):
    """A checkpoint of an untrained VAE."""
    with npu_session.new_graph().as_default():
        model_def.vae(tf.zeros([1, model_def.N_INPUT]), tf.zeros([1, model_def.N_Z]),
                      model_def.xavier_uniform(seed))
        checkpoints = npu_session.Checkpoints(folder)
        initialize = tf.global_variables_initializer()
        with tf.Session() as session:
            session.run(initialize)
            checkpoints.save(session, training.CHECKPOINT_NAME % 0)


class RestartLoop:
    """The reference's recovery: start after start, one session.run and one printed line per update.

    Every run fetches train_op, the loss terms and the rate, and feeds y [1, B, m] and A
    [1, 784, m]; the variables are initialised again before each start.
    """

    def __init__(self, args, settings, ckpt_dir):
        self._settings, initializer = settings, model_def.xavier_uniform(0)
        with npu_session.new_graph().as_default() as self.tf_graph:
            self._y = tf.placeholder(tf.float32, [1, RECOVERY_BATCH, MEASUREMENTS])
            self._matrix = tf.placeholder(tf.float32, [1, model_def.N_INPUT, MEASUREMENTS])
            self._z = tf.get_variable("recovery/z", [1, 1, RECOVERY_BATCH, model_def.N_Z],
                                      initializer=tf.zeros_initializer())
            self._now = recovery.objective(self._z.read_value(), self._y, self._matrix, settings,
                                           initializer)
            terms = [tf.reduce_mean(getattr(self._now, term)) for term in recovery.TERMS]
            step = tf.train.get_or_create_global_step()
            rate = tf.convert_to_tensor(recovery.learning_rate(settings, step))
            optimizer = recovery.make_optimizer(settings, step)
            self._fetches = [optimizer.minimize(terms[0], step, [self._z])] + terms + [rate]
            weights = [variable for variable in tf.global_variables()
                       if variable.op.name in model_def.VARIABLES]
            self._reset = tf.variables_initializer(
                [variable for variable in tf.global_variables()
                 if variable.op.name not in model_def.VARIABLES])
            checkpoints = npu_session.Checkpoints(ckpt_dir, weights)
            self._session = tf.Session(config=npu_session.session_config(args))
            checkpoints.restore(self._session, required=True)
        self.tf_graph.finalize()

    def run(self, matrix, y, z0):
        """As recovery.Recovery.run, of one group; returns Recovered."""
        feed, best = {self._matrix: matrix, self._y: y}, None
        with open(os.devnull, "w") as log:
            for start in range(self._settings.num_random_restarts):
                self._session.run(self._reset)
                self._z.load(z0[:, start:start + 1], self._session)
                self._update(start, feed, log)
                found = self._session.run([self._now.x_hat, self._now.total_loss], feed)
                best = better(best, Recovered(*(array[0, 0] for array in found)))
        return best

    def _update(self, start, feed, log):
        for update in range(self._settings.max_update_iter):
            _, total, first, second, prior, rate = self._session.run(self._fetches, feed)
            print("rr {} iter {} lr {} total_loss {} m_loss1 {} m_loss2 {} zp_loss {}".format(
                start, update, rate, total, first, second, prior), file=log)


def better(best, found):
    """For each image the Recovered with the strictly lower total_loss."""
    if best is None:
        return found
    lower = found.total_loss < best.total_loss
    return Recovered(np.where(lower[:, None], found.x_hat, best.x_hat),
                     np.where(lower, found.total_loss, best.total_loss))


def recovery_inputs(data, seed):
    """matrix [1, 784, m], y [1, B, m] and z0 [1, restarts, B, 20], float32."""
    random = np.random.RandomState([seed, 0])
    images = data_input.to_float(data.test[:RECOVERY_BATCH])
    matrix = measurements.gaussian_matrix(random, MEASUREMENTS)
    y = measurements.observe(images, matrix, NOISE, random)
    z0 = random.standard_normal((1, RESTARTS, RECOVERY_BATCH, model_def.N_Z))
    return tuple(np.asarray(array, np.float32) for array in (matrix[None], y[None], z0))


def bench_recovery(args, data, ckpt_dir):
    """Microseconds per image, start and update of both loops."""
    settings, inputs = recovery_settings(args.updates), recovery_inputs(data, args.seed)
    config = npu_session.session_config(args, iterations_per_loop=min(args.updates, 50))
    reference = RestartLoop(args, settings, ckpt_dir)
    with recovery.Recovery(settings, ckpt_dir, 1, RECOVERY_BATCH, MEASUREMENTS, False, config,
                           min(args.updates, 50)) as ours:
        found, expected = ours.run(*inputs), reference.run(*inputs)
        differences = {
            name: assert_same(getattr(found, name)[0], getattr(expected, name), name,
                              RECOVERY_RTOL, RECOVERY_ATOL) for name in Recovered._fields}
        seconds, growth = measure(
            {"reference": lambda: reference.run(*inputs), "ours": lambda: ours.run(*inputs)},
            args.repeats, [reference.tf_graph, ours.graph.z.graph])
    units = RECOVERY_BATCH * RESTARTS * args.updates
    result = summary(seconds, units, 1e6)
    return {
        "unit": "us per image, start and update", "batch_size": RECOVERY_BATCH,
        "restarts": RESTARTS, "measurements": MEASUREMENTS, "updates": args.updates, **result,
        **ratios(result),
        "largest_difference": differences, **growth}


# ---------------------------------------------------------------- report


def table(results):
    """Markdown lines: one row per part, median (quartiles)."""
    lines = ["| part | unit | reference loop | ours | ratio | ratio of processor time |",
             "|---|---|---|---|---|---|"]
    for part in ("training", "recovery"):
        if part in results:
            result = results[part]
            cells = ["{median:.4g} ({low:.4g} to {high:.4g})".format(**result[side])
                     for side in ("reference", "ours")]
            lines.append("| {} | {} | {} | {} | {:.2f} | {:.2f} |".format(
                part, result["unit"], *cells, result["ratio"], result["ratio_processor"]))
    return lines


def remarks(results):
    """What the table does not say: overhead, examples per second, memory, agreement."""
    lines = []
    if "training" in results:
        result = results["training"]
        lines.append("training: the bare update takes {:.4g} ms; around it the reference loop adds "
                     "{reference:.3g} ms, ours {ours:.3g} ms".format(
                         result["step_only"]["median"], **result["overhead_ms"]))
        lines.append("training: ours includes its share of the {:.3g} ms that starting an epoch's "
                     "pipeline takes".format(result["pipeline_restart_ms"]))
        lines.append("training: {reference:.0f} examples/s by the reference loop, {ours:.0f} by "
                     "ours".format(**result["examples_per_second"]))
        lines.append("training: losses agree to {:.2g}".format(result["largest_loss_difference"]))
    if "recovery" in results:
        lines.append("recovery: pixels agree to {x_hat:.2g}, objectives to {total_loss:.2g}".format(
            **results["recovery"]["largest_difference"]))
    return lines + ["{}: memory {memory_mb_before:.0f} MB {memory_mb_gained:+.1f} MB while "
                    "measured, graph operations unchanged".format(part, **results[part])
                    for part in ("training", "recovery") if part in results]


def run(args):
    """Measures the parts asked for; returns everything that goes into the JSON."""
    data = load_data(args)
    results = {"data": data.name, "weights": args.ckpt_dir or "random", "seed": args.seed,
               "repeats": args.repeats, "device": npu_session.backend(),
               "threads": args.threads or os.cpu_count(), "versions": npu_session.versions()}
    if args.part in ("training", "both"):
        results["training"] = bench_training(args, data)
    if args.part in ("recovery", "both"):
        with tempfile.TemporaryDirectory() as folder:
            if not args.ckpt_dir:
                write_random_vae(folder, args.seed)
            results["recovery"] = bench_recovery(args, data, args.ckpt_dir or folder)
    return results


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
