"""Measures a training step and an evaluation against ones in the reference's shape.

Reference's shape of a step: images fed as float64, a product per modality, Theta fetched and a
summary written every time, one session.run each. Of an evaluation: all columns sorted, a loop in
Python over them, svds, two spectral clusterings. Both sides compute the same: the benchmark fails
if their results differ. They alternate in one process, so that whatever else the machine does
meets both; the ratio of the medians is printed.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import json
import os
import sys
import tempfile
import time

import numpy as np
import scipy.sparse.linalg
import tensorflow.compat.v1 as tf

import affinity_fusion
import baselines
import data_input
import metrics
import network
import npu_session
import options
import standin_faces
from options import POSITIVE_INT

COST_RTOL = 1e-4  # of the costs of the steps compared; the sums are of float32
THETA_TOLERANCE = 1e-4  # of Theta's largest entry, after those steps
AFFINITY_ATOL = 1e-8  # of the affinity, which is in [0, 1]


def parse_args(argv=None):
    """Flags of the benchmark."""
    parser = npu_session.argument_parser(__doc__.splitlines()[0])
    parser.add_argument("--part", choices=["training", "evaluation", "both"], default="both",
                        help="a training step of stage 2, an evaluation (stage 3), or both")
    parser.add_argument("--subjects", type=POSITIVE_INT, default=10, help="faces, K")
    parser.add_argument("--images", type=POSITIVE_INT, default=64, help="of each; N = K x images")
    parser.add_argument("--repeats", type=POSITIVE_INT, default=20,
                        help="measured repetitions of each side, after one that warms up")
    parser.add_argument("--steps", type=POSITIVE_INT, default=5,
                        help="training steps in one repetition")
    parser.add_argument("--mat", metavar="FILE", help=".mat file to use instead of stand-in faces; "
                                                      "speed does not depend on the content")
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


def summary(seconds, units):
    """What `alternate` measured, divided by units, in milliseconds.

    Returns:
      {name: {"median", "low", "high", "processor"}} for each name: median and quartiles of the
      wall time, and median of the processor time.
    """
    result = {}
    for name, values in seconds.items():
        wall, processor = (1e3 * values / units).T
        low, median, high = np.percentile(wall, [25, 50, 75])
        result[name] = {"median": float(median), "low": float(low), "high": float(high),
                        "processor": float(np.median(processor))}
    return result


def shares(result, side="ours"):
    """A side's time as a share of the reference's, of the medians in a summary."""
    return {name: result[side][key] / result["reference"][key]
            for name, key in (("share", "median"), ("share_processor", "processor"))}


def memory_mb():
    """Megabytes the process holds now; 0 where the system does not tell (it is not Linux)."""
    if not os.path.exists("/proc/self/statm"):
        return 0.0
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2 ** 20


def measure(functions, repeats, graphs=()):
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
                               err_msg=f"{what}: ours and the reference's shape disagree")
    return float(np.max(np.abs(np.subtract(ours, reference))))


def load_data(args):
    """data_input.Data: of --mat, or stand-in faces drawn now."""
    if args.mat:
        return data_input.load(args.mat, args.subjects)
    lights = standin_faces.spread_lights(args.images)
    drawn = np.concatenate([standin_faces.draw_subject(args.seed, subject, lights)
                            for subject in range(args.subjects)], axis=1)
    images = [modality[..., np.newaxis].astype(np.float32) for modality in drawn]
    labels = np.repeat(np.arange(1, args.subjects + 1), args.images)
    return data_input.Data("stand-in faces", images, labels, args.subjects, True)


# ---------------------------------------------------------------- training


def training_args(args, data, compute_dtype="float32"):
    """affinity_fusion.py's flags at their defaults, but for ours."""
    flags = affinity_fusion.parse_args([f"--seed={args.seed}", f"--threads={args.threads}",
                                        f"--precision_mode={args.precision_mode}",
                                        f"--compute_dtype={compute_dtype}",
                                        f"--steps_per_call={args.steps}"])
    affinity_fusion.settle(flags, data)
    return flags


