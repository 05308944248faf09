"""Damage, full disks, unwritable folders, wrong data, divergence: one sentence, nothing lost."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import gzip
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import main
import model_def
import npu_session
from training_runs import (
    SHORT,
    assert_same_end,
    contents,
    read,
    records,
    refused,
    run_folder,
    signal_at,
    train,
    trained,
    variables,
)

DATA, INDEX = "mnist_vae_model-{}.data-00000-of-00001", "mnist_vae_model-{}.index"
PRECIOUS = (".index", "00001", "metrics.jsonl", "checkpoint")


@pytest.fixture(scope="module")
def whole(small_data, tmp_path_factory):
    """Output folder of an uninterrupted run of 3 epochs."""
    output = tmp_path_factory.mktemp("whole")
    trained(small_data, output)
    return output


@pytest.fixture(scope="module")
def part(small_data, tmp_path_factory):
    """Output folder of a run of 2 epochs: checkpoints mnist_vae_model-0 and -1."""
    output = tmp_path_factory.mktemp("part")
    trained(small_data, output, "--epochs=2")
    return output


@pytest.fixture
def output(part, tmp_path):
    """A copy of `part` to damage."""
    return shutil.copytree(str(part), str(tmp_path / "run"))


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


# ---------------------------------------------------------------- damaged checkpoints


@pytest.mark.parametrize("damage, name, argument", [
    (cut, DATA, 100000), (cut, DATA, 0), (flip, DATA, 0.5), (remove, DATA, None),
    (cut, INDEX, 500), (cut, INDEX, 0), (flip, INDEX, 0.3), (remove, INDEX, None),
    (write, INDEX, b"<html>404</html>")])
def test_a_damaged_newest_checkpoint_falls_back(damage, name, argument, small_data, output, whole):
    damage(os.path.join(run_folder(output), name.format(1)), argument)
    code, out, err = train(small_data, output, "--resume")
    assert code == 0 and "at counter = 10" in out, err
    assert "WARNING" in err and "mnist_vae_model-1 is damaged" in err
    assert_same_end(run_folder(output), run_folder(whole))


@pytest.mark.parametrize("content", [b"", b"<html>no</html>", b"\xff\xfe\x00garbage",
                                     b'model_checkpoint_path: "gone-7"\n'
                                     b'all_model_checkpoint_paths: "gone-7"\n'])
def test_a_garbled_checkpoint_list_costs_nothing(content, small_data, output, whole):
    write(os.path.join(run_folder(output), "checkpoint"), content)
    code, out, err = train(small_data, output, "--resume")
    assert code == 0 and "at counter = 20" in out, err
    assert_same_end(run_folder(output), run_folder(whole))


def test_no_readable_checkpoint_is_refused_and_nothing_overwritten(small_data, output):
    for epoch in (0, 1):
        flip(os.path.join(run_folder(output), DATA.format(epoch)), 0.5)
    before = contents(run_folder(output), *PRECIOUS)
    for flags in ([], ["--resume"]):
        assert "no readable checkpoint" in refused(small_data, output, *flags)
    assert contents(run_folder(output), *PRECIOUS) == before


def test_a_checkpoint_of_another_shape_names_the_variable(small_data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(model_def, "N_HIDDEN", 400)
        trained(small_data, tmp_path, "--max_steps=1")
    before = contents(run_folder(tmp_path), *PRECIOUS)
    sentence = refused(small_data, tmp_path)
    assert "enc/w1 [784, 400], this model [784, 500]" in sentence
    assert contents(run_folder(tmp_path), *PRECIOUS) == before


# ---------------------------------------------------------------- other damaged files


def test_a_cut_last_record_is_written_again(small_data, output, whole):
    path = os.path.join(run_folder(output), "metrics.jsonl")
    with open(path, "a") as file:
        file.write('{"epoch": 2, "loss": 19')
    trained(small_data, output)
    assert_same_end(run_folder(output), run_folder(whole))


@pytest.mark.parametrize("name, content", [
    ("config.json", b"garbage"), ("config.json", b"[1]"), ("config.json", b'{"flags": 5}'),
    ("config.json", b""), ("config.json", b"\xff\xfe"), ("metrics.jsonl", b"gar}\n"),
    ("metrics.jsonl", b"\xff\xfe}\n")])
def test_a_garbled_file_is_named(name, content, small_data, output):
    write(os.path.join(run_folder(output), name), content)
    before = contents(run_folder(output), *PRECIOUS)
    sentence = refused(small_data, output)
    assert f"{name} is damaged" in sentence and "remove it" in sentence
    assert contents(run_folder(output), *PRECIOUS) == before


# ---------------------------------------------------------------- divergence


def test_a_loss_that_is_not_finite_stops_the_run(small_data, output):
    """The second epoch's checkpoint stays the newest, and is as it was."""
    before = variables(run_folder(output))
    path = os.path.join(run_folder(output), "config.json")
    config = read(run_folder(output), "config.json")
    config["flags"]["learning_rate"] = 1e6  # as if the run had been started with it
    npu_session.write_json(path, config)
    sentence = refused(small_data, output, "--learning_rate=1e6", code=3)
    assert "not finite at step 21:" in sentence and run_folder(output) in sentence
    for term in model_def.LOSS_TERMS:
        assert f"{term} = " in sentence
    after = variables(run_folder(output))
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    assert [line["step"] for line in records(run_folder(output))][-1] == 20


