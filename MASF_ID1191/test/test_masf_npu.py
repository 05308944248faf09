"""The Ascend path against the strict fake npu_bridge, and what is refused without an NPU.

The fake (test/fake_npu_bridge) raises where the adapter would fail or ignore a request, records
what it is asked for, and computes on the CPU.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import importlib
import os
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tensorflow.python.client import session as session_module

import main
import masf_func
import npu_session
from training_runs import (
    FEW,
    last_state,
    narrow_network,
    read,
    records,
    refused_early,
    run_folder,
    stopped,
    train,
    trained,
)

FAKE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fake_npu_bridge")
NPU_FLAGS = ["--print_interval=2", "--save_best=False", FEW]
LOOPED = {"use_off_line": True, "precision_mode": "allow_fp32_to_fp16",
          "enable_data_pre_proc": True, "iterations_per_loop": 2}
RANK_VARIABLES = ("RANK_SIZE", "RANK_ID", "JOB_ID", "RANK_TABLE_FILE", "CM_WORKER_SIZE")


def forget_bridge():
    npu_session.backend.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] in ("npu_bridge", "hccl")]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """A single process that looks for its device itself, and a narrow network."""
    for name in RANK_VARIABLES + ("NPU_SESSION_DEVICE", "FAKE_NPU_RECORD", "FAKE_NPU_ERA"):
        monkeypatch.delenv(name, raising=False)
    narrow_network(monkeypatch)
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


@pytest.fixture(scope="module")
def on_cpu(small_data, tmp_path_factory):
    """Run folder of the run that the NPU ones must equal."""
    npu_session.backend.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        narrow_network(patch)
        return trained(small_data, tmp_path_factory.mktemp("cpu"), *NPU_FLAGS)


def assert_close(folder, expected):
    """An NPU checkpoint is a CPU checkpoint; Adam's first steps hide no difference of rounding."""
    ours, theirs = last_state(folder), last_state(expected)
    assert sorted(ours) == sorted(theirs)
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_a_run_on_the_npu_equals_the_cpus(small_data, tmp_path, record, on_cpu):
    """Same variables; records of the last step of each device-side loop; options of the port."""
    code, out, err = train(small_data, tmp_path, *NPU_FLAGS)
    assert code == 0 and "device = npu" in out, err
    folder = run_folder(tmp_path)
    assert_close(folder, on_cpu)
    ours, theirs = records(folder), records(on_cpu)
    looped = [line for line in theirs if line["step"] % 2 == 0]
    assert [sorted(line) for line in ours] == [sorted(line) for line in looped]
    for mine, other in zip(ours, looped):
        assert mine == pytest.approx(other, rel=1e-3, abs=1e-4)
    training = [entry for entry in record["sessions"] if entry["options"] == LOOPED]
    assert len(training) == 1
    assert training[0]["remapping"] == 2 and training[0]["memory_optimization"] == 2
    assert [loop["n"] for loop in record["loops"]] == [2]
    for kind in ("managers", "optimizers", "collectives", "system", "dropouts"):
        assert record[kind] == [], kind
    assert read(folder, "config.json")["device"] == "npu"
    fetched = [graph["fetches"] for graph in training[0]["graphs"]]
    assert sum(any("IterationOp" in name for name in names) for names in fetched) == 1


def test_one_step_per_run_and_another_precision(small_data, tmp_path, record, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained(small_data, tmp_path, "--train_iterations=1", "--test_print_interval=1",
            "--save_best=False", FEW, "--method=deepall",
            "--precision_mode=allow_mix_precision", "--over_dump=True", "--profiling=True")
    found = next(entry["options"] for entry in record["sessions"]
                 if {"enable_dump_debug", "profiling_mode"} <= set(entry["options"]))
    assert found["precision_mode"] == "allow_mix_precision" and record["loops"] == []
    assert os.path.isdir(found["dump_path"])
    assert os.listdir(str(tmp_path)) == [os.path.basename(run_folder(tmp_path))]


def test_a_run_changes_its_device(small_data, tmp_path, monkeypatch, request, on_cpu):
    stopped(monkeypatch, 2, small_data, tmp_path, *NPU_FLAGS)
    request.getfixturevalue("record")  # from here on there is an NPU
    code, out, err = train(small_data, tmp_path, *NPU_FLAGS)
    assert code == 0 and "at counter = 2" in out and "device = npu" in out, err
    assert_close(run_folder(tmp_path), on_cpu)


@pytest.mark.usefixtures("record")
@pytest.mark.parametrize("flags, steps", [
    (["--print_interval=3"], "2 steps"),
    (["--print_interval=2", "--train_iterations=5"], "5 steps"),
    (["--print_interval=2", "--save_interval=3"], "3 steps")])
def test_intervals_that_do_not_divide_are_refused_before_training(flags, steps, small_data,
                                                                  tmp_path):
    assert steps in refused_early(small_data, tmp_path / "out", *flags)
    assert not os.path.exists(str(tmp_path / "out"))


@pytest.mark.usefixtures("record")
def test_the_defaults_fit_the_device_loop():
    args = main.parse_args([])
    assert all(count % args.print_interval == 0
               for count in main.intervals(args) + (args.train_iterations,))


def test_an_npu_that_is_demanded_must_be_there(monkeypatch, small_data, tmp_path):
    monkeypatch.setenv("NPU_SESSION_DEVICE", "npu")
    assert "npu_bridge is not installed" in refused_early(small_data, tmp_path / "out")


def test_the_second_of_two_processes_averages_and_leaves_no_files(monkeypatch, small_data,
                                                                  tmp_path, record):
    for name, value in (("RANK_SIZE", "2"), ("RANK_ID", "1"), ("JOB_ID", "1"),
                        ("RANK_TABLE_FILE", "table.json")):
        monkeypatch.setenv(name, value)
    code, _, err = train(small_data, tmp_path / "out", "--meta_batch_size=6",
                         "--train_iterations=2", FEW)
    assert code == 0, err
    operations = [entry["op"] for entry in record["collectives"]]
    variables = len(masf_func.CONVOLUTIONS) * 2 + len(masf_func.DENSE) * 2 + len(masf_func.METRIC)
    assert operations.count("broadcast") > 3 * variables  # and Adam's slots
    assert {entry.get("reduction") for entry in record["collectives"]} == {None, "sum"}
    assert not os.path.exists(str(tmp_path / "out"))
