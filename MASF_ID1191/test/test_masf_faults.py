"""Damage, full disks, unwritable folders, wrong data, divergence: one sentence, nothing lost.

Most runs are DeepAll's on few images: what is tried here is the same for every method.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import contextlib
import os
import shutil

import pytest
import tensorflow.compat.v1 as tf

import data_generator
import masf_func
import npu_session
import training_runs
from training_runs import (
    FEW,
    ITERATIONS,
    assert_same_end,
    contents,
    narrow_network,
    read,
    records,
    run_folder,
    signal_at,
    small_files,
)

PRECIOUS = (".index", "00001", "metrics.jsonl", "checkpoint", "eva.txt")
SAVING = "--save_interval=2"
FLAGS = ["--method=deepall", FEW]


def train(data, output, *flags):
    """training_runs.train with FLAGS; the two functions below likewise."""
    return training_runs.train(data, output, *FLAGS, *flags)


def trained(data, output, *flags):
    return training_runs.trained(data, output, *FLAGS, *flags)


def refused(data, output, *flags, **options):
    return training_runs.refused(data, output, *FLAGS, *flags, **options)


def refused_early(data, output, *flags):
    return training_runs.refused_early(data, output, *FLAGS, *flags)


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """All tests of this file train a narrow network."""
    narrow_network(monkeypatch)


@pytest.fixture(scope="module")
def whole(small_data, tmp_path_factory):
    """Output folder of an uninterrupted run: checkpoints model1 and model3."""
    output = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        narrow_network(patch)
        trained(small_data, output, SAVING)
    return output


@pytest.fixture
def output(whole, tmp_path):
    """A copy of `whole` to damage."""
    return shutil.copytree(str(whole), str(tmp_path / "run"))


def saved(output, name):
    """Path of a file in the folder of checkpoints."""
    return os.path.join(run_folder(output), "checkpoints", name)


def flip(path):
    """Inverts one bit in the middle of a file."""
    with open(path, "r+b") as file:
        position = os.path.getsize(path) // 2
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 16]))


# ---------------------------------------------------------------- damaged files of a run


@pytest.mark.parametrize("damage, name", [
    (flip, "model3.data-00000-of-00001"), (lambda path: os.truncate(path, 0), "model3.index")])
def test_a_damaged_newest_checkpoint_falls_back(damage, name, small_data, output, whole):
    damage(saved(output, name))
    code, out, err = train(small_data, output, "--resume", SAVING)
    assert code == 0 and "at counter = 2" in out, err
    assert "WARNING" in err and "model3 is damaged" in err
    assert_same_end(run_folder(output), run_folder(whole))


def test_no_readable_checkpoint_is_refused_and_nothing_overwritten(small_data, output):
    for name in ("model1", "model3"):
        flip(saved(output, name + ".data-00000-of-00001"))
    before = contents(run_folder(output), *PRECIOUS)
    for flags in ([], ["--resume"]):
        assert "no readable checkpoint" in refused(small_data, output, *flags)
    assert contents(run_folder(output), *PRECIOUS) == before


def test_a_checkpoint_of_another_shape_names_the_variable(small_data, output, monkeypatch):
    before = contents(run_folder(output), *PRECIOUS)
    wider = dict(masf_func.METRIC, **{"metric/w1": (24, 20), "metric/b1": (20,),
                                      "metric/w2": (20, 8)})
    monkeypatch.setattr(masf_func, "METRIC", wider)
    assert "model/metric/w1 [24, 16], this model [24, 20]" in refused(small_data, output)
    assert contents(run_folder(output), *PRECIOUS) == before


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_a_garbled_file_is_named(name, small_data, output):
    with open(os.path.join(run_folder(output), name), "wb") as file:
        file.write(b"\xff\xfe}\n")
    before = contents(run_folder(output), *PRECIOUS)
    assert f"{name} is damaged" in refused_early(small_data, output)
    assert contents(run_folder(output), *PRECIOUS) == before


# ---------------------------------------------------------------- divergence


def test_a_loss_that_is_not_finite_stops_the_run(small_data, tmp_path):
    """Step, terms and the folder in the sentence; what was saved before is untouched."""
    output = tmp_path / "run"
    training_runs.trained(small_data, output, FEW, "--train_iterations=1",
                          "--test_print_interval=1")
    kept = contents(run_folder(output), ".index", "00001")
    path = os.path.join(run_folder(output), "config.json")
    config = read(run_folder(output), "config.json")
    config["flags"]["outer_lr"] = 1e30  # as if the run had been started with it
    npu_session.write_json(path, config)
    folder, flags = run_folder(output), ["--outer_lr=1e30", "--test_print_interval=50"]
    os.rename(folder, folder.replace("outer1e-05", "outer1e+30"))
    sentence = training_runs.refused(small_data, output, FEW, *flags, "--train_iterations=9",
                                     code=3)
    assert "not finite at step" in sentence and "source_loss = " in sentence
    assert contents(run_folder(output), ".index", "00001") == kept
    assert "result.json" in os.listdir(run_folder(output)) or records(run_folder(output))


# ---------------------------------------------------------------- disks and folders


def limited(step, size, data, output, monkeypatch):
    """Trains; from the record of `step` on, no file can grow beyond `size` bytes."""
    plain = npu_session.RunFolder.log

    with monkeypatch.context() as patch, contextlib.ExitStack() as limits:
        def log(self, now, **values):
            if now == step:
                limits.enter_context(small_files(size))
            plain(self, now, **values)

        patch.setattr(npu_session.RunFolder, "log", log)
        return refused(data, output, SAVING, code=1)


@pytest.mark.parametrize("size, text", [(300000, "could not be written"),
                                        (500, "File too large")])
def test_a_full_disk_while_training(size, text, small_data, tmp_path, monkeypatch, whole):
    sentence = limited(4, size, small_data, tmp_path, monkeypatch)
    assert text in sentence and "File too large" in sentence
    code, out, err = train(small_data, tmp_path, "--resume", SAVING)
    assert code == 0 and "at counter = 2" in out and "damaged" not in err, err
    assert_same_end(run_folder(tmp_path), run_folder(whole))


def test_folders_that_cannot_be_written_are_found_before_training(small_data, tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("/proc/none", tmp_path / "file"):
        code, out, err = train(small_data, place)
        assert code == 2 and "cannot write to the folder" in err and "Iteration" not in out


def test_a_second_run_in_the_same_folder_is_refused(small_data, tmp_path, monkeypatch):
    """The lock belongs to the open file: a run in this process is no better off than another's."""
    plain, answers = npu_session.RunFolder.log, []

    def log(self, now, **values):
        plain(self, now, **values)
        if not answers:
            answers.append("asked")
            answers.append(refused_early(small_data, tmp_path))

    with monkeypatch.context() as patch:
        patch.setattr(npu_session.RunFolder, "log", log)
        trained(small_data, tmp_path, "--train_iterations=1", "--save_best=False")
    assert "another run is writing" in answers[1]


