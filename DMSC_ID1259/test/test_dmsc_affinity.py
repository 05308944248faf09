"""affinity_fusion.py as its users run it: log, schedule, results, variants, resume."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import re
import shutil

import numpy as np
import pytest
import scipy.io
import tensorflow.compat.v1 as tf

import affinity_fusion
import metrics
import network
import npu_session
import results
import training_runs
from npu_session import InputError
from training_runs import (
    AFFINITY_STEPS,
    IMAGES,
    MODALITIES,
    SAMPLES,
    SUBJECTS,
    affinity_folder,
    assert_same_arrays,
    assert_same_end,
    cluster,
    pretrain,
    read,
    records,
    refused,
    stopped,
    succeeded,
    variables,
)

TRUTH = np.repeat(np.arange(1, SUBJECTS + 1), IMAGES)
EVALUATED = [4, 8, 12, 14]
PICTURES = ("affinity.png", "coefficients.png", "reconstructions.png", "scores.png")


@pytest.fixture(scope="module")
def folder(clustered):
    """Run folder of the uninterrupted run."""
    return affinity_folder(clustered[0])


@pytest.fixture
def output(pretrained, tmp_path):
    """An output folder (str) that holds the weights of stage 1 only."""
    shutil.copytree(os.path.join(pretrained[0], "models"), str(tmp_path / "run" / "models"))
    return str(tmp_path / "run")


def arrays_of(folder, name="results.npz"):
    with np.load(os.path.join(folder, name)) as arrays:
        return {key: arrays[key] for key in arrays.files}


def flags_of(*flags):
    args = affinity_fusion.parse_args(training_runs.AFFINITY + list(flags))
    args.clusters, args.ro = SUBJECTS, metrics.alpha(SUBJECTS)
    return args


# ---------------------------------------------------------------- flags and schedule


def test_defaults_are_the_references():
    args = affinity_fusion.parse_args([])
    assert (args.mat, args.epoch, args.model, args.affinity_steps, args.eval_from,
            args.eval_every) == ("YaleB", 150000, "multimodal", 800, 200, 10)
    assert (args.learning_rate, args.reg_constant1, args.power, args.starts, args.seed) == (
        1e-3, 1.0, 8.0, 1, 0)
    assert args.self_expression_weights == [0.3, 0.05]
    evaluated = [step for step in range(1, 801) if affinity_fusion.is_evaluated(args, step)]
    assert evaluated == list(range(200, 801, 10)) and len(evaluated) == 61


@pytest.mark.parametrize("flags, last", [
    ([], AFFINITY_STEPS), (["--epoch=5"], 5), (["--epoch=500"], AFFINITY_STEPS),
    (["--max_train_steps=20", "--epoch=5"], 20)])
def test_the_number_of_steps(flags, last):
    assert affinity_fusion.last_step(flags_of(*flags)) == last


@pytest.mark.parametrize("clusters, weight", [(38, 6.30957), (10, 0.01), (3, 0.00199526)])
def test_the_default_weight_of_the_residual(clusters, weight):
    assert network.default_residual_weight(clusters) == pytest.approx(weight, rel=1e-5)


def test_the_default_steps_per_call_follow_the_size_and_divide_the_schedule(small_data):
    for flags, steps in (([], 2), (["--save_every=7"], 1)):
        args = affinity_fusion.parse_args(
            [f"--data_dir={small_data}"] + training_runs.AFFINITY[:-1] + flags)
        affinity_fusion.settle(args, affinity_fusion.load_data(args))
        assert args.steps_per_call == steps
    for samples, steps in ((640, 10), (1280, 5), (2424, 2), (7000, 1)):
        args = affinity_fusion.parse_args([])
        affinity_fusion.options.set_steps_per_call(args, samples, 800, 200, 10, 50)
        assert args.steps_per_call == steps


# ---------------------------------------------------------------- log and files


def test_log_has_the_seeds_lines_in_its_order(clustered, folder):
    lines = clustered[1].splitlines()
    first = lines.index(str(MODALITIES))
    assert lines[first:first + 7] == (
        [str(MODALITIES)] + [f"({SAMPLES}, 32, 32, 1)"] * MODALITIES + [str(SAMPLES)]
        + ["(?, 8, 8, 30)"] * MODALITIES
        + [os.path.join(clustered[0], "models", "mymodel.ckpt")])
    places = [lines.index(line) for line in ("No checkpoint found", "model restored")]
    assert places == sorted(places)
    assert re.fullmatch(r"time used per step: \d+\.\d{4}", lines[places[1] + 1])
    evaluated = lines[places[1] + 2:places[1] + 2 + 2 * len(EVALUATED)]
    for record, cost, accuracy in zip(records(folder), evaluated[::2], evaluated[1::2]):
        assert re.fullmatch(r"epoch: \d+ cost: \d+\.\d{8}", cost)
        assert cost == f"epoch: {record['step']} cost: {record['cost'] / SAMPLES:.8f}"
        assert accuracy == f"accuracy: {100 * record['accuracy']:.2f}%"
    best = max(record["accuracy"] for record in records(folder))
    assert lines[places[1] + 2 + 2 * len(EVALUATED)] == f"Max ACC: {100 * best:.2f}%"


def test_the_last_steps_scores_are_the_headline(clustered, folder):
    last, result = records(folder)[-1], read(folder, "result.json")
    sentence = "last step 14: ACC {:.2f}% NMI {:.2f}% ARI {:.2f}%".format(
        *(100 * last[name] for name in results.SCORES))
    assert sentence in clustered[1].splitlines()
    for name in results.SCORES:
        assert result[name] == last[name]
        assert 0 <= result["raw_pixels"]["modality 0"]["accuracy"] <= 1
    assert result["max_accuracy"] == max(record["accuracy"] for record in records(folder))
    assert (result["data"], result["standin"]) == ("small", False)
    chosen = result["label_free_step"]
    assert chosen in EVALUATED and f"label-free choice, step {chosen}: ACC" in clustered[1]
    assert "last step 14 without post-processing: ACC" in clustered[1]
    for name in ("modality 0", "modality 1", "all modalities"):
        assert f"raw pixels, {name}: ACC" in clustered[1]


def test_records_hold_the_terms_of_the_loss(folder):
    assert [record["step"] for record in records(folder)] == EVALUATED
    weight = network.default_residual_weight(SUBJECTS)
    for record in records(folder):
        assert record["cost"] == pytest.approx(
            record["reconstruction"] + record["regularisation"]
            + weight * record["self_expression"], rel=1e-5)
        assert 0 < record["relative_residual"] < 10 and 0 <= record["label_change"] <= 1.5


@pytest.mark.parametrize("name", ["results.npz", "results.mat"])
def test_saved_results(name, folder):
    found = arrays_of(folder) if name.endswith("npz") else scipy.io.loadmat(
        os.path.join(folder, name))
    assert found["C"].shape == (SAMPLES, SAMPLES) and not np.diag(found["C"]).any()
    np.testing.assert_array_equal(np.ravel(found["Label"]), TRUTH)
    np.testing.assert_array_equal(np.ravel(found["steps"]), EVALUATED)
    scores = metrics.scores(TRUTH, np.ravel(found["labels"]))
    for key, value in zip(("ACC", "NMI", "ARI"), scores):
        assert np.ravel(found[key])[-1] == pytest.approx(value)


def test_labels_follow_from_the_saved_matrix(folder):
    found = arrays_of(folder)
    labels, _ = affinity_fusion.cluster(flags_of(), found["C"], len(EVALUATED) - 1)
    np.testing.assert_array_equal(labels, found["labels"])


def test_pictures_are_there_and_small(folder):
    for name in PICTURES:
        path = os.path.join(folder, name)
        assert 2000 < os.path.getsize(path) < 300000
        with open(path, "rb") as file:
            assert file.read(8) == b"\x89PNG\r\n\x1a\n"


def test_theta_is_the_one_before_the_last_update(clustered, folder):
    """Coef moved once more after the matrix that was clustered; its diagonal never did."""
    coef = variables(folder)["Coef"]
    moved = np.abs(coef - np.diag(np.diag(coef)) - arrays_of(folder)["C"])
    assert 0 < moved.max() < 1.1e-3
    np.testing.assert_array_equal(np.diag(coef), np.full(SAMPLES, 1e-4, np.float32))
    assert clustered[1].count("model restored") == 1


# ---------------------------------------------------------------- clustering


def blocks(noise=0.0):
    theta = np.kron(np.eye(SUBJECTS), np.ones((IMAGES, IMAGES))) * (1 - np.eye(SAMPLES))
    random = np.random.RandomState(1)
    return (theta + noise * random.uniform(size=theta.shape)).astype(np.float32)


def test_blocks_are_found_with_and_without_post_processing():
    for labels in (affinity_fusion.cluster(flags_of(), blocks(0.05), 0)[0],
                   affinity_fusion.cluster_plainly(flags_of(), blocks(0.05))):
        assert metrics.scores(TRUTH, labels).accuracy == 1


def test_permuting_the_samples_permutes_the_clusters():
    theta, order = blocks(0.05), np.random.RandomState(2).permutation(SAMPLES)
    labels, _ = affinity_fusion.cluster(flags_of(), theta, 0)
    moved, _ = affinity_fusion.cluster(flags_of(), theta[np.ix_(order, order)], 0)
    assert metrics.adjusted_rand_index(labels[order], moved) == 1


def test_draws_continue_from_evaluation_to_evaluation(monkeypatch):
    seen = []
    monkeypatch.setattr(metrics, "post_proC", lambda *arguments: seen.append(
        arguments[4].uniform()) or (None, None))
    for number in range(3):
        affinity_fusion.cluster(flags_of(), blocks(), number)
    random = np.random.RandomState(0)
    for value in seen:
        assert random.uniform() == value
        random.uniform(size=SAMPLES - 1)
        random.randint(SAMPLES)
        random.uniform(size=SAMPLES)
        random.randint(SAMPLES)


def test_the_typical_clustering_is_chosen_without_labels(tmp_path):
    history = results.LabelHistory(str(tmp_path), [])
    good, bad = TRUTH, np.tile([1, 2, 3], IMAGES)
    near = good.copy()
    near[0] = 2
    changes = [history.add(step, labels) for step, labels in
               ((10, bad), (20, near), (30, good), (40, 4 - good))]
    assert history.most_typical() == 30 and changes[0] == 1 and changes[3] == 0
    assert changes[1] > 0.9 and 0 < changes[2] < 0.2


def test_labels_of_evaluations_are_read_back_or_missed(tmp_path):
    history = results.LabelHistory(str(tmp_path), [])
    for step in (10, 20, 30):
        history.add(step, np.roll(TRUTH, step))
    again = results.LabelHistory(str(tmp_path), [10, 20])
    assert sorted(again.labels) == [10, 20]
    np.testing.assert_array_equal(again.labels[20], np.roll(TRUTH, 20))
    not_ours = pytest.raises(InputError, match="labels.npz is damaged, or is not of this run")
    with not_ours:
        results.LabelHistory(str(tmp_path), [10, 40])
    with open(history.path, "wb") as file:
        file.write(b"PK damaged")
    with not_ours:
        results.LabelHistory(str(tmp_path), [10])
    os.remove(history.path)
    with not_ours:
        results.LabelHistory(str(tmp_path), [10])


# ---------------------------------------------------------------- variants


def test_without_labels_clustering_works_and_scores_are_left_out(output, tmp_path):
    content = training_runs.small_content()
    del content["Label"]
    data = training_runs.write_mat(tmp_path / "unlabelled", content)
    out = succeeded(cluster(data, output, "--clusters=3", "--max_train_steps=4",
                            pictures=True))
    assert "accuracy" not in out and "Max ACC" not in out
    assert "last step 4: no true labels, no scores" in out
    found, result = arrays_of(affinity_folder(output)), read(affinity_folder(output), "result.json")
    assert sorted(set(found["labels"])) == [1, 2, 3] and "ACC" not in found
    assert result["accuracy"] is None and result["max_accuracy"] is None
    assert os.path.exists(os.path.join(affinity_folder(output), "scores.png"))


@pytest.mark.parametrize("fusion, expected", [
    ("early", {"fused/fused_enc_w0": [5, 5, MODALITIES, 10], "0/0_dec1_w0": [3, 3, 20, 30]}),
    ("intermediate", {"fused/fused_enc_w1": [3, 3, 10 * MODALITIES, 20],
                      "0/0_enc_w0": [5, 5, 1, 10]}),
    ("late", {"1/1_enc_w2": [3, 3, 20, 30], "1/1_dec1_w0": [3, 3, 20, 30 * MODALITIES]})])
def test_fusion_variants_run_through(fusion, expected, small_data, tmp_path):
    flags = [f"--fusion={fusion}"]
    succeeded(pretrain(small_data, tmp_path, "--autoencoder", *flags))
    found = variables(os.path.join(str(tmp_path), "models", "mymodel.ckpt"))
    for name, shape in expected.items():
        assert list(found[name].shape) == shape
    costs = [record["cost"] for record in records(training_runs.pretrain_folder(tmp_path))]
    assert costs[-1] < costs[0]
    out = succeeded(cluster(small_data, tmp_path, "--max_train_steps=8", *flags))
    shapes = [line for line in out.splitlines() if line.startswith("(?, 8, 8, ")]
    assert shapes == [f"(?, 8, 8, {60 if fusion == 'late' else 30})"]
    costs = [record["cost"] for record in records(affinity_folder(tmp_path))]
    assert len(costs) == 2 and costs[1] < costs[0]


def test_bfloat16_is_near_float32_or_refused_by_tensorflow_1(pretrained, clustered, output,
                                                             small_data, tmp_path):
    flags = ["--compute_dtype=bfloat16"]
    if tf.__version__.startswith("1."):
        for program in (pretrain, cluster):
            assert "--compute_dtype=bfloat16: not with TensorFlow 1." in refused(
                program(small_data, tmp_path / "new", *flags))
        assert not os.path.exists(str(tmp_path / "new"))
        return
    succeeded(pretrain(small_data, tmp_path / "new", *flags))
    succeeded(cluster(small_data, output, *flags))
    for found, expected in (
            (training_runs.pretrain_folder(tmp_path / "new"),
             training_runs.pretrain_folder(pretrained[0])),
            (affinity_folder(output), affinity_folder(clustered[0]))):
        assert {array.dtype.kind for array in variables(found).values()} <= set("fi")
        found, expected = ([record["cost"] for record in records(run)] for run in (found, expected))
        np.testing.assert_allclose(found, expected, rtol=0.05)
        assert found != expected


def test_the_subspace_dimension_is_that_of_the_affinity(small_data, tmp_path):
    theta = blocks(0.5)
    kept = metrics.thrC(theta, metrics.alpha(SUBJECTS))
    for dimension in (1, 4):
        _, found = affinity_fusion.cluster(
            flags_of(f"--subspace_dimension={dimension}"), theta, 0)
        np.testing.assert_array_equal(found, metrics.affinity(kept, SUBJECTS, dimension, 8))
    sentence = refused(cluster(small_data, tmp_path, "--subspace_dimension=8"))
    assert "more than 8 K + 1 = 25 are needed" in sentence


def test_a_single_modality(tmp_path):
    data = training_runs.write_mat(tmp_path / "data", training_runs.small_content(1))
    succeeded(pretrain(data, tmp_path, "--max_train_steps=2"))
    out = succeeded(cluster(data, tmp_path, "--max_train_steps=4"))
    assert "raw pixels, modality 0: ACC" in out and "all modalities" not in out
    assert len([name for name in variables(affinity_folder(tmp_path)) if name.startswith("0/")
                and "Adam" not in name]) == 12


def test_weights_of_the_modalities_arrive_in_the_loss():
    """Hand-made: reconstructions of 0, codes of 1 against 0, theta of 0."""
    images = [tf.fill([2, 16, 16, 4], value) for value in (1.0, 2.0, 3.0)]
    codes = [tf.ones([2, 8, 8, 30])] * 3
    result = network.Pass(codes, [tf.zeros_like(code) for code in codes],
                          [tf.zeros_like(image) for image in images])
    constants = network.Constants([1.0, 0.5, 0.25], [4.0, 2.0, 0.0], 1.0, 0.1)
    cost, terms = network.affinity_loss(result, images, tf.ones([2, 2]), constants)
    with tf.Session() as session:
        cost, terms = session.run([cost, terms])
    pixels, features = 2 * 1024, 2 * 1920
    reconstruction = pixels * (1.0 + 0.5 * 4 + 0.25 * 9)
    np.testing.assert_allclose(terms, [reconstruction + 4 + 0.1 * 6 * features, reconstruction, 4,
                                       6 * features, 1.0], rtol=1e-6)
    assert cost == terms[0]


# ---------------------------------------------------------------- resume


def test_resume_equals_an_uninterrupted_run(small_data, output, monkeypatch, folder):
    out = stopped(monkeypatch, 4, cluster, small_data, output)
    assert "stopped by a signal after step 4: continue with --resume" in out
    succeeded(cluster(small_data, output, "--resume"))
    assert_same_end(affinity_folder(output), folder)
    for name in ("results.npz", "labels.npz"):
        assert_same_arrays(arrays_of(affinity_folder(output), name), arrays_of(folder, name))


def test_same_seed_same_run_however_many_steps_per_call(small_data, output, folder):
    succeeded(cluster(small_data, output, "--steps_per_call=1", "--save_every=5"))
    assert_same_end(affinity_folder(output), folder)


def test_a_killed_run_goes_on_after_its_last_checkpoint(small_data, output, monkeypatch, folder):
    """Killed between an evaluation at step 8 and the checkpoint at step 12: 8 is made again."""
    class Killed(Exception):
        pass

    plain = npu_session.RunFolder.log

    def log(self, now, **values):
        plain(self, now, **values)
        if now == 8:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(npu_session.RunFolder, "log", log)
        with pytest.raises(Killed):
            cluster(small_data, output)
    assert [record["step"] for record in records(affinity_folder(output))] == [4, 8]
    assert "at counter = 6" in succeeded(cluster(small_data, output))
    assert_same_end(affinity_folder(output), folder)


def test_a_finished_run_run_again_and_more_steps(small_data, tmp_path, clustered, folder):
    output = shutil.copytree(clustered[0], str(tmp_path / "again"))
    succeeded(cluster(small_data, output))
    assert_same_end(affinity_folder(output), folder)
    succeeded(cluster(small_data, output, "--affinity_steps=16"))
    assert [record["step"] for record in records(affinity_folder(output))] == EVALUATED + [16]


def test_without_weights_the_command_that_makes_them_is_named(small_data, tmp_path):
    sentence = refused(cluster(small_data, tmp_path, "--model=multimodal"))
    assert os.path.join("models", "multimodal.ckpt") in sentence
    assert "pretrain_affinity_fusion.py" in sentence
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize("flag", ["--seed=1", "--ro=0.5", "--reg_constant2=1"])
def test_a_changed_fixed_flag_is_refused_by_name(flag, small_data, clustered):
    name = flag[2:].split("=")[0]
    assert f"started with {name}=" in refused(cluster(small_data, clustered[0], flag))
