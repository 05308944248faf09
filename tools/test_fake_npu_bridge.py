"""The fake npu_bridge refuses what the Ascend adapter would not do, and computes rightly."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import importlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tensorflow.python.client import session as session_module

tf.disable_v2_behavior()
FAKE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fake_npu_bridge")
COMPILED = "The model has been compiled on the Ascend AI processor, current graph id is:"
RANK_VARIABLES = ("RANK_SIZE", "RANK_ID", "JOB_ID", "CM_WORKER_SIZE", "FAKE_NPU_ERA")


@pytest.fixture(scope="module")
def npu():
    """The fake's npu_init; afterwards sessions and optimizers are as they were before."""
    patch = pytest.MonkeyPatch()
    for owner, names in (
        (session_module.BaseSession, ("__init__", "_do_run", "make_callable")),
        (tf.train.Optimizer, ("apply_gradients",)),
    ):
        for name in names:
            patch.setattr(owner, name, getattr(owner, name))
    patch.syspath_prepend(FAKE)
    yield importlib.import_module("npu_bridge.npu_init")
    patch.undo()
    for name in [name for name in sys.modules if name.split(".")[0] in ("npu_bridge", "hccl")]:
        del sys.modules[name]


@pytest.fixture()
def strict(npu):
    return importlib.import_module(npu.__package__ + "._strict")


@pytest.fixture(autouse=True)
def clean_state(strict, monkeypatch, tmp_path):
    """Every test has its own graph, record file and single-rank environment."""
    for name in RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FAKE_NPU_RECORD", str(tmp_path / "record.json"))
    for entries in strict.RECORD.values():
        entries.clear()
    with tf.Graph().as_default():
        yield


@pytest.fixture()
def config(npu):
    """Function (**options) -> ConfigProto for the NPU; the value's type picks .b, .i or .s."""

    def make(**options):
        proto = npu.npu_config_proto()
        parameters = proto.graph_options.rewrite_options.custom_optimizers[0].parameter_map
        for name, value in options.items():
            if isinstance(value, bool):
                parameters[name].b = value
            elif isinstance(value, int):
                parameters[name].i = value
            else:
                parameters[name].s = tf.compat.as_bytes(value)
        return proto

    return make


@pytest.fixture()
def refused(strict):
    """Context manager: the block must raise FakeNpuError with the given words in it."""
    return lambda words: pytest.raises(strict.FakeNpuError, match=words)


@pytest.fixture()
def two_ranks(monkeypatch):
    monkeypatch.setenv("RANK_SIZE", "2")
    monkeypatch.setenv("RANK_ID", "1")
    monkeypatch.setenv("JOB_ID", "10087")


@pytest.fixture(params=[False, True], ids=["ref", "resource"])
def weight(request):
    return tf.get_variable("weight", initializer=1.0, use_resource=request.param)


def read_record():
    with open(os.environ["FAKE_NPU_RECORD"]) as stream:
        return json.load(stream)


def write_json(path, value):
    path.write_text(json.dumps(value))
    return str(path)


# Session options


def test_session_without_config_is_refused(refused):
    with refused("exactly 1 NpuOptimizer"):
        tf.Session()


@pytest.mark.parametrize("session_class", [tf.Session, tf.InteractiveSession])
def test_plain_config_is_refused(refused, session_class):
    with refused("exactly 1 NpuOptimizer"):
        session_class(config=tf.ConfigProto())


def test_monitored_session_without_npu_config_is_refused(refused):
    tf.train.create_global_step()
    with refused("exactly 1 NpuOptimizer"):
        tf.train.MonitoredTrainingSession()


def test_supervisor_session_without_npu_config_is_refused(refused):
    tf.train.create_global_step()
    supervisor = tf.train.Supervisor(logdir="", summary_op=None)
    with refused("exactly 1 NpuOptimizer"):
        supervisor.prepare_or_wait_for_session()


