"""The Ascend path of both programs against the strict fake npu_bridge.

The fake (test/fake_npu_bridge) raises where the adapter would fail or ignore a request, records
what it is asked for, and computes on the CPU. npu_session's own behaviour is tested in CSGM.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import importlib
import json
import os
import shutil
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tensorflow.python.client import session as session_module

import npu_session
import options
from training_runs import (
    AFFINITY,
    affinity_folder,
    cluster,
    pretrain,
    pretrain_folder,
    read,
    records,
    refused,
    stopped,
    succeeded,
    variables,
)

FAKE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fake_npu_bridge")
STAGE_1 = ["--steps_per_call=4"]
STAGE_2 = ["--steps_per_call=2", "--affinity_steps=8"]
PLAIN_OPTIONS = {"use_off_line": True, "precision_mode": "allow_mix_precision",
                 "enable_data_pre_proc": True, "modify_mixlist": options.MIXLIST}
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


def assert_close(folder, expected):
    """Variables equal but for rounding; an NPU checkpoint is a CPU checkpoint."""
    ours, theirs = variables(folder), variables(expected)
    assert sorted(ours) == sorted(theirs)
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-4, atol=1e-4, err_msg=name)


# ---------------------------------------------------------------- stage 1


def test_stage_1_on_the_fake(small_data, tmp_path, record, pretrained):
    succeeded(pretrain(small_data, tmp_path, *STAGE_1))
    session, = record["sessions"]
    assert session["options"] == dict(PLAIN_OPTIONS, iterations_per_loop=4)
    assert session["remapping"] == 2 and session["memory_optimization"] == 2
    assert [loop["n"] for loop in record["loops"]] == [4]
    manager, = record["managers"]
    assert manager["class"] == "ExponentialUpdateLossScaleManager"
    assert {name: manager["kwargs"][name] for name in (
        "init_loss_scale", "incr_every_n_steps", "decr_every_n_nan_or_inf", "decr_ratio")} == {
            "init_loss_scale": 2 ** 14, "incr_every_n_steps": 1000, "decr_every_n_nan_or_inf": 1,
            "decr_ratio": 0.5}
    assert record["optimizers"] == [{
        "wrapper": "NPULossScaleOptimizer", "optimizer": "Adam",
        "manager": "ExponentialUpdateLossScaleManager", "is_distributed": False}]
    assert read(pretrain_folder(tmp_path), "config.json")["device"] == "npu"
    assert_close(pretrain_folder(tmp_path), pretrain_folder(pretrained[0]))
    for ours, theirs in zip(records(pretrain_folder(tmp_path)),
                            records(pretrain_folder(pretrained[0]))):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_a_skipped_step_is_reported_and_counted_out(small_data, tmp_path, monkeypatch, record):
    """The loss scale of 2^14 overflows once: the step is lost, the schedule is not."""
    strict, calls = importlib.import_module("npu_bridge._strict"), []
    assert strict.RECORD is record
    monkeypatch.setattr(npu_session.Loop, "run", overflow_once(npu_session.Loop.run, calls))
    out = succeeded(pretrain(small_data, tmp_path, "--steps_per_call=1"))
    assert "overflow ls is " in out
    found = variables(pretrain_folder(tmp_path))
    assert found["global_step"] == 12 and found["applied_steps"] == 11


def overflow_once(run, calls):
    """Loop.run whose third call meets weights that are infinite, and puts them back."""
    def changed(self, session, count):
        calls.append(count)
        if len(calls) != 3:
            return run(self, session, count)
        kernel, = [variable for variable in tf.global_variables()
                   if variable.op.name == "0/0_dec1_w2"]
        before = session.run(kernel)
        kernel.load(np.full_like(before, 1e30), session)  # squared errors overflow float32
        run(self, session, count)
        kernel.load(before, session)
        return np.ones([1, 3], np.float32)
    return changed


def test_resume_on_the_fake_and_a_change_of_device(small_data, tmp_path, monkeypatch, request,
                                                   pretrained):
    stopped(monkeypatch, 4, pretrain, small_data, tmp_path, *STAGE_1)
    request.getfixturevalue("record")  # from here on there is an NPU
    out = succeeded(pretrain(small_data, tmp_path, *STAGE_1))
    assert "at counter = 4" in out and "device = npu" in out
    assert_close(pretrain_folder(tmp_path), pretrain_folder(pretrained[0]))


# ---------------------------------------------------------------- stage 2


@pytest.fixture
def output(pretrained, tmp_path):
    """An output folder (str) that holds the weights of stage 1 only."""
    shutil.copytree(os.path.join(pretrained[0], "models"), str(tmp_path / "run" / "models"))
    return str(tmp_path / "run")


def test_stage_2_finds_npu_bridge_by_itself(run_program, small_data, output, tmp_path):
    done = run_program(
        "affinity_fusion.py", f"--data_dir={small_data}", f"--output_dir={output}", *AFFINITY,
        *STAGE_2, cwd=str(tmp_path),
        env={"PYTHONPATH": FAKE, "FAKE_NPU_RECORD": str(tmp_path / "record")})
    assert done.returncode == 0, done.stderr
    assert "device = npu" in done.stdout and "Max ACC: " in done.stdout
    record = json.loads((tmp_path / "record").read_text())
    session, = record["sessions"]
    assert session["options"] == dict(PLAIN_OPTIONS, iterations_per_loop=2)
    manager, = record["managers"]
    assert manager["class"] == "FixedLossScaleManager"
    assert manager["kwargs"]["loss_scale"] == 2 ** 7
    assert manager["kwargs"]["enable_overflow_check"] is False
    assert [loop["n"] for loop in record["loops"]] == [2]
    with open(options.MIXLIST) as file:
        lists = json.load(file)
    assert lists["black-list"]["to-add"] == ["AddN", "Add", "Pow", "Log", "ReduceSumD"]
    assert lists["white-list"] == {"to-remove": [], "to-add": ["MatMulV2", "BiasAdd"]}


def test_stage_2_equals_the_cpus(small_data, output, record, clustered):
    succeeded(cluster(small_data, output, "--max_train_steps=14", "--steps_per_call=2"))
    ours, theirs = (records(affinity_folder(folder)) for folder in (output, clustered[0]))
    for mine, other in zip(ours, theirs):
        for name in ("step", "cost", "reconstruction", "relative_residual"):
            assert mine[name] == pytest.approx(other[name], rel=1e-4)
    assert_close(affinity_folder(output), affinity_folder(clustered[0]))
    fetches = [graph["fetches"] for graph in record["sessions"][-1]["graphs"]]
    assert sum(any("IterationOp" in name for name in names) for names in fetches) == 1
    assert len(fetches) <= 12


# ---------------------------------------------------------------- refused before training


@pytest.mark.usefixtures("record")
def test_steps_that_do_not_divide_are_refused_before_training(small_data, tmp_path, output):
    sentence = refused(pretrain(small_data, tmp_path / "out", "--steps_per_call=5"))
    assert "--log_every" in sentence and not os.path.exists(str(tmp_path / "out" / "logs"))
    sentence = refused(cluster(small_data, output, "--steps_per_call=3"))
    assert "3 at a time" in sentence and not os.path.exists(affinity_folder(output))


@pytest.mark.usefixtures("record")
def test_the_default_schedule_fits_the_default_loop(small_data, tmp_path, monkeypatch):
    monkeypatch.setattr(npu_session.Loop, "run",  # without training
                        lambda loop, _, count: loop.check(count) or np.ones([1, 3], np.float32))
    flags = ["--mode=train", "--mat=small", f"--data_dir={small_data}", f"--output_dir={tmp_path}"]
    from pretrain_affinity_fusion import main
    from training_runs import call
    for steps in ("150", "1"):
        succeeded(call(main, flags + [f"--max_train_steps={steps}", f"--model=m{steps}"]))
        assert read(pretrain_folder(tmp_path, "m" + steps), "result.json")["step"] == int(steps)


@pytest.mark.usefixtures("record")
def test_several_processes_are_refused_on_the_npu(small_data, tmp_path, monkeypatch):
    for name, value in (("RANK_SIZE", "2"), ("RANK_ID", "0"), ("JOB_ID", "1"),
                        ("RANK_TABLE_FILE", "table.json")):
        monkeypatch.setenv(name, value)
    assert "--rank_size=2" in refused(pretrain(small_data, tmp_path))
    assert os.listdir(str(tmp_path)) == []
