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

import main
import npu_session
from npu_session import InputError
from training_runs import (
    SHORT,
    read,
    records,
    refused,
    run_folder,
    stopped,
    train,
    trained,
    variables,
)

FAKE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fake_npu_bridge")
NPU_FLAGS = ["--log_every=5", "--epochs=2"]
PLAIN_OPTIONS = {"use_off_line": True, "precision_mode": "allow_mix_precision",
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
def on_cpu(small_data, tmp_path_factory):
    """Run folder of the run that the NPU ones must equal."""
    npu_session.backend.cache_clear()
    return trained(small_data, tmp_path_factory.mktemp("cpu"), *NPU_FLAGS)


def assert_close(folder, expected):
    ours, theirs = variables(folder), variables(expected)
    assert sorted(ours) == sorted(theirs)  # an NPU checkpoint is a CPU checkpoint
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


# ---------------------------------------------------------------- the program on the fake


def test_the_program_finds_npu_bridge_by_itself(run_program, small_data, tmp_path, on_cpu):
    done = run_program("main.py", f"--data_dir={small_data}", f"--output_dir={tmp_path}",
                       *SHORT, *NPU_FLAGS, env={"PYTHONPATH": FAKE,
                                                "FAKE_NPU_RECORD": str(tmp_path / "record")})
    assert done.returncode == 0, done.stderr
    assert "device = npu" in done.stdout
    record = json.loads((tmp_path / "record").read_text())
    assert len(record["sessions"]) == 1
    session = record["sessions"][0]
    assert session["options"] == PLAIN_OPTIONS
    assert session["remapping"] == 2 and session["memory_optimization"] == 2
    assert [loop["n"] for loop in record["loops"]] == [5]
    for kind in ("managers", "optimizers", "collectives", "system", "dropouts"):
        assert record[kind] == [], kind
    assert read(run_folder(tmp_path), "config.json")["device"] == "npu"
    assert_close(run_folder(tmp_path), on_cpu)


def test_metrics_equal_the_cpus_at_the_last_step_of_each_loop(small_data, tmp_path, record, on_cpu):
    folder = trained(small_data, tmp_path, *NPU_FLAGS)
    ours, theirs = records(folder), records(on_cpu)
    assert [sorted(line) for line in ours] == [sorted(line) for line in theirs]
    for mine, other in zip(ours, theirs):
        assert mine == pytest.approx(other, rel=1e-5)
    assert record["sessions"][0]["options"] == PLAIN_OPTIONS


def test_the_number_of_graphs_does_not_grow_with_the_epochs(small_data, tmp_path, record):
    counts = []
    for epochs in (1, 3):
        trained(small_data, tmp_path / str(epochs), "--log_every=5", f"--epochs={epochs}")
        counts.append(len(record["sessions"][-1]["graphs"]))
    assert counts[0] <= counts[1] <= counts[0] + 1 <= 16  # a plain epoch draws no images
    fetches = [graph["fetches"] for graph in record["sessions"][-1]["graphs"]]
    assert sum(any("IterationOp" in name for name in names) for names in fetches) == 1


@pytest.mark.parametrize("flag, options", [
    ("--over_dump=True", {"enable_dump_debug": True, "dump_debug_mode": "all"}),
    ("--data_dump_flag=True", {"enable_dump": True, "dump_step": "10", "dump_mode": "all"}),
    ("--profiling=True", {"profiling_mode": True})])
def test_dumps_and_profiles_are_asked_for(flag, options, small_data, tmp_path, record):
    trained(small_data, tmp_path, *NPU_FLAGS, "--max_steps=5", flag)
    found = record["sessions"][0]["options"]
    folder = str(tmp_path / ("npu_profile" if "profiling" in flag else "npu_dump"))
    if "profiling" in flag:
        assert json.loads(found.pop("profiling_options"))["output"] == folder
    else:
        assert found.pop("dump_path") == folder
    assert os.path.isdir(folder)
    assert found == dict(PLAIN_OPTIONS, **options)


def test_one_step_per_run_asks_for_no_device_loop(small_data, tmp_path, record):
    trained(small_data, tmp_path, "--log_every=1", "--max_steps=3")
    assert record["sessions"][0]["options"] == {
        "use_off_line": True, "precision_mode": "allow_mix_precision"}
    assert record["loops"] == []


@pytest.mark.usefixtures("record")
def test_resume_in_the_middle_of_an_epoch(small_data, tmp_path, monkeypatch, on_cpu):
    """No new feed shape, which would be another graph, and the same end."""
    stopped(monkeypatch, 5, small_data, tmp_path, *NPU_FLAGS)
    trained(small_data, tmp_path, *NPU_FLAGS)
    assert_close(run_folder(tmp_path), on_cpu)


def test_a_run_changes_its_device(small_data, tmp_path, monkeypatch, request, on_cpu):
    stopped(monkeypatch, 10, small_data, tmp_path, *NPU_FLAGS)
    request.getfixturevalue("record")  # from here on there is an NPU
    code, out, err = train(small_data, tmp_path, *NPU_FLAGS)
    assert code == 0 and "at counter = 10" in out and "device = npu" in out, err
    assert_close(run_folder(tmp_path), on_cpu)


# ---------------------------------------------------------------- refused before training


@pytest.mark.parametrize("flags, steps", [
    (["--log_every=4"], "10 steps"), (["--log_every=5", "--max_steps=7"], "7 steps"),
    ([], "10 steps")])
def test_steps_that_do_not_divide_are_refused_before_training(flags, steps, small_data, tmp_path,
                                                              record):
    sentence = refused(small_data, tmp_path / "out", *flags)
    assert steps in sentence and "--log_every" in sentence
    assert not os.path.exists(str(tmp_path / "out"))
    assert record["sessions"] == []


@pytest.mark.usefixtures("record")
def test_a_resumed_step_that_does_not_divide_is_refused(small_data, tmp_path):
    trained(small_data, tmp_path, "--log_every=1", "--max_steps=3")
    sentence = refused(small_data, tmp_path, *NPU_FLAGS)
    assert "3 steps" in sentence and "--log_every" in sentence


@pytest.mark.usefixtures("record")
def test_the_default_schedule_fits_the_default_loop():
    args = main.parse_args([])
    args.num_samples = 60000
    with npu_session.new_graph().as_default():
        loop = npu_session.Loop(counting_step, args.log_every)
        for count in main.schedule(args):
            loop.check(count)


def test_an_npu_that_is_demanded_must_be_there(monkeypatch, small_data, tmp_path):
    monkeypatch.setenv("NPU_SESSION_DEVICE", "npu")
    assert "npu_bridge is not installed" in refused(small_data, tmp_path / "out")
    monkeypatch.setenv("NPU_SESSION_DEVICE", "tpu")
    assert "NPU_SESSION_DEVICE=tpu" in refused(small_data, tmp_path / "out")
    if not tf.config.experimental.list_physical_devices("GPU"):
        monkeypatch.setenv("NPU_SESSION_DEVICE", "gpu")
        assert "sees no GPU" in refused(small_data, tmp_path / "out")
    assert not os.path.exists(str(tmp_path / "out"))


def test_a_broken_npu_bridge_shows_its_own_error(monkeypatch, small_data, tmp_path):
    package = tmp_path / "broken" / "npu_bridge"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('libge_runner.so: cannot open')\n")
    monkeypatch.syspath_prepend(str(tmp_path / "broken"))
    try:
        with pytest.raises(ImportError, match="libge_runner.so: cannot open"):
            train(small_data, tmp_path / "out")
    finally:
        forget_bridge()
    assert not os.path.exists(run_folder(tmp_path / "out"))


@pytest.mark.parametrize("values, text", [
    ({"RANK_SIZE": "3"}, "a batch of 50 cannot be divided among RANK_SIZE=3 processes"),
    ({"RANK_ID": "1"}, "RANK_ID=1 is outside 0..RANK_SIZE-1 = 0..0"),
    ({"RANK_SIZE": "two"}, "RANK_SIZE=two in the environment is not a number"),
    ({"RANK_ID": "-1"}, "RANK_ID=-1")])
def test_wrong_ranks_are_refused(values, text, monkeypatch, small_data, tmp_path):
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert text in refused(small_data, tmp_path)
    assert not os.path.exists(os.path.join(run_folder(tmp_path), "config.json"))


@pytest.mark.usefixtures("record")
@pytest.mark.parametrize("values, text", [
    ({"RANK_SIZE": "2"}, "RANK_SIZE=2 needs JOB_ID and RANK_TABLE_FILE"),
    ({"RANK_SIZE": "2", "JOB_ID": "1"}, "RANK_SIZE=2 needs RANK_TABLE_FILE in"),
    ({"RANK_SIZE": "2", "RANK_ID": "2", "JOB_ID": "1", "RANK_TABLE_FILE": "t"},
     "RANK_ID=2 is outside 0..RANK_SIZE-1 = 0..1")])
def test_wrong_ranks_are_refused_on_the_npu(values, text, monkeypatch, small_data, tmp_path):
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert text in refused(small_data, tmp_path, *NPU_FLAGS)
    assert not os.path.exists(os.path.join(run_folder(tmp_path), "config.json"))


# ---------------------------------------------------------------- options


def npu_options(record, config):
    with tf.Session(config=config):
        return record["sessions"][-1]["options"]


@pytest.mark.parametrize("mode", npu_session.PRECISION_MODES)
def test_every_precision_mode_arrives(mode, record):
    args = main.parse_args([f"--precision_mode={mode}"])
    assert npu_options(record, npu_session.session_config(args)) == {
        "use_off_line": True, "precision_mode": mode}


def test_dump_steps_mix_list_and_further_options_arrive(record, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text('{"black-list": {"to-add": ["ReduceSumD"]}}')
    args = main.parse_args(["--data_dump_flag=True", "--data_dump_step=0|5|8-10"])
    found = npu_options(record, npu_session.session_config(
        args, str(tmp_path), "list.json", deterministic=1, jit_compile="auto"))
    assert found["dump_step"] == "0|5|8-10" and found["deterministic"] == 1
    assert found["modify_mixlist"] == os.path.join(os.getcwd(), "list.json")
    full = main.parse_args(["--precision_mode=force_fp32"])
    assert "modify_mixlist" not in npu_options(
        record, npu_session.session_config(full, str(tmp_path), "list.json"))


@pytest.mark.parametrize("options", [
    {"min_group_size": 1}, {"deterministic": True}, {"hcom_parallel": 1}, {"jit_compile": True},
    {"session_device_id": "0"}, {"op_select_implmode": b"high_precision"}])
def test_unknown_and_mistyped_options_are_refused_on_every_device(options):
    name, = options
    with pytest.raises(InputError, match=name):
        npu_session.session_config(main.parse_args([]), **options)


def test_other_devices_get_a_plain_configuration(tmp_path):
    args = main.parse_args(["--over_dump=True", "--profiling=True", "--threads=3"])
    config = npu_session.session_config(args, str(tmp_path), iterations_per_loop=5)
    assert not config.graph_options.rewrite_options.custom_optimizers
    assert config.allow_soft_placement and config.intra_op_parallelism_threads == 3
    assert os.listdir(str(tmp_path)) == []


# ---------------------------------------------------------------- optimizer, gradients, loop


FIXED = {"loss_scale": 1024.0}
GROWING = {"init_loss_scale": 2.0 ** 14, "incr_every_n_steps": 1000}


def descend(loss_scale, factors):
    """x and the step count after one gradient step of f x^2 for each of the factors f."""
    with npu_session.new_graph().as_default():
        x = tf.get_variable("x", [], initializer=tf.constant_initializer(1.0))
        factor, step = tf.placeholder(tf.float32, []), tf.train.get_or_create_global_step()
        optimizer = npu_session.wrap_optimizer(tf.train.GradientDescentOptimizer(0.1), loss_scale)
        train_op = optimizer.minimize(factor * x * x, step)
        names = [variable.op.name for variable in npu_session.Checkpoints("unused").variables]
        config = npu_session.session_config(main.parse_args([]))
        with tf.Session(config=config) as session:
            session.run(tf.global_variables_initializer())
            for value in factors:
                session.run(train_op, {factor: value})
            return session.run([x, step]), names


@pytest.mark.parametrize("loss_scale, manager", [
    (FIXED, "FixedLossScaleManager"), (GROWING, "ExponentialUpdateLossScaleManager")])
def test_loss_scaling_on_the_npu(loss_scale, manager, record):
    (x, step), names = descend(loss_scale, [1.0, np.inf, 0.5])
    assert record["managers"][0]["class"] == manager
    for name, value in loss_scale.items():
        assert record["managers"][0]["kwargs"][name] == value
    assert record["optimizers"] == [{
        "wrapper": "NPULossScaleOptimizer", "optimizer": "GradientDescentOptimizer",
        "manager": manager, "is_distributed": False}]
    assert x == pytest.approx(0.8 * 0.9) and step == 2  # the overflow is skipped
    assert sorted(names) == ["global_step", "x"]  # checkpoints interchange with the CPU's


def test_without_loss_scaling_the_optimizer_is_left_alone(record):
    (x, _), _ = descend(None, [1.0])
    assert x == pytest.approx(0.8) and record["managers"] == record["optimizers"] == []


def test_other_devices_go_without_loss_scaling():
    optimizer = tf.train.GradientDescentOptimizer(0.1)
    assert npu_session.wrap_optimizer(optimizer, FIXED) is optimizer
    assert descend(FIXED, [1.0, 0.5])[0] == [pytest.approx(0.8 * 0.9), 2]


@pytest.fixture
def two_processes(monkeypatch, record):
    for name, value in (("RANK_SIZE", "2"), ("RANK_ID", "1"), ("JOB_ID", "1"),
                        ("RANK_TABLE_FILE", "table.json")):
        monkeypatch.setenv(name, value)
    return record


def test_two_processes_average_scaled_gradients(two_processes):
    assert (npu_session.rank(), npu_session.size()) == (1, 2)
    (x, _), _ = descend(FIXED, [1.0])
    assert [entry["wrapper"] for entry in two_processes["optimizers"]] == [
        "npu_distributed_optimizer_wrapper", "NPULossScaleOptimizer"]
    assert two_processes["optimizers"][1]["is_distributed"] is True
    assert two_processes["collectives"] and x == pytest.approx(0.8)


def test_processes_take_the_gpus_of_their_host_in_turn(monkeypatch):
    args = main.parse_args([])
    with monkeypatch.context() as patch:
        patch.setattr(npu_session, "backend", lambda: "gpu")
        patch.setattr(npu_session, "_gpus", lambda: ["a", "b"])
        assert npu_session.session_config(args).gpu_options.visible_device_list == ""
        patch.setenv("RANK_SIZE", "4")
        patch.setenv("ASCEND_DEVICE_ID", "3")  # launch.py's
        assert npu_session.session_config(args).gpu_options.visible_device_list == "1"


def test_average_gradients(two_processes, monkeypatch):
    with npu_session.new_graph().as_default():
        gradients = [tf.ones([2]), None, tf.ones([3])]
        averaged = npu_session.average_gradients(gradients)
        assert averaged[1] is None and len(two_processes["collectives"]) == 2
        assert [gradient.shape.as_list() for gradient in averaged[::2]] == [[2], [3]]
        monkeypatch.setenv("RANK_SIZE", "1")
        monkeypatch.setenv("RANK_ID", "0")
        assert npu_session.average_gradients(gradients) == gradients


def counting_step():
    """(train_op, values [1]): a variable x counts; the value is x before."""
    x = tf.get_variable("x", [], initializer=tf.zeros_initializer())
    before = x + 0.0  # a copy: reading a reference variable makes none
    with tf.control_dependencies([before]):
        return x.assign(before + 1).op, tf.reshape(before, [1])


@pytest.mark.usefixtures("record")
def test_the_device_loop_returns_the_last_step_of_each_loop():
    with npu_session.new_graph().as_default():
        loop = npu_session.Loop(counting_step, 4)
        args = main.parse_args([])
        config = npu_session.session_config(args, iterations_per_loop=4)
        with tf.Session(config=config) as session:
            session.run(tf.global_variables_initializer())
            loop.prepare(session)
            tf.get_default_graph().finalize()
            np.testing.assert_array_equal(loop.run(session, 8), [[3], [7]])
            with pytest.raises(InputError, match="6 steps cannot be run 4 at a time"):
                loop.run(session, 6)
