"""Golden values of the network, one episode and three updates, and what the switches leave out.

One graph serves all golden tests: images, labels and rates are fed, all weights follow the rule
FILL. The switches are tried on a narrow network.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import types

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import masf_func
import npu_session
import utils
from golden_rules import FILL, IMG, load
from training_runs import narrow_network

# Tolerances of the golden README, by step 0, 1, 2; of steps_default and of steps_sens.
TOLERANCES = {
    "default": {"loss": (2e-5, 5e-5, 7e-3), "logits": (1e-5, 6e-5, 4e-3),
                "embedding": (1e-5, 6e-5, 7e-3), "gradient": (3e-5, 1e-3, 1e-2),
                "fast_delta": (4e-4, 3e-3, 3e-3), "delta": {1: 2e-3, 3: 1e-2}, "norm": 1e-5,
                "head": {1: 2.5e-7, 3: 5e-5}},
    "sens": {"loss": (2e-5, 2e-5, 2e-5), "logits": (1e-5, 1e-5, 1e-5),
             "embedding": (1e-5, 1e-5, 1e-5), "gradient": (6e-5, 6e-5, 8e-4),
             "fast_delta": (1e-4, 1e-4, 6e-4), "delta": {1: 2e-3, 3: 2e-3}, "norm": 1e-6,
             "head": {1: 1e-7, 3: 6e-7}},
}
FLAGS = ("inner_lr", "outer_lr", "metric_lr", "gradients_clip_value", "margin")
FINAL_STEP = 3  # the losses on step 0's batch after the third update are step "final"
Program = collections.namedtuple("Program", "session images labels flags episode fetches "
                                            "train_op variables step test reset")

SWITCHED = {
    "deepall": {"episodic": False, "global_alignment": False, "local_clustering": False},
    "episodic": {"global_alignment": False, "local_clustering": False},
    "global": {"episodic": False, "local_clustering": False},
    "second_order": {"second_order": True},
}


def golden_images(tags, seed, batch):
    """float32 [len(tags), batch, 227, 227, 3]."""
    return np.stack([IMG(tag, batch, seed) for tag in tags])


def one_hot(labels):
    """float32 [..., 7]; an id outside 0..6 gives zeros."""
    return np.eye(8, 7, dtype=np.float32)[np.minimum(labels, 7)]


def build_settings(flags, **changes):
    """masf_func.Settings with fed flags and without dropout."""
    return masf_func.Settings(
        flags["inner_lr"], flags["outer_lr"], flags["metric_lr"], flags["margin"],
        flags["gradients_clip_value"], 1.0, True, True, True, "kl", False, 0)._replace(**changes)


def softened(episode):
    """The three class distributions, by golden key."""
    losses = episode.losses
    return {"soft_b_for_a": losses.soft_b, "soft_a": losses.soft_a, "soft_a1": losses.soft_a1}


@pytest.fixture(scope="module")
def program():
    """The Program; reset(session) puts golden weights and fresh slots."""
    first = load("steps_default")
    batch, seed = int(first["batch"]), int(first["seed"])
    with npu_session.new_graph().as_default():
        variables = masf_func.create_variables(masf_func.random_start(0))
        images = tf.placeholder(tf.float32, [3, batch, 227, 227, 3])
        labels = tf.placeholder(tf.float32, [3, batch, 7])
        flags = {name: tf.placeholder(tf.float32, []) for name in FLAGS}
        weights = collections.OrderedDict((name, variable.read_value())
                                          for name, variable in variables.items())
        episode = masf_func.episode(images, labels, weights, build_settings(flags), tf.constant(0))
        compared = fetches(episode, weights, flags["gradients_clip_value"])
        train_op = masf_func.updates(episode, variables, build_settings(flags))
        test = types.SimpleNamespace(
            activations=masf_func.convolutions(images[0], variables),
            forward=masf_func.alexnet(images[0], variables),
            outputs=masf_func.evaluation(images[0], variables))
        fresh = tf.variables_initializer([variable for variable in tf.global_variables()
                                          if variable not in tf.trainable_variables()])
        values = {name: FILL("model/" + name, masf_func.variable_shapes()[name], scale, seed)
                  for name, scale in zip(variables, first["fill_scale"])}

        def reset():
            session.run(fresh)
            for name, value in values.items():
                variables[name].load(value, session)

        config = tf.ConfigProto(intra_op_parallelism_threads=1)
        with tf.Session(config=config) as session:
            reset()
            yield Program(session, images, labels, flags, episode, compared, train_op, variables,
                          tf.train.get_global_step(), test, reset)


def feed(program, golden, labels, step, **changes):
    """What step `step` of a golden file is fed with; labels as ids [3, B]."""
    images = golden_images([f"step{step}/{role}" for role in ("a", "a1", "b")],
                           int(golden["seed"]), int(golden["batch"]))
    flags = {name: golden["flag_" + name] for name in FLAGS}
    return {program.images: images, program.labels: one_hot(labels),
            **{program.flags[name]: value for name, value in dict(flags, **changes).items()}}


def measured(tensors):
    """[L2 norms [n], first 7 entries in C order [n, 7]] of a dict's tensors, in the graph.

    Sums of squares are added up in float64; fetching the tensors would take gigabytes.
    """
    def norm(tensor):
        rows = tf.reduce_sum(tf.square(tensor), -1)
        return tf.sqrt(tf.reduce_sum(tf.cast(rows, tf.float64)))

    return [tf.stack([norm(tensor) for tensor in tensors.values()]),
            tf.stack([tf.reshape(tensor, [-1])[:7] for tensor in tensors.values()])]


def fetches(episode, weights, norm):
    """What is compared: tensors by name; `measured` of gradients and of theta' - theta."""
    losses = episode.losses
    moved = {name: fast - weights[name] for name, fast in episode.fast_weights.items()}
    return {
        "raw": episode.task_losses, "source_loss": episode.source_loss, "kd_b_a": losses.kd_b_a,
        "kd_b_a1": losses.kd_b_a1, "global_loss": losses.global_loss,
        "metric_raw": losses.local_loss, "metric_loss": losses.metric_loss,
        "logits": episode.logits, "fast_logits": episode.fast_logits,
        "task_loss_fast": tf.reduce_mean(episode.fast_task_losses, 1),
        "group": episode.group_features, "embedding": losses.embedding,
        "terms": episode.terms, **softened(episode),
        "inner": measured(episode.inner_gradients), "task": measured(episode.task_gradients),
        "meta": measured(episode.meta_gradients),
        "clipped": measured(masf_func.clipped(episode.meta_gradients, norm)),
        "metric": measured(episode.metric_gradients), "moved": measured(moved),
    }


