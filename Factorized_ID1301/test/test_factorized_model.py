"""The network, its losses, its training step and its evaluation against golden values and paper."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import types

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import golden_rules
import model_def
import npu_session
from golden_rules import assert_close, stats
from utils import drawing, warp

SETTINGS = {  # golden file -> flags
    "train_K8": {"K": 8, "M": 4, "align_weight": 1.0, "diversity_weight": 500.0,
                 "weight_decay": 0.0005, "learning_rate": 1e-4, "beta1": 0.5},
    "train_K5": {"K": 5, "M": 3, "align_weight": 2.0, "diversity_weight": 100.0,
                 "weight_decay": 0.01, "learning_rate": 1e-3, "beta1": 0.9},
}
STATISTICS = ("BatchNorm/moving_mean", "BatchNorm/moving_variance")


def flags(**settings):
    return types.SimpleNamespace(conv_dtype="float32", lower_rate_after=None, **settings)


def fill_variables(session, names_of_statistics=()):
    """Gives the graph's model variables the golden values; moving averages only if named."""
    seed = golden_rules.find_seed()
    for variable in tf.global_variables():
        name = variable.op.name
        is_statistic = name.endswith(STATISTICS)
        if name.startswith("cnn_tower") and "/Adam" not in name and (
                not is_statistic or name.endswith(tuple(names_of_statistics))):
            variable.load(golden_rules.variable(name, variable.shape.as_list(), seed), session)


def values_before(network, maps, positions, step):
    """Tensors that are compared before any update."""
    coordinates = model_def.expectation(maps, warp.cells()[None])[0]
    trainable = tf.trainable_variables()
    return {"activations": network.activations, "moments": network.moments, "maps": maps,
            "coordinates": coordinates, "variables": trainable, "positions": positions,
            "gradients": tf.gradients(step["total"], trainable)}


@pytest.fixture(scope="module", params=sorted(SETTINGS))
def run(request):
    """(golden arrays, values before training, terms after 0..3 steps, variables then)."""
    golden, args = golden_rules.load(request.param), flags(**SETTINGS[request.param])
    with npu_session.new_graph().as_default(), tf.Session() as session:
        images, deformed = (tf.constant(array) for array in golden_rules.images(
            len(golden["T"]), golden_rules.find_seed()))
        positions = warp.warped_cells(tf.constant(golden["T"]))
        layers = model_def.create_variables(args.K, seed=0)
        network = model_def.towers(images, deformed, layers)
        terms = model_def.losses(network.scores, positions, layers, args)
        before = values_before(network, model_def.probability_maps(network.scores), positions,
                               {"total": terms.total})
        step = model_def.train_step(images, deformed, positions, layers, args)
        session.run(tf.global_variables_initializer())
        fill_variables(session)
        values, history, after = session.run(before), [], []
        for _ in range(3):
            history.append(session.run(step)[1][:4])
            after.append({v.op.name: value for v, value in zip(
                tf.global_variables(), session.run(tf.global_variables()))})
        history.append(session.run(terms)[:4])
        values["names"] = [variable.op.name for variable in tf.trainable_variables()]
    return golden, values, np.array(history), after


# ---------------------------------------------------------------- golden: training


def test_golden_variable_names_and_values(run):
    golden, values, _, _ = run
    assert values["names"] == list(golden["var_names"])
    assert_close([np.linalg.norm(value.astype(np.float64)) for value in values["variables"]],
                 golden["var_l2_0"], 1e-6)


def test_golden_loss_terms(run):
    golden, _, history, _ = run
    np.testing.assert_allclose(history[0], golden["terms_step0"], rtol=1e-4)
    for column, name in ((0, "align"), (3, "total")):
        assert_close(history[:, column], golden["terms_after"][:, column], 2e-3, name)


