"""The VAE: golden values of the reference, numbers known on paper, names, and checkpoints."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import main
import model_def
import npu_session
import util
from golden_rules import FILL, IMG, RS, find_seed, load

HERE = os.path.dirname(os.path.abspath(__file__))
# Tolerances of the golden README.
LOSS = {"rtol": 1e-5, "atol": 0}
NORM = {"rtol": 1e-5, "atol": 0}
ACTIVATION = {"rtol": 0, "atol": 2e-5}
ADAM_ENTRY = {"rtol": 0, "atol": 1e-6}  # a thousandth of a step; the README's 2e-5 is 2 %

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
    np.testing.assert_allclose(total, golden["loss_after_0123"], **LOSS)
    np.testing.assert_allclose(reconstr + latent, total, **LOSS)
    np.testing.assert_allclose(latent[0], golden["latent_losses"].mean(), **LOSS)
    np.testing.assert_allclose(gathered, total.sum(), **LOSS)


def check_variables(values, before, golden, step):
    """Norms, first entries and norms of the change of the variables after `step` steps."""
    np.testing.assert_allclose(l2(values), golden[f"var_l2_{step}"], **NORM)
    if not step:
        return
    np.testing.assert_allclose(first8(values), golden[f"var_first8_{step}"], **ADAM_ENTRY)
    change = l2([value - start for value, start in zip(values, before)])
    np.testing.assert_allclose(change, golden[f"var_delta_l2_{step}"], **NORM)


def test_golden_names_and_shapes_of_the_program():
    """Names are API: checkpoints and the export tools of the reference use them."""
    names = load("vae")["var_names"].tolist()
    with npu_session.new_graph().as_default() as graph:
        _, ours = program_graph(2)
        trainable = tf.trainable_variables()
        everything = [variable.op.name for variable in tf.global_variables()]
    assert names == [variable.op.name for variable in trainable] == list(model_def.VARIABLES)
    assert [variable.shape.as_list() for variable in trainable] == [
        shape for layers in LAYERS.values() for weights in layers
        for shape in (list(weights), [weights[1]])]
    assert sum(np.prod(variable.shape.as_list()) for variable in trainable) == 1316824
    assert [name for name in everything if not name.startswith(("progress/", "global_step"))] == (
        names + ["beta1_power", "beta2_power"]
        + [name + slot for name in names for slot in ("/Adam", "/Adam_1")])
    assert (ours.x.name, ours.z.name, ours.eps.name) == ("x_ph:0", "x_ph_1:0", "eps:0")
    assert ours.model.x_reconstr_mean.name == "gen/Sigmoid:0"
    assert ours.sample.name == "gen_1/Sigmoid:0" and ours.model.total_loss.name == "total_loss:0"
    for name in ("x_ph", "x_ph_1", "gen/Sigmoid", "gen_1/Sigmoid", "total_loss"):
        assert graph.get_operation_by_name(name).name == name


# ---------------------------------------------------------------- numbers known on paper


@pytest.fixture(scope="module")
def program():
    """(session, Graph) of the program with batches of 4; tests set all weights they depend on."""
    with npu_session.new_graph().as_default():
        args, graph = program_graph(4)
        with tf.Session(config=npu_session.session_config(args)) as session:
            yield session, graph


def with_weights(program, **biases):
    """All weights 0, and of the biases those given, e.g. enc_b3=1. Returns the session, graph."""
    session, graph = program
    with session.graph.as_default():
        for variable in vae_variables():
            value = biases.get(variable.op.name.replace("/", "_"), 0.0)
            variable.load(np.full(variable.shape.as_list(), value, np.float32), session)
    return session, graph


@pytest.mark.parametrize("z_mean, log_sigma_sq, divergence", [
    (0, 0, 0), (1, 0, 10), (-2, 0, 40), (0, np.log(4), 10 * (3 - np.log(4))),
    (1, -1, 10 * (1 + np.exp(-1)))])
def test_divergence_of_known_gaussians(program, z_mean, log_sigma_sq, divergence):
    """20 dimensions of KL(N(mean, sigma^2) | N(0, 1)) = (mean^2 + sigma^2 - 1 - ln sigma^2) / 2."""
    session, graph = with_weights(program, enc_b3=z_mean, enc_b4=log_sigma_sq)
    x, eps = IMG(RS(1), 4), RS(2).standard_normal((4, 20))
    latent, z = session.run([graph.model.latent_loss, graph.model.z], {graph.x: x, graph.eps: eps})
    np.testing.assert_allclose(latent, [divergence] * 4, rtol=1e-6)
    np.testing.assert_allclose(z, z_mean + np.exp(log_sigma_sq / 2) * eps, rtol=1e-5)


def test_cross_entropy_of_known_logits(program):
    """Logit 0: 784 ln 2 for any image; logit 50: 0 for a white image, 784 * 50 for a black one."""
    images = np.stack([np.zeros(784), np.ones(784), *IMG(RS(1), 2)])
    for bias, expected in ((0, [784 * np.log(2)] * 4), (50, [784 * 50, 0])):
        session, graph = with_weights(program, gen_b3=bias)
        model = session.run(graph.model._asdict(), {graph.x: images, graph.eps: np.zeros((4, 20))})
        np.testing.assert_allclose(model["reconstr_loss"][:len(expected)], expected, 1e-6, 1e-12)
        np.testing.assert_allclose(model["total_loss"], model["reconstr_loss"].mean(), 1e-6)
        np.testing.assert_allclose(model["x_reconstr_mean"], 1 / (1 + np.exp(-float(bias))))


# ---------------------------------------------------------------- properties


def test_permuting_images_permutes_results(program):
    session, graph = program
    with session.graph.as_default():
        fill(session)
    x, eps, order = IMG(RS(1), 4), RS(2).standard_normal((4, 20)), [2, 0, 3, 1]
    wanted = [graph.model.z_mean, graph.model.x_reconstr_mean, graph.model.reconstr_loss,
              graph.model.latent_loss]
    plain = session.run(wanted, {graph.x: x, graph.eps: eps})
    permuted = session.run(wanted, {graph.x: x[order], graph.eps: eps[order]})
    for first, second in zip(plain, permuted):
        np.testing.assert_allclose(second, first[order], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count", [1, 3, 4, 6])
def test_any_number_of_images_is_reconstructed(program, count):
    """Batches of 4: fewer images than a batch, and a last batch that is not full."""
    session, graph = program
    with session.graph.as_default():
        fill(session)
    images = np.random.RandomState(3).randint(0, 256, (8, 784)).astype(np.uint8)
    eps = np.random.RandomState(4).standard_normal((8, 20))
    whole = main.reconstruct(session, graph, images, eps)
    part = main.reconstruct(session, graph, images[:count], eps[:count])
    assert part.shape == (count, 784)
    np.testing.assert_allclose(part, whole[:count], rtol=0, atol=1e-6)


def initial_values(seed):
    """The VAE's initial weights for a seed of the program, by name."""
    with npu_session.new_graph().as_default(), tf.Session() as session:
        program_graph(2, seed)
        session.run(tf.global_variables_initializer())
        return session.run({variable.op.name: variable for variable in vae_variables()})