def l2(arrays):
    """L2 norm of each array, float64."""
    return np.array([np.linalg.norm(array.astype(np.float64)) for array in arrays])


def heads(arrays):
    """The first 7 entries of each array in C order, [arrays, 7]."""
    return np.array([array.ravel()[:7] for array in arrays])


def close_to_largest(found, expected, tolerance):
    """Differences within `tolerance` times the largest absolute value."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def in_order(found, ours, names):
    """Rows of `found`, which are in the order `ours`, in the order of golden `names`."""
    names = [name.replace("model/", "").replace("/", "_") for name in names.tolist()]
    by_name = dict(zip([name.replace("/", "_") for name in ours], found))
    assert sorted(by_name) == sorted(names)
    return np.array([by_name[name] for name in names])


def check_losses(values, golden, prefix, rtol):
    """Every loss and accuracy of a step, recorded before its update."""
    for key in ("source_loss", "global_loss", "metric_loss", "kd_b_a", "kd_b_a1", "metric_raw"):
        np.testing.assert_allclose(values[key], golden[prefix + key], rtol=rtol, err_msg=key)
    terms = dict(zip(masf_func.TERMS, values["terms"]))
    for key, name in (("source_loss", "source_loss"), ("global_loss", "metatrain_global_loss"),
                      ("metric_loss", "metatrain_metric_loss")):
        np.testing.assert_allclose(terms[name], golden[prefix + key], rtol=rtol, err_msg=name)
    for key, name in (("accuracya", "metatrain_source_1_accuracy"),
                      ("accuracya1", "metatrain_source_2_accuracy"),
                      ("source_accuracy", "source_accuracy")):
        np.testing.assert_allclose(terms[name], golden[prefix + key], rtol=1e-5, err_msg=name)
    if prefix + "task_loss_fast" in golden:
        np.testing.assert_allclose(values["task_loss_fast"], golden[prefix + "task_loss_fast"],
                                   rtol=rtol)


def check_arrays(values, golden, prefix, tolerance, step):
    """Cross entropies, logits, distributions, features and embeddings of a step."""
    raw = np.stack([golden[prefix + "lossa_raw"], golden[prefix + "lossa1_raw"]])
    close_to_largest(values["raw"], raw, tolerance["logits"][step])
    for row, name in enumerate(("a", "a1")):
        close_to_largest(values["logits"][row], golden[f"{prefix}logits_{name}"],
                         tolerance["logits"][step])
    for row, name in enumerate(("a", "a1", "b")):
        close_to_largest(values["fast_logits"][row], golden[f"{prefix}logits_{name}_fast"],
                         tolerance["logits"][step])
    for name in ("soft_b_for_a", "soft_a", "soft_a1"):
        close_to_largest(values[name], golden[prefix + name], tolerance["logits"][step])
    close_to_largest(values["group"][:, :16], golden[prefix + "fc7_group_fast"],
                     tolerance["embedding"][step])
    close_to_largest(values["embedding"], golden[prefix + "emb_group_fast"],
                     tolerance["embedding"][step])


def check_gradients(program, values, golden, prefix, tolerance, step):
    """Norms and first entries of the four gradients; what clipping does to the meta gradient."""
    episode, names = program.episode, load("steps_default")
    for kind, ours in (("inner", episode.inner_gradients), ("task", episode.task_gradients),
                       ("meta", episode.meta_gradients), ("metric", episode.metric_gradients)):
        norms, firsts = (in_order(part, ours, names[kind + "_names"]) for part in values[kind])
        expected = golden[f"{prefix}{kind}_grad_norm"]
        close_to_largest(norms, expected, tolerance["gradient"][step])
        np.testing.assert_allclose(firsts, golden[f"{prefix}{kind}_grad_head"], rtol=0,
                                   atol=tolerance["gradient"][step] * expected.max(), err_msg=kind)
    (norms, firsts), (clipped, clipped_firsts) = values["meta"], values["clipped"]
    factors = np.minimum(1.0, golden["flag_gradients_clip_value"] / norms)
    np.testing.assert_allclose(clipped, norms * factors, rtol=1e-5)
    np.testing.assert_allclose(clipped_firsts, firsts * factors[:, np.newaxis], rtol=1e-5)
    ordered = in_order(clipped, episode.meta_gradients, names["meta_names"])
    largest = golden[prefix + "meta_grad_norm"].max()  # clipping does not shrink the others' error
    np.testing.assert_allclose(ordered, golden[prefix + "meta_grad_clipped_norm"], rtol=0,
                               atol=tolerance["gradient"][step] * largest)


def check_inner_step(program, values, golden, prefix, tolerance, step):
    """Norms of theta' - theta."""
    norms = in_order(values["moved"][0], program.episode.fast_weights,
                     load("steps_default")["inner_names"])
    close_to_largest(norms, golden[prefix + "fast_delta_norm"], tolerance["fast_delta"][step])


