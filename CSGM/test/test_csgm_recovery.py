"""Recovery of images: golden objective, optimisers and restarts, and what batching must not change.

The golden set is cs.npz: weights FILL, images, measurements and starts as in `golden_problem`.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import argparse
import re
import types

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import compressed_sensing
import estimators
import measurements
import metrics
import model_def
import npu_session
import recovery
from golden_rules import IMG, RS, find_seed, load

# Tolerances of the golden README.
LOSS = {"rtol": 1e-5, "atol": 0}
ACTIVATION = {"rtol": 0, "atol": 2e-5}
# Of the largest: a measurement is a sum of 784 products, up to 50; the README gives no tolerance.
MEASUREMENT = 2e-6
GRADIENT = 1e-5

CASES = ("gaussian", "inpaint", "superres", "project")
INPAINT_SIZE = 10  # pixels; the files hold only a part of these measurements
WEIGHTS = {"mloss1_weight": 0.0, "mloss2_weight": 1.0, "zprior_weight": 0.1}
OPTIMIZER_TAGS = sorted(key[len("opt_"):-len("_loss")] for key in load("cs")
                        if re.match(r"opt_.*_loss$", key))


def settings(**changes):
    """recovery.Settings of the golden set, Adam 0.1, 20 updates, one start; with changes."""
    values = dict(WEIGHTS, optimizer_type="adam", learning_rate=0.1, momentum=0.9, decay_lr=False,
                  max_update_iter=20, num_random_restarts=1)
    return recovery.Settings(**dict(values, **changes))


def session_config():
    """The programs' session configuration, from their default flags."""
    parser = argparse.ArgumentParser()
    npu_session.add_flags(parser, precision_mode="must_keep_origin_dtype")
    return npu_session.session_config(parser.parse_args([]))


@pytest.fixture(scope="module")
def golden_problem():
    """Inputs of cs.npz: x [B, 784], A, y by case, z0 [B, 20], starts [restarts, B, 20].

    RS(SEED + 3), in order: x = IMG(rs, B), A [784, m], 0.1 * noise [B, m], z0, 0.1 * noise_p
    [B, 784], one further start for each restart but the first.
    """
    golden = load("cs")
    (count, m), n_z = golden["y_gaussian"].shape, golden["z0"].shape[1]
    rs = RS(find_seed() + 3)
    x = IMG(rs, count)
    factor = int(round(np.sqrt(784 / golden["superres_y_hat"].shape[1])))
    matrix = {"gaussian": rs.standard_normal((784, m)),
              "inpaint": measurements.inpaint_matrix(INPAINT_SIZE),
              "superres": measurements.superres_matrix(factor), "project": None}
    y = {case: x @ matrix[case] for case in ("gaussian", "inpaint", "superres")}
    y["gaussian"] += 0.1 * rs.standard_normal((count, m))
    z0 = rs.standard_normal((count, n_z)).astype(np.float32)
    y["project"] = x + 0.1 * rs.standard_normal(x.shape)
    further = [rs.standard_normal(z0.shape) for _ in golden["restarts_final_total_loss_batch"][1:]]
    return types.SimpleNamespace(x=x, matrix=matrix, y=y, z0=z0,
                                 starts=np.stack([z0] + further).astype(np.float32))