def test_second_npu_optimizer_is_refused(refused, config):
    proto = config()
    proto.graph_options.rewrite_options.custom_optimizers.add().name = "NpuOptimizer"
    with refused("found 2"):
        tf.Session(config=proto)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"precision_mod": "force_fp16"}, "no option 'precision_mod'"),
        ({"enable_auto_mix_precision": True}, "no option"),
        ({"use_off_line": 1}, "must be set as .b, not as .i"),
        ({"iterations_per_loop": "10"}, "must be set as .i, not as .s"),
        ({"jit_compile": True}, "must be set as .s, not as .b"),
        ({"graph_memory_max_size": 1024}, "must be set as .s, not as .i"),
        ({"precision_mode": "allow_mixed_precision"}, "precision_mode="),
        ({"op_select_implmode": "fast"}, "op_select_implmode="),
        ({"dump_mode": "both"}, "dump_mode="),
        ({"dump_data": "values"}, "dump_data="),
        ({"dump_debug_mode": "on"}, "dump_debug_mode="),
        ({"dump_step": "0,5"}, "dump_step="),
        ({"dump_step": "|".join(["1"] * 101)}, "dump_step="),
        ({"jit_compile": "on"}, "jit_compile="),
        ({"aoe_mode": "3"}, "aoe_mode="),
        ({"buffer_optimize": "l3"}, "buffer_optimize="),
        ({"dynamic_graph_execute_mode": "eager"}, "dynamic_graph_execute_mode="),
        ({"variable_placement": "host"}, "variable_placement="),
        ({"graph_memory_max_size": "16G"}, "graph_memory_max_size="),
        ({"local_device_list": "0;1"}, "local_device_list="),
        ({"graph_run_mode": 2}, "graph_run_mode="),
        ({"enable_exception_dump": 3}, "enable_exception_dump="),
        ({"local_rank_id": 8}, "local_rank_id="),
        ({"session_device_id": -1}, "session_device_id="),
        ({"iterations_per_loop": 0}, "iterations_per_loop="),
        ({"precision_mode": "force_fp16", "precision_mode_v2": "fp16"}, "must not both"),
        ({"enable_dump": True}, "dump_path"),
        ({"enable_dump_debug": True, "dump_path": "/no/such/folder"}, "dump_path"),
        ({"profiling_mode": True}, "profiling_options"),
        ({"profiling_mode": True, "profiling_options": "task_trace"}, "profiling_options"),
        ({"profiling_mode": True, "profiling_options": "[]"}, "profiling_options"),
        ({"input_shape": "x:1,2"}, "all or none"),
        ({"input_shape": "x:-1", "dynamic_dims": "1;2"}, "all or none"),
        ({"optypelist_for_implmode": "Pooling"}, "needs op_select_implmode"),
        ({"enable_compress_weight": True, "compress_weight_conf": "x.cfg"}, "exclude each other"),
        ({"fusion_switch_file": "no_such.cfg"}, "does not name an existing file"),
        ({"iterations_per_loop": 10}, "enable_data_pre_proc"),
        (
            {"iterations_per_loop": 10, "enable_data_pre_proc": True, "mix_compile_mode": True},
            "mix_compile_mode",
        ),
        (
            {
                "iterations_per_loop": 10,
                "enable_data_pre_proc": True,
                "dynamic_input": True,
                "dynamic_graph_execute_mode": "lazy_recompile",
            },
            "lazy_recompile",
        ),
    ],
)
def test_bad_options_are_refused(refused, config, options, words):
    with refused(words):
        tf.Session(config=config(**options))


def test_option_newer_than_the_adapter_is_refused(refused, config, monkeypatch):
    monkeypatch.setenv("FAKE_NPU_ERA", "2022")
    tf.Session(config=config(customize_dtypes=__file__)).close()
    with refused("newer than the adapter of 2022"):
        tf.Session(config=config(deterministic=1))


def test_remapping_left_on_is_refused(refused, config):
    proto = config()
    proto.graph_options.rewrite_options.remapping = 0
    with refused("remapping"):
        tf.Session(config=proto)


def test_memory_optimization_left_on_is_refused(refused, config):
    proto = config()
    proto.graph_options.rewrite_options.memory_optimization = 0
    with refused("memory_optimization"):
        tf.Session(config=proto)


