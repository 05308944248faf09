"""Damage, full disks, impossible settings, divergence, degenerate weights: nothing is lost."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import adagan_gmm
import gan
import mixture
import npu_session
import reweighting
from training_runs import (
    SHORT,
    STEPS,
    assert_same_end,
    call_after,
    ckpt,
    contents,
    read,
    records,
    refused,
    samples,
    send,
    train,
    trained,
    variables,
)

DATA, INDEX = "component-{:02d}.data-00000-of-00001", "component-{:02d}.index"
PRECIOUS = (".index", "00001", "metrics.jsonl", "checkpoint", ".npy", "mixture.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Run folder of an uninterrupted run of 3 components."""
    return trained(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    """Run folder of a run of 2 components: checkpoints component-00 and -01."""
    return trained(tmp_path_factory.mktemp("part"), "--steps=2")


@pytest.fixture
def output(part, tmp_path):
    """A copy of `part` to damage."""
    return shutil.copytree(part, str(tmp_path / "run"))


def cut(path, size):
    os.truncate(path, size)


def flip(path, place):
    """Inverts one bit; place in 0..1 of the file."""
    with open(path, "r+b") as file:
        position = int(place * os.path.getsize(path))
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 16]))


def write(path, content):
    with open(path, "wb") as file:
        file.write(content)


def remove(path, _):
    os.remove(path)


# ---------------------------------------------------------------- impossible settings


@pytest.mark.parametrize("flags, text", [
    (["--beta_constant=0"], "beta = 0"), (["--beta_constant=1"], "beta = 1"),
    (["--beta_heur=constant", "--beta_constant=-0.5"], "beta = -0.5"),
    (["--topk_constant=0"], "topk_constant=0"), (["--topk_constant=1.5"], "topk_constant=1.5"),
    (["--modes=0"], "0 modes"), (["--modes=-3"], "-3 modes"), (["--dims=0"], "0 dimensions"),
    (["--dataset=circle_gmm", "--dims=3"], "3 dimensions"),
    (["--gmm_max_val=0"], "means up to 0"), (["--toy_dataset_size=0"], "0 points"),
    (["--toy_dataset_size=63"], "less than one batch of 64"),
    (["--input_normalize_sym=True"], "for images"),
    (["--samples_per_component=1"], "at least 2"), (["--eval_points_num=1"], "at least 2")])
def test_impossible_settings_are_refused_before_anything_is_written(flags, text, tmp_path):
    assert text in refused(tmp_path / "out", *flags)
    assert not os.path.exists(str(tmp_path / "out"))


def test_the_smallest_run(tmp_path):
    folder = trained(tmp_path, "--toy_dataset_size=2", "--batch_size=1", "--modes=1", "--dim=1",
                     "--steps=2", "--samples_per_component=2", "--eval_points_num=2", "--epochs=1",
                     "--tf_run_batch_size=1", "--zdim=1")
    assert np.isfinite(read(folder, "result.json")["C"])


# ---------------------------------------------------------------- degenerate weights and samples


def test_few_points_with_weight_are_drawn_with_replacement(tmp_path, monkeypatch):
    """Star can leave fewer points than a batch; so few are drawn in a picture too."""
    def few(ratio, _):
        weights = np.zeros(len(ratio))
        weights[:5] = 0.2
        return reweighting.Reweighting(weights, 1.0, 1.0, 0.99, False, "Lambda= 1, sum= 1")
    monkeypatch.setattr(reweighting, "theory_star", few)
    for stream in (False, True):
        folder = tmp_path / str(stream)
        code, out, err = train(folder, f"--reference_stream={stream}", "--plot_every=4",
                               "--steps=2", "--plots=True")
        assert code == 0, err
        assert out.count("[WARNING] Only 5 points have a weight: batches of 64 are drawn with "
                         "replacement") == 1
        assert len(samples(folder)) == 2


def test_a_failed_lambda_search_is_told_and_the_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(reweighting, "theory_star",
                        lambda ratio, _: reweighting.uniform_weights(len(ratio)))
    code, out, _ = train(tmp_path)
    assert code == 0 and out.count(
        "[WARNING] Lambda search failed, passing uniform weights") == STEPS - 1
    assert [line["lambda_search_failed"] for line in records(tmp_path)
            if "weight_sum" in line or "lambda_search_failed" in line] == [1] * (STEPS - 1)


