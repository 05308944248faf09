"""Damage, full disks, unwritable folders, wrong images, divergence: one sentence, nothing lost."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import data_input
import model_def
import npu_session
import VDSR
from training_runs import (
    STEPS,
    assert_same_end,
    checkpoint_folder,
    contents,
    read,
    records,
    refused,
    refused_early,
    signal_at,
    train,
    trained,
    variables,
)

DATA, INDEX = "model-{}.data-00000-of-00001", "model-{}.index"
PRECIOUS = (".index", "00001", "metrics.jsonl", "checkpoint")


@pytest.fixture
def whole(whole_run):
    """Run folder of an uninterrupted run."""
    return whole_run[0]


@pytest.fixture(scope="module")
def part(faces, tmp_path_factory):
    """Run folder of 8 of its steps: checkpoints model-4 and model-8."""
    return trained(faces, tmp_path_factory.mktemp("part"), "--max_steps=8")


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
    with open(str(path), "wb") as file:
        file.write(content)


def remove(path, _):
    os.remove(path)


# ---------------------------------------------------------------- damaged checkpoints


@pytest.mark.parametrize("damage, name, argument", [
    (flip, DATA, 0.5), (remove, DATA, None), (cut, INDEX, 500)])
def test_a_damaged_newest_checkpoint_falls_back(damage, name, argument, faces, output, whole):
    damage(os.path.join(checkpoint_folder(output), name.format(8)), argument)
    code, out, err = train(faces, output, "--resume")
    assert code == 0 and "at counter = 4" in out, err
    assert "WARNING" in err and "model-8 is damaged" in err
    assert_same_end(output, whole)


def test_a_garbled_checkpoint_list_and_a_cut_last_record_cost_nothing(faces, output, whole):
    write(os.path.join(checkpoint_folder(output), "checkpoint"), b"\xff\xfe\x00garbage")
    with open(os.path.join(output, "metrics.jsonl"), "a") as file:
        file.write('{"step": 10, "loss": 19')
    code, out, err = train(faces, output, "--resume")
    assert code == 0 and "at counter = 8" in out, err
    assert_same_end(output, whole)


def test_no_readable_checkpoint_is_refused_and_nothing_overwritten(faces, output):
    for step in (4, 8):
        flip(os.path.join(checkpoint_folder(output), DATA.format(step)), 0.5)
    before = contents(output, *PRECIOUS)
    for flags in ([], ["--resume"]):
        assert "no readable checkpoint" in refused(faces, output, *flags)
    assert contents(output, *PRECIOUS) == before


def test_a_checkpoint_of_another_k_names_the_variable(faces, output):
    os.remove(os.path.join(output, "config.json"))  # else the flag itself is refused
    before = contents(output, *PRECIOUS)
    answer = refused(faces, output, "--K=5")
    assert "cnn_tower/layer_6/conv/filter [5, 5, 4, 3], this model [5, 5, 4, 5]" in answer
    assert contents(output, *PRECIOUS) == before


# ---------------------------------------------------------------- other damaged files


@pytest.mark.parametrize("name, content", [
    ("config.json", b"garbage"), ("metrics.jsonl", b"gar}\n")])
def test_a_garbled_file_is_named(name, content, faces, output):
    write(os.path.join(output, name), content)
    before = contents(output, *PRECIOUS)
    answer = (refused_early if name == "config.json" else refused)(faces, output)
    assert f"{name} is damaged" in answer and "remove it" in answer
    assert contents(output, *PRECIOUS) == before


# ---------------------------------------------------------------- divergence


def test_a_loss_that_is_not_finite_stops_the_run(faces, output):
    """The newest checkpoint stays, and is as it was."""
    before = variables(output)
    path = os.path.join(output, "config.json")
    config = read(output, "config.json")
    config["flags"]["learning_rate"] = 1e30  # as if the run had been started with it
    npu_session.write_json(path, config)
    answer = refused(faces, output, "--learning_rate=1e30", code=3)
    assert "not finite at step 9:" in answer and checkpoint_folder(output) in answer
    for term in model_def.LOSS_TERMS:
        assert f"{term} = " in answer
    after = variables(output)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    assert [line["step"] for line in records(output)][-1] == 8


# ---------------------------------------------------------------- disks and folders


def limited(step, size, data, output, monkeypatch):
    """Trains; from the record of `step` on, no file can grow beyond `size` bytes."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    plain = npu_session.RunFolder.log

    def log(self, now, **values):
        if now >= step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
        plain(self, now, **values)

    with monkeypatch.context() as patch:
        patch.setattr(npu_session.RunFolder, "log", log)
        try:
            return refused(data, output, code=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_full_disk_while_training(faces, tmp_path, monkeypatch, whole):
    answer = limited(8, 20000, faces, tmp_path, monkeypatch)
    assert "checkpoint model-8 could not be" in answer and "File too large" in answer
    code, out, err = train(faces, tmp_path, "--resume")
    assert code == 0 and "at counter = 4" in out and "WARNING" not in err, err
    assert_same_end(tmp_path, whole)


def test_a_full_disk_shows_one_sentence_and_no_traceback(faces, tmp_path):
    """In a process of its own, so that TensorFlow's threads and the end of Python are seen too."""
    code = ("import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000000, 1000000))\n"
            "import sys, VDSR, npu_session; sys.exit(npu_session.run_main(VDSR.main))")
    done = subprocess.run(
        [sys.executable, "-c", code, f"--input_dir={faces}", f"--output_dir={tmp_path}",
         "--batch_size=1", "--max_steps=1", "--K=2", "--threads=1"], capture_output=True,
        text=True, timeout=300,
        env=dict(os.environ, PYTHONPATH=os.path.dirname(os.path.abspath(VDSR.__file__))))
    assert done.returncode == 1
    sentences = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1 and "File too large" in sentences[0], done.stderr
    assert "Traceback" not in done.stderr


def test_folders_that_cannot_be_written_are_found_before_training(faces, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in ("/proc/none", f"{tmp_path}/file", f"{tmp_path}/file/x"):
        answer = refused_early(faces, folder)
        assert "cannot write to the folder" in answer and folder in answer
    answer = refused_early(faces, tmp_path / "out", "--train_url=/proc/none", code=1)
    assert "/proc/none" in answer
    assert not contents(tmp_path / "out", "metrics.jsonl", ".index")


def test_a_second_run_in_the_same_folder_is_refused(faces, tmp_path, monkeypatch, whole):
    """The first does not notice. (Two processes: test_factorized_train.py's whole network.)"""
    plain, answers = npu_session.RunFolder.log, []

    def log(self, now, **values):
        plain(self, now, **values)
        if now == 6:
            answers.append(refused_early(faces, tmp_path))

    with monkeypatch.context() as patch:
        patch.setattr(npu_session.RunFolder, "log", log)
        trained(faces, tmp_path)
    answer, = answers
    assert "another run is writing" in answer
    assert_same_end(tmp_path, whole)


def test_an_interrupted_save_costs_no_earlier_checkpoint(faces, tmp_path, monkeypatch, whole):
    """Killed after the new data file and before the list of checkpoints names it."""
    plain = tf.train.Saver.save

    def save(self, session, path, **options):
        plain(self, session, path, **options)
        if path.endswith("-8"):
            cut(path + ".data-00000-of-00001", 3000)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tf.train.Saver, "save", save)
        refused(faces, tmp_path, code=130)
    trained(faces, tmp_path)
    assert_same_end(tmp_path, whole)


# ---------------------------------------------------------------- images


def copied(faces, tmp_path):
    """A folder of copies of the 32 images, and their paths."""
    folder = shutil.copytree(os.path.join(faces, "data10w"), str(tmp_path / "data"))
    return folder, data_input.find_images(folder)


def test_a_broken_image_is_named_before_training(faces, tmp_path):
    folder, paths = copied(faces, tmp_path)
    cut(paths[20], 2000)
    for flags in ([], ["--cache_images"]):
        answer = refused(folder, tmp_path / "out", *flags)
        assert f"{paths[20]} cannot be used: " in answer
    assert not os.path.exists(str(tmp_path / "out"))


def test_an_image_that_breaks_while_training_is_named(faces, tmp_path, monkeypatch):
    folder, paths = copied(faces, tmp_path)
    plain = npu_session.RunFolder.log

    def log(self, now, **values):
        plain(self, now, **values)
        if now == 4:
            for path in paths[3:]:
                write(path, b"gone")

    monkeypatch.setattr(npu_session.RunFolder, "log", log)
    answer = refused(folder, tmp_path / "out", "--max_steps=40")
    assert f"{paths[3]} cannot be used: " in answer
    assert 4 <= variables(tmp_path / "out")["global_step"] < 40  # some batches were made already


def test_fewer_images_than_a_batch_and_empty_folders_are_refused(faces, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "--batch_size=33 is more than the 32 images" in refused(
        faces, tmp_path / "out", "--batch_size=33")
    assert "holds no images" in refused(tmp_path / "empty", tmp_path / "out")
    assert not os.path.exists(str(tmp_path / "out"))


def test_a_signal_in_the_last_update_still_ends_as_complete(faces, tmp_path, monkeypatch, whole):
    with monkeypatch.context() as patch:
        signal_at(patch, STEPS, 15)
        trained(faces, tmp_path)
    assert_same_end(tmp_path, whole)
