"""The VAE: golden values of the reference, numbers known on paper, names, and checkpoints."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from golden_rules import FILL, IMG, RS, find_seed, load

import main
import model_def
import npu_session
import util

HERE = os.path.dirname(os.path.abspath(__file__))
# Tolerances of the golden README.
LOSS = {"rtol": 1e-5, "atol": 0}
NORM = {"rtol": 1e-5, "atol": 0}
ACTIVATION = {"rtol": 0, "atol": 2e-5}

LAYERS = {"enc": [(784, 500), (500, 500), (500, 20), (500, 20)],
          "gen": [(20, 500), (500, 500), (500, 784)]}  # [in, out] of w1, w2, ..


def program_graph(batch_size, seed=0):
    """(args, Graph) of the training program in the default graph, on 8 random training images."""
    args = main.parse_args([f"--batch_size={batch_size}", "--log_every=1", f"--seed={seed}"])
    images = np.random.RandomState(0).randint(0, 256, (8, model_def.N_INPUT)).astype(np.uint8)
    return args, main.build_graph(args, types.SimpleNamespace(train=images))


def vae_variables():
    """The VAE's variables of the default graph, in creation order."""
    return [variable for variable in tf.global_variables()
            if variable.op.name in model_def.VARIABLES]


def fill(session):
    """Gives the VAE's variables the weights of the golden rule FILL."""
    for variable in vae_variables():
        shape, name = variable.shape.as_list(), variable.op.name
        variable.load(FILL(name, shape, find_seed()), session)


def l2(arrays):
    """L2 norm of each array, float64."""
    return np.array([np.sqrt(np.sum(np.square(array.astype(np.float64)))) for array in arrays])


def first8(arrays):
    """The first 8 entries of each array in C order, [arrays, 8]."""
    return np.array([array.ravel()[:8] for array in arrays])


def golden_inputs():
    """x [B, 784] and eps [B, 20]: RS(SEED), in order, B as in the file."""
    rs = RS(find_seed())
    count, n_z = load("vae")["z"].shape
    return IMG(rs, count), rs.standard_normal((count, n_z)).astype(np.float32)


@pytest.fixture(scope="module")
def evaluated():
    """The program's evaluation graph on the golden inputs: dict of arrays named as in vae.npz."""
    x, eps = golden_inputs()
    with npu_session.new_graph().as_default():
        args, graph = program_graph(len(x))
        gradients = tf.gradients(graph.model.total_loss, vae_variables())
        with tf.Session(config=npu_session.session_config(args)) as session:
            fill(session)
            feed = {graph.x: x, graph.eps: eps}
            values = session.run(graph.model._asdict(), feed)
            values["gradients"] = session.run(gradients, feed)
            z = RS(find_seed() + 1).standard_normal((len(load("vae")["x_sample"]), model_def.N_Z))
            values["x_sample"] = util.in_batches(
                lambda batch: session.run(graph.sample, {graph.z: batch}), len(x), z)
    return values


# ---------------------------------------------------------------- golden values


@pytest.mark.parametrize("name", ["z_mean", "z_log_sigma_sq", "z", "x_sample"])
def test_golden_activations(evaluated, name):
    np.testing.assert_allclose(evaluated[name], load("vae")[name], **ACTIVATION)


def test_golden_reconstruction(evaluated):
    """logits_0_3 and x_reconstr_mean_0_3: the first rows; logits_stats: mean, std, L2 of all."""
    golden = load("vae")
    for name in ("logits", "x_reconstr_mean"):
        expected = golden[name + "_0_3"]
        np.testing.assert_allclose(evaluated[name][:len(expected)], expected, **ACTIVATION)
    logits = evaluated["logits"].astype(np.float64)
    np.testing.assert_allclose([logits.mean(), logits.std()], golden["logits_stats"][:2],
                               **ACTIVATION)
    np.testing.assert_allclose(l2([logits])[0], golden["logits_stats"][2], **NORM)


def test_golden_losses(evaluated):
    """reconstr_losses and latent_losses per image, their mean sum, and the pixel error."""
    golden = load("vae")
    np.testing.assert_allclose(evaluated["reconstr_loss"], golden["reconstr_losses"], **LOSS)
    np.testing.assert_allclose(evaluated["latent_loss"], golden["latent_losses"], **LOSS)
    np.testing.assert_allclose(evaluated["total_loss"], golden["total_loss"], **LOSS)
    x, _ = golden_inputs()
    np.testing.assert_allclose(util.reconstruction_error(evaluated["x_reconstr_mean"], x),
                               golden["reconstruct_error"], **LOSS)


def test_golden_gradients(evaluated):
    """L2 norm and first entries of d total_loss / d variable, in creation order.

    An entry's error is compared with the largest of the eight: they are sums with cancellation.
    """
    golden = load("vae")
    np.testing.assert_allclose(l2(evaluated["gradients"]), golden["grad_l2"], **NORM)
    for ours, expected in zip(first8(evaluated["gradients"]), golden["grad_first8"]):
        print("G", abs(ours-expected).max(), abs(ours-expected).max()/np.abs(expected).max())
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_golden_adam_steps_in_the_loop():
    """model_def.train_step inside npu_session.Loop, the same x and eps every step.

    var_*_k after k steps, loss_after_0123 before and after each; epoch_loss gathers them.
    """
    golden, (x, eps) = load("vae"), golden_inputs()
    steps = sorted(int(key[len("var_l2_"):]) for key in golden if key.startswith("var_l2_"))
    initializer, losses = model_def.xavier_uniform(0), []
    with npu_session.new_graph().as_default():
        args = main.parse_args(["--log_every=1"])
        epoch_loss = tf.get_variable("epoch_loss", [], initializer=tf.zeros_initializer(),
                                     trainable=False)
        loop = npu_session.Loop(lambda: model_def.train_step(
            tf.constant(x), tf.constant(eps), initializer, args.learning_rate, epoch_loss), 1)
        variables = vae_variables()
        assert [variable.op.name for variable in variables] == golden["var_names"].tolist()
        with tf.Session(config=npu_session.session_config(args)) as session:
            session.run(tf.global_variables_initializer())
            fill(session)
            loop.prepare(session)
            before = session.run(variables)
            for step in steps:
                if step > len(losses):
                    losses.extend(loop.run(session, step - len(losses)))
                check_variables(session.run(variables), before, golden, step)
            losses.extend(loop.run(session, len(golden["loss_after_0123"]) - len(losses)))
            gathered = session.run(epoch_loss)
    total, reconstr, latent = np.transpose(losses)
    print("L", abs(total/golden["loss_after_0123"]-1))
    np.testing.assert_allclose(total, golden["loss_after_0123"], **LOSS)
    np.testing.assert_allclose(reconstr + latent, total, **LOSS)
    np.testing.assert_allclose(latent[0], golden["latent_losses"].mean(), **LOSS)
    np.testing.assert_allclose(gathered, total.sum(), **LOSS)


def check_variables(values, before, golden, step):
    """Norms, first entries and norms of the change of the variables after `step` steps."""
    np.testing.assert_allclose(l2(values), golden[f"var_l2_{step}"], **NORM)
    if not step:
        return
    print("V", step, abs(first8(values)-golden[f"var_first8_{step}"]).max(axis=1))
    np.testing.assert_allclose(first8(values), golden[f"var_first8_{step}"], **ACTIVATION)
    change = l2([value - start for value, start in zip(values, before)])
    print("D", step, abs(change/golden[f"var_delta_l2_{step}"]-1))
    np.testing.assert_allclose(change, golden[f"var_delta_l2_{step}"], **NORM)