def test_initial_weights_are_uniform_within_the_limit_and_fixed_by_the_seed():
    values, same, other = initial_values(0), initial_values(0), initial_values(1)
    for name, value in values.items():
        np.testing.assert_array_equal(value, same[name])
        if value.ndim == 1:
            assert not value.any()
            continue
        limit = np.sqrt(6 / sum(value.shape))
        assert (value != other[name]).mean() > 0.99
        assert 0.999 * limit < np.abs(value).max() <= limit
        assert abs(value.mean()) < 4 * limit / np.sqrt(3 * value.size)  # 4 standard errors
        assert abs(value.std() * np.sqrt(3) / limit - 1) < 0.02


# ---------------------------------------------------------------- checkpoints across TensorFlow


def train_on(source, target):
    """Trains two steps from the checkpoint in `source` ("": from the start), saves in `target`.

    Writes all variables to target/before.npz and target/after.npz. The test below runs it in this
    process and, under the other TensorFlow, in another.
    """
    os.makedirs(target)
    with npu_session.new_graph().as_default():
        args, graph = program_graph(4)
        variables = {variable.op.name: variable for variable in tf.global_variables()}
        with tf.Session(config=npu_session.session_config(args)) as session:
            session.run(tf.global_variables_initializer())
            if source:
                npu_session.Checkpoints(source).restore(session, required=True)
            np.savez(os.path.join(target, "before.npz"), **session.run(variables))
            step = int(session.run(tf.train.get_global_step()))
            rows = np.arange(8, dtype=np.int32).reshape(2, 4)
            session.run(graph.pipeline.initializer, graph.pipeline.feed(rows, step))
            graph.loop.run(session, 2)
            np.savez(os.path.join(target, "after.npz"), **session.run(variables))
            npu_session.Checkpoints(target).save(session, "mnist_vae_model-0")
    with open(os.path.join(target, "version"), "w") as file:
        file.write(tf.__version__)