class Solver:
    """recovery.build_graph for one group with its session, a VAE's weights and a problem loaded.

    Args: settings; folder of the checkpoint; matrix [784, m] or None, y [B, m], z0 [S, B, 20].
    """

    def __init__(self, chosen, folder, matrix, y, z0):
        with npu_session.new_graph().as_default() as tf_graph:
            self.graph = recovery.build_graph(chosen, 1, len(z0), len(y),
                                              None if matrix is None else matrix.shape[1], 1)
            self.gradient, = tf.gradients(
                tf.reduce_sum(self.graph.final.total_loss) / len(y), [self.graph.z])
            weights = [variable for variable in tf.global_variables()
                       if variable.op.name in model_def.VARIABLES]
            checkpoints = npu_session.Checkpoints(folder, weights)
            self.session = tf.Session(graph=tf_graph, config=session_config())
            checkpoints.restore(self.session, required=True)
            self.graph.loop.prepare(self.session)
        self.session.run(self.graph.reset)
        self.graph.z.load(np.asarray(z0, np.float32)[None], self.session)
        self.graph.y.load(np.asarray(y, np.float32)[None], self.session)
        if matrix is not None:
            self.graph.matrix.load(np.asarray(matrix, np.float32)[None], self.session)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.session.close()

    def update(self, count):
        """Runs updates; returns z [S, B, 20] and the terms before each update [count, S, 4]."""
        history = self.graph.loop.run(self.session, count)
        return self.session.run(self.graph.z)[0], history

    def final(self):
        """recovery.Objective of z now, as arrays without the group's axis."""
        values = self.session.run(self.graph.final._asdict())
        return recovery.Objective(**{name: value[0] for name, value in values.items()})


def recover(chosen, folder, matrix, y, z0):
    """recovery.Recovery once: matrix [G, 784, m] or None, y [G, B, m], z0 [G, S, B, 20]."""
    with recovery.Recovery(chosen._replace(num_random_restarts=z0.shape[1]), folder, len(y),
                           y.shape[1], None if matrix is None else matrix.shape[2], False,
                           session_config(), iterations_per_loop=7) as solver:
        return solver.run(matrix, y, z0)


# ---------------------------------------------------------------- golden: objective


@pytest.mark.parametrize("case", CASES)
def test_golden_objective_and_its_gradient(golden_problem, golden_checkpoint, case):
    """All terms at z0; dtotal_dz carries the batch mean's 1 / B."""
    golden, problem = load("cs"), golden_problem
    with Solver(settings(), golden_checkpoint, problem.matrix[case], problem.y[case],
                problem.z0[None]) as solver:
        final, gradient = solver.final(), solver.session.run(solver.gradient)[0, 0]
    final = recovery.Objective(*[value[0] for value in final])  # the one start
    np.testing.assert_allclose(final.x_hat, golden["x_hat_z0"], **ACTIVATION)
    expected = golden[case + "_y_hat"]
    ours = final.y_hat[:expected.shape[0], :expected.shape[1]]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=MEASUREMENT * np.abs(expected).max())
    np.testing.assert_allclose(final.total_loss, golden[case + "_total_loss_batch"], **LOSS)
    for term in recovery.TERMS:
        np.testing.assert_allclose(getattr(final, term).mean(), golden[f"{case}_{term}"], **LOSS)
    expected = golden[case + "_dtotal_dz"]
    np.testing.assert_allclose(gradient, expected, rtol=0,
                               atol=GRADIENT * np.abs(expected).max())
    np.testing.assert_allclose(
        metrics.measurement_loss(final.x_hat, problem.matrix[case], problem.y[case]),
        golden[case + "_measurement_loss_fn"], **LOSS)
    np.testing.assert_allclose(metrics.l2_loss(final.x_hat, problem.x),
                               golden[case + "_l2_loss_fn"], **LOSS)


def test_golden_measurements(golden_problem):
    np.testing.assert_allclose(golden_problem.y["gaussian"], load("cs")["y_gaussian"], 1e-12)
    np.testing.assert_array_equal(golden_problem.z0, load("cs")["z0"])


# ---------------------------------------------------------------- golden: optimisers


def settings_of_tag(tag):
    """Settings that a tag of the golden file stands for: name_rate[_momentum][_l1|_decay]."""
    parts = tag.split("_")
    numbers = [float(part) for part in parts[1:] if part[0].isdigit()]
    changes = {"optimizer_type": parts[0], "learning_rate": numbers[0],
               "decay_lr": parts[-1] == "decay"}
    if len(numbers) > 1:
        changes["momentum"] = numbers[1]
    if parts[-1] == "l1":
        changes.update(mloss1_weight=1.0, mloss2_weight=0.0, zprior_weight=0.0)
    return settings(**changes)