def check_variables(values, start, golden, steps, tolerance):
    """Norms, norms of the change and first entries of all variables after some steps."""
    prefix = f"after{steps}_"
    np.testing.assert_allclose(l2(values), golden[prefix + "var_norm"], rtol=tolerance["norm"])
    moved = l2([value - first for value, first in zip(values, start)])
    np.testing.assert_allclose(moved, golden[prefix + "delta_norm"], rtol=tolerance["delta"][steps])
    wrong = np.abs(heads(values) - golden[prefix + "var_head"]) > tolerance["head"][steps]
    assert wrong.sum() <= 1  # one may flip where its gradient is about 0


# ---------------------------------------------------------------- the network


@pytest.fixture(scope="module")
def forward(program):
    """The test graph on the golden images: activations by layer, outputs, images."""
    golden = load("forward")
    images = golden_images(["test"], int(golden["seed"]), int(golden["batch"]))
    images = np.repeat(images, 3, axis=0)
    program.reset()
    test = program.test
    fetched = dict(test.activations, fc6=test.forward.fc6, fc7=test.forward.features,
                   logits=test.outputs[0], embedding=test.outputs[2])
    return program.session.run(fetched, {program.images: images}), images[0]


def test_golden_rules_reproduce_images_and_weights(program, forward):
    golden, (_, images) = load("forward"), forward
    check = [images.mean(dtype=np.float64), images.std(dtype=np.float64), images[3, 100, 57, 2],
             images[8, 226, 226, 0]]
    np.testing.assert_allclose(check, golden["image_check"], rtol=1e-6)
    weights = program.session.run(list(program.variables.values()))
    np.testing.assert_allclose(l2(weights), golden["var_norm_init"], rtol=1e-6)
    np.testing.assert_array_equal(heads(weights), golden["var_head_init"])