def test_xla_is_refused(refused, config):
    proto = config()
    proto.graph_options.optimizer_options.global_jit_level = tf.OptimizerOptions.ON_1
    with refused("global_jit_level"):
        tf.Session(config=proto)


MIXLIST = {"black-list": {"to-add": ["AddN"]}, "white-list": {"to-add": [], "to-remove": ["Add"]}}


def test_mixlist_without_mixed_precision_is_refused(refused, config, tmp_path):
    path = write_json(tmp_path / "ops.json", MIXLIST)
    with refused("allow_mix_precision"):
        tf.Session(config=config(precision_mode="force_fp16", modify_mixlist=path))


def test_relative_mixlist_is_refused(refused, config, tmp_path, monkeypatch):
    write_json(tmp_path / "ops.json", MIXLIST)
    monkeypatch.chdir(tmp_path)
    with refused("absolute path"):
        tf.Session(config=config(precision_mode="allow_mix_precision", modify_mixlist="ops.json"))


@pytest.mark.parametrize(
    "text, words",
    [
        (None, "does not exist"),
        ("{", "JSON object"),
        ('{"black_list": {}}', "black_list"),
        ('{"black-list": {"add": ["AddN"]}}', "add"),
    ],
)
def test_unreadable_mixlist_is_refused(refused, config, tmp_path, text, words):
    path = tmp_path / "ops.json"
    if text is not None:
        path.write_text(text)
    with refused(words):
        tf.Session(config=config(precision_mode="allow_mix_precision", modify_mixlist=str(path)))


def test_good_options_are_recorded(config, tmp_path):
    options = {
        "use_off_line": True,
        "precision_mode": "allow_mix_precision",
        "modify_mixlist": write_json(tmp_path / "ops.json", MIXLIST),
        "enable_dump": True,
        "dump_path": str(tmp_path),
        "dump_step": "0|5|8-10",
        "dump_mode": "all",
        "profiling_mode": True,
        "profiling_options": '{"output": "/tmp"}',
        "graph_memory_max_size": str(16 * 1024**3),
        "session_device_id": 0,
        "deterministic": 1,
        "op_select_implmode": "high_precision",
        "jit_compile": "auto",
    }
    tf.Session(config=config(**options)).close()
    (entry,) = read_record()["sessions"]
    assert entry["options"] == options
    assert (entry["remapping"], entry["memory_optimization"], entry["graphs"]) == (2, 2, [])


def test_config_proto_keeps_what_it_was_given(npu):
    given = tf.ConfigProto(inter_op_parallelism_threads=3)
    custom = given.graph_options.rewrite_options.custom_optimizers.add()
    custom.name = "NpuOptimizer"
    custom.parameter_map["precision_mode"].s = b"force_fp32"
    proto = npu.npu_config_proto(given)
    assert proto is given
    assert proto.inter_op_parallelism_threads == 3
    assert len(proto.graph_options.rewrite_options.custom_optimizers) == 1
    assert proto.graph_options.rewrite_options.memory_optimization == 0


# Runs


def test_each_fetch_set_compiles_once(strict, config, capsys):
    a = tf.placeholder(tf.float32, [None], name="a")
    b, c = tf.identity(a, name="b"), tf.identity(a, name="c")
    with tf.Session(config=config()) as sess:
        for _ in range(3):
            sess.run([b, c], {a: [1.0, 2.0]})
            sess.run({"c": c, "b": b}, {a: [1.0, 2.0]})
        sess.run(b, {a: [1.0]})
        b.eval({a: [2.0]})
        assert sess.make_callable(b, [a])([3.0]) == [3.0]
        tf.global_variables_initializer().run()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(COMPILED)]
    assert lines == [COMPILED + number for number in ("1", "11", "21")]
    strict.save()
    record = read_record()
    first, second, _ = record["sessions"][0]["graphs"]
    assert (first["fetches"], first["feeds"], first["runs"]) == (["b:0", "c:0"], {"a:0": [2]}, 6)
    assert (second["fetches"], second["runs"]) == (["b:0"], 3)
    assert (record["distinct_graphs"], record["runs"]) == (3, 10)


