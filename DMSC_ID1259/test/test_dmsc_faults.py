"""Damage, full disks, unwritable folders, wrong data, divergence: one sentence, nothing lost."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import network
import npu_session
import pretrain_affinity_fusion
import training_runs
from training_runs import (
    COMMON,
    PRETRAIN,
    affinity_folder,
    assert_same_end,
    cluster,
    contents,
    pretrain,
    pretrain_folder,
    read,
    records,
    refused,
    succeeded,
    variables,
    write_mat,
)

DATA, INDEX = "step-{}.data-00000-of-00001", "step-{}.index"
PRECIOUS = (".index", "00001", "metrics.jsonl", "checkpoint")


@pytest.fixture(scope="module")
def whole(pretrained):
    """Run folder of an uninterrupted stage 1."""
    return pretrain_folder(pretrained[0])


@pytest.fixture
def output(pretrained, tmp_path):
    """A copy of the whole stage 1 to damage: checkpoints step-8 and step-12."""
    return shutil.copytree(pretrained[0], str(tmp_path / "run"))


@pytest.fixture
def second(clustered, tmp_path):
    """A copy of both stages to damage: checkpoints step-12 and step-14 of stage 2."""
    return shutil.copytree(clustered[0], str(tmp_path / "run"))


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


# ---------------------------------------------------------------- damaged checkpoints


@pytest.mark.parametrize("damage, name, argument", [
    (cut, DATA, 100000), (flip, DATA, 0.5), (write, INDEX, b"<html>404</html>")])
def test_a_damaged_newest_checkpoint_falls_back(damage, name, argument, small_data, output, whole):
    damage(os.path.join(pretrain_folder(output), name.format(12)), argument)
    code, out, err = pretrain(small_data, output, "--resume")
    assert code == 0 and "at counter = 8" in out, err
    assert "WARNING" in err and "step-12 is damaged" in err
    assert_same_end(pretrain_folder(output), whole)


def test_a_damaged_newest_checkpoint_of_stage_2_falls_back(small_data, second, clustered):
    flip(os.path.join(affinity_folder(second), DATA.format(14)), 0.5)
    code, out, err = cluster(small_data, second, "--resume")
    assert code == 0 and "at counter = 12" in out and "step-14 is damaged" in err
    assert_same_end(affinity_folder(second), affinity_folder(clustered[0]))


def test_no_readable_checkpoint_is_refused_and_nothing_overwritten(small_data, output):
    for step in (8, 12):
        flip(os.path.join(pretrain_folder(output), DATA.format(step)), 0.5)
    before = contents(pretrain_folder(output), *PRECIOUS)
    for flags in ([], ["--resume"]):
        assert "no readable checkpoint" in refused(pretrain(small_data, output, *flags))
    assert contents(pretrain_folder(output), *PRECIOUS) == before


@pytest.mark.parametrize("damage", [lambda path: flip(path, 0.5), lambda path: cut(path, 100)])
def test_damaged_weights_are_refused_before_stage_2(damage, small_data, output):
    damage(os.path.join(output, "models", "mymodel.ckpt.data-00000-of-00001"))
    sentence = refused(cluster(small_data, output))
    assert os.path.join("models", "mymodel.ckpt") in sentence and "copy or train" in sentence
    assert not os.path.exists(affinity_folder(output))


# ---------------------------------------------------------------- other weights, other data


def test_weights_of_another_number_of_modalities_are_refused(output, tmp_path):
    data = write_mat(tmp_path / "three", training_runs.small_content(3))
    sentence = refused(cluster(data, output))
    assert "is of 2 modalities, the data have 3" in sentence and "--model" in sentence
    shutil.rmtree(os.path.join(output, "logs"))
    assert "is of 2 modalities" in refused(pretrain(data, output))


def test_weights_of_another_shape_name_the_variable(small_data, output, monkeypatch):
    monkeypatch.setattr(network, "CHANNELS", (10, 20, 12))
    sentence = refused(cluster(small_data, output))
    assert "has 0/0_enc_w2 [3, 3, 20, 30], this model [3, 3, 20, 12]" in sentence


def test_weights_of_another_fusion_are_refused(small_data, output):
    sentence = refused(cluster(small_data, output, "--fusion=intermediate"))
    assert "fused/fused_enc_w1 missing" in sentence
    assert not os.path.exists(affinity_folder(output))


def test_a_checkpoint_of_another_number_of_samples_names_coef(output, tmp_path):
    content = training_runs.small_content()
    content.update({f"modality_{m}": np.tile(content[f"modality_{m}"], 2) for m in range(2)},
                   Label=np.tile(content["Label"], 2))
    sentence = refused(pretrain(write_mat(tmp_path / "more", content), output))
    assert "batch_size=24, not 48" in sentence


def test_a_run_on_stand_in_faces_is_not_continued_with_other_data(output, tmp_path):
    """Else a result on stand-in data would be written down as one on real faces."""
    data = write_mat(tmp_path / "standin", dict(training_runs.small_content(), standin="made"))
    assert "data=small, not stand-in faces small" in refused(pretrain(data, output))


@pytest.mark.parametrize("flag", ["--learning_rate=0.01", "--autoencoder"])
def test_a_changed_fixed_flag_is_refused_by_name(flag, small_data, pretrained, whole):
    before = contents(whole, *PRECIOUS, "config.json")
    name = flag[2:].split("=")[0]
    assert f"started with {name}=" in refused(pretrain(small_data, pretrained[0], flag))
    assert contents(whole, *PRECIOUS, "config.json") == before


def test_resume_needs_a_run_and_no_resume_an_empty_folder(small_data, tmp_path, pretrained, whole):
    assert "no run" in refused(pretrain(small_data, tmp_path, "--resume"))
    before = contents(whole, *PRECIOUS)
    assert "holds a run" in refused(pretrain(small_data, pretrained[0], "--resume=False"))
    assert contents(whole, *PRECIOUS) == before


def test_wrong_data_are_refused_before_anything_is_written(tmp_path):
    content = dict(training_runs.small_content(), Label=np.ones((1, 24)))
    data = write_mat(tmp_path / "data", content)
    for program in (pretrain, cluster):
        assert "1 cluster" in refused(program(data, tmp_path / "out"))
    assert not os.path.exists(str(tmp_path / "out"))


@pytest.mark.parametrize("name, content", [("config.json", b"garbage"), ("metrics.jsonl", b"g}\n")])
def test_a_garbled_file_is_named(name, content, small_data, output):
    write(os.path.join(pretrain_folder(output), name), content)
    sentence = refused(pretrain(small_data, output))
    assert f"{name} is damaged" in sentence and "remove it" in sentence


# ---------------------------------------------------------------- divergence


def test_a_loss_that_is_not_finite_stops_stage_1(small_data, tmp_path):
    sentence = refused(pretrain(small_data, tmp_path, "--learning_rate=1e15"), code=3)
    assert "not finite at step 1: loss = " in sentence and "mse_1 = " in sentence
    assert contents(pretrain_folder(tmp_path), ".index") == {}
    assert not os.path.exists(str(tmp_path / "models" / "mymodel.ckpt.index"))


def test_a_loss_that_is_not_finite_stops_stage_2_and_keeps_the_last_checkpoint(
        small_data, second, monkeypatch):
    before = variables(affinity_folder(second))
    plain = npu_session.Loop.run

    def run(self, session, count):
        values = plain(self, session, count)
        values[-1, 2] = np.nan
        return values

    monkeypatch.setattr(npu_session.Loop, "run", run)
    sentence = refused(cluster(small_data, second, "--affinity_steps=16"), code=3)
    assert "not finite at step 1" in sentence and "regularisation = nan" in sentence
    assert affinity_folder(second) in sentence
    training_runs.assert_same_arrays(variables(affinity_folder(second)), before)


# ---------------------------------------------------------------- disks and folders


def limited(size, step, program, *arguments):
    """Calls a program; from the record of `step` on, no file can grow beyond `size` bytes."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    plain = npu_session.RunFolder.log

    def log(self, now, **values):
        if now >= step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
        plain(self, now, **values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(npu_session.RunFolder, "log", log)
        try:
            return refused(program(*arguments), code=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_full_disk_in_stage_1(small_data, tmp_path, whole):
    sentence = limited(200000, 8, pretrain, small_data, tmp_path)
    assert "File too large" in sentence
    assert "at counter = 4" in succeeded(pretrain(small_data, tmp_path, "--resume"))
    assert_same_end(pretrain_folder(tmp_path), whole)


def test_a_full_disk_when_the_results_are_written(small_data, second, clustered):
    """The last picture, record and result.json are missing; the next call writes them."""
    os.remove(os.path.join(affinity_folder(second), "result.json"))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(npu_session.RunFolder, "rewind", lambda *_: resource.setrlimit(
            resource.RLIMIT_FSIZE, (3000, old[1])))
        try:
            sentence = refused(cluster(small_data, second), code=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert "results.npz cannot be written: File too large" in sentence
    assert not os.path.exists(os.path.join(affinity_folder(second), "result.json"))
    succeeded(cluster(small_data, second))
    assert_same_end(affinity_folder(second), affinity_folder(clustered[0]))


def test_a_full_disk_shows_one_sentence_and_no_traceback(small_data, tmp_path):
    """In a process of its own, so that TensorFlow's threads and the end of Python are seen too."""
    code = ("import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))\n"
            "import sys, pretrain_affinity_fusion as program, npu_session\n"
            "sys.exit(npu_session.run_main(program.main))")
    done = subprocess.run(
        [sys.executable, "-c", code, f"--data_dir={small_data}", f"--output_dir={tmp_path}"]
        + PRETRAIN, capture_output=True, text=True, timeout=300,
        env=dict(os.environ, PYTHONPATH=os.path.dirname(pretrain_affinity_fusion.__file__)))
    assert done.returncode == 1
    sentences = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1 and "File too large" in sentences[0], done.stderr
    assert "Traceback" not in done.stderr


def test_folders_that_cannot_be_written_are_found_before_training(small_data, tmp_path, output):
    (tmp_path / "file").write_text("")
    for place in ("/proc/none", str(tmp_path / "file"), str(tmp_path / "file" / "x")):
        assert "cannot write to the folder" in refused(pretrain(small_data, place))
    write(os.path.join(output, "results"), b"")
    assert "cannot write to the folder" in refused(cluster(small_data, output))


def test_a_second_run_in_the_same_folder_is_refused(small_data, tmp_path, monkeypatch, whole):
    plain, answers = npu_session.RunFolder.log, []

    def log(self, now, **values):
        plain(self, now, **values)
        if now == 8:
            answers.append(refused(pretrain(small_data, tmp_path)))

    with monkeypatch.context() as patch:
        patch.setattr(npu_session.RunFolder, "log", log)
        succeeded(pretrain(small_data, tmp_path))
    assert ["another run is writing" in answer for answer in answers] == [True]
    assert_same_end(pretrain_folder(tmp_path), whole)


def test_an_interrupted_save_costs_no_earlier_checkpoint(small_data, tmp_path, monkeypatch, whole):
    """Killed after the new data file and before the list of checkpoints names it."""
    plain = tf.train.Saver.save

    def save(self, session, path, **options):
        plain(self, session, path, **options)
        if path.endswith("-8"):
            cut(path + ".data-00000-of-00001", 5000)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tf.train.Saver, "save", save)
        refused(pretrain(small_data, tmp_path), code=130)
    succeeded(pretrain(small_data, tmp_path))
    assert_same_end(pretrain_folder(tmp_path), whole)


# ---------------------------------------------------------------- signals to the program


def start(data, output, *flags):
    """The program in its own process and in another folder, after its first log line."""
    process = subprocess.Popen(
        [sys.executable, "-u", pretrain_affinity_fusion.__file__, f"--data_dir={data}",
         f"--output_dir={output}"] + COMMON + ["--mode=train", "--log_every=4"] + list(flags),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=str(output))
    for line in process.stdout:
        if line.startswith("epoch: "):
            return process
    raise AssertionError(process.communicate()[1])


def test_sigterm_saves_and_exits_143_and_kill_costs_nothing_saved(small_data, tmp_path):
    process = start(small_data, tmp_path, "--epoch=400")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143 and "stopped by a signal" in out, err
    process = start(small_data, tmp_path, "--epoch=4000", "--resume")
    time.sleep(np.random.RandomState(int(time.time())).uniform(0, 0.5))
    process.kill()
    process.communicate()
    step = int(variables(pretrain_folder(tmp_path))["global_step"])
    succeeded(pretrain(small_data, tmp_path, f"--epoch={step + 4}", "--resume"))
    steps = [record["step"] for record in records(pretrain_folder(tmp_path))]
    assert steps == sorted(set(steps)) and steps[-1] == step + 4
    assert read(pretrain_folder(tmp_path), "result.json")["step"] == step + 4