def test_errors_that_are_not_finite_are_no_result(small_data, tmp_path):
    """The loss is from before the update, so the last update of all shows in the errors only."""
    sentence = refused(small_data, tmp_path, "--max_steps=1", "--learning_rate=1e6", code=3)
    assert "not finite at step 0: full_test_error_sampled_z = nan" in sentence
    assert "result.json" not in os.listdir(run_folder(tmp_path))
    sentence = refused(small_data, tmp_path / "b", "--num_samples=50", "--learning_rate=1e6",
                       code=3)  # one update an epoch
    assert "not finite at step 0" in sentence
    assert not contents(run_folder(tmp_path / "b"), ".index")


def test_check_finite_names_step_and_terms():
    values = np.array([[1.0, 2.0], [1.0, np.inf], [np.nan, 0.0]])
    with pytest.raises(FloatingPointError, match="step 8: loss = 1.0, other = inf.*in runs/x"):
        npu_session.check_finite(values, ("loss", "other"), 7, "runs/x")
    npu_session.check_finite(values[:1], ("loss", "other"), 7, "runs/x")


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


@pytest.mark.parametrize("size, text", [(1000000, "checkpoint mnist_vae_model-1 could not be"),
                                        (1000, "File too large")])
def test_a_full_disk_while_training(size, text, small_data, tmp_path, monkeypatch, whole):
    sentence = limited(20, size, small_data, tmp_path, monkeypatch)
    assert text in sentence and "File too large" in sentence
    code, out, err = train(small_data, tmp_path, "--resume")
    assert code == 0 and "at counter = 10" in out and "WARNING" not in err, err
    assert_same_end(run_folder(tmp_path), run_folder(whole))


def test_a_full_disk_shows_one_sentence_and_no_traceback(small_data, tmp_path):
    """In a process of its own, so that TensorFlow's threads and the end of Python are seen too."""
    code = ("import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000000, 1000000))\n"
            "import sys, main, npu_session; sys.exit(npu_session.run_main(main.main))")
    done = subprocess.run(
        [sys.executable, "-c", code, f"--data_dir={small_data}", f"--output_dir={tmp_path}",
         "--epochs=1"] + SHORT, capture_output=True, text=True, timeout=120,
        env=dict(os.environ, PYTHONPATH=os.path.dirname(os.path.abspath(main.__file__))))
    assert done.returncode == 1
    sentences = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1 and "File too large" in sentences[0], done.stderr
    assert "Traceback" not in done.stderr


def test_folders_that_cannot_be_written_are_found_before_training(small_data, tmp_path):
    (tmp_path / "file").write_text("")
    for flags in (["--ckpt_dir=/proc/none"], [f"--ckpt_dir={tmp_path}/file"],
                  [f"--ckpt_dir={tmp_path}/file/x"]):
        assert "cannot write to the folder" in refused(small_data, tmp_path / "out", *flags)
    for flags in (["--sample_dir=/proc/none"], [f"--sample_dir={tmp_path}/file/x"]):
        assert flags[0].split("=")[1] in refused(small_data, tmp_path / "out", *flags, code=1)
    assert not os.path.exists(run_folder(tmp_path / "out"))


def test_a_folder_that_vanishes_while_training(small_data, tmp_path, monkeypatch):
    plain = npu_session.Checkpoints.save

    def save(self, session, name):
        shutil.rmtree(str(tmp_path / "models"))
        plain(self, session, name)

    monkeypatch.setattr(npu_session.Checkpoints, "save", save)
    assert "could not be written" in refused(small_data, tmp_path, "--max_steps=10", code=1)