def test_golden_file_has_every_optimizer():
    assert {settings_of_tag(tag).optimizer_type for tag in OPTIMIZER_TAGS} == set(
        recovery.OPTIMIZERS)


@pytest.mark.parametrize("tag", OPTIMIZER_TAGS)
def test_golden_optimizer(golden_problem, golden_checkpoint, tag):
    """z after some numbers of updates, and the objective before and after every update."""
    golden, problem = load("cs"), golden_problem
    prefix = f"opt_{tag}_z_"
    updates = sorted(int(key[len(prefix):]) for key in golden if key.startswith(prefix))
    losses = []
    with Solver(settings_of_tag(tag), golden_checkpoint, problem.matrix["gaussian"],
                problem.y["gaussian"], problem.z0[None]) as solver:
        for done in updates:
            z, history = solver.update(done - len(losses))
            losses.extend(history[:, 0, 0])
            np.testing.assert_allclose(z[0], golden[prefix + str(done)], **ACTIVATION)
        per_image = solver.final().total_loss[0]
    losses.append(per_image.mean())
    np.testing.assert_allclose(losses, golden[f"opt_{tag}_loss"], **LOSS)
    np.testing.assert_allclose(per_image, golden[f"opt_{tag}_losses_per_image"], **LOSS)


def test_golden_decayed_rate():
    """The rate at decay_steps, from 0.1."""
    golden = load("cs")
    with npu_session.new_graph().as_default(), tf.Session() as session:
        step = tf.placeholder(tf.int64, [])
        rate = recovery.learning_rate(settings(decay_lr=True), step)
        ours = [session.run(rate, {step: value}) for value in golden["decay_steps"]]
    np.testing.assert_allclose(ours, golden["decay_lr"], rtol=1e-6)
    assert recovery.learning_rate(settings(learning_rate=0.02), None) == 0.02


# ---------------------------------------------------------------- golden: restarts


def test_golden_restarts_in_one_graph(golden_problem, golden_checkpoint):
    """All starts as rows of one batch: the final objective of each, and the best start's image."""
    golden, problem = load("cs"), golden_problem
    with Solver(settings(), golden_checkpoint, problem.matrix["gaussian"], problem.y["gaussian"],
                problem.starts) as solver:
        _, history = solver.update(20)
        final = solver.final()
    np.testing.assert_allclose(final.total_loss, golden["restarts_final_total_loss_batch"], **LOSS)
    best = final.total_loss.argmin(axis=0)
    np.testing.assert_array_equal(best, golden["restarts_best"])
    np.testing.assert_allclose(final.x_hat[best, np.arange(len(best))],
                               golden["restarts_x_hat_best"], **ACTIVATION)
    np.testing.assert_allclose(history[0, 0, 0], golden["gaussian_total_loss"], **LOSS)


def test_golden_restarts_through_recovery(golden_problem, golden_checkpoint):
    """The class the program uses: which start it takes, its image, and the image's two errors."""
    golden, problem = load("cs"), golden_problem
    matrix, y = problem.matrix["gaussian"], problem.y["gaussian"]
    estimate = recover(settings(), golden_checkpoint, matrix[None], y[None], problem.starts[None])
    np.testing.assert_array_equal(estimate.start[0], golden["restarts_best"])
    np.testing.assert_allclose(estimate.total_loss[0],
                               golden["restarts_final_total_loss_batch"].min(axis=0), **LOSS)
    x_hat = estimate.x_hat[0]
    np.testing.assert_allclose(x_hat, golden["restarts_x_hat_best"], **ACTIVATION)
    np.testing.assert_allclose(metrics.l2_loss(x_hat, problem.x), golden["restarts_l2_loss"],
                               **LOSS)
    np.testing.assert_allclose(metrics.measurement_loss(x_hat, matrix, y),
                               golden["restarts_measurement_loss"], **LOSS)
    assert estimate.history.shape == (20, len(problem.starts), len(recovery.TERMS))


