"""The Ascend path against the strict fake npu_bridge, and what is refused without an NPU.

The fake (test/fake_npu_bridge) raises where the adapter would fail or ignore a request, records
what it is asked for, and computes on the CPU.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import importlib
import json
import os
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tensorflow.python.client import session as session_module

import adagan
import adagan_gmm
import gan
import npu_session
from training_runs import (
    SHORT,
    ckpt,
    read,
    records,
    refused,
    samples,
    stopped,
    train,
    trained,
    variables,
)

FAKE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fake_npu_bridge")
NPU_FLAGS = ["--log_every=5", "--steps=2"]
PLAIN_OPTIONS = {"use_off_line": True, "precision_mode": "allow_fp32_to_fp16",
                 "enable_data_pre_proc": True, "iterations_per_loop": 5}
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


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    """Run folder of the run that the NPU ones must equal."""
    npu_session.backend.cache_clear()
    return trained(tmp_path_factory.mktemp("cpu"), *NPU_FLAGS)


def assert_close(folder, expected):
    ours, theirs = variables(folder), variables(expected)
    assert sorted(ours) == sorted(theirs)  # an NPU checkpoint is a CPU checkpoint
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(samples(folder), samples(expected), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- the program on the fake


def test_the_program_finds_npu_bridge_by_itself(run_program, tmp_path, on_cpu):
    done = run_program("adagan_gmm.py", f"--output_dir={tmp_path}", *SHORT, *NPU_FLAGS,
                       env={"PYTHONPATH": FAKE, "FAKE_NPU_RECORD": str(tmp_path / "record")})
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "record").read_text())
    assert len(record["sessions"]) == 1  # for all components
    session = record["sessions"][0]
    assert session["options"] == PLAIN_OPTIONS
    assert session["remapping"] == 2 and session["memory_optimization"] == 2
    assert [loop["n"] for loop in record["loops"]] == [5]
    for kind in ("managers", "optimizers", "collectives", "system", "dropouts"):
        assert record[kind] == [], kind
    assert read(tmp_path, "config.json")["device"] == "npu"
    assert_close(tmp_path, on_cpu)


@pytest.mark.parametrize("flags", [
    [], ["--optimizer=adam"], ["--unrolled=False"], ["--reference_stream=True"]])
def test_records_equal_the_cpus(flags, tmp_path, request, on_cpu):
    expected = trained(tmp_path / "cpu", *NPU_FLAGS, *flags) if flags else on_cpu
    request.getfixturevalue("record")  # from here on there is an NPU
    folder = trained(tmp_path / "npu", *NPU_FLAGS, *flags)
    assert_close(folder, expected)
    ours, theirs = records(folder), records(expected)
    assert [sorted(line) for line in ours] == [sorted(line) for line in theirs]
    for mine, other in zip(ours, theirs):
        assert mine == pytest.approx(other, rel=1e-2, abs=1e-3)  # C is a count


def test_the_number_of_graphs_does_not_grow_with_steps_and_epochs(tmp_path, record):
    """Compilations take minutes: one per fetch, whatever the length of the run."""
    counts = []
    for number, flags in enumerate((["--steps=2", "--epochs=1"], ["--steps=3", "--epochs=3"])):
        trained(tmp_path / str(number), "--log_every=5", "--plots=True", "--plot_every=5", *flags)
        counts.append(len(record["sessions"][-1]["graphs"]))
    assert counts[0] == counts[1] <= 20
    fetches = [graph["fetches"] for graph in record["sessions"][-1]["graphs"]]
    assert sum(any("IterationOp" in name for name in names) for names in fetches) == 1


@pytest.mark.parametrize("flag, options", [
    ("--over_dump=True", {"enable_dump_debug": True, "dump_debug_mode": "all"}),
    ("--data_dump_flag=True", {"enable_dump": True, "dump_step": "10", "dump_mode": "all"}),
    ("--profiling=True", {"profiling_mode": True}),
    ("--precision_mode=must_keep_origin_dtype", {"precision_mode": "must_keep_origin_dtype"})])
def test_platform_flags_arrive_as_session_options(flag, options, tmp_path, record):
    trained(tmp_path, *NPU_FLAGS, "--steps=1", "--max_steps=5", flag)
    found = record["sessions"][0]["options"]
    folder = str(tmp_path / ("npu_profile" if "profiling" in flag else "npu_dump"))
    if "profiling" in flag:
        assert json.loads(found.pop("profiling_options"))["output"] == folder
    elif "dump" in flag:
        assert found.pop("dump_path") == folder
    assert found == dict(PLAIN_OPTIONS, **options)


def test_one_iteration_per_run_asks_for_no_device_loop(tmp_path, record):
    trained(tmp_path, "--log_every=1", "--steps=1", "--max_steps=3")
    assert record["sessions"][0]["options"] == {
        "use_off_line": True, "precision_mode": "allow_fp32_to_fp16"}
    assert record["loops"] == []


@pytest.mark.usefixtures("record")
def test_resume_in_the_middle_of_a_component(tmp_path, monkeypatch, on_cpu):
    stopped(monkeypatch, gan.Gan, "train", 3, tmp_path, *NPU_FLAGS)
    trained(tmp_path, *NPU_FLAGS)
    assert_close(tmp_path, on_cpu)


def test_a_run_changes_its_device(tmp_path, monkeypatch, request, on_cpu):
    stopped(monkeypatch, gan.Gan, "train", 6, tmp_path, *NPU_FLAGS)
    request.getfixturevalue("record")  # from here on there is an NPU
    code, out, err = train(tmp_path, *NPU_FLAGS)
    assert code == 0 and "at counter = 30" in out, err
    assert read(tmp_path, "config.json")["device"] == "npu"
    assert_close(tmp_path, on_cpu)


# ---------------------------------------------------------------- refused before training


@pytest.mark.parametrize("flags, count", [
    (["--log_every=4"], "2 steps"), (["--log_every=5", "--max_steps=7"], "2 steps"),
    (["--log_every=5", "--plot_every=3"], "3 steps"), ([], "2 steps")])
def test_iterations_that_do_not_divide_are_refused_before_training(flags, count, tmp_path, record):
    sentence = refused(tmp_path / "out", *flags)
    assert count in sentence and "--log_every" in sentence
    assert not os.path.exists(str(tmp_path / "out"))
    assert record["sessions"] == []


@pytest.mark.usefixtures("record")
def test_the_default_schedule_fits_the_default_loop():
    args = adagan_gmm.parse_args(["--unrolling_steps=0"])
    with npu_session.new_graph().as_default():
        model = gan.build(args, 100)
        adagan.check_loop(args, model.loop)


def test_an_npu_that_is_demanded_must_be_there(monkeypatch, tmp_path):
    monkeypatch.setenv("NPU_SESSION_DEVICE", "npu")
    assert "npu_bridge is not installed" in refused(tmp_path / "out")
    monkeypatch.setenv("NPU_SESSION_DEVICE", "tpu")
    assert "NPU_SESSION_DEVICE=tpu" in refused(tmp_path / "out")
    assert not os.path.exists(str(tmp_path / "out"))


def test_a_broken_npu_bridge_shows_its_own_error(monkeypatch, tmp_path):
    package = tmp_path / "broken" / "npu_bridge"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('libge_runner.so: cannot open')\n")
    monkeypatch.syspath_prepend(str(tmp_path / "broken"))
    try:
        with pytest.raises(ImportError, match="libge_runner.so: cannot open"):
            train(tmp_path / "out", *NPU_FLAGS)
    finally:
        forget_bridge()
    assert not os.listdir(ckpt(tmp_path / "out"))


@pytest.mark.parametrize("values, text", [
    ({"RANK_SIZE": "2"}, "RANK_SIZE=2: AdaGAN trains in one process"),
    ({"RANK_ID": "1"}, "RANK_ID=1 is outside 0..RANK_SIZE-1 = 0..0")])
def test_wrong_ranks_are_refused(values, text, monkeypatch, tmp_path):
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert text in refused(tmp_path / "out")
    assert not os.path.exists(str(tmp_path / "out"))


@pytest.mark.usefixtures("record")
def test_runs_of_an_experiment_get_a_device_each(monkeypatch):
    assert npu_session.device_environment(1) == {"ASCEND_DEVICE_ID": "1"}
    monkeypatch.setenv("ASCEND_DEVICE_ID", "4")
    assert npu_session.device_environment(3) == {"ASCEND_DEVICE_ID": "7"}


def test_runs_on_gpus_get_the_visible_ones_in_turn(monkeypatch):
    assert npu_session.device_environment(1) == {}  # a CPU's threads are not divided
    with monkeypatch.context() as patch:
        patch.setattr(npu_session, "backend", lambda: "gpu")
        patch.setattr(npu_session, "_gpus", lambda: ["a", "b"])
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        assert npu_session.device_environment(3) == {"CUDA_VISIBLE_DEVICES": "1"}
        patch.setenv("CUDA_VISIBLE_DEVICES", "5,6,7")
        assert npu_session.device_environment(2) == {"CUDA_VISIBLE_DEVICES": "7"}


@pytest.mark.usefixtures("record")
def test_several_processes_are_refused(monkeypatch, tmp_path):
    for name, value in (("RANK_SIZE", "2"), ("RANK_ID", "0"), ("JOB_ID", "1"),
                        ("RANK_TABLE_FILE", "table.json")):
        monkeypatch.setenv(name, value)
    assert "AdaGAN trains in one process" in refused(tmp_path / "out")