def test_changed_feed_shape_is_refused(refused, config):
    a = tf.placeholder(tf.float32, [None])
    b = a * 2.0
    with tf.Session(config=config()) as sess:
        sess.run(b, {a: [1.0]})
        with refused("without dynamic_input"):
            sess.run(b, {a: [1.0, 2.0]})


def test_dynamic_input_takes_ten_shapes(refused, config):
    a = tf.placeholder(tf.float32, [None])
    b = a * 2.0
    options = {"dynamic_input": True, "dynamic_graph_execute_mode": "lazy_recompile"}
    with tf.Session(config=config(**options)) as sess:
        for _ in range(2):
            for size in range(1, 11):
                sess.run(b, {a: np.zeros(size)})
        with refused("over 10 feed shapes"):
            sess.run(b, {a: np.zeros(11)})
    assert read_record()["distinct_graphs"] == 10


def test_growing_graph_is_refused(refused, config):
    a = tf.constant(1.0)
    with tf.Session(config=config()) as sess:
        sess.run(a)
        sess.run(a + 1.0)
        with refused("added to the graph"):
            sess.run(a)


def test_unsupported_operation_is_refused(refused, config):
    value = tf.WholeFileReader().reader_ref
    with tf.Session(config=config()) as sess, refused("WholeFileReaderV2"):
        sess.run(value)


def test_open_batch_with_data_pre_processing_is_refused(refused, config):
    batches = tf.data.Dataset.range(10).batch(4)
    value = tf.data.make_initializable_iterator(batches).get_next()
    with tf.Session(config=config(enable_data_pre_proc=True)) as sess, refused("drop_remainder"):
        sess.run(value)


# Loops


def looped_options(count):
    return {"iterations_per_loop": count, "enable_data_pre_proc": True}


def counter_and_input(make_iterator):
    """(counter variable, operation that adds the data set's next number to it)."""
    numbers = tf.data.Dataset.range(100).batch(1, drop_remainder=True)
    iterator = make_iterator(numbers)
    total = tf.get_variable("total", initializer=tf.constant(0, tf.int64))
    add = total.assign_add(tf.reshape(iterator.get_next(), [])).op
    return iterator, total, add


def test_loop_runs_the_train_op_n_times(npu, config):
    iterator, total, add = counter_and_input(tf.data.make_initializable_iterator)
    with tf.Session(config=config(**looped_options(5))) as sess:
        sess.run([tf.global_variables_initializer(), iterator.initializer])
        looped = npu.util.set_iteration_per_loop(sess, add, 5)
        assert looped.name == "IterationOp"
        sess.run(looped)
        assert sess.run(total) == sum(range(5))
        sess.run(looped)
        assert sess.run(total) == sum(range(10))
        assert sess.run("npu_runconfig/iterations_per_loop/Read/ReadVariableOp:0") == 4
    assert not [v for v in tf.global_variables() if "npu_runconfig" in v.name]
    assert read_record()["loops"] == [{"op": "IterationOp", "train_op": add.name, "n": 5}]


def test_two_phase_loop_in_a_monitored_session(npu, config):
    tf.train.create_global_step()
    step = tf.train.get_global_step().assign_add(1).op
    loop = npu.util.IterationPerLoop()
    looped = loop.create_iteration_per_loop_var(step)
    proto = config(**looped_options(4))
    with tf.train.MonitoredTrainingSession(config=proto) as sess:
        loop.load_iteration_per_loop_var(sess, 4)
        for _ in range(3):
            sess.run(looped)
        assert sess.run(tf.train.get_global_step()) == 12


def test_loop_of_one_is_the_train_op(npu, config):
    train_op = tf.no_op()
    with tf.Session(config=config()) as sess:
        assert npu.util.set_iteration_per_loop(sess, train_op, 1) is train_op


def test_one_shot_iterator_in_a_loop_is_refused(refused, config):
    _, _, add = counter_and_input(tf.data.make_one_shot_iterator)
    with tf.Session(config=config(**looped_options(5))) as sess, refused("one-shot"):
        sess.run(add)


def test_other_count_than_the_sessions_is_refused(npu, refused, config):
    with tf.Session(config=config(**looped_options(5))) as sess, refused("Loop count 4"):
        npu.util.set_iteration_per_loop(sess, tf.no_op(), 4)


