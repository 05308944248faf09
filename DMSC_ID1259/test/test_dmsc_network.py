"""network.py against the golden arrays, by hand-made cases, and its properties."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import functools

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import checkpoints
import golden_rules
import network
import npu_session
from golden_rules import FILL, IMAGES

SCALARS, ARRAYS = 2e-5, 2e-5  # relative; of the array's largest magnitude. From the golden README
UNDECIDED = 2e-6  # of the layer's root mean square: what float32 rounding can turn over
RATE = 1e-3
PRETRAIN, AFFINITY = golden_rules.files("pretrain_M"), golden_rules.files("affinity_M")


def fill(session, seed):
    """Gives every trainable variable its golden value."""
    checkpoints.load(session, [
        (variable, FILL(variable.op.name, variable.shape.as_list(), seed))
        for variable in tf.trainable_variables()])


def constants(modalities, clusters):
    return network.Constants(network.spread(network.RECONSTRUCTION_WEIGHTS, modalities),
                             network.spread(network.SELF_EXPRESSION_WEIGHTS, modalities),
                             1.0, network.default_residual_weight(clusters))


def norms(session):
    variables = tf.trainable_variables()
    return {variable.op.name: np.linalg.norm(value.astype(np.float64))
            for variable, value in zip(variables, session.run(variables))}


class Nudges:
    """Lets ReLUs whose argument is 0 but for rounding open or close, as the recorder's did.

    Such an argument, of one in a million units, has either sign, depending on the CPU; gradients
    that pass through it differ by far more than rounding. No value is compared more loosely.
    """

    def __init__(self, monkeypatch):
        self.arguments, self.variables = [], []
        monkeypatch.setattr(network, "activate", self.activate)

    def activate(self, maps):
        """relu(maps + nudge); one nudge variable for each shape and place in the network."""
        number, shape = len(self.arguments), maps.shape.as_list()
        nudge = tf.get_variable(f"nudge_{number}", shape, trainable=False,
                                initializer=tf.zeros_initializer())
        self.arguments.append(maps)
        self.variables.append(nudge)
        return tf.nn.relu(maps + nudge)

    def undecided(self, session):
        """List of (number of the activation, index of the unit, nudge that changes its sign)."""
        found = []
        for number, values in enumerate(session.run(self.arguments)):
            smallest = UNDECIDED * np.sqrt(np.mean(np.square(values)))
            for index in zip(*np.nonzero(np.abs(values) < smallest)):
                found.append((number, index, -2 * smallest * np.sign(values[index] or -1)))
        return found

    def settle(self, session, mismatch):
        """Keeps of each undecided unit the sign with the smaller mismatch()."""
        best = mismatch()
        for number, index, nudge in self.undecided(session):
            value = np.zeros(self.variables[number].shape.as_list(), np.float32)
            before = session.run(self.variables[number])
            value[index] = nudge
            self.variables[number].load(before + value, session)
            now = mismatch()
            if now < best:
                best = now
            else:
                self.variables[number].load(before, session)


def build(name, seed):
    """Graph of a golden file: dict of what to fetch, the train step, and theta_before."""
    sizes = golden_rules.sizes(name)
    images = [tf.constant(network.pack(IMAGES(m, sizes["N"], seed))) for m in range(sizes["M"])]
    weights = network.create_weights(sizes["M"], sizes["N"], seed=0)
    before = tf.get_variable("theta_before", [sizes["N"]] * 2, trainable=False)
    kept, results, forward = {}, [], network.forward

    def once(*arguments, **options):  # the step's own forward pass is the one that is looked at
        results.append(forward(*arguments, **options))
        return results[-1]

    network.forward = once
    try:
        if "K" in sizes:
            settings = constants(sizes["M"], sizes["K"])
            kept["step"] = network.affinity_step(weights, images, settings, RATE, before)
            theta = network.without_diagonal(weights.coef)
            kept["loss"], kept["terms"] = network.affinity_loss(results[0], images, theta,
                                                                settings)
        else:
            settings = network.spread(network.RECONSTRUCTION_WEIGHTS, sizes["M"])
            kept["step"] = network.pretrain_step(weights, images, settings, RATE)
            theta = weights.coef
            kept["loss"], kept["terms"] = network.pretrain_loss(results[0], images, settings)
    finally:
        network.forward = forward
    return kept, results[0], theta, weights, before


@functools.lru_cache(maxsize=None)
def computed(name):
    """What our graph gives for the weights and images of a golden file."""
    seed, golden, patch = golden_rules.find_seed(), golden_rules.load(name), pytest.MonkeyPatch()
    with patch.context() as context, npu_session.new_graph().as_default(), tf.Session() as session:
        nudges = Nudges(context)
        kept, result, theta, weights, before = build(name, seed)
        variables = tf.trainable_variables()
        names = [variable.op.name for variable in variables]
        gradients = tf.gradients(kept["loss"], variables)
        session.run(tf.global_variables_initializer())
        fill(session, seed)
        nudges.settle(session, lambda: max(abs(
            np.linalg.norm(ours.astype(np.float64)) / theirs - 1)
            for ours, theirs in zip(session.run(gradients), golden["grad_l2"])))
        found = session.run({
            "theta": theta + 0.0, "codes": result.codes, "reconstructed": result.reconstructed,
            "expressed": result.expressed, "loss": kept["loss"], "terms": kept["terms"],
            "gradients": dict(zip(names, gradients))})
        found["reconstructed"] = [network.unpack(image) for image in found["reconstructed"]]
        found.update(names=names, norms=[norms(session)], coef=[], costs=[])
        for _ in range(3):
            found["costs"].append(session.run(kept["step"])[1][0])
            found["norms"].append(norms(session))
            found["coef"].append(session.run(weights.coef))
        found["theta_before"], found["loss_after3"] = session.run([before, kept["loss"]])
        return found


def assert_array(ours, golden):
    np.testing.assert_allclose(ours, golden, rtol=0, atol=ARRAYS * np.abs(golden).max())


def assert_statistics(values, golden):
    """golden: mean, standard deviation, L2 norm, share of elements above 0."""
    values = values.astype(np.float64)
    ours = [values.mean(), values.std(), np.linalg.norm(values), (values > 0).mean()]
    np.testing.assert_allclose(ours[:3], golden[:3], rtol=SCALARS)
    assert abs(ours[3] - golden[3]) <= SCALARS


# ---------------------------------------------------------------- golden


@pytest.mark.parametrize("name", PRETRAIN + AFFINITY)
def test_golden_variables_and_forward_pass(name):
    golden, ours = golden_rules.load(name), computed(name)
    assert ours["names"] == list(golden["var_names"])
    np.testing.assert_allclose([ours["norms"][0][n] for n in ours["names"]],
                               golden["var_l2_init"], rtol=SCALARS)
    assert_array(ours["theta"], golden["coef_eff"])
    for m in range(golden_rules.sizes(name)["M"]):
        for key, values in (("z", ours["codes"][m]), ("zc", ours["expressed"][m])):
            if f"{key}{m}_slice" in golden:
                flat = values.reshape(len(values), -1)
                assert_array(flat[:3, :96], golden[f"{key}{m}_slice"])
                assert_statistics(flat, golden[f"{key}{m}_stats"])
        assert_array(ours["reconstructed"][m][0, :, :, 0], golden[f"xr{m}_img0"])
        assert_statistics(ours["reconstructed"][m], golden[f"xr{m}_stats"])


@pytest.mark.parametrize("name", PRETRAIN + AFFINITY)
def test_golden_losses(name):
    golden, ours = golden_rules.load(name), computed(name)
    images = [IMAGES(m, golden_rules.sizes(name)["N"], golden_rules.find_seed())
              for m in range(golden_rules.sizes(name)["M"])]
    for m, image in enumerate(images):
        error = np.mean((ours["reconstructed"][m].astype(np.float64) - image) ** 2)
        np.testing.assert_allclose(error, golden[f"mse{m}"], rtol=SCALARS)
        if name in PRETRAIN:
            np.testing.assert_allclose(ours["terms"][m], golden[f"mse{m}"], rtol=SCALARS)
    np.testing.assert_allclose(ours["loss"], golden["loss"], rtol=SCALARS)
    if name in AFFINITY:
        np.testing.assert_allclose(ours["terms"][:4], [
            golden["loss"], golden["reconst_cost_x"], golden["reg_losses"],
            golden["selfexpress_losses"]], rtol=SCALARS)
        weight = network.default_residual_weight(golden_rules.sizes(name)["K"])
        np.testing.assert_allclose(weight, golden["reg_constant2"], rtol=1e-12)


@pytest.mark.parametrize("name", PRETRAIN + AFFINITY)
def test_golden_gradients(name):
    golden, ours = golden_rules.load(name), computed(name)
    np.testing.assert_allclose(
        [np.linalg.norm(ours["gradients"][n].astype(np.float64)) for n in ours["names"]],
        golden["grad_l2"], rtol=SCALARS)
    for key in golden:
        if key.startswith("grad_") and key != "grad_l2":
            assert_array(ours["gradients"][key[5:].replace(".", "/")], golden[key])
    if name in AFFINITY:
        assert not np.diag(ours["gradients"]["Coef"]).any()


@pytest.mark.parametrize("name", PRETRAIN + AFFINITY)
def test_golden_three_updates(name):
    golden, ours = golden_rules.load(name), computed(name)
    np.testing.assert_allclose(ours["costs"], golden["costs_returned"], rtol=SCALARS)
    np.testing.assert_allclose(ours["loss_after3"], golden["loss_after3"], rtol=SCALARS)
    for number in (1, 3):
        np.testing.assert_allclose([ours["norms"][number][n] for n in ours["names"]],
                                   golden[f"var_l2_step{number}"], rtol=SCALARS)
        assert_array(ours["coef"][number - 1], golden[f"Coef_step{number}"])
    if name in AFFINITY:  # theta_before: as it was before the third update
        coef = ours["coef"][1]
        np.testing.assert_array_equal(ours["theta_before"], coef - np.diag(np.diag(coef)))
        start = FILL("Coef", coef.shape, golden_rules.find_seed())
        np.testing.assert_array_equal(np.diag(ours["coef"][2]), np.diag(start))