def test_an_interrupted_save_costs_no_earlier_checkpoint(small_data, tmp_path, monkeypatch, whole):
    """Killed after the new data file and before the list of checkpoints names it."""
    plain = tf.train.Saver.save

    def save(self, session, path, **options):
        plain(self, session, path, **options)
        if path.endswith("model3"):
            os.truncate(path + ".data-00000-of-00001", 5000)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tf.train.Saver, "save", save)
        refused(small_data, tmp_path, SAVING, code=130)
    trained(small_data, tmp_path, SAVING)
    assert_same_end(run_folder(tmp_path), run_folder(whole))


def test_a_signal_in_the_last_update_still_ends_as_complete(small_data, tmp_path, monkeypatch,
                                                            whole):
    with monkeypatch.context() as patch:
        signal_at(patch, ITERATIONS, 15)
        trained(small_data, tmp_path, SAVING)
    assert_same_end(run_folder(tmp_path), run_folder(whole))


# ---------------------------------------------------------------- data


def copied(small_data, tmp_path):
    """(a copy of the data to damage, path of the first image of cartoon's list)."""
    data = shutil.copytree(small_data, str(tmp_path / "data"))
    entries, _ = data_generator.read_list(os.path.join(data, "filelist", "cartoon.txt"))
    return data, os.path.join(data, "kfold", entries[0])


@pytest.mark.parametrize("damage, text", [
    (os.remove, "cannot be read"), (lambda path: os.truncate(path, 2000), "cannot be decoded"),
    (lambda path: os.truncate(path, 0), "is not a JPEG or PNG image")])
def test_wrong_images_are_refused_before_training(damage, text, small_data, tmp_path):
    data, path = copied(small_data, tmp_path)
    damage(path)
    sentence = refused(data, tmp_path / "out")
    assert text in sentence and path in sentence
    assert not os.path.exists(str(tmp_path / "out"))


def test_an_image_that_breaks_while_training_is_named(small_data, tmp_path, monkeypatch):
    """It looks whole in the check of the headers; its pixels are found damaged when decoded."""
    data, _ = copied(small_data, tmp_path)
    entries, _ = data_generator.read_list(os.path.join(data, "filelist", "cartoon.txt"))
    plain = npu_session.RunFolder.rewind

    def rewind(self, step):
        plain(self, step)
        for entry in entries:
            with open(os.path.join(data, "kfold", entry), "wb") as file:
                file.write(b"\xff\xd8\xff\xe0 no longer an image")

    monkeypatch.setattr(npu_session.RunFolder, "rewind", rewind)
    sentence = refused(data, tmp_path / "out", "--cache=False")
    assert "cartoon" in sentence


def test_batches_that_do_not_fit_are_refused_before_training(small_data, tmp_path):
    assert "fewer than one batch of 3000" in refused(small_data, tmp_path / "out",
                                                     "--meta_batch_size=3000")
    assert "multiple of 3" in refused(small_data, tmp_path / "out", "--meta_batch_size=4")
    assert not os.path.exists(str(tmp_path / "out"))


def test_a_class_that_is_missing_and_wrong_labels_are_refused(small_data, tmp_path):
    data = shutil.copytree(small_data, str(tmp_path / "data"))
    path = os.path.join(data, "filelist", "cartoon.txt")
    with open(path) as file:
        lines = file.readlines()
    for kept, text in (([line for line in lines if not line.endswith(" 4\n")], "guitar"),
                       ([line.replace(" 7\n", " 8\n") for line in lines], "label 8"),
                       ([line.replace(" 7\n", " seven\n") for line in lines], "path label")):
        with open(path, "w") as file:
            file.writelines(kept)
        sentence = refused(data, tmp_path / "out")
        assert text in sentence and path in sentence
    assert not os.path.exists(str(tmp_path / "out"))


def test_missing_data_folders_are_refused(small_data, tmp_path):
    for flag in (f"--dataroot={tmp_path}/none", f"--filelist_root={tmp_path}/none"):
        assert "none" in refused(small_data, tmp_path / "out", flag)
    assert not os.path.exists(str(tmp_path / "out"))