# ---------------------------------------------------------------- what batching must not change


def random_problem(groups=1, starts=1, batch=3, m=15, seed=0):
    """matrix [G, 784, m], y [G, B, m], z0 [G, S, B, 20] without relation to the golden set."""
    rs = RS(seed)
    matrix = rs.standard_normal((groups, 784, m))
    y = np.stack([IMG(rs, batch) @ one for one in matrix])
    return matrix, y, rs.standard_normal((groups, starts, batch, 20))


def check_same(first, second):
    """Two Estimates agree: the same starts, objectives, z and images."""
    np.testing.assert_array_equal(first.start, second.start)
    np.testing.assert_allclose(first.total_loss, second.total_loss, **LOSS)
    np.testing.assert_allclose(first.z, second.z, **ACTIVATION)
    np.testing.assert_allclose(first.x_hat, second.x_hat, **ACTIVATION)


@pytest.mark.parametrize("optimizer, rate", [("sgd", 0.1), ("adam", 0.1)])
def test_stacked_restarts_equal_looped_ones(golden_checkpoint, optimizer, rate):
    """Also with optimisers whose steps grow with the gradient, which carries 1 / B, not 1 / SB."""
    chosen = settings(optimizer_type=optimizer, learning_rate=rate)
    matrix, y, z0 = random_problem(starts=3)
    stacked = recover(chosen, golden_checkpoint, matrix, y, z0)
    with recovery.Recovery(chosen, golden_checkpoint, 1, y.shape[1], y.shape[2], False,
                           session_config()) as solver:
        looped = [solver.run(matrix, y, z0[:, [start]]) for start in range(3)]
    totals = np.stack([one.total_loss[0] for one in looped])
    np.testing.assert_array_equal(stacked.start[0], totals.argmin(axis=0))
    np.testing.assert_allclose(stacked.total_loss[0], totals.min(axis=0), **LOSS)
    for image, start in enumerate(stacked.start[0]):
        np.testing.assert_allclose(stacked.x_hat[0, image], looped[start].x_hat[0, image],
                                   **ACTIVATION)
    for start, one in enumerate(looped):
        np.testing.assert_allclose(stacked.history[:, start], one.history[:, 0], rtol=1e-5)


def test_groups_with_own_matrices_equal_separate_runs(golden_checkpoint):
    chosen = settings(optimizer_type="momentum", learning_rate=0.05)
    matrix, y, z0 = random_problem(groups=3, starts=2)
    together = recover(chosen, golden_checkpoint, matrix, y, z0)
    with recovery.Recovery(chosen._replace(num_random_restarts=2), golden_checkpoint, 1,
                           y.shape[1], y.shape[2], False, session_config()) as solver:
        for group in range(3):
            alone = solver.run(matrix[[group]], y[[group]], z0[[group]])
            check_same(recovery.Estimate(*[value[[group]] for value in together[:4]],
                                         together.history), alone)


def test_permuting_images_permutes_results(golden_checkpoint):
    matrix, y, z0 = random_problem(starts=2, batch=4)
    order = [2, 0, 3, 1]
    plain = recover(settings(), golden_checkpoint, matrix, y, z0)
    permuted = recover(settings(), golden_checkpoint, matrix, y[:, order], z0[:, :, order])
    check_same(recovery.Estimate(*[value[:, order] for value in plain[:4]], plain.history),
               permuted)


