"""The Ascend path against the strict fake npu_bridge, and what is refused without an NPU.

The fake (test/fake_npu_bridge) raises where the adapter would fail or ignore a request, records
what it is asked for, and computes on the CPU.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import importlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tensorflow.python.client import session as session_module

import npu_session
import VDSR
from training_runs import (
    SHORT,
    checkpoint_folder,
    program,
    read,
    records,
    refused,
    stopped,
    train,
    trained,
    variables,
)

FAKE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fake_npu_bridge")
PLAIN_OPTIONS = {"use_off_line": True, "precision_mode": "allow_mix_precision",
                 "enable_data_pre_proc": True, "iterations_per_loop": 2}
HOST_OPTIONS = {"use_off_line": False, "precision_mode": "allow_mix_precision"}
RANK_VARIABLES = ("RANK_SIZE", "RANK_ID", "JOB_ID", "RANK_TABLE_FILE", "CM_WORKER_SIZE")


def forget_bridge():
    npu_session.backend.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] in ("npu_bridge", "hccl")]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """A single process that looks for its device itself."""
    for name in RANK_VARIABLES + ("NPU_SESSION_DEVICE", "FAKE_NPU_RECORD", "FAKE_NPU_ERA"):
        monkeypatch.delenv(name, raising=False)
    npu_session.backend.cache_clear()
    yield
    npu_session.backend.cache_clear()


@pytest.fixture
def record():
    """The fake is installed; its record, empty at first. Afterwards TensorFlow is as before."""
    patch = pytest.MonkeyPatch()
    for owner, names in ((session_module.BaseSession, ("__init__", "_do_run", "make_callable")),
                         (tf.train.Optimizer, ("apply_gradients",))):
        for name in names:
            patch.setattr(owner, name, getattr(owner, name))
    patch.syspath_prepend(FAKE)
    forget_bridge()
    yield importlib.import_module("npu_bridge._strict").RECORD
    patch.undo()
    forget_bridge()


@pytest.fixture
def on_cpu(whole_run):
    """Run folder of the run that the NPU ones must equal."""
    return whole_run[0]


def assert_close(folder, expected):
    ours, theirs = variables(folder), variables(expected)
    assert sorted(ours) == sorted(theirs)  # an NPU checkpoint is a CPU checkpoint
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-3, err_msg=name,
                                   atol=1e-3 * np.abs(value).max())


def device_sessions(record):
    """The sessions that are not kept on the host."""
    return [session for session in record["sessions"] if session["options"]["use_off_line"]]


# ---------------------------------------------------------------- the program on the fake


def test_the_program_finds_npu_bridge_by_itself(faces, tmp_path):
    done = subprocess.run(
        [sys.executable, VDSR.__file__, f"--input_dir={faces}", f"--output_dir={tmp_path}",
         "--batch_size=1", "--K=2", "--max_steps=2", "--threads=1"], capture_output=True,
        text=True, timeout=300, check=False, env=dict(
            os.environ, PYTHONPATH=FAKE, FAKE_NPU_RECORD=str(tmp_path / "record")))
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "record").read_text())
    training, = device_sessions(record)
    assert training["options"] == PLAIN_OPTIONS
    assert training["remapping"] == 2 and training["memory_optimization"] == 2
    assert [loop["n"] for loop in record["loops"]] == [2]
    for kind in ("managers", "optimizers", "collectives", "system", "dropouts"):
        assert record[kind] == [], kind
    assert read(tmp_path, "config.json")["device"] == "npu"


def test_a_run_equals_the_cpus_and_compiles_few_graphs(faces, tmp_path, record, on_cpu):
    trained(faces, tmp_path, "--save_freq=0", is_drawn=True)
    assert_close(tmp_path, on_cpu)
    ours, theirs = records(tmp_path), records(on_cpu)
    assert [sorted(line) for line in ours] == [sorted(line) for line in theirs]
    assert [session["options"] for session in record["sessions"]] == [
        HOST_OPTIONS, HOST_OPTIONS, PLAIN_OPTIONS]  # the images' check, pairs to show, training
    graphs = record["sessions"][-1]["graphs"]
    assert len(graphs) <= 12  # most of them run once: initialisers, the loop's own variables
    assert sum(any("IterationOp" in name for name in graph["fetches"]) for graph in graphs) == 1


def test_test_mode_on_the_npu(faces, tmp_path, record, on_cpu):
    shutil.copytree(checkpoint_folder(on_cpu), checkpoint_folder(tmp_path / "npu"))
    flags = ["--batch_size=5", "--threads=1", "--overlay=none"]
    code, _, err = program(f"--input_dir={faces}", f"--output_dir={tmp_path}/npu", *flags,
                           mode="test")
    assert code == 0, err
    device, = device_sessions(record)
    assert device["options"] == {"use_off_line": True, "precision_mode": "allow_mix_precision"}
    assert len([graph for graph in device["graphs"] if graph["runs"] == 7]) == 1  # 32 images by 5
    with np.load(str(tmp_path / "npu" / "coordinates.npz")) as arrays:
        assert arrays["cells"].shape == (32, 3, 2) and np.isfinite(arrays["cells"]).all()


def test_dumps_and_profiles_are_asked_for_in_the_training_session(faces, tmp_path, record):
    trained(faces, tmp_path, "--max_steps=2", "--over_dump=True", "--profiling=True",
            is_drawn=True)
    found = dict(record["sessions"][-1]["options"])
    assert json.loads(found.pop("profiling_options"))["output"] == str(tmp_path / "npu_profile")
    assert found == dict(PLAIN_OPTIONS, enable_dump_debug=True, dump_debug_mode="all",
                         dump_path=str(tmp_path / "npu_dump"), profiling_mode=True)
    assert os.path.isdir(str(tmp_path / "npu_dump"))
    assert os.path.isdir(str(tmp_path / "npu_profile"))
    for session in record["sessions"][:-1]:  # the host writes none, wherever it is started
        assert session["options"] == HOST_OPTIONS


def test_a_run_changes_its_device(faces, tmp_path, monkeypatch, request, on_cpu):
    stopped(monkeypatch, 6, faces, tmp_path)
    request.getfixturevalue("record")  # from here on there is an NPU
    code, out, err = train(faces, tmp_path)
    assert code == 0 and "at counter = 6" in out, err
    assert read(tmp_path, "config.json")["device"] == "npu"
    assert_close(tmp_path, on_cpu)


# ---------------------------------------------------------------- refused before training


@pytest.mark.parametrize("flags, steps", [
    (["--iterations_per_loop=5"], "12 steps"), (["--iterations_per_loop=6"], "2 steps")])
def test_steps_that_do_not_divide_are_refused_before_training(flags, steps, faces, tmp_path,
                                                              record):
    answer = refused(faces, tmp_path / "out", *flags)
    assert steps in answer and "--iterations_per_loop" in answer
    assert not os.path.exists(str(tmp_path / "out"))
    assert device_sessions(record) == []


def test_one_step_per_run_needs_no_device_loop_and_two_cannot_go_on_from_there(faces, tmp_path,
                                                                               record):
    trained(faces, tmp_path, "--max_steps=3")
    assert record["sessions"][-1]["options"] == {
        "use_off_line": True, "precision_mode": "allow_mix_precision"}
    assert record["loops"] == []
    answer = refused(faces, tmp_path)
    assert "3 steps" in answer and "--iterations_per_loop" in answer
    trained(faces, tmp_path, "--iterations_per_loop=1")


def test_an_npu_that_is_demanded_must_be_there(monkeypatch, faces, tmp_path):
    monkeypatch.setenv("NPU_SESSION_DEVICE", "npu")
    assert "npu_bridge is not installed" in refused(faces, tmp_path / "out")
    assert not os.path.exists(str(tmp_path / "out"))


def test_the_second_of_two_processes_averages_and_leaves_no_files(monkeypatch, faces, tmp_path,
                                                                  on_cpu, record):
    """The step number is among what it gets from the first: both must end at the same step."""
    for name, value in (("RANK_SIZE", "2"), ("RANK_ID", "1"), ("JOB_ID", "1"),
                        ("RANK_TABLE_FILE", "table.json")):
        monkeypatch.setenv(name, value)
    code, _, err = train(faces, tmp_path / "out", "--max_steps=2")
    assert code == 0, err
    assert [entry["wrapper"] for entry in record["optimizers"]] == [
        "npu_distributed_optimizer_wrapper"]
    operations = [entry["op"] for entry in record["collectives"]]
    assert operations.count("broadcast") == len(variables(on_cpu))
    assert {entry.get("reduction") for entry in record["collectives"]} == {None, "sum"}
    assert not os.path.exists(str(tmp_path / "out"))


@pytest.mark.parametrize("mode", npu_session.PRECISION_MODES)
def test_every_precision_mode_arrives(mode, record):
    args = VDSR.parse_args(SHORT + [f"--precision_mode={mode}"])
    with tf.Session(config=npu_session.session_config(args)):
        assert record["sessions"][-1]["options"] == {"use_off_line": True, "precision_mode": mode}