def test_golden_activations_and_moments(run):
    golden, values, _, _ = run
    for number in range(6):
        for which, tower in enumerate("AB"):
            x = values["activations"][number][which]
            name = f"{tower}_l{number + 1}"
            assert_close(stats(x)[:3], golden[f"act_{name}_stats"], 1e-4, name)
            assert_close(x[:, x.shape[1] // 2, x.shape[2] // 3], golden[f"act_{name}_pix"], 1e-4,
                         name)
            mean, variance = values["moments"][number][which]
            assert_close(mean, golden[f"bn_{name}_mean"], 1e-4, name)
            assert_close(variance, golden[f"bn_{name}_var"], 1e-4, name)


def test_golden_heat_maps_and_coordinates(run):
    golden, values, _, _ = run
    maps = np.split(values["maps"].transpose(0, 2, 1).reshape(
        (-1, 42, 42, values["maps"].shape[1])), 2)
    coordinates = np.split(values["coordinates"], 2)
    for which, tower in enumerate("AB"):
        assert_close(coordinates[which], golden[f"expect_{tower}_row_col"], 1e-4)
        if f"pred{tower}_stats" in golden:
            found = stats(maps[which])[[0, 1, 2, 4]]
            assert_close(found, golden[f"pred{tower}_stats"], 1e-4)
    if "predA" in golden:
        assert_close(maps[0], golden["predA"], 1e-4)


def test_golden_gradients(run):
    golden, values, _, _ = run
    gradients = dict(zip(values["names"], values["gradients"]))
    norms = [np.linalg.norm(gradients[name].astype(np.float64)) for name in golden["var_names"]]
    assert_close(norms, golden["grad_l2"], 1e-3)
    assert_close(gradients["cnn_tower/layer_6/BatchNorm/gamma"], golden["grad_layer6_gamma"], 1e-3)
    assert_close(gradients["cnn_tower/layer_6/conv/filter"][2, 2, :16],
                 golden["grad_layer6_filter_slice"], 1e-3)
    first = golden["grad_layer1_filter"]
    difference = gradients["cnn_tower/layer_1/conv/filter"] - first
    assert np.linalg.norm(difference) <= 2e-2 * np.linalg.norm(first)


@pytest.mark.parametrize("steps", [1, 3])
def test_golden_variables_after_updates(run, steps):
    golden, _, _, after = run
    found = after[steps - 1]
    assert_close([np.linalg.norm(found[name].astype(np.float64)) for name in golden["var_names"]],
                 golden[f"var_l2_{steps}"], 1e-5)
    for name, key in (("layer_1/conv/filter", "layer1_filter"),
                      ("layer_6/BatchNorm/gamma", "layer6_gamma"),
                      ("layer_6/BatchNorm/beta", "layer6_beta")):
        expected = golden[f"{key}_after_{steps}"]
        difference = found["cnn_tower/" + name] - expected
        assert np.linalg.norm(difference) <= 5e-3 * np.linalg.norm(expected), name


def test_golden_moving_averages_are_updated_by_a_then_b(run):
    golden, _, _, after = run
    for number in range(1, 7):
        for kind, start, key in (("mean", 0.0, "mean"), ("variance", 1.0, "var")):
            a, b = (golden[f"bn_{tower}_l{number}_{key}"] for tower in "AB")
            expected = 0.9 * (0.9 * start + 0.1 * a) + 0.1 * b
            name = f"cnn_tower/layer_{number}/BatchNorm/moving_{kind}"
            assert_close(after[0][name], expected, 1e-4, name)


def test_names_that_checkpoints_carry(run):
    _, _, _, after = run
    names = set(after[0])
    model = [name for name in names if name.startswith("cnn_tower") and "/Adam" not in name]
    assert len(model) == 30
    assert {name + slot for name in run[1]["names"] for slot in ("", "/Adam", "/Adam_1")} <= names
    assert names - {name for name in names if name.startswith("cnn_tower")} == {
        "global_step", "train/beta1_power", "train/beta2_power"}
    assert after[0]["global_step"].dtype == np.int64 and after[2]["global_step"] == 3


# ---------------------------------------------------------------- golden: losses


@pytest.fixture(scope="module")
def loss_values():
    """(golden arrays, values of the losses of the heat maps given by rule)."""
    golden = golden_rules.load("losses")
    with tf.Graph().as_default(), tf.Session() as session:
        a, b = (tf.constant(array) for array in golden_rules.logits(golden_rules.find_seed()))
        maps_a, maps_b = model_def.probability_maps(a), model_def.probability_maps(b)
        positions = warp.warped_cells(tf.constant(golden["T"]))
        spread, distance = model_def.alignment(maps_a, maps_b, positions)
        diversities = {M: [model_def.diversity(maps, M) for maps in (maps_a, maps_b)]
                       for M in (2, 4, 5)}
        values = session.run({
            "spread": spread, "distance": distance, "maps_a": maps_a, "diversities": diversities,
            "a": model_def.expectation(maps_a, warp.cells()[None]),
            "b": model_def.expectation(maps_b, positions),
            "gradients": tf.gradients(spread + distance, [a, b]) + tf.gradients(
                tf.reduce_mean(diversities[4][0]), a)})
    return golden, values


def test_golden_alignment_and_its_parts(loss_values):
    golden, values = loss_values
    np.testing.assert_allclose(values["spread"] + values["distance"], golden["align"], rtol=1e-4)
    for which, part, names in (("a", "part1", ("eAx", "eAy")), ("b", "part2", ("eBx", "eBy"))):
        means, spreads = values[which]
        for axis, name in enumerate(names):
            assert_close(means[:, :, axis], golden[name], 1e-4)
        # The expectation of the square is the spread and the square of the mean.
        assert_close(spreads + np.square(means).sum(2), golden[part], 1e-4)


def test_golden_diversity(loss_values):
    golden, values = loss_values
    for M, both in values["diversities"].items():
        assert_close(np.mean(both, 1), golden[f"div_M{M}"], 1e-4)


def test_golden_heat_map_rows(loss_values):
    golden, values = loss_values
    rows = values["maps_a"].reshape(2, 8, 42, 42)[:, :, 20:22].transpose(0, 2, 3, 1)
    assert_close(rows, golden["predA_row20_21"], 1e-4)


def test_golden_gradients_of_the_losses(loss_values):
    golden, values = loss_values
    names = ("grad_align_LA", "grad_align_LB", "grad_div4A_LA")
    for name, gradient, norm in zip(names, values["gradients"], golden["grad_l2"]):
        assert_close(gradient[:, 20:22], golden[name + "_rows20_21"], 1e-4)
        np.testing.assert_allclose(np.linalg.norm(gradient.astype(np.float64)), norm, rtol=1e-4)


# ---------------------------------------------------------------- golden: evaluation


@pytest.fixture(scope="module")
def evaluated():
    """(golden arrays, images of tower A, the Evaluation's values)."""
    golden = golden_rules.load("infer")
    images = golden_rules.images(2, golden_rules.find_seed())[0]
    with npu_session.new_graph().as_default(), tf.Session() as session:
        evaluation = model_def.build_evaluation(tf.constant(images), 8)
        session.run(tf.global_variables_initializer())
        fill_variables(session, STATISTICS)
        relu = session.graph.get_tensor_by_name("cnn_tower/layer_6/BatchNorm/Relu:0")
        assert relu is evaluation.scores
        return golden, images, session.run(evaluation)


def test_golden_scores_and_coordinates_of_evaluation(evaluated):
    golden, _, values = evaluated
    assert_close(stats(values.scores)[[0, 1, 2, 4]], golden["relu6_stats"], 1e-4)
    assert_close(values.scores[:, 20], golden["relu6_row20"], 1e-4)
    assert_close(stats(values.heat_maps)[[0, 1, 2, 4]], golden["predA_stats"], 1e-4)
    assert_close(values.coordinates, golden["expect_A_row_col"], 1e-4)
    peaks = values.heat_maps.reshape(2, -1, 8).argmax(1)
    np.testing.assert_array_equal(np.stack(np.divmod(peaks, 42), 2), golden["argmax_row_col"])


def test_golden_drawing(evaluated):
    golden, images, values = evaluated
    plain = (images + 1) / 2
    mask = np.unpackbits(golden["drawn_mask_packed"]).reshape(plain.shape[:3]).astype(bool)
    np.testing.assert_array_equal((np.abs(values.drawn - plain) > 1e-6).any(3), mask)
    np.testing.assert_array_equal(mask.sum((1, 2)), golden["drawn_count"])
    assert_close(values.drawn[mask], golden["drawn_rgb"], 1e-4)
    np.testing.assert_allclose(values.drawn[~mask], plain[~mask], atol=1e-6)


@pytest.mark.parametrize("K", [1, 8, 10, 16, 32])
def test_golden_colors(K):
    assert_close(drawing.landmark_colors(K), golden_rules.load("infer")[f"colors_K{K}"], 1e-6)


# ---------------------------------------------------------------- known answers


def delta_maps(*cells):
    """Probability maps [1, K, 1764] that are 1 in one cell each."""
    maps = np.zeros((1, len(cells), 42, 42), np.float32)
    for k, (row, column) in enumerate(cells):
        maps[0, k, row, column] = 1
    return maps.reshape(1, len(cells), -1)


def constant_values(function, *arrays):
    with tf.Graph().as_default(), tf.Session() as session:
        return session.run(function(*(tf.constant(array) for array in arrays)))


def test_expectation_of_one_and_of_two_cells():
    maps = (delta_maps((3, 40), (10, 10)) + delta_maps((3, 40), (10, 14))) / 2
    means, spreads = constant_values(
        lambda maps: model_def.expectation(maps, warp.cells()[None]), maps)
    np.testing.assert_allclose(means, [[[3, 40], [10, 12]]], atol=1e-5)
    np.testing.assert_allclose(spreads, [[0, 4]], atol=1e-4)


def test_alignment_is_0_where_landmarks_move_with_the_image_and_else_the_squared_distance():
    shift = np.array([2.0, -3.0], np.float32)  # the deformed image's cells come from v + shift

    def alignment(maps_a, maps_b):
        return model_def.alignment(maps_a, maps_b, warp.cells()[None] + shift)
    spread, distance = constant_values(alignment, delta_maps((20, 20)), delta_maps((18, 23)))
    assert spread == pytest.approx(0, abs=1e-3) and distance == pytest.approx(0, abs=1e-3)
    spread, distance = constant_values(alignment, delta_maps((20, 20)), delta_maps((21, 27)))
    assert spread == pytest.approx(0, abs=1e-3) and distance == pytest.approx(9 + 16, rel=1e-4)


def test_the_learning_rate_drops_once():
    args = types.SimpleNamespace(learning_rate=0.02, lower_rate_after=3)
    with npu_session.new_graph().as_default(), tf.Session() as session:
        step = tf.train.get_or_create_global_step()
        rate = model_def.learning_rate(step, args)
        found = []
        for number in (0, 2, 3, 100):
            step.load(number, session)
            found.append(session.run(rate))
        np.testing.assert_allclose(found, [0.02, 0.02, 0.002, 0.002], rtol=1e-6)
        args.lower_rate_after = None
        assert model_def.learning_rate(step, args) == 0.02


def test_alignment_is_the_double_sum_of_the_paper():
    rs = np.random.RandomState(0)
    maps = [np.exp(rs.standard_normal((2, 3, 42 * 42))).astype(np.float32) for _ in range(2)]
    maps = [array / array.sum(2, keepdims=True) for array in maps]
    positions = rs.uniform(-5, 45, (2, 42, 42, 2)).astype(np.float32)
    spread, distance = constant_values(model_def.alignment, *maps, positions)
    rows, columns = np.mgrid[:42, :42]
    u = np.stack([rows, columns], 2).reshape(-1, 2).astype(np.float64)
    expected = []
    for a, b, g in zip(*maps, positions.reshape(2, -1, 2).astype(np.float64)):
        squared = ((u[:, None] - g[None]) ** 2).sum(2)
        expected.append(np.einsum("ku,uv,kv->k", a, squared, b))
    assert spread + distance == pytest.approx(np.mean(expected), rel=1e-5)


def test_diversity_of_apart_and_of_equal_maps():
    apart = delta_maps((10, 10), (20, 20), (30, 30))
    equal = delta_maps((10, 10), (10, 10), (10, 10))
    near = delta_maps((10, 10), (10, 12), (30, 30))
    found = constant_values(lambda maps: model_def.diversity(maps, 4),
                            np.concatenate([apart, equal, near]))
    np.testing.assert_allclose(found, [0, 2, 0.5], atol=1e-5)  # half of two windows is shared


def test_initial_filters_depend_on_seed_and_name_only():
    def filters(seed):
        with npu_session.new_graph().as_default(), tf.Session() as session:
            layers = model_def.create_variables(8, seed)
            session.run(tf.global_variables_initializer())
            return session.run([layer.filter for layer in layers])
    first, again, other = filters(1), filters(1), filters(2)
    for layer in range(6):
        np.testing.assert_array_equal(first[layer], again[layer])
        assert np.abs(first[layer] - other[layer]).max() > 0.01
        assert first[layer].std() == pytest.approx(0.02, rel=0.05)
        assert abs(first[layer].mean()) < 1e-3
    assert sum(np.prod(array.shape) for array in first) + 2 * (468 + 8) == 794452


def test_each_half_of_the_batch_has_its_own_statistics():
    """Other deformed pictures change nothing for the images."""
    rs = np.random.RandomState(0)
    images, one, other = (rs.uniform(-1, 1, (1, 128, 128, 3)).astype(np.float32)
                          for _ in range(3))
    with npu_session.new_graph().as_default(), tf.Session() as session:
        layers = model_def.create_variables(2, 0)
        scores = [model_def.towers(images, deformed, layers).scores for deformed in (one, other)]
        session.run(tf.global_variables_initializer())
        first, second = session.run(scores)
    np.testing.assert_allclose(first[0], second[0], atol=1e-5)
    assert np.abs(first[1] - second[1]).max() > 0.1


@pytest.mark.skipif(tf.__version__.startswith("1."), reason="bfloat16 convolutions need TF 2.x")
def test_bfloat16_convolutions_change_little():
    rs = np.random.RandomState(0)
    images, deformed = rs.uniform(-1, 1, (2, 1, 128, 128, 3)).astype(np.float32)
    with npu_session.new_graph().as_default(), tf.Session() as session:
        layers = model_def.create_variables(2, 0)
        scores = [model_def.towers(images, deformed, layers, dtype).scores
                  for dtype in (tf.float32, tf.bfloat16)]
        session.run(tf.global_variables_initializer())
        full, rounded = session.run(scores)
    assert 0 < np.abs(full - rounded).max() < 0.2 and np.abs(full - rounded).mean() < 0.02