def test_a_solver_forgets_its_earlier_runs(golden_checkpoint):
    """Optimiser slots, Adam's powers and the step counter start anew, so decay does too."""
    matrix, y, z0 = random_problem()
    with recovery.Recovery(settings(decay_lr=True, max_update_iter=60), golden_checkpoint, 1,
                           y.shape[1], y.shape[2], False, session_config()) as solver:
        first, again = (solver.run(matrix, y, z0) for _ in range(2))
    for one, other in zip(first, again):
        np.testing.assert_array_equal(one, other)


def test_after_updates_sees_every_piece_of_the_run(golden_checkpoint):
    """Called every iterations_per_loop updates and at the end, with the images at that point."""
    matrix, y, z0 = random_problem()
    seen = []
    with recovery.Recovery(settings(max_update_iter=20), golden_checkpoint, 1, y.shape[1],
                           y.shape[2], False, session_config(), iterations_per_loop=8) as solver:
        estimate = solver.run(matrix, y, z0, after_updates=lambda done, get_x_hat: seen.append(
            (done, get_x_hat())))
    assert [done for done, _ in seen] == [8, 16, 20]
    assert all(x_hat.shape == (1, 1, 3, 784) for _, x_hat in seen)
    np.testing.assert_array_equal(seen[-1][1][:, 0], estimate.x_hat)
    assert np.abs(seen[0][1] - seen[1][1]).max() > 1e-4


# ---------------------------------------------------------------- the estimator


def estimator_args(folder, tmp_path, *flags):
    """Flags of compressed_sensing.py for a short run with the golden weights."""
    return compressed_sensing.parse_args([
        "--model-types", "vae", "--pretrained-model-dir", folder, f"--output_dir={tmp_path}",
        "--measurement-type=gaussian", "--num-measurements=15", "--max-update-iter=10",
        "--num-random-restarts=2", "--learning-rate=0.1", "--batch-size=3", *flags])


def test_filling_up_runs_and_batches_does_not_change_results(golden_checkpoint, tmp_path):
    """7 images in batches of 3: the last batch is filled up, and with 2 a run so is the last run.

    What fills the batch up is replaced by other images in one of the runs.
    """
    args = estimator_args(golden_checkpoint, tmp_path, "--optimizer-type=momentum")
    batches = compressed_sensing.make_batches(args, IMG(RS(1), 7))
    assert [batch.count for batch in batches] == [3, 3, 1]
    args.batches_per_run = 2
    filled = list(estimators.vae(args, batches))
    args.batches_per_run = 1
    last = batches[-1]
    other_y = np.concatenate([last.y[:1], 5 * RS(2).standard_normal(last.y[1:].shape)])
    alone = list(estimators.vae(args, batches[:2] + [last._replace(y=other_y)]))
    assert len(filled) == len(alone) == 3
    for batch, first, second in zip(batches, filled, alone):
        np.testing.assert_allclose(first[:batch.count], second[:batch.count], **ACTIVATION)
    assert np.abs(filled[2][1:] - alone[2][1:]).max() > 1e-3  # the filling was another


def test_starts_depend_on_seed_and_batch_only(golden_checkpoint, tmp_path):
    args = estimator_args(golden_checkpoint, tmp_path)
    batches = compressed_sensing.make_batches(args, IMG(RS(1), 6))
    starts = [estimators.random_starts(args, batch) for batch in batches]
    assert starts[0].shape == (2, 3, 20) and (starts[0] != starts[1]).all()
    np.testing.assert_array_equal(starts[1], estimators.random_starts(args, batches[1]))
    args.seed = 2
    assert (starts[0] != estimators.random_starts(args, batches[0])).all()


def test_missing_checkpoint_is_a_clear_error(tmp_path):
    with pytest.raises(npu_session.InputError, match=re.escape(str(tmp_path))):
        recovery.Recovery(settings(), str(tmp_path), 1, 3, 15, False, session_config())


# ---------------------------------------------------------------- the best start


