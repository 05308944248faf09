"""The boosting steps: the reference's real loops and whole runs number for number, and options."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import contextlib
import os
import types

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import adagan
import adagan_gmm
import datahandler
import gan
import metrics
import npu_session
from draws import ReferenceDraws
from figures import Figures
from golden_rules import MEANS, assert_close, fill, find_seed, load
from mixture import Mixture

POINTS = 640
SHORT = [f"--toy_dataset_size={POINTS}", "--epochs=2", "--mixture_c_epoch_num=2", "--threads=1",
         "--use_tqdm=False", "--reference_stream=True"]
END_TO_END = ["--plot_every=1000", "--samples_per_component=200", "--learning_rate=0.05"]
HEURISTICS = {
    "star": [], "dagger": ["--weights_heur=theory_dagger"],
    "topk_constant": ["--weights_heur=topk", "--beta_heur=constant", "--beta_constant=0.3"],
    "bagging": ["--is_bagging"]}
ARITHMETIC = 1e-9  # of the golden README, for what no graph has computed


def golden_fill(shapes, seed, *_):
    """In place of gan.initial_values: the golden rule for every variable of every component."""
    del seed
    return {name: fill(name, shape, find_seed()) for name, shape in shapes.items()}


def golden_data():
    """The golden runs' training points."""
    points = load("datasets")["gmm/default_1500/X"][:POINTS]
    return datahandler.Data(points.reshape(-1, 2, 1, 1), MEANS, 0.05, "gmm")


@contextlib.contextmanager
def boosting(folder, *flags, pictures=False):
    """(AdaGan, its session, its random stream), the stream at the golden seed."""
    args = adagan_gmm.parse_args(SHORT + [f"--output_dir={folder}"] + list(flags))
    args.ckpt_dir = str(folder)
    data, stream = golden_data(), np.random.RandomState(find_seed())
    with npu_session.new_graph().as_default():
        model = gan.build(args, POINTS)
        with tf.Session(config=npu_session.session_config(args)) as session:
            session.run(tf.global_variables_initializer())
            yield adagan.AdaGan(
                args, data, model, session, ReferenceDraws(0, args, stream),
                Figures(str(folder), data) if pictures else None, Mixture(),
                types.SimpleNamespace(code=0), lambda *_, **__: None), session, stream


def assert_trained(session, golden, prefix, scope=""):
    for variable in tf.trainable_variables():
        if variable.op.name.startswith(scope):
            key = prefix + variable.op.name
            assert_close(session.run(variable), golden[key], what=key)


# ---------------------------------------------------------------- golden values


def test_golden_loops_of_training_and_of_the_classifier(tmp_path, monkeypatch):
    """Variables, samples, probabilities, and how far the random stream has got."""
    monkeypatch.setattr(gan, "initial_values", golden_fill)
    golden = load("train_loop")
    with boosting(tmp_path, "--plot_every=7", "--log_every=4") as (steps, session, stream):
        model, draws = steps._gan, steps._draws
        model.initialise(session, 0)
        draws.weigh(golden["data_weights"])
        assert steps.train() == 20
        assert_trained(session, golden, "train/var/")
        np.testing.assert_array_equal(stream.random_sample(3), golden["train/tail"])
        stream.seed(find_seed())
        assert_close(model.sample(session, draws.component_noise(250))[..., 0, 0],
                     golden["sample"])
        fake = 8.0 * np.random.RandomState(find_seed() + 401).standard_normal((POINTS, 2, 1, 1))
        stream.seed(find_seed())
        assert steps.train_classifier(fake)
        assert_close(model.point_probabilities(session), golden["prob_real"])
        assert_trained(session, golden, "c/var/", gan.CLASSIFIER)
        np.testing.assert_array_equal(stream.random_sample(len(golden["c/tail"])),
                                      golden["c/tail"])


@pytest.mark.parametrize("case", sorted(HEURISTICS))
def test_golden_whole_runs(case, tmp_path, monkeypatch):
    """Three steps: weights of data and components, samples, mixture, metrics, random stream."""
    monkeypatch.setattr(gan, "initial_values", golden_fill)
    golden, real = load("e2e_" + case), golden_data().points[:500]
    with boosting(tmp_path, *END_TO_END, *HEURISTICS[case], pictures=case == "star") as (
            steps, _, stream):
        for step in range(3):
            iterations, component = steps.make_step()
            assert iterations == 20 and component.rate > 0
            fake, more = steps.sample_mixture(100), steps.sample_mixture(50)
            found = metrics.evaluate(real, fake, more)
            key = f"step{step}/"
            assert_close(steps.data_weights, golden[key + "data_weights"], what=key + "weights")
            assert_close(steps.mixture.weights, golden[key + "mixture_weights"], ARITHMETIC)
            for name, points in (("samples", steps.mixture.components[-1]), ("fake", fake),
                                 ("morefake", more)):
                assert_close(points[..., 0, 0], golden[key + name], what=key + name)
            assert_close([found.log_p, found.C], golden[key + "exact_logp_C"])
        np.testing.assert_array_equal(stream.random_sample(3), golden["tail"])
    expected = [name for name in golden["files"]
                if case == "star" or not name.endswith(".png")]
    assert set(expected) <= set(os.listdir(str(tmp_path)))


# ---------------------------------------------------------------- schedule


def options(**changes):
    return types.SimpleNamespace(**dict({
        "log_every": 500, "gan_epoch_num": 15, "toy_dataset_size": 64000, "batch_size": 64,
        "max_steps": None, "plot_every": 500, "verbose": True, "mixture_c_epoch_num": 5},
        **changes))


def test_iterations_of_a_component():
    assert adagan.iterations_per_epoch(options()) == 1000
    assert adagan.iterations(options()) == 15000
    assert adagan.iterations(options(toy_dataset_size=100)) == 15  # 36 points are left over
    assert adagan.iterations(options(max_steps=7)) == 7
    assert adagan.iterations(options(max_steps=20000)) == 15000


def test_runs_end_at_pictures_and_multiples_of_log_every():
    assert list(adagan.chunk_ends(options(log_every=400), 0, 1000, 300)) == [
        300, 400, 600, 800, 900, 1000]
    assert list(adagan.chunk_ends(options(), 700, 1000, 0)) == [1000]
    assert list(adagan.chunk_ends(options(), 5, 5, 0)) == []


def test_pictures_are_drawn_only_where_wanted():
    assert adagan.picture_period(options()) == 500
    assert adagan.picture_period(options(plot_every=-1)) == 0  # the reference: every iteration
    assert adagan.picture_period(options(verbose=False)) == 0


def test_the_defaults_fit_the_npus_loop():
    lengths = []
    loop = types.SimpleNamespace(check=lengths.append)
    adagan.check_loop(options(), loop)
    assert set(lengths) == {500}