@pytest.mark.parametrize("layer", [key[len("stat_"):] for key in load("forward")
                                   if key.startswith("stat_")])
def test_golden_activations(forward, layer):
    golden, values = load("forward"), forward[0][layer].astype(np.float64)
    found = [values.mean(), values.std(), np.linalg.norm(values)]
    np.testing.assert_allclose(found, golden["stat_" + layer], rtol=1e-5)
    if values.ndim == 4:
        assert list(values.shape) == golden["shape_" + layer].tolist()
        for key, part in (("slice_", values[0, :2, :2, :8]), ("slice2_", values[8, -1, -1, -8:])):
            np.testing.assert_allclose(part, golden[key + layer], rtol=1e-5, atol=1e-3)


def test_golden_outputs_of_the_test_graph(forward):
    golden, values = load("forward"), forward[0]
    for name in ("logits", "embedding"):
        np.testing.assert_allclose(values[name], golden[name], rtol=0, atol=2e-5)
    np.testing.assert_allclose(values["fc7"][:, :16], golden["fc7_head"], rtol=1e-5, atol=1e-4)
    labels = golden["test_labels"]
    shifted = np.exp(values["logits"].astype(np.float64))
    probabilities = shifted / shifted.sum(1, keepdims=True)
    np.testing.assert_allclose(probabilities, golden["pred_prob"], atol=2e-5)
    with tf.Graph().as_default(), tf.Session() as session:
        losses = session.run(utils.xent(tf.constant(values["logits"]),
                                        tf.constant(one_hot(labels))))
    np.testing.assert_allclose(losses, golden["test_loss"], atol=4e-5)
    right = values["logits"].argmax(1) == labels
    assert right.mean() == pytest.approx(float(golden["test_acc"]))


# ---------------------------------------------------------------- three steps


@pytest.mark.parametrize("case", sorted(TOLERANCES))
def test_golden_meta_steps(program, case):
    """Three updates: all before each, the variables after 1 and 3, the losses at the end."""
    golden, tolerance = load("steps_" + case), TOLERANCES[case]
    program.reset()
    variables = list(program.variables.values())
    start = program.session.run(variables)
    for step in range(FINAL_STEP):
        prefix, labels = f"s{step}_", golden[f"s{step}_labels"]
        inputs = feed(program, golden, labels, step)
        values, _ = program.session.run((program.fetches, program.train_op), inputs)
        check_losses(values, golden, prefix, tolerance["loss"][step])
        check_arrays(values, golden, prefix, tolerance, step)
        check_gradients(program, values, golden, prefix, tolerance, step)
        check_inner_step(program, values, golden, prefix, tolerance, step)
        if f"after{step + 1}_var_norm" in golden:
            after = program.session.run(variables)
            check_variables(after, start, golden, step + 1, tolerance)
            done = golden[f"after{step + 1}_global_step"]
            assert program.session.run(program.step) == done == step + 1
    values = program.session.run(
        {name: program.fetches[name] for name in ("raw", "source_loss", "global_loss",
                                                  "metric_loss")},
        feed(program, golden, golden["s0_labels"], 0))
    for key in ("source_loss", "global_loss", "metric_loss"):
        np.testing.assert_allclose(values[key], golden["final_" + key],
                                   rtol=tolerance["loss"][-1], err_msg=key)
    raw = np.stack([golden["final_lossa_raw"], golden["final_lossa1_raw"]])
    close_to_largest(values["raw"], raw, tolerance["logits"][-1])


