"""Layers, losses and the twice-differentiable LRN: golden values and numbers known on paper."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import masf_func
import npu_session
import special_grads
import utils
from golden_rules import load

CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # of the golden README; kd4's gradients have atol 1e-5
KD_CASES = sorted({key.split("_kd_")[0] for key in load("unit") if "_kd_loss" in key})
FLAGS = masf_func.Settings(1e-5, 1e-5, 1e-5, 10.0, 2.0, 1.0, True, True, True, "kl", False, 0)
TRIPLETS = sorted(key[:-len("_margin")] for key in load("unit") if key.endswith("_margin"))


def evaluate(build, *arrays):
    """Values of build(*tensors), a tensor or nested lists of them, in a graph of its own."""
    with tf.Graph().as_default(), tf.Session() as session:
        return session.run(build(*[tf.constant(array) for array in arrays]))


def golden_one_hot(labels):
    """float32 [N, 7]; an id outside 0..6 gives zeros."""
    return np.eye(8, 7, dtype=np.float32)[np.minimum(labels, 7)]


# ---------------------------------------------------------------- golden values


@pytest.mark.parametrize("case", KD_CASES)
@pytest.mark.parametrize("name, divergence", [("kd", "kl"), ("js", "js")])
def test_golden_global_alignment(case, name, divergence):
    golden = load("unit")
    indicator = golden[case + "_ind"]

    def build(logits1, labels1, logits2, labels2):
        loss, soft1, soft2 = utils.kd(logits1, labels1, logits2, labels2, indicator,
                                      utils.DIVERGENCES[divergence])
        return [loss, soft1, soft2] + tf.gradients(loss, [logits1, logits2])

    values = evaluate(build, golden[case + "_data1"], golden_one_hot(golden[case + "_lab1"]),
                      golden[case + "_data2"], golden_one_hot(golden[case + "_lab2"]))
    for value, key in zip(values, ("loss", "prob1", "prob2", "grad1", "grad2")):
        atol = 1e-5 if case.startswith("kd4") and key.startswith("grad") else CLOSE["atol"]
        np.testing.assert_allclose(value, golden[f"{case}_{name}_{key}"], rtol=CLOSE["rtol"],
                                   atol=atol, err_msg=key)


@pytest.mark.parametrize("case", TRIPLETS)
def test_golden_triplet_loss(case):
    """Where the reference gives NaN (no pair of one class), ours is 0 with a zero gradient."""
    golden = load("unit")

    def build(labels, embeddings):
        loss = utils.triplet_semihard_loss(labels, embeddings, float(golden[case + "_margin"]))
        return [loss] + tf.gradients(loss, embeddings)

    loss, gradient = evaluate(build, golden[case + "_lab"], golden[case + "_emb"])
    np.testing.assert_allclose(loss, np.nan_to_num(golden[case + "_loss"]), **CLOSE)
    np.testing.assert_allclose(gradient, np.nan_to_num(golden[case + "_grad"]), **CLOSE)


@pytest.mark.parametrize("twice_differentiable", [False, True])
def test_golden_lrn(twice_differentiable):
    golden = load("unit")

    def build(x, upstream):
        y = utils.lrn(x, twice_differentiable)
        return [y] + tf.gradients(y, x, upstream)

    y, gradient = evaluate(build, golden["lrn_x"], golden["lrn_dy"])
    np.testing.assert_allclose(y, golden["lrn_y"], **CLOSE)
    np.testing.assert_allclose(gradient, golden["lrn_gx"], **CLOSE)


def test_golden_max_pool():
    golden = load("unit")

    def build(x):
        y = utils.max_pool(x)
        return [y] + tf.gradients(y, x)

    y, gradient = evaluate(build, golden["pool_x"])
    np.testing.assert_allclose(y, golden["pool_y"], **CLOSE)
    np.testing.assert_allclose(gradient, golden["pool_gx"], **CLOSE)


@pytest.mark.parametrize("case", ["conv_g1_s4", "conv_g2_s1"])
def test_golden_convolution(case):
    golden = load("unit")
    stride, groups = golden[case + "_stride_groups"].tolist()

    def build(x, weights, biases):
        y = utils.conv_block(x, weights, biases, stride, groups)
        return [y] + tf.gradients(y, [x, weights, biases])

    y, of_x, of_weights, of_biases = evaluate(build, *(golden[f"{case}_{name}"] for name in "xwb"))
    np.testing.assert_allclose(y, golden[case + "_y"], **CLOSE)
    np.testing.assert_allclose(of_weights, golden[case + "_gw"], **CLOSE)
    np.testing.assert_allclose(of_biases, golden[case + "_gb"], **CLOSE)
    of_x = of_x.astype(np.float64)
    np.testing.assert_allclose([of_x.mean(), of_x.std(), np.sqrt(np.sum(of_x ** 2))],
                               golden[case + "_gx_stat"], **CLOSE)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", None])
def test_golden_fully_connected(activation):
    golden = load("unit")
    values = evaluate(lambda x, w, b: utils.fc(x, w, b, activation),
                      *(golden["fc_" + name] for name in "xwb"))
    np.testing.assert_allclose(values, golden[f"fc_{activation}"], **CLOSE)


def test_golden_cross_entropy():
    """Rows of zeros (labels outside 0..6): loss 0, gradient = softmax."""
    golden = load("unit")

    def build(logits, labels):
        losses = utils.xent(logits, labels)
        return [losses] + tf.gradients(losses, logits)

    losses, gradient = evaluate(build, golden["xent_logits"], golden_one_hot(golden["xent_lab"]))
    np.testing.assert_allclose(losses, golden["xent_loss"], **CLOSE)
    np.testing.assert_allclose(gradient, golden["xent_grad"], **CLOSE)


def test_golden_inner_step_clips_by_norm():
    """theta - 1 * clip(g) with theta = 0 is minus the clipped gradient; zeros stay zeros."""
    golden, zeros = load("unit"), np.zeros_like(load("unit")["clip_x"])

    def clipped(gradient, norm):
        settings = FLAGS._replace(inner_lr=1.0, clip_norm=norm)
        return -masf_func.inner_step({"x": tf.zeros_like(gradient)}, {"x": gradient},
                                     settings)["x"]

    for norm in (2, 100):
        np.testing.assert_allclose(evaluate(lambda g, n=norm: clipped(g, float(n)),
                                            golden["clip_x"]), golden[f"clip_{norm}"], **CLOSE)
    np.testing.assert_allclose(evaluate(lambda g: clipped(g, None), golden["clip_x"]),
                               golden["clip_x"], **CLOSE)
    np.testing.assert_array_equal(evaluate(lambda g: clipped(g, 2.0), zeros), zeros)


def test_golden_class_distance():
    golden = load("unit")
    found = utils.compute_distance(golden["cdist_f1"], golden["cdist_lab1"], golden["cdist_f2"],
                                   golden["cdist_lab2"])
    np.testing.assert_allclose(found, golden["cdist"], **CLOSE)


# ---------------------------------------------------------------- numbers known on paper


def test_divergences_of_equal_rows_are_0_and_symmetric():
    p, q = np.float32([[0.25, 0.75], [0.5, 0.5]]), np.float32([[0.75, 0.25], [0.5, 0.5]])
    kl, turned, js = evaluate(lambda a, b: [utils.symmetric_kl(a, b), utils.symmetric_kl(b, a),
                                            utils.jensen_shannon(a, b)], p, q)
    np.testing.assert_allclose(kl, [0.5 * np.log(3), 0], atol=1e-6)  # (3/4 - 1/4) ln 3
    np.testing.assert_allclose(js, [0.75 * np.log(1.5) - 0.25 * np.log(2), 0], atol=1e-6)
    np.testing.assert_array_equal(kl, turned)


def test_absent_class_has_a_uniform_distribution_and_counts_in_the_mean_over_all_seven():
    logits = np.zeros((2, 7), np.float32)
    logits[:, 0] = [2.0, 4.0]
    labels = golden_one_hot(np.array([3, 3]))
    other = golden_one_hot(np.array([3, 5]))

    def build(logits, labels, other):
        both = utils.present(labels) * utils.present(other)
        loss, soft, _ = utils.kd(logits, labels, tf.zeros_like(logits), other, both)
        return [both, loss, soft]

    both, loss, soft = evaluate(build, logits, labels, other)
    np.testing.assert_array_equal(both, [0, 0, 0, 1, 0, 0, 0])
    np.testing.assert_allclose(soft[[0, 1, 2, 4, 5, 6]], 1 / 7, rtol=1e-6)
    first = np.exp(1.5) / (np.exp(1.5) + 6)  # mean logit 3, temperature 2
    np.testing.assert_allclose(soft[3, 0], first, rtol=1e-6)
    rest, uniform = (1 - first) / 6, 1 / 7
    expected = 0.5 * ((first - uniform) * np.log(first / uniform)
                      + 6 * (rest - uniform) * np.log(rest / uniform)) / 7
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def plain_triplet(labels, points, margin):
    """The definition, pair by pair."""
    distances = np.sum((points[:, None] - points) ** 2, 2)
    losses = []
    for i, j in np.argwhere(np.equal.outer(labels, labels)):
        if i == j:
            continue
        others = distances[i][labels != labels[i]]
        beyond = others[others > distances[i, j]]
        negative = beyond.min() if len(beyond) else others.max() if len(others) else 0
        losses.append(max(0, margin + distances[i, j] - negative))
    return np.mean(losses)


@pytest.mark.parametrize("seed", range(4))
def test_triplet_loss_equals_its_definition(seed):
    random = np.random.RandomState(seed)
    labels, points = random.randint(0, 4, 18), random.standard_normal((18, 5)).astype(np.float32)
    loss = evaluate(lambda a, b: utils.triplet_semihard_loss(a, b, 1.5), labels, points)
    np.testing.assert_allclose(loss, plain_triplet(labels, points, 1.5), rtol=1e-5)


def test_dropout_keeps_the_mean_and_follows_its_key():
    x = np.ones((50, 400), np.float32)
    first, again, other = (evaluate(lambda t, key=key: utils.dropout(t, 0.25, key), x)
                           for key in ([3, 1], [3, 1], [3, 2]))
    assert set(np.unique(first)) == {0.0, 4.0}
    assert abs(first.mean() - 1) < 0.05
    np.testing.assert_array_equal(first, again)
    assert 0.3 < np.mean(first == other) < 0.9
    np.testing.assert_array_equal(evaluate(lambda t: utils.dropout(t, 1, None), x), x)


def test_groups_of_a_convolution_do_not_see_each_other():
    random = np.random.RandomState(0)
    x = random.standard_normal((1, 4, 4, 4)).astype(np.float32)
    weights = random.standard_normal((3, 3, 2, 6)).astype(np.float32)
    changed = x.copy()
    changed[..., 2:] += 1
    before, after = (evaluate(lambda a, w: utils.conv_block(a, w, tf.zeros([6]), 1, 2), value,
                              weights) for value in (x, changed))
    np.testing.assert_array_equal(before[..., :3], after[..., :3])
    assert np.abs(before[..., 3:] - after[..., 3:]).max() > 0.1


# ---------------------------------------------------------------- second derivatives


def test_second_derivative_of_lrn_equals_differences():
    """Along a random direction v: d/dt of the gradient at x + t v."""
    random = np.random.RandomState(0)
    x, upstream, v = (random.standard_normal((1, 2, 2, 9)) for _ in range(3))

    def gradient(x, upstream):
        band = special_grads.local_response_normalization(x, 2, 1.0, 0.3, 0.75)
        return tf.gradients(band, x, upstream)[0]

    def along(x, upstream, v):
        return tf.gradients(tf.reduce_sum(gradient(x, upstream) * v), x)[0]

    single = [array.astype(np.float32) for array in (x, upstream, v)]
    exact = evaluate(along, *single)
    ends = [evaluate(gradient, (x + t * v).astype(np.float32), single[1]) for t in (5e-3, -5e-3)]
    np.testing.assert_allclose(exact, (ends[0] - ends[1]) / 1e-2, rtol=1e-2, atol=2e-3)


def test_tensorflow_has_the_second_derivative_of_pooling_but_not_of_its_own_lrn():
    assert special_grads.register_missing() is False
    with tf.Graph().as_default():
        x = tf.zeros([1, 5, 5, 6])
        gradient = tf.gradients(utils.max_pool(tf.square(x)), x)[0]
        assert tf.gradients(gradient, x)[0] is not None
        with pytest.raises(LookupError):
            tf.gradients(tf.gradients(utils.lrn(x), x)[0], x)


# ---------------------------------------------------------------- random starts


def drawn(initializer, *names):
    """{name: values} of an initialiser."""
    shapes = masf_func.variable_shapes()
    with tf.Graph().as_default(), tf.Session() as session:
        return session.run({name: initializer(name, shapes[name])() for name in names})


def test_random_starts_have_the_documented_spread():
    he = drawn(masf_func.random_start(3), "conv1/weights", "conv5/weights", "fc8/weights",
               "metric/w2", "conv1/biases", "metric/b1")
    assert he["conv1/weights"].std() == pytest.approx((2 / 363) ** 0.5, rel=0.02)
    assert he["conv5/weights"].std() == pytest.approx((2 / 1728) ** 0.5, rel=0.02)
    for name in ("fc8/weights", "metric/w2"):
        assert he[name].std() == pytest.approx(masf_func.RANDOM_START_STD[name], rel=0.02)
    assert not he["conv1/biases"].any() and not he["metric/b1"].any()
    glorot = drawn(masf_func.glorot_uniform(3), "fc8/weights", "fc8/biases", "conv2/weights")
    for name, limit in (("fc8/weights", (6 / 4103) ** 0.5), ("fc8/biases", (3 / 7) ** 0.5),
                        ("conv2/weights", (6 / (25 * (48 + 256))) ** 0.5)):
        largest = np.abs(glorot[name]).max()
        assert (0.6 if glorot[name].size < 10 else 0.99) * limit < largest <= limit


def test_random_starts_follow_the_seed_and_the_name():
    first, again, other = (drawn(masf_func.random_start(seed), "conv3/weights", "conv4/weights")
                           for seed in (1, 1, 2))
    np.testing.assert_array_equal(first["conv3/weights"], again["conv3/weights"])
    assert np.abs(first["conv3/weights"] - other["conv3/weights"]).max() > 0.01
    size = first["conv4/weights"].size
    assert np.abs(first["conv3/weights"].ravel()[:size]
                  - first["conv4/weights"].ravel()).max() > 0.1


def test_golden_names_of_the_variables():
    """The 20 trainable variables, in the reference's order, and its global step."""
    with npu_session.new_graph().as_default():
        masf_func.create_variables(masf_func.random_start(0))
        names = [variable.op.name for variable in tf.trainable_variables()]
        step = tf.train.get_global_step()
    assert names == load("forward")["var_names"].tolist()
    assert step.op.name == "model/Variable" and step.dtype.base_dtype == tf.int32