def read_variables(folder, moment):
    """Variables that train_on wrote, by name; moment: "before" or "after"."""
    with np.load(os.path.join(folder, moment + ".npz")) as arrays:
        return {name: arrays[name] for name in arrays.files}


def other_python():
    """The interpreter with the other TensorFlow; skips the test where there is none."""
    folder = ".venv" if sys.version_info < (3, 8) else ".venv-tf115"
    repository = os.path.dirname(os.path.dirname(HERE))
    python = os.environ.get("OTHER_PYTHON") or os.path.join(repository, folder, "bin", "python")
    if not os.path.exists(python):
        pytest.skip(f"no Python with the other TensorFlow at {python} (set OTHER_PYTHON)")
    return python


def check_bit_equal(first, second):
    """The same names, types, shapes and bits."""
    assert sorted(first) == sorted(second)
    for name, value in first.items():
        assert value.dtype == second[name].dtype and value.shape == second[name].shape, name
        assert value.tobytes() == second[name].tobytes(), name


def test_checkpoint_goes_to_the_other_tensorflow_and_back_bit_equal(tmp_path):
    """This one -> the other -> this one: weights, Adam's slots, step counter, progress."""
    ours, others, back, start = (str(tmp_path / name) for name in ("a", "b", "c", "d"))
    python = other_python()
    train_on("", ours)
    code = ("import sys, test_csgm_model; test_csgm_model.train_on(sys.argv[1], sys.argv[2]); "
            "test_csgm_model.train_on('', sys.argv[3])")
    paths = os.pathsep.join([os.path.dirname(main.__file__), HERE])
    subprocess.run([python, "-c", code, ours, others, start], check=True, timeout=120,
                   env=dict(os.environ, PYTHONPATH=paths, PYTHONDONTWRITEBYTECODE="1"))
    train_on(others, back)
    with open(os.path.join(others, "version")) as file:
        assert file.read().split(".")[0] != tf.__version__.split(".")[0]
    check_bit_equal(read_variables(ours, "after"), read_variables(others, "before"))
    check_bit_equal(read_variables(others, "after"), read_variables(back, "before"))
    after = read_variables(back, "after")
    assert after["global_step"] == 6 and after["enc/w1/Adam"].any()
    # Both start a run from the same weights.
    check_bit_equal(read_variables(ours, "before"), read_variables(start, "before"))


def test_checkpoint_of_another_shape_names_the_variable(tmp_path):
    with npu_session.new_graph().as_default(), tf.Session() as session:
        tf.get_variable("enc/w1", [784, 400], initializer=tf.zeros_initializer())
        session.run(tf.global_variables_initializer())
        npu_session.Checkpoints(str(tmp_path)).save(session, "mnist_vae_model-0")
    with npu_session.new_graph().as_default(), tf.Session() as session:
        program_graph(2)
        with pytest.raises(npu_session.InputError, match=r"enc/w1 \[784, 400\].*\[784, 500\]"):
            npu_session.Checkpoints(str(tmp_path)).restore(session)