def test_golden_reference_labels(program):
    """1-based labels put unshifted into 7 columns: class 0 empty, class 7 a row of zeros."""
    golden = dict(load("zero_label_compat"), **{
        "flag_" + name: load("steps_default")["flag_" + name] for name in FLAGS})
    labels = np.stack([golden["file_labels_" + role] for role in ("a", "a1", "b")])
    program.reset()
    values = program.session.run(program.fetches, feed(program, golden, labels, 0))
    tolerance = TOLERANCES["default"]
    check_losses(values, golden, "", tolerance["loss"][0])
    check_arrays(values, golden, "", tolerance, 0)
    check_gradients(program, values, golden, "", tolerance, 0)
    check_inner_step(program, values, golden, "", tolerance, 0)
    group = one_hot(labels[:, :labels.shape[1] // 3])
    np.testing.assert_array_equal(values["terms"][len(masf_func.TERMS):], group.sum((0, 1)))
    np.testing.assert_array_equal(group.reshape(-1, 7).argmax(1), golden["label_group"])
    for row, other in enumerate((0, 1)):
        with tf.Graph().as_default(), tf.Session() as session:
            both = [session.run(utils.present(tf.constant(one_hot(labels[role]))))
                    for role in (2, other)]
        np.testing.assert_array_equal(both[0] * both[1], golden["indicators"][row])


# ---------------------------------------------------------------- the switches


@pytest.fixture(scope="module")
def switched():
    """Function (name of SWITCHED or "masf", inner_lr) -> what episode_values fetches.

    Of a narrow network on random images: in these no two values that pooling compares are equal.
    """
    random = np.random.RandomState(0)
    with pytest.MonkeyPatch.context() as patch, npu_session.new_graph().as_default():
        narrow_network(patch)
        variables = masf_func.create_variables(masf_func.random_start(0))
        images = tf.constant(60 * random.standard_normal((3, 3, 227, 227, 3)).astype(np.float32))
        labels = tf.constant(one_hot(np.array([[0, 1, 2], [0, 1, 3], [0, 2, 3]])))
        inner_lr = tf.placeholder(tf.float32, [])
        flags = dict.fromkeys(FLAGS, 1e-5)
        flags.update(inner_lr=inner_lr, gradients_clip_value=2.0, margin=10.0)
        episodes = {name: masf_func.episode(images, labels, variables,
                                            build_settings(flags, **changes), tf.constant(0))
                    for name, changes in dict(SWITCHED, masf={}).items()}
        with tf.Session(config=tf.ConfigProto(intra_op_parallelism_threads=1)) as session:
            session.run(tf.global_variables_initializer())
            yield lambda name, rate: session.run(episode_values(episodes[name]), {inner_lr: rate})


def episode_values(episode):
    """What the switches act on; gradients by the variables' names."""
    return {"logits": episode.logits, "fast": episode.fast_logits,
            "source_loss": episode.source_loss, "losses": episode.fast_task_losses,
            "task": dict(episode.task_gradients), "meta": dict(episode.meta_gradients),
            "metric": dict(episode.metric_gradients)}


RATE = 0.01  # of the inner step


def test_deepall_is_cross_entropy_on_all_three_sources(switched):
    values, whole = switched("deepall", RATE), switched("masf", RATE)
    close_to_largest(values["logits"][:2], whole["logits"], 1e-5)
    np.testing.assert_array_equal(values["logits"], values["fast"])
    np.testing.assert_allclose(values["source_loss"], values["losses"].mean(), rtol=1e-6)
    assert not values["meta"] and not values["metric"]
    assert set(values["task"]) == {name for name in masf_func.variable_shapes()
                                   if not name.startswith("metric")}


def test_switches_choose_the_meta_loss(switched):
    """The episodic scheme alone: cross entropy of b at theta'. Without it: losses at theta."""
    values, whole = switched("episodic", RATE), switched("masf", RATE)
    assert not values["metric"] and "metric/w1" not in values["meta"]
    np.testing.assert_array_equal(values["losses"], whole["losses"])
    for name, gradient in whole["task"].items():
        np.testing.assert_array_equal(values["task"][name], gradient, err_msg=name)
    alone = switched("global", RATE)
    assert "metric/w1" not in alone["meta"] and "metric/w1" in whole["meta"]
    np.testing.assert_array_equal(alone["logits"], alone["fast"])
    assert np.abs(whole["logits"] - whole["fast"][:2]).max() > 0


def test_second_order_differs_only_where_the_inner_gradient_depends_on_the_weights(switched):
    """Same losses; other meta gradients, and the same ones when the inner rate is 0."""
    first, second = switched("masf", RATE), switched("second_order", RATE)
    close_to_largest(second["fast"], first["fast"], 1e-4)
    assert list(second["meta"]) == list(first["meta"])
    for name, gradient in first["meta"].items():
        difference = np.linalg.norm(second["meta"][name] - gradient)
        assert name.startswith("metric") or difference > 1e-3 * np.linalg.norm(gradient), name
    first, second = switched("masf", 0.0), switched("second_order", 0.0)
    largest = max(map(np.linalg.norm, first["meta"].values()))
    for name, gradient in first["meta"].items():
        difference = np.linalg.norm(second["meta"][name] - gradient)
        assert difference < 1e-4 * np.linalg.norm(gradient) + 1e-6 * largest, name