def test_loop_not_loaded_is_refused(npu, refused, config):
    looped = npu.util.IterationPerLoop().create_iteration_per_loop_var(tf.no_op())
    with tf.Session(config=config(**looped_options(5))) as sess, refused("Loop count None"):
        sess.run(looped)


def test_second_loop_of_one_op_is_refused(npu, refused, config):
    train_op = tf.no_op()
    with tf.Session(config=config(**looped_options(5))) as sess:
        npu.util.set_iteration_per_loop(sess, train_op, 5)
        with refused("before"):
            npu.util.set_iteration_per_loop(sess, train_op, 5)


@pytest.mark.parametrize("count, error", [(0, ValueError), (-1, ValueError), (2.0, TypeError)])
def test_bad_loop_count_is_refused(npu, config, count, error):
    with tf.Session(config=config()) as sess, pytest.raises(error):
        npu.util.set_iteration_per_loop(sess, tf.no_op(), count)


def test_loop_over_a_tensor_is_refused(npu, config):
    with tf.Session(config=config()) as sess, pytest.raises(ValueError, match="tf.Operation"):
        npu.util.set_iteration_per_loop(sess, tf.constant(1.0), 1)


# Loss scaling


def exponential(npu, **changes):
    arguments = {"decr_every_n_nan_or_inf": 1, "decr_ratio": 0.5}
    return npu.ExponentialUpdateLossScaleManager(2**14, 1000, **dict(arguments, **changes))


def train_step(optimizer, weight, factor):
    """Operation of one step on loss weight**2 * factor, and the global step."""
    global_step = tf.train.get_or_create_global_step()
    return optimizer.minimize(weight * weight * factor, global_step=global_step), global_step


@pytest.mark.parametrize("make", [tf.train.GradientDescentOptimizer, tf.train.AdamOptimizer])
def test_overflowed_step_is_skipped(npu, config, weight, make):
    factor = tf.placeholder(tf.float32, [])
    optimizer = npu.NPULossScaleOptimizer(make(0.125), exponential(npu))
    step, global_step = train_step(optimizer, weight, factor)
    fetches = [step, "loss_scale:0", "overflow_status_reduce_all:0"]
    with tf.Session(config=config()) as sess:
        sess.run(tf.global_variables_initializer())
        applied = []
        for index in range(20):
            before = sess.run(weight)
            applied.append(sess.run(fetches, {factor: np.inf if index == 7 else 1.0})[2])
            assert (sess.run(weight) != before) == (index != 7)
        assert applied == [index != 7 for index in range(20)]
        assert sess.run(global_step) == 19
        assert sess.run("loss_scale:0") == 2**13
        assert sess.run(["good_steps:0", "bad_steps:0"]) == [12, 0]


def test_loss_scaling_leaves_the_updates_as_they_are(npu, config, weight):
    seen = []

    class Watching(tf.train.GradientDescentOptimizer):
        def compute_gradients(self, loss, *args, **kwargs):
            seen.append(loss)
            return super().compute_gradients(loss, *args, **kwargs)

    optimizer = npu.NPULossScaleOptimizer(Watching(0.125), exponential(npu))
    step, _ = train_step(optimizer, weight, 1.0)
    with tf.Session(config=config()) as sess:
        sess.run(tf.global_variables_initializer())
        assert sess.run(seen[0]) == 2**14
        sess.run(step)
        assert sess.run(weight) == 0.75


def test_sparse_and_missing_gradients_are_scaled_back(npu, config):
    table = tf.get_variable("table", initializer=tf.ones([4, 2]))
    unused = tf.get_variable("unused", initializer=1.0)
    optimizer = npu.NPULossScaleOptimizer(
        tf.train.GradientDescentOptimizer(1.0), npu.FixedLossScaleManager(128.0)
    )
    loss = tf.reduce_sum(tf.gather(table, [1]))
    step = optimizer.minimize(loss, var_list=[table, unused])
    with tf.Session(config=config()) as sess:
        sess.run(tf.global_variables_initializer())
        sess.run(step)
        np.testing.assert_array_equal(sess.run(table)[:, 0], [1, 0, 1, 1])


