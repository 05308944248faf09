"""ModelArts' start file: what is copied, which flags main.py gets, and its exit code."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import shutil
import sys
import types

import pytest

import boot_modelarts
import npu_session
from npu_session import InputError


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A folder that obs://bucket stands for, by a moxing of our own: one data file is in it."""
    folder = tmp_path / "bucket"
    (folder / "masfdata" / "kfold").mkdir(parents=True)
    (folder / "masfdata" / "kfold" / "a.jpg").write_text("pixels")

    def place(url):
        return url.replace("obs://", str(tmp_path) + "/")

    def copy_parallel(source, target):
        for name in os.listdir(place(source)):
            begin, end = os.path.join(place(source), name), os.path.join(place(target), name)
            if os.path.isdir(begin):
                shutil.copytree(begin, end)
            else:
                os.makedirs(place(target), exist_ok=True)
                shutil.copy(begin, end)

    file = types.SimpleNamespace(copy_parallel=copy_parallel,
                                 exists=lambda url: os.path.exists(place(url)))
    monkeypatch.setitem(sys.modules, "moxing", types.SimpleNamespace(file=file))
    return folder


@pytest.fixture
def called(monkeypatch):
    """Function (what main.py does with its flags, a dict) that puts it in main.py's place.

    Returns the list of the calls' flags.
    """
    def replace(action):
        calls = []

        def main(argv):
            calls.append(argv)
            return action(dict(flag[2:].split("=", 1) for flag in argv))
        monkeypatch.setattr(boot_modelarts.training, "main", main)
        return calls
    return replace


def train(flags):
    """Reads the data and writes a result, as main.py would."""
    with open(os.path.join(flags["data_url"], "kfold", "a.jpg")) as data:
        assert data.read() == "pixels"
    with open(os.path.join(flags["train_url"], "result.json"), "w") as file:
        file.write("{}")
    return 0


URLS = ["--data_url=obs://bucket/masfdata", "--train_url=obs://bucket/out"]


def test_data_is_copied_in_and_results_out(bucket, called):
    calls = called(train)
    assert boot_modelarts.main(URLS + ["--seed=3", "--train=False"]) == 0
    assert os.listdir(str(bucket / "out")) == ["result.json"]
    (data, output, *further), = calls
    assert not data.startswith("--data_url=obs") and not output.startswith("--train_url=obs")
    assert further == ["--seed=3", "--train=False"]


def test_results_of_a_failed_training_are_copied_too_and_its_code_is_kept(bucket, called):
    called(lambda flags: train(flags) or 143)
    assert boot_modelarts.main(URLS) == 143
    assert (bucket / "out" / "result.json").exists()

    def fail(flags):
        train(flags)
        raise InputError("bad list")
    called(fail)
    assert npu_session.run_main(boot_modelarts.main, URLS) == 2


def test_earlier_results_are_there_so_that_a_job_resumes(bucket, called):
    (bucket / "out").mkdir()
    (bucket / "out" / "earlier.txt").write_text("1")

    def look(flags):
        assert os.listdir(flags["train_url"]) == ["earlier.txt"]
        return 0
    assert called(look) is not None and boot_modelarts.main(URLS) == 0


def test_local_folders_are_used_in_place(called, tmp_path):
    calls = called(lambda _: 0)
    boot_modelarts.main([f"--data_url={tmp_path}/in", f"--train_url={tmp_path}/out",
                         "--num_gpus=1"])
    assert calls == [[f"--data_url={tmp_path}/in", f"--train_url={tmp_path}/out"]]
    boot_modelarts.main([])
    assert calls[1:] == [[]]


def test_unknown_flags_are_refused_by_main(capsys):
    with pytest.raises(SystemExit) as leaving:
        boot_modelarts.main(["--no_such_flag=1"])
    assert leaving.value.code == 2 and "--no_such_flag" in capsys.readouterr().err


def test_without_moxing_a_remote_address_is_one_sentence(monkeypatch, called):
    monkeypatch.setitem(sys.modules, "moxing", None)
    called(lambda _: 0)
    with pytest.raises(InputError, match="obs://bucket/masfdata needs the package moxing"):
        boot_modelarts.main(URLS)


def test_help_is_true(capsys):
    with pytest.raises(SystemExit) as leaving:
        boot_modelarts.main(["--help"])
    printed = capsys.readouterr().out
    assert leaving.value.code == 0 and "--data_url" in printed and "kfold/<domain>" in printed