def open_session(args, iterations_per_loop=1):
    """A session on the current graph with all variables initialised but the resident images."""
    config = npu_session.session_config(args, iterations_per_loop=iterations_per_loop)
    session = tf.Session(config=config)
    session.run(tf.global_variables_initializer())
    return session


class OurTraining:
    """affinity_fusion.py's graph: images resident, one product, the steps in one session.run."""

    def __init__(self, args, data, compute_dtype="float32"):
        self._steps = args.steps
        flags = training_args(args, data, compute_dtype)
        with npu_session.new_graph().as_default() as self.tf_graph:
            self._graph = affinity_fusion.build_graph(flags, data)
            self._session = open_session(args, args.steps)
            self._session.run(self._graph.fill, self._graph.feed)
            self._graph.loop.prepare(self._session)
        self.tf_graph.finalize()

    def run(self):
        """Costs [steps] (on the NPU, of the last step)."""
        return self._graph.loop.run(self._session, self._steps)[:, 0]

    def theta(self):
        """Theta as it was before the last update."""
        return self._session.run(self._graph.theta_before)


class ReferenceTraining:
    """The reference's shape: everything fed and fetched anew at every step.

    log_dir: receives the summaries.
    """

    def __init__(self, args, data, log_dir):
        self._steps, flags = args.steps, training_args(args, data)
        modalities, samples = len(data.images), len(data.images[0])
        self._images = [images.astype(np.float64) for images in data.images]
        with npu_session.new_graph().as_default() as self.tf_graph:
            weights = network.create_weights(modalities, samples, args.seed)
            self._fed = [tf.placeholder(tf.float32, images.shape) for images in data.images]
            self._rate = tf.placeholder(tf.float32, [])
            theta = network.without_diagonal(weights.coef)
            terms = reference_terms(weights, self._fed, theta, flags)
            cost = tf.add_n(list(terms.values()))
            for name, term in terms.items():
                tf.summary.scalar(name, term)
            optimizer = npu_session.wrap_optimizer(tf.train.AdamOptimizer(self._rate),
                                                   network.AFFINITY_LOSS_SCALE)
            self._fetches = [cost, tf.summary.merge_all(), optimizer.minimize(cost), theta]
            self._session = open_session(args)
        self.tf_graph.finalize()
        self._writer = tf.summary.FileWriter(log_dir, self.tf_graph)
        self._step, self._theta = 0, None

    def run(self):
        """Costs [steps]."""
        costs = []
        for _ in range(self._steps):
            feed = dict(zip(self._fed, self._images))
            feed[self._rate] = 1e-3
            cost, text, _, self._theta = self._session.run(self._fetches, feed)
            self._writer.add_summary(text, self._step)
            self._step += 1
            costs.append(cost)
        return costs

    def theta(self):
        """Theta as it was before the last update."""
        return self._theta

    def close(self):
        """Ends the writing of summaries."""
        self._writer.close()


def reference_encode(image, layers):
    """[N, 32, 32, 1] -> [N, 8, 8, 30]."""
    for stride, (kernel, bias) in zip(network.STRIDES, layers):
        image = tf.nn.conv2d(image, kernel, [1, stride, stride, 1], "SAME")
        image = tf.nn.relu(tf.nn.bias_add(image, bias))
    return image


def reference_decode(code, layers):
    """[N, 8, 8, 30] -> [N, 32, 32, 1]."""
    for stride, (kernel, bias) in zip(network.STRIDES[::-1], layers):
        samples, side = code.shape.as_list()[:2]
        shape = [samples, stride * side, stride * side, kernel.shape.as_list()[2]]
        code = tf.nn.conv2d_transpose(code, kernel, shape, [1, stride, stride, 1], "SAME")
        code = tf.nn.relu(tf.nn.bias_add(code, bias))
    return code