def test_fixed_scale_without_overflow_check_always_updates(npu, config, weight):
    manager = npu.FixedLossScaleManager(2**7, enable_overflow_check=False)
    optimizer = npu.NPULossScaleOptimizer(tf.train.GradientDescentOptimizer(0.125), manager)
    factor = tf.placeholder(tf.float32, [])
    step, global_step = train_step(optimizer, weight, factor)
    with pytest.raises(KeyError):
        tf.get_default_graph().get_tensor_by_name("overflow_status_reduce_all:0")
    with tf.Session(config=config()) as sess:
        sess.run(tf.global_variables_initializer())
        sess.run(step, {factor: np.inf})
        assert sess.run(global_step) == 1
        assert sess.run("loss_scale:0") == 2**7
        assert not np.isfinite(sess.run(weight))


def test_fixed_scale_with_overflow_check_skips(npu, config, weight):
    manager = npu.FixedLossScaleManager(2**7)
    optimizer = npu.NPULossScaleOptimizer(tf.train.GradientDescentOptimizer(0.125), manager)
    factor = tf.placeholder(tf.float32, [])
    step, global_step = train_step(optimizer, weight, factor)
    with tf.Session(config=config()) as sess:
        sess.run(tf.global_variables_initializer())
        sess.run(step, {factor: np.inf})
        assert (sess.run(global_step), sess.run(weight)) == (0, 1.0)


def test_exponential_scale_follows_its_rule(npu, config):
    manager = npu.ExponentialUpdateLossScaleManager(4.0, 2, 2, 2, 0.25)
    is_finite = tf.placeholder(tf.bool, [])
    update = manager.update_loss_scale(is_finite)
    state = ["loss_scale:0", "good_steps:0", "bad_steps:0"]
    expected = [  # is_finite, scale, good steps, bad steps
        (True, 4, 1, 0),
        (True, 8, 0, 0),
        (False, 8, 0, 1),
        (True, 8, 1, 1),
        (False, 2, 0, 0),
        (False, 2, 0, 1),
        (False, 1, 0, 0),
    ]
    with tf.Session(config=config()) as sess:
        sess.run(tf.global_variables_initializer())
        for finite, *after in expected:
            sess.run(update, {is_finite: finite})
            assert sess.run(state) == after


def test_scale_stops_growing_at_the_largest_float(npu, config):
    manager = npu.ExponentialUpdateLossScaleManager(2.0**127, 1)
    update = manager.update_loss_scale(tf.constant(True))
    with tf.Session(config=config()) as sess:
        sess.run(tf.global_variables_initializer())
        sess.run(update)
        assert sess.run("loss_scale:0") == 2.0**127


def test_managers_and_optimizers_are_recorded(npu):
    npu.NPULossScaleOptimizer(tf.train.AdamOptimizer(), exponential(npu))
    record = read_record()
    assert record["managers"] == [
        {
            "class": "ExponentialUpdateLossScaleManager",
            "kwargs": {
                "init_loss_scale": 2**14,
                "incr_every_n_steps": 1000,
                "decr_every_n_nan_or_inf": 1,
                "incr_ratio": 2,
                "decr_ratio": 0.5,
            },
        }
    ]
    assert record["optimizers"] == [
        {
            "wrapper": "NPULossScaleOptimizer",
            "optimizer": "AdamOptimizer",
            "manager": "ExponentialUpdateLossScaleManager",
            "is_distributed": False,
        }
    ]
    exponential(npu)
    names = [variable.op.name for variable in tf.global_variables()]
    assert names[:3] == ["loss_scale", "good_steps", "bad_steps"]
    assert names[3] == "loss_scale_1"


def test_fixed_scale_below_one_is_refused(npu):
    with pytest.raises(ValueError):
        npu.FixedLossScaleManager(0.5)


def test_wrong_manager_argument_is_refused(npu):
    with pytest.raises(TypeError):
        exponential(npu, incr_every_n_step=10)


@pytest.mark.parametrize("make", [lambda npu: npu.FixedLossScaleManager(2), exponential])
def test_manager_inside_control_dependencies_is_refused(npu, refused, make):
    with tf.control_dependencies([tf.no_op()]), refused("control_dependencies"):
        make(npu)