def test_a_second_run_in_the_same_folder_is_refused(small_data, tmp_path, monkeypatch, whole):
    plain, answers = npu_session.RunFolder.log, []

    def log(self, now, **values):
        plain(self, now, **values)
        if now == 12:  # in another process, as a user would
            done = subprocess.run(
                [sys.executable, main.__file__, f"--data_dir={small_data}",
                 f"--output_dir={tmp_path}"] + SHORT, capture_output=True,
                text=True, timeout=120)
            answers.append((done.returncode, done.stderr))

    with monkeypatch.context() as patch:
        patch.setattr(npu_session.RunFolder, "log", log)
        trained(small_data, tmp_path)
    (code, err), = answers
    assert code == 2 and "another run is writing" in err and "Traceback" not in err
    assert_same_end(run_folder(tmp_path), run_folder(whole))


def test_an_interrupted_save_costs_no_earlier_checkpoint(small_data, tmp_path, monkeypatch, whole):
    """Killed after the new data file and before the list of checkpoints names it."""
    plain = tf.train.Saver.save

    def save(self, session, path, **options):
        plain(self, session, path, **options)
        if path.endswith("-1"):
            cut(path + ".data-00000-of-00001", 5000)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tf.train.Saver, "save", save)
        refused(small_data, tmp_path, code=130)
    trained(small_data, tmp_path)
    assert_same_end(run_folder(tmp_path), run_folder(whole))


# ---------------------------------------------------------------- data


def unpacked(small_data, folder):
    """A copy of the data without gzip, which is easy to damage."""
    folder.mkdir()
    for name in os.listdir(small_data):
        if name.endswith(".gz"):
            with gzip.open(os.path.join(small_data, name), "rb") as file:
                write(str(folder / name[:-3]), file.read())
    return folder


@pytest.mark.parametrize("name, content, text", [
    ("train-images-idx3-ubyte", lambda b: b[:-1], "is damaged"),
    ("train-images-idx3-ubyte", lambda b: b[:10], "fewer than an idx header"),
    ("train-images-idx3-ubyte", lambda _: b"<html>404 not found, sorry</html>", "not 2051"),
    ("train-images-idx3-ubyte", lambda b: b[:4] + b"\xff" * 4 + b[8:], "is damaged"),
    ("train-images-idx3-ubyte", lambda b: b[:11] + b"\x20" + b[12:], "not 28 x 28"),
    ("t10k-labels-idx1-ubyte", lambda b: b[:4] + b"\0\0\0\1" + b[8:9], "300 test images but 1"),
    ("t10k-labels-idx1-ubyte", lambda b: b[:-1] + b"\x0c", "a test label is 12"),
    ("train-labels-idx1-ubyte", None, "has no train-labels-idx1-ubyte")])
def test_wrong_data_is_refused_before_training(name, content, text, small_data, tmp_path):
    data = unpacked(small_data, tmp_path / "data")
    path = str(data / name)
    if content is None:
        os.remove(path)
    else:
        with open(path, "rb") as file:
            whole_file = file.read()
        write(path, content(whole_file))
    sentence = refused(data, tmp_path / "out")
    assert text in sentence and str(data) in sentence
    assert not os.path.exists(str(tmp_path / "out"))


@pytest.mark.parametrize("damage", [
    lambda path: cut(path, 5000), lambda path: flip(path, 0.6),
    lambda path: write(path, b"<html>404</html>"), lambda path: write(path, b"")])
def test_a_damaged_gzip_file_is_refused_before_training(damage, small_data, tmp_path):
    data = shutil.copytree(small_data, str(tmp_path / "data"))
    path = os.path.join(data, "train-images-idx3-ubyte.gz")
    damage(path)
    assert path in refused(data, tmp_path / "out")
    assert not os.path.exists(str(tmp_path / "out"))


def test_batches_larger_than_the_data_are_refused_before_training(small_data, tmp_path):
    assert "--batch_size=1200" in refused(small_data, tmp_path / "out", "--batch_size=1200",
                                          "--num_samples=1200")
    assert "--num_samples=40" in refused(small_data, tmp_path / "out", "--num_samples=40")
    assert not os.path.exists(str(tmp_path / "out"))


def test_the_smallest_data_that_can_be_trained_on(small_data, tmp_path):
    """Batches of one image, fewer images in an epoch than in the file."""
    folder = trained(small_data, tmp_path, "--num_samples=2", "--batch_size=1", "--epochs=1")
    assert read(folder, "result.json")["step"] == 2


def test_a_signal_in_the_last_update_still_ends_as_complete(small_data, tmp_path, monkeypatch,
                                                            whole):
    with monkeypatch.context() as patch:
        signal_at(patch, 30, 15)
        trained(small_data, tmp_path)
    assert_same_end(run_folder(tmp_path), run_folder(whole))
