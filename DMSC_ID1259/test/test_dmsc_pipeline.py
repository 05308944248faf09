"""Both programs, one after the other, against the golden run of the reference's two scripts."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import types

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import affinity_fusion
import checkpoints
import golden_rules
import metrics
import network
import npu_session
import training_runs
from training_runs import affinity_folder, pretrain_folder, succeeded, variables

TRAJECTORY = 1e-4  # from the golden README
LOG_EVERY = 6  # steps of stage 1; each log line costs a checkpoint


def write_start(path, modalities, seed):
    """A checkpoint at `path` of encoders and decoders with the golden values."""
    with npu_session.new_graph().as_default(), tf.Session() as session:
        weights = network.create_weights(modalities, None, seed=0)
        trained = network.autoencoder_variables(weights)
        writer = checkpoints.Writer(path, trained)
        checkpoints.load(session, [
            (variable, golden_rules.FILL(variable.op.name, variable.shape.as_list(), seed))
            for variable in trained])
        writer.write(session)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What the two programs computed from the golden start and data, as a namespace."""
    golden, seed = golden_rules.load("pipeline"), golden_rules.find_seed()
    data = training_runs.write_mat(tmp_path_factory.mktemp("data"),
                                   golden_rules.PIPELINE_DATA(seed), "pipeline")
    output = str(tmp_path_factory.mktemp("run"))
    write_start(os.path.join(output, "models", "mymodel.ckpt"), len(golden["mat_colsum"]), seed)
    common = ["--mat=pipeline", "--steps_per_call=1"]
    steps = len(golden["aff_cost"])
    found = types.SimpleNamespace(output=output, thetas=[])
    costs, plain = [], npu_session.Loop.run

    def recording_run(self, session, count):
        values = plain(self, session, count)
        costs.append(values[0, 0])
        for variable in tf.global_variables():
            if variable.op.name == "theta_before":
                found.thetas.append(session.run(variable))
        return values

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(npu_session.Loop, "run", recording_run)
        found.printed = succeeded(training_runs.pretrain(
            data, output, *common, f"--epoch={len(golden['pre_cost'])}", f"--log_every={LOG_EVERY}",
            "--save_coef"))
        found.pre_cost, costs[:] = list(costs), []
        found.pre_variables = variables(pretrain_folder(output))
        found.clustered = succeeded(training_runs.cluster(
            data, output, *common, f"--affinity_steps={steps}", f"--eval_from={steps}"))
    found.aff_cost = costs
    found.aff_variables = variables(affinity_folder(output))
    with np.load(os.path.join(affinity_folder(output), "results.npz")) as arrays:
        found.labels = arrays["labels"]
    return found


def close(ours, golden):
    """The golden README's rule for arrays."""
    np.testing.assert_allclose(ours, golden, rtol=0, atol=TRAJECTORY * np.abs(golden).max())


def norms(arrays, names):
    """L2 norms. Compared as one array: the bias of a channel that is nearly dead depends on which
    of its few units rounding leaves alive (2.6e-4 of one of 61 norms in TensorFlow 1.15)."""
    return [np.linalg.norm(arrays[name].astype(np.float64)) for name in names]


def test_golden_costs_of_pretraining(run):
    golden = golden_rules.load("pipeline")
    assert "model restored" in run.printed
    np.testing.assert_allclose(run.pre_cost, golden["pre_cost"], rtol=TRAJECTORY)
    printed = [float(line[6:]) for line in run.printed.splitlines() if line.startswith("cost: ")]
    samples = golden["pre_order"].shape[1]
    logged = golden["pre_cost"][LOG_EVERY - 1::LOG_EVERY]
    np.testing.assert_allclose(printed, logged / samples, rtol=TRAJECTORY)


def test_golden_variables_after_pretraining(run):
    golden = golden_rules.load("pipeline")
    names = list(golden["pre_var_names"])
    close(norms(run.pre_variables, names), golden["pre_var_l2"])
    close(run.pre_variables["Coef"], golden["pre_Coef"])


def test_golden_costs_and_coefficients_of_the_affinity_stage(run):
    golden = golden_rules.load("pipeline")
    np.testing.assert_allclose(run.aff_cost, golden["aff_cost"], rtol=TRAJECTORY)
    for step in (1, 10, 30):
        close(run.thetas[step - 1], golden[f"aff_Coef_ret{step}"])
        assert not np.diag(run.thetas[step - 1]).any()


def test_golden_variables_after_the_affinity_stage(run):
    golden = golden_rules.load("pipeline")
    names = list(golden["aff_var_names"])
    close(norms(run.aff_variables, names), golden["aff_var_l2"])
    np.testing.assert_array_equal(np.diag(run.aff_variables["Coef"]),
                                  np.full(len(run.aff_variables["Coef"]), 1e-4, np.float32))


def test_golden_clustering_of_the_golden_coefficients():
    golden = golden_rules.load("pipeline")
    args = types.SimpleNamespace(seed=0, ro=metrics.alpha(3), clusters=3, power=8.0, starts=1,
                                 subspace_dimension=6)
    np.testing.assert_allclose(args.ro, golden["aff_alpha"], rtol=1e-12)
    theta = golden["aff_Coef_ret30"]
    np.testing.assert_array_equal(metrics.thrC(theta, args.ro).astype(np.float32),
                                  golden["aff_thrC"])
    labels, affinity = affinity_fusion.cluster(args, theta, number=0)
    np.testing.assert_allclose(affinity, golden["aff_L"], rtol=0, atol=1e-7)  # stored as float32
    assert metrics.adjusted_rand_index(golden["aff_labels"], labels) == 1


def test_golden_labels_and_scores_of_the_run(run):
    golden = golden_rules.load("pipeline")
    truth = np.repeat(np.arange(1, 4), 8)
    assert metrics.adjusted_rand_index(golden["aff_labels"], run.labels) == 1
    miss, ascend, accuracy, nmi, ari = golden["aff_errs"]
    np.testing.assert_allclose(metrics.scores(truth, run.labels), [accuracy, nmi, ari], rtol=1e-6)
    assert ascend == pytest.approx((1 + accuracy) / 2) and miss == pytest.approx(1 - ascend)
    assert f"accuracy: {100 * accuracy:.2f}%" in run.clustered
    result = training_runs.read(affinity_folder(run.output), "result.json")
    np.testing.assert_allclose([result["accuracy"], result["nmi"], result["ari"]],
                               [accuracy, nmi, ari], rtol=1e-6)


def test_golden_checkpoint_of_stage_1_has_the_references_61_variables(run):
    written = variables(os.path.join(run.output, "models", "mymodel.ckpt"))
    assert sorted(written) == sorted(golden_rules.load("pipeline")["pre_var_names"])