def test_a_collapsed_generator_is_told_and_the_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(gan.Gan, "sample",
                        lambda *given: np.ones((len(given[2]), 2, 1, 1), np.float32))
    code, out, _ = train(tmp_path)
    assert code == 0 and out.count("[WARNING] Half of the samples coincide") == STEPS
    steps = [line for line in records(tmp_path) if "C" in line]
    assert all(line["collapsed"] == 1 and line["C"] == 0 for line in steps)
    assert np.isfinite([line["log_p"] for line in steps]).all()


# ---------------------------------------------------------------- damaged checkpoints


@pytest.mark.parametrize("damage, name, argument", [
    (cut, DATA, 5000), (flip, DATA, 0.5), (remove, DATA, None), (cut, INDEX, 200),
    (write, INDEX, b"<html>404</html>")])
def test_a_damaged_newest_checkpoint_falls_back(damage, name, argument, output, whole):
    damage(os.path.join(ckpt(output), name.format(1)), argument)
    code, out, err = train(output, "--resume")
    assert code == 0 and "at counter = 20" in out, err
    assert "WARNING" in err and "component-01 is damaged" in err
    assert_same_end(output, whole)


def test_a_garbled_checkpoint_list_costs_nothing(output, whole):
    write(os.path.join(ckpt(output), "checkpoint"), b"\xff\xfe\x00garbage")
    code, out, err = train(output, "--resume")
    assert code == 0 and "at counter = 40" in out, err
    assert_same_end(output, whole)


def test_no_readable_checkpoint_is_refused_and_nothing_overwritten(output):
    for component in (0, 1):
        flip(os.path.join(ckpt(output), DATA.format(component)), 0.5)
    before = contents(output, *PRECIOUS)
    for flags in ([], ["--resume"]):
        assert "no readable checkpoint" in refused(output, *flags)
    assert contents(output, *PRECIOUS) == before