def test_loss_scale_optimizer_without_manager_is_refused(npu, refused):
    with refused("Expected a loss-scale manager"):
        npu.NPULossScaleOptimizer(tf.train.AdamOptimizer(), 128.0)


def test_distributed_on_one_rank_is_refused(npu, refused):
    with refused("is_distributed=True with 1 rank"):
        npu.NPULossScaleOptimizer(tf.train.AdamOptimizer(), exponential(npu), True)


@pytest.mark.usefixtures("two_ranks")
def test_not_distributed_on_two_ranks_is_refused(npu, refused):
    with refused("is_distributed=False with 2 rank"):
        npu.NPULossScaleOptimizer(tf.train.AdamOptimizer(), exponential(npu))


def test_plain_apply_beside_a_manager_is_refused(npu, refused, config, weight):
    step, _ = train_step(tf.train.AdamOptimizer(), weight, 1.0)
    exponential(npu)
    with tf.Session(config=config()) as sess, refused("AdamOptimizer"):
        sess.run(step)


def test_plain_apply_without_a_manager_is_fine(config, weight):
    step, global_step = train_step(tf.train.AdamOptimizer(), weight, 1.0)
    with tf.Session(config=config()) as sess:
        sess.run(tf.global_variables_initializer())
        sess.run(step)
        assert sess.run(global_step) == 1


# Ranks and collectives


def test_ranks_before_initialize_system_are_refused(npu, refused):
    for function in (
        npu.get_rank_id, npu.get_rank_size, npu.get_local_rank_id, npu.get_local_rank_size
    ):
        with refused("initialize_system"):
            function()


@pytest.mark.usefixtures("two_ranks")
def test_ranks_are_known_while_the_system_runs(npu, refused, config):
    initialize, shutdown = npu.npu_ops.initialize_system(), npu.npu_ops.shutdown_system()
    with refused("initialize_system"):
        npu.get_rank_id()
    with tf.Session(config=config()) as sess:
        sess.run(initialize)
        assert (npu.get_rank_id(), npu.get_rank_size()) == (1, 2)
        assert (npu.get_local_rank_id(), npu.get_local_rank_size()) == (1, 2)
        sess.run(shutdown)
    with refused("initialize_system"):
        npu.get_rank_id()
    operations = [event["operation"] for event in read_record()["system"]]
    assert operations == ["initialize_system", "shutdown_system"]


@pytest.mark.parametrize(
    "collective", [
        lambda npu: npu.hccl_ops.allreduce(tf.constant(1.0), "sum"),
        lambda npu: npu.hccl_ops.broadcast([tf.constant(1.0)], 0),
        lambda npu: npu.npu_allreduce([tf.constant(1.0)]),
    ]
)
def test_collectives_need_ranks_and_job(npu, refused, monkeypatch, collective):
    with refused("RANK_SIZE>1"):
        collective(npu)
    monkeypatch.setenv("RANK_SIZE", "2")
    with refused("JOB_ID"):
        collective(npu)


@pytest.mark.usefixtures("two_ranks")
def test_unknown_reduction_is_refused(npu, refused):
    with refused("'mean' is not max, min, prod or sum"):
        npu.hccl_ops.allreduce(tf.constant(1.0), "mean")


@pytest.mark.usefixtures("two_ranks")
def test_broadcast_of_a_single_tensor_is_refused(npu, refused):
    with refused("takes a list"):
        npu.hccl_ops.broadcast(tf.constant(1.0), 0)


@pytest.mark.usefixtures("two_ranks")
def test_a_type_that_hccl_does_not_know_is_refused(npu, refused):
    with refused("broadcast knows no int64"):
        npu.hccl_ops.broadcast([tf.constant(1, tf.int64)], 0)


@pytest.mark.usefixtures("two_ranks")
def test_both_rank_size_variables_are_refused(npu, refused, monkeypatch):
    monkeypatch.setenv("CM_WORKER_SIZE", "2")
    with refused("both set"):
        npu.npu_allreduce(tf.constant(1.0))