def chosen_starts(total_loss):
    """best_start of totals [S, B] in one group; images and z say which start they are from."""
    total_loss = np.asarray(total_loss, np.float32)[None]
    start = np.broadcast_to(np.arange(total_loss.shape[1])[None, :, None, None],
                            total_loss.shape + (1,))
    return recovery.best_start(start + 0.5, start, total_loss, "history", settings())


def test_best_start_is_chosen_per_image_and_ties_go_to_the_first():
    estimate = chosen_starts([[3, 1, 2], [2, 1, 2], [2, 5, 1]])
    np.testing.assert_array_equal(estimate.start, [[1, 0, 2]])
    np.testing.assert_array_equal(estimate.z[0, :, 0], [1, 0, 2])
    np.testing.assert_array_equal(estimate.x_hat[0, :, 0], [1.5, 0.5, 2.5])
    np.testing.assert_array_equal(estimate.total_loss, [[2, 1, 1]])
    assert estimate.history == "history"


@pytest.mark.parametrize("lost", [np.nan, np.inf, -np.inf])
def test_start_that_is_not_finite_is_passed_over(lost):
    estimate = chosen_starts([[lost, 4, 1], [7, lost, 2], [8, 3, lost]])
    np.testing.assert_array_equal(estimate.start, [[1, 2, 0]])
    np.testing.assert_array_equal(estimate.total_loss, [[7, 3, 1]])


def test_image_without_a_finite_start_is_an_error():
    with pytest.raises(FloatingPointError, match="image 1 .* smaller --learning_rate than 0.1"):
        chosen_starts([[1, np.nan, 1], [1, np.inf, 1]])


def test_diverging_recovery_is_an_error_not_a_black_image(golden_checkpoint):
    matrix, y, z0 = random_problem()
    with pytest.raises(FloatingPointError, match="not finite from any start"):
        recover(settings(optimizer_type="sgd", learning_rate=1e30, max_update_iter=5),
                golden_checkpoint, matrix, y, z0)


# ---------------------------------------------------------------- numbers known on paper


def test_objective_of_a_constant_image(tmp_path):
    """All weights 0, so G(z) = 0.5 everywhere; A measures the first two pixels."""
    with npu_session.new_graph().as_default(), tf.Session() as session:
        model_def.vae(tf.zeros([1, 784]), tf.zeros([1, 20]), model_def.xavier_uniform(0))
        for variable in tf.global_variables():
            variable.load(np.zeros(variable.shape.as_list(), np.float32), session)
        npu_session.Checkpoints(str(tmp_path)).save(session, "zero-0")
    y = np.array([[0.5, 0.5], [1.5, 0.5], [0.5, -2.5]])
    z0 = np.stack([np.zeros((3, 20)), np.full((3, 20), 0.5)])
    chosen = settings(mloss1_weight=10.0, mloss2_weight=1.0, zprior_weight=0.1)
    with Solver(chosen, str(tmp_path), np.eye(784)[:, :2], y, z0) as solver:
        final = solver.final()
        z, history = solver.update(1)
    np.testing.assert_allclose(final.x_hat, 0.5)
    np.testing.assert_allclose(final.y_hat, 0.5)
    np.testing.assert_allclose(final.m_loss1, [[0, 0.5, 1.5]] * 2, atol=1e-6)
    np.testing.assert_allclose(final.m_loss2, [[0, 0.5, 4.5]] * 2, atol=1e-6)
    np.testing.assert_allclose(final.zp_loss, [[0] * 3, [5] * 3])
    np.testing.assert_allclose(final.total_loss, [[0, 5.5, 19.5], [0.5, 6, 20]], atol=1e-5)
    np.testing.assert_allclose(history[0, :, 0], [25 / 3, 26.5 / 3], rtol=1e-6)
    # Only the prior has a gradient: Adam's first step is the rate, towards 0.
    np.testing.assert_allclose(z, [np.zeros((3, 20)), np.full((3, 20), 0.4)], atol=1e-6)