def test_a_checkpoint_of_another_shape_names_the_variable(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(gan, "HIDDEN", 8)
        trained(tmp_path, "--steps=1")
    before = contents(tmp_path, *PRECIOUS)
    sentence = refused(tmp_path)
    assert "GENERATOR/h0_lin/W [5, 8], this model [5, 16]" in sentence
    assert contents(tmp_path, *PRECIOUS) == before


# ---------------------------------------------------------------- other damaged files


@pytest.mark.parametrize("name, damage, argument, text", [
    ("samples00.npy", remove, None, "samples00.npy cannot be read"),
    ("samples01.npy", cut, 100, "samples01.npy cannot be read"),
    ("samples01.npy", cut, 0, "samples01.npy cannot be read"),
    ("samples01.npy", write, b"<html>404</html>", "samples01.npy cannot be read"),
    ("mixture.json", remove, None, "holds no mixture.json"),
    ("mixture.json", write, b"garbage", "mixture.json is damaged"),
    ("mixture.json", write, b'{"betas": [1.0]}', "has 1 components, not 2"),
    ("mixture.json", write, b'{"betas": [1.0, 7]}', "mixture.json is damaged"),
    ("config.json", write, b'{"flags": 5}', "config.json is damaged"),
    ("metrics.jsonl", write, b"gar}\n", "metrics.jsonl is damaged")])
def test_a_damaged_file_is_named(name, damage, argument, text, output):
    damage(os.path.join(output, name), argument)
    before = contents(output, *PRECIOUS)
    assert text in refused(output)
    assert contents(output, *PRECIOUS) == before


@pytest.mark.parametrize("array", [
    np.zeros((200, 2), np.float32), np.zeros((200, 2, 1, 1)),
    np.full((200, 2, 1, 1), np.nan, np.float32), np.zeros((199, 2, 1, 1), np.float32),
    np.zeros((200, 3, 1, 1), np.float32)])
def test_samples_that_are_none_are_refused(array, output):
    np.save(os.path.join(output, "samples00.npy"), array)
    assert "[" in refused(output)


def test_a_folder_without_a_run_holds_no_mixture(tmp_path):
    with pytest.raises(npu_session.InputError, match="holds no mixture.json"):
        mixture.load(str(tmp_path))


def test_lost_metrics_of_a_finished_run_are_told(output):
    os.remove(os.path.join(output, "metrics.jsonl"))
    assert "knows no step" in refused(output, "--steps=2")


def test_a_cut_last_record_is_written_again(output, whole):
    with open(os.path.join(output, "metrics.jsonl"), "a") as file:
        file.write('{"epoch": 2, "d_loss": 1')
    trained(output)
    assert_same_end(output, whole)


# ---------------------------------------------------------------- divergence


@pytest.mark.parametrize("flag, text", [
    ("--g_learning_rate=1e41", "generator's bias 0 = "), ("--d_learning_rate=1e41", "generator")])
def test_a_component_that_is_not_finite_stops_the_run(flag, text, output):
    """The last complete component stays as it was."""
    before = variables(output)
    config = read(output, "config.json")
    name = {"g": "opt_g_learning_rate", "d": "opt_d_learning_rate"}[flag[2]]
    config["flags"][name] = 1e41  # as if the run had been started with it
    npu_session.write_json(os.path.join(output, "config.json"), config)
    sentence = refused(output, flag, code=3)
    assert "not finite at step 4" in sentence and text in sentence and ckpt(output) in sentence
    after = variables(output)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    assert records(output)[-1]["step"] == 40


def test_a_classifier_that_is_not_finite_stops_the_run(tmp_path):
    sentence = refused(tmp_path, "--learning_rate=1e39", "--init_std=30", code=3)
    assert "classifier's bias" in sentence or "probabilities" in sentence
    assert sorted(name for name in os.listdir(ckpt(tmp_path)) if name.endswith(".index")) == [
        "component-00.index"]


# ---------------------------------------------------------------- disks and folders


def test_a_full_disk_at_a_checkpoint(tmp_path, monkeypatch, whole):
    """From the second component's end on, no file can grow beyond 4000 bytes."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patch:
        call_after(patch, adagan_gmm, "evaluate", 2, lambda: resource.setrlimit(
            resource.RLIMIT_FSIZE, (4000, old[1])))
        try:
            sentence = refused(tmp_path, code=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert "checkpoint component-01 could not be" in sentence and "File too large" in sentence
    code, out, err = train(tmp_path, "--resume")
    assert code == 0 and "at counter = 20" in out and "WARNING" not in err, err
    assert_same_end(tmp_path, whole)


def test_a_full_disk_at_the_samples(tmp_path, monkeypatch, whole):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patch:
        call_after(patch, gan.Gan, "sample", 2, lambda: resource.setrlimit(
            resource.RLIMIT_FSIZE, (1000, old[1])))
        try:
            sentence = refused(tmp_path, code=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert "samples01.npy cannot be written" in sentence
    trained(tmp_path)
    assert_same_end(tmp_path, whole)


def test_folders_that_cannot_be_written_are_found_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in ("/proc/none", tmp_path / "file", tmp_path / "file" / "x"):
        assert "cannot write to the folder" in refused(folder)


def test_a_folder_that_vanishes_while_training(tmp_path, monkeypatch):
    call_after(monkeypatch, gan.Gan, "sample", 1, lambda: shutil.rmtree(str(tmp_path / "run")))
    assert "samples00.npy cannot be written" in refused(tmp_path / "run", code=1)


def test_a_second_run_in_the_same_folder_is_refused(tmp_path, monkeypatch, whole):
    answers = []

    def second():  # in another process, as a user would
        done = subprocess.run([sys.executable, adagan_gmm.__file__, f"--output_dir={tmp_path}"]
                              + SHORT, capture_output=True, text=True, timeout=120)
        answers.append((done.returncode, done.stderr))

    with monkeypatch.context() as patch:
        call_after(patch, gan.Gan, "train", 8, second)
        trained(tmp_path)
    (code, err), = answers
    assert code == 2 and "another run is writing" in err and "Traceback" not in err
    assert_same_end(tmp_path, whole)


def test_an_interrupted_save_costs_no_earlier_checkpoint(tmp_path, monkeypatch, whole):
    """Killed after the new data file and before the list of checkpoints names it."""
    plain = tf.train.Saver.save

    def save(self, session, path, **options):
        plain(self, session, path, **options)
        if path.endswith("-01"):
            cut(path + ".data-00000-of-00001", 3000)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tf.train.Saver, "save", save)
        refused(tmp_path, code=130)
    trained(tmp_path)
    assert_same_end(tmp_path, whole)


def test_a_signal_in_the_last_iteration_still_ends_as_complete(tmp_path, monkeypatch, whole):
    with monkeypatch.context() as patch:
        call_after(patch, gan.Gan, "train", 6 * STEPS, send(15))
        trained(tmp_path)
    assert_same_end(tmp_path, whole)