@pytest.mark.usefixtures("two_ranks")
def test_collectives_are_recorded_and_the_identity(npu, config, weight):
    assign = weight.assign(npu.hccl_ops.broadcast([weight], 0)[0])
    means = npu.npu_allreduce([weight, weight + 1.0])
    with tf.Session(config=config()) as sess:
        sess.run(tf.global_variables_initializer())
        sess.run(assign)
        assert sess.run(means) == [1.0, 2.0]
    broadcast, first, _ = read_record()["collectives"]
    assert (broadcast["op"], broadcast["root_rank"]) == ("broadcast", 0)
    assert broadcast["tensors"] == ["weight:0"]
    assert (first["op"], first["reduction"]) == ("allreduce", "sum")


def distributed_variants(npu):
    """Names and makers of the four ways to average gradients with loss scaling."""
    plain = tf.train.GradientDescentOptimizer
    scaled = npu.NPULossScaleOptimizer
    return {
        "class": lambda m: scaled(npu.NPUDistributedOptimizer(plain(0.125)), m, True),
        "function": lambda m: scaled(npu.npu_tf_optimizer(plain(0.125)), m, True),
        "in place": lambda m: scaled(npu.npu_distributed_optimizer_wrapper(plain(0.125)), m, True),
        "combined": lambda m: npu.NPUOptimizer(plain(0.125), m, True, True),
    }


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize("name", ["class", "function", "in place", "combined"])
def test_scaled_gradients_are_averaged_then_unscaled(npu, config, weight, name):
    optimizer = distributed_variants(npu)[name](npu.FixedLossScaleManager(128))
    step, _ = train_step(optimizer, weight, 1.0)
    gradient, status = read_record()["collectives"]
    with tf.Session(config=config()) as sess:
        sess.run(tf.global_variables_initializer())
        assert sess.run(gradient["tensors"][0]) == 2 * 128
        sess.run(step)
        assert sess.run([weight, "overflow_status_reduce_all:0"]) == [0.75, True]
    assert status["reduction"] == "sum"


def test_distributed_optimizer_is_plain_on_one_rank(npu, config, weight):
    optimizer = npu.NPUDistributedOptimizer(tf.train.GradientDescentOptimizer(0.125))
    step, _ = train_step(optimizer, weight, 1.0)
    with tf.Session(config=config()) as sess:
        sess.run(tf.global_variables_initializer())
        sess.run(step)
        assert sess.run(weight) == 0.75
    assert read_record()["collectives"] == []


# The rest


def test_dropout_keeps_with_the_given_probability(npu, config):
    kept = npu.npu_ops.dropout(tf.ones([10000], name="x"), 0.25, seed=1)
    with tf.Session(config=config()) as sess:
        values = sess.run(kept)
    assert sorted(set(values)) == [0.0, 4.0]
    assert abs(np.mean(values) - 1.0) < 0.1
    assert read_record()["dropouts"] == [{"tensor": "x:0", "keep_prob": 0.25, "seed": 1}]


@pytest.mark.usefixtures("npu")
def test_star_import_shadows_names():
    names = {"tf": tf, "util": None, "os": None, "session": None, "backend": None}
    exec("from npu_bridge.npu_init import *", names)
    assert names["tf"] is sys.modules["tensorflow"]
    for name in ("util", "os", "session", "backend", "RewriterConfig", "config_pb2"):
        assert names[name] is not None


def test_record_is_complete_after_exit(tmp_path):
    program = (
        "import tensorflow.compat.v1 as tf; tf.disable_v2_behavior()\n"
        "from npu_bridge import npu_init\n"
        "sess = tf.Session(config=npu_init.npu_config_proto())\n"
        "value = tf.constant(1.0)\n"
        "for _ in range(7): sess.run(value)\n"
    )
    path = str(tmp_path / "child.json")
    environment = dict(os.environ, PYTHONPATH=FAKE, FAKE_NPU_RECORD=path)
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    with open(path) as stream:
        record = json.load(stream)
    assert (record["distinct_graphs"], record["runs"]) == (1, 7)
    assert os.listdir(str(tmp_path)) == ["child.json"]