def reference_terms(weights, images, theta, flags):
    """{name: term of the cost}, modality by modality: theta times each code on its own."""
    modalities = len(images)
    factors = zip(network.spread(flags.reconstruction_weights, modalities),
                  network.spread(flags.self_expression_weights, modalities))
    reconstruction, residual = [], []
    for image, encoder, decoder, (outer, inner) in zip(images, weights.own, weights.decoders,
                                                       factors):
        code = reference_encode(image, encoder)
        latent = tf.reshape(code, [code.shape[0], -1])  # [N, 1920]
        expressed = tf.matmul(theta, latent)
        made = reference_decode(tf.reshape(expressed, code.shape), decoder)
        reconstruction.append(outer * tf.reduce_sum(tf.square(made - image)))
        residual.append(inner * tf.reduce_sum(tf.square(latent - expressed)))
    return {"recons_loss": tf.add_n(reconstruction),
            "reg_loss": flags.reg_constant1 * tf.reduce_sum(tf.square(theta)),
            "selfexpress_loss": flags.reg_constant2 * tf.add_n(residual)}


def bench_training(args, data):
    """Milliseconds per training step of both sides."""
    ours = OurTraining(args, data)
    with tempfile.TemporaryDirectory() as folder:
        reference = ReferenceTraining(args, data, folder)
        costs, expected = ours.run(), reference.run()
        every = len(expected) // len(costs)
        difference = assert_same(costs, expected[every - 1::every], "costs", rtol=COST_RTOL)
        theta = reference.theta()
        largest = float(np.abs(theta).max())
        theta_difference = assert_same(ours.theta(), theta, "Theta",
                                       atol=THETA_TOLERANCE * largest)
        sides = {"reference": reference, "ours": ours}
        if options.computes_in("bfloat16"):
            sides["ours_bfloat16"] = OurTraining(args, data, "bfloat16")
        seconds, growth = measure({name: side.run for name, side in sides.items()}, args.repeats,
                                  [side.tf_graph for side in sides.values()])
        reference.close()
    result = summary(seconds, args.steps)
    return {"unit": "ms per step", "steps": args.steps, **result, **shares(result),
            "largest_cost_difference": difference / float(np.max(expected)),
            "largest_theta_difference": theta_difference / largest, **growth}


# ---------------------------------------------------------------- evaluation


def reference_threshold(C, ro):
    """thrC in the reference's shape: both sorts of everything, then a loop over the columns."""
    samples = C.shape[1]
    kept = np.zeros((samples, samples))
    sorted_magnitudes = np.abs(np.sort(-np.abs(C), axis=0))
    order = np.argsort(-np.abs(C), axis=0)
    for column in range(samples):
        total, reached, row = float(np.sum(sorted_magnitudes[:, column])), 0.0, 0
        while reached <= ro * total:
            reached += float(sorted_magnitudes[row, column])
            row += 1
        chosen = order[:row, column]
        kept[chosen, column] = C[chosen, column]
    return kept


def reference_affinity(C, K):
    """The affinity in the reference's shape: svds of the dense matrix, and a power."""
    symmetric = 0.5 * (C + C.T)
    left, values, _ = scipy.sparse.linalg.svds(symmetric, metrics.DIMENSION * K + 1,
                                               v0=np.ones(len(C)))
    rows = left[:, ::-1] @ np.diag(np.sqrt(values[::-1]))
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = rows @ rows.T
    affinity = np.abs((cosines * (cosines > 0)) ** metrics.POWER)
    affinity = affinity / affinity.max()
    return 0.5 * (affinity + affinity.T)


def reference_embedding(L, K, start):
    """Spectral embedding as scikit-learn 1.0 computes it: eigenvalues around 1, by shift-invert."""
    weights = L - np.diag(np.diag(L))
    roots = np.sqrt(weights.sum(axis=0))
    laplacian = weights / roots / roots[:, None]
    np.fill_diagonal(laplacian, -1)  # of the negative Laplacian
    _, vectors = scipy.sparse.linalg.eigsh(laplacian, K, sigma=1.0, which="LM", tol=0.0, v0=start)
    return vectors[:, ::-1] / roots[:, None]


def reference_evaluation(C, K, truth, random):
    """(labels 1..K, affinity, metrics.Scores) in the reference's shape: clusters twice."""
    L = reference_affinity(reference_threshold(C, metrics.alpha(K)), K)
    for _ in range(2):
        start, row = random.uniform(-1, 1, len(L)), random.randint(len(L))
        labels = metrics.discretize(reference_embedding(L, K, start), [row]) + 1
    return labels, L, metrics.scores(truth, labels)


def our_evaluation(C, K, truth, random):
    """(labels 1..K, affinity, metrics.Scores) as affinity_fusion.py evaluates."""
    labels, L = metrics.post_proC(metrics.thrC(C, metrics.alpha(K)), K, random=random)
    return labels, L, metrics.scores(truth, labels)


def bench_evaluation(args, data):
    """Milliseconds per evaluation of both sides; C is the self-expression of raw pixels."""
    C = baselines.self_expression([data.images[0].reshape(len(data.labels), -1)],
                                  [1.0]).astype(np.float32)
    functions = {name: lambda function=function: function(
        C, data.clusters, data.labels, np.random.RandomState(args.seed))
        for name, function in (("reference", reference_evaluation), ("ours", our_evaluation))}
    (labels, L, scores), (expected_labels, expected, _) = functions["ours"](), functions[
        "reference"]()
    difference = assert_same(L, expected, "affinities", atol=AFFINITY_ATOL)
    agreement = metrics.adjusted_rand_index(expected_labels, labels)
    assert agreement == 1, (f"labels: ours and the reference's shape disagree, adjusted Rand index "
                            f"{agreement}")
    seconds, growth = measure(functions, args.repeats)
    result = summary(seconds, 1)
    return {"unit": "ms per evaluation", **result, **shares(result),
            "largest_affinity_difference": difference, "accuracy_of_raw_pixels": scores.accuracy,
            **growth}


# ---------------------------------------------------------------- report


def table(results):
    """Markdown lines: a row per part and side of ours, median (quartiles)."""
    lines = ["| part | unit | reference's shape | ours | ours / reference | of processor time |",
             "|---|---|---|---|---|---|"]
    rows = (("training", "ours", "training"),
            ("training", "ours_bfloat16", "training, --compute_dtype=bfloat16"),
            ("evaluation", "ours", "evaluation"))
    for part, side, label in rows:
        if side in results.get(part, ()):
            result = results[part]
            cells = ["{median:.4g} ({low:.4g} to {high:.4g})".format(**result[name])
                     for name in ("reference", side)]
            lines.append("| {} | {} | {} | {} | {share:.2f} | {share_processor:.2f} |".format(
                label, result["unit"], *cells, **shares(result, side)))
    return lines


def remarks(results):
    """What the table does not say: agreement and memory."""
    lines = []
    if "training" in results:
        lines.append("training: costs agree to {largest_cost_difference:.2g}, Theta to "
                     "{largest_theta_difference:.2g} of its largest entry".format(
                         **results["training"]))
    if "evaluation" in results:
        lines.append("evaluation: affinities agree to {largest_affinity_difference:.2g}, labels "
                     "are equal".format(**results["evaluation"]))
    return lines + ["{}: memory {memory_mb_before:.0f} MB {memory_mb_gained:+.1f} MB while "
                    "measured".format(part, **results[part])
                    for part in ("training", "evaluation") if part in results]


def run(args):
    """Measures the parts asked for; returns everything that goes into the JSON."""
    data = load_data(args)
    results = {"data": data.name, "samples": len(data.images[0]), "clusters": data.clusters,
               "modalities": len(data.images), "seed": args.seed, "repeats": args.repeats,
               "device": npu_session.backend(), "threads": args.threads or os.cpu_count(),
               "versions": npu_session.versions()}
    if args.part in ("training", "both"):
        results["training"] = bench_training(args, data)
    if args.part in ("evaluation", "both"):
        results["evaluation"] = bench_evaluation(args, data)
    return results


def main(argv=None):
    """Parses the flags, measures and reports; returns the exit code."""
    args = parse_args(argv)
    results = run(args)
    print("data: {data}, N = {samples}, K = {clusters}, {modalities} modalities; device: {device}; "
          "threads: {threads}; median of {repeats} (quartiles)".format(**results))
    print(", ".join(f"{name} {value}" for name, value in results["versions"].items()) + "\n")
    print("\n".join(table(results) + [""] + remarks(results)))
    print(json.dumps(results, sort_keys=True))
    if args.json:
        npu_session.write_json(args.json, results)
    return 0


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
