"""What a session is on Ascend NPU, GPU and CPU: the one file that all five models share.

Model code never asks which device it runs on. It gets here: the session configuration, the wrapped
optimizer, the loop of training steps, checkpoints that resume exactly, the run folder, the stop on
a signal, and ModelArts' copies. The master is tools/npu_session.py; tools/sync copies it byte for
byte beside each entry script.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import argparse
import contextlib
import functools
import glob
import importlib
import importlib.util
import itertools
import json
import os
import platform
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback

import numpy as np
import tensorflow.compat.v1 as tf

try:
    import fcntl
except ImportError:  # Windows: two runs in one folder are then not told apart
    fcntl = None

tf.logging.set_verbosity(tf.logging.ERROR)
tf.disable_v2_behavior()

PRECISION_MODES = ("allow_fp32_to_fp16", "force_fp16", "force_fp32", "must_keep_origin_dtype",
                   "allow_mix_precision")
# The adapter ignores unknown options and reads mistyped ones as 0, silently: we refuse both.
NPU_OPTIONS = {
    bool: "use_off_line enable_data_pre_proc mix_compile_mode hcom_parallel dynamic_input "
          "enable_dump enable_dump_debug profiling_mode is_tailing_optimization",
    int: "graph_run_mode iterations_per_loop op_debug_level enable_exception_dump deterministic "
         "session_device_id hccl_timeout graph_exec_timeout",
    str: "precision_mode modify_mixlist op_select_implmode optypelist_for_implmode dump_path "
         "dump_step dump_mode dump_debug_mode profiling_options dynamic_graph_execute_mode "
         "graph_memory_max_size variable_memory_max_size fusion_switch_file "
         "op_compiler_cache_mode op_compiler_cache_dir jit_compile",
}
PEER_LOST = 75  # exit code when another process of the job has ended
_instance_keys = itertools.count(1)  # of collectives: alike in processes that build alike
_parted = threading.Event()  # the processes of the job have taken leave of each other
NPU_OPTION_TYPES = {name: kind for kind, names in NPU_OPTIONS.items() for name in names.split()}


class InputError(ValueError):
    """Something the user gave or has cannot be used; the text says what, and what to do."""


def run_main(main, argv=None):
    """Exit code of `main(argv)`; what the user can mend becomes one sentence on stderr.

    A process of a job of several ends here and now, whatever happened.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` blocks run
    try:
        code = _run_guarded(main, argv)
    except BaseException as error:
        if not _server.cache_info().currsize:
            raise
        code = error.code if isinstance(error, SystemExit) else 1
        if not isinstance(error, SystemExit):
            traceback.print_exc()
    if _server.cache_info().currsize:
        _end_process(code)
    return code


def _run_guarded(main, argv):
    try:
        return main(argv) or 0
    except InputError as error:
        message, code = error, 2
    except OSError as error:
        message, code = f"{error}. Files already complete are untouched", 1
    except FloatingPointError as error:
        message, code = error, 3
    except KeyboardInterrupt:
        message, code = "interrupted", 130
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError):
        if not _server.cache_info().currsize:
            raise
        message, code = "another process of the job has ended: start it again", PEER_LOST
    print(f"error: {message}", file=sys.stderr)
    return code


# ---------------------------------------------------------------- flags and ModelArts


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults, but not that a flag has none."""

    def _get_help_string(self, action):
        return super()._get_help_string(action) if action.default is not None else action.help


def argument_parser(description, **options):
    """argparse.ArgumentParser that shows defaults and refuses abbreviated flags."""
    return argparse.ArgumentParser(description=description, allow_abbrev=False,
                                   formatter_class=_Help, **options)


def boolean(text):
    """argparse type for `--flag=True` and `--flag=False`, the ports' spelling."""
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError(text)
    return text.lower() in ("true", "1")


def resume_mode(text):
    """argparse type of --resume: True, False or 'auto'."""
    return "auto" if text == "auto" else boolean(text)


def seed_number(text):
    """argparse type of --seed: 0..2^31-1, what NumPy's and TensorFlow's generators both take."""
    if not 0 <= int(text) < 2 ** 31:
        raise ValueError(text)
    return int(text)


def add_flags(parser, precision_mode):
    """Adds the flags of every program that trains: those below, --resume, ModelArts' addresses."""
    parser.add_argument("--resume", type=resume_mode, nargs="?", const=True, default="auto",
                        metavar="auto|True|False",
                        help="auto: continue the run found in the output folder, else start; "
                             "True: continue or fail; False: start in a folder without a run")
    parser.add_argument("--data_url", help="ModelArts: data, obs://, s3:// or a local folder")
    parser.add_argument("--train_url", help="ModelArts: results, obs://, s3:// or a local folder")
    add_session_flags(parser, precision_mode)


def add_session_flags(parser, precision_mode):
    """Adds --seed and the flags that session_config reads."""
    parser.add_argument("--seed", type=seed_number, default=1, help="fixes all that is random")
    group = parser.add_argument_group("platform", "--threads acts on the CPU, the rest on the NPU")
    group.add_argument("--threads", type=int, default=0, help="CPU threads; 0: one per core")
    group.add_argument("--precision_mode", choices=PRECISION_MODES, default=precision_mode,
                       help="how far float32 may become float16")
    group.add_argument("--over_dump", type=boolean, default=False, metavar="True|False",
                       help="write overflow dumps to <output>/npu_dump")
    group.add_argument("--data_dump_flag", type=boolean, default=False, metavar="True|False",
                       help="write tensor dumps to <output>/npu_dump")
    group.add_argument("--data_dump_step", default="10", help="steps to dump: 10, or 0|5|8-10")
    group.add_argument("--profiling", type=boolean, default=False, metavar="True|False",
                       help="write a profile to <output>/npu_profile")


def _moxing_files(url):
    try:
        return importlib.import_module("moxing").file
    except ImportError:
        raise InputError(f"{url} needs the package moxing, which only ModelArts images have: give "
                         "a local folder instead") from None


@contextlib.contextmanager
def staged(data_url, train_url):
    """Local (data, output) folders for ModelArts' two addresses; None for one that is not given.

    Local addresses are used in place. Of obs:// and s3:// ones, data and earlier results are
    copied in first (so that an interrupted job resumes), results out at the end, failed or not. Of
    a job of several processes only the first writes where it was told to.
    """
    def is_remote(url):
        return bool(url) and url.startswith(("obs://", "s3://"))

    scratch = "/cache" if os.path.isdir("/cache") else None  # ModelArts' large disk
    data, output = data_url, train_url
    if rank():  # the first process leaves the results; what the others write is nobody's
        train_url = output = tempfile.mkdtemp(prefix=f"process-{rank()}-", dir=scratch)
    if is_remote(data_url):
        files, data = _moxing_files(data_url), tempfile.mkdtemp(prefix="dataset-", dir=scratch)
        files.copy_parallel(data_url, data)
    if not is_remote(train_url):
        try:
            yield data, output
        finally:
            if rank():
                shutil.rmtree(output, ignore_errors=True)
        return
    files, output = _moxing_files(train_url), tempfile.mkdtemp(prefix="result-", dir=scratch)
    if files.exists(train_url):
        files.copy_parallel(train_url, output)
    try:
        yield data, output
    finally:
        files.copy_parallel(output, train_url)


# ---------------------------------------------------------------- device and session


@functools.lru_cache(maxsize=None)
def backend():
    """'npu', 'gpu' or 'cpu'; the environment's NPU_SESSION_DEVICE demands one, 'auto' looks.

    An npu_bridge that is installed but broken raises its own error when the session is configured:
    going on without the NPU would hide it.
    """
    wanted = os.environ.get("NPU_SESSION_DEVICE", "auto")
    if wanted not in ("auto", "npu", "gpu", "cpu"):
        raise InputError(f"NPU_SESSION_DEVICE={wanted} is not auto, npu, gpu or cpu")
    bridge = importlib.util.find_spec("npu_bridge") is not None
    if wanted == "npu" and not bridge:
        raise InputError("NPU_SESSION_DEVICE=npu, but the package npu_bridge is not installed")
    if bridge and wanted in ("auto", "npu"):
        return "npu"
    gpu = wanted != "cpu" and _gpus()
    if wanted == "gpu" and not gpu:
        raise InputError("NPU_SESSION_DEVICE=gpu, but TensorFlow sees no GPU")
    return "gpu" if gpu else "cpu"


def _gpus():
    return tf.config.experimental.list_physical_devices("GPU")


def _bridge():
    # Not `import *`: the package would rebind tf, os, util and session in the importing module.
    return importlib.import_module("npu_bridge.npu_init")


def _environment_number(name, default):
    text = os.environ.get(name) or str(default)
    if not text.isdigit():
        raise InputError(f"{name}={text} in the environment is not a number")
    return int(text)


def branches(config):
    """Independent pieces to divide a step into so that they run side by side: one per CPU thread.

    1 on NPU and GPU, which want one large piece. config: of session_config.
    """
    if backend() != "cpu":
        return 1
    return config.intra_op_parallelism_threads or os.cpu_count() or 1


def new_graph():
    """An empty tf.Graph; off the NPU its variables are resource variables.

    Reads of resource variables are ordered inside Loop's tf.while_loop, reads of reference
    variables are not. Names, values and checkpoints are the same for both.
    """
    graph = tf.Graph()
    with graph.as_default():
        tf.get_variable_scope().set_use_resource(backend() != "npu")
    return graph


def session_config(args, output=".", mixlist=None, iterations_per_loop=1, **npu_options):
    """tf.ConfigProto for a session.

    Args:
      args: the flags of add_flags.
      output: folder that receives dumps and profiles when they are asked for.
      mixlist: JSON file of operators to keep in or out of float16 (allow_mix_precision only).
      iterations_per_loop: device-side steps per session.run, as given to Loop.
      **npu_options: further options of NPU_OPTIONS; refused (InputError) when unknown or mistyped.
    """
    options = dict(_npu_options(args, output, mixlist, iterations_per_loop), **npu_options)
    for name, value in options.items():
        if NPU_OPTION_TYPES.get(name) is not type(value):
            raise InputError(f"NPU option {name}={value!r}: expected type "
                             f"{NPU_OPTION_TYPES.get(name, 'of a known option')}")
    config = tf.ConfigProto(allow_soft_placement=True, intra_op_parallelism_threads=args.threads)
    if backend() != "npu":
        config.gpu_options.allow_growth = True
        if backend() == "cpu":
            config.device_count["GPU"] = 0
        elif size() > 1:  # launch.py numbers a host's devices, of whatever kind
            number = _environment_number("ASCEND_DEVICE_ID", 0) % len(_gpus())
            config.gpu_options.visible_device_list = str(number)
        return config
    _bridge()
    rewrite = config.graph_options.rewrite_options
    rewrite.remapping = rewrite.memory_optimization = 2  # OFF, as the vendor's guide demands
    parameters = rewrite.custom_optimizers.add(name="NpuOptimizer").parameter_map
    for name, value in options.items():
        if isinstance(value, str):
            parameters[name].s = tf.compat.as_bytes(value)
        else:
            setattr(parameters[name], "b" if isinstance(value, bool) else "i", value)
    return config


def _npu_options(args, output, mixlist, iterations_per_loop):
    def folder(name):
        path = os.path.abspath(os.path.join(output, name))
        if backend() == "npu":
            os.makedirs(path, exist_ok=True)
        return path

    options = {"use_off_line": True, "precision_mode": args.precision_mode}
    if iterations_per_loop > 1:
        options.update(enable_data_pre_proc=True, iterations_per_loop=iterations_per_loop)
    if mixlist and args.precision_mode == "allow_mix_precision":
        options["modify_mixlist"] = os.path.abspath(mixlist)  # else relative to the process's cwd
    if args.over_dump:
        options.update(enable_dump_debug=True, dump_debug_mode="all", dump_path=folder("npu_dump"))
    if args.data_dump_flag:
        options.update(enable_dump=True, dump_step=args.data_dump_step, dump_mode="all",
                       dump_path=folder("npu_dump"))
    if args.profiling:
        profile = {"output": folder("npu_profile"), "training_trace": "on", "task_trace": "on",
                   "aicpu": "on", "fp_point": "", "bp_point": ""}
        options.update(profiling_mode=True, profiling_options=json.dumps(profile))
    return options


# ---------------------------------------------------------------- several processes


def rank():
    """This process's number in a job of size() processes: RANK_ID, as Ascend launchers set it."""
    number = _environment_number("RANK_ID", 0)
    if number >= size():
        raise InputError(f"RANK_ID={number} is outside 0..RANK_SIZE-1 = 0..{size() - 1}")
    return number


def size():
    """Processes in the job (RANK_SIZE): over HCCL on Ascend, else over TensorFlow's collectives."""
    count = _environment_number("RANK_SIZE", 1)
    missing = [name for name in ("JOB_ID", "RANK_TABLE_FILE") if not os.environ.get(name)]
    if count > 1 and missing and backend() == "npu":
        raise InputError(f"RANK_SIZE={count} needs {' and '.join(missing)} in the environment")
    return count


def device_environment(number):
    """Environment variables that give a program of its own this machine's number-th device."""
    if backend() == "npu":
        return {"ASCEND_DEVICE_ID": str(_environment_number("ASCEND_DEVICE_ID", 0) + number)}
    if backend() == "gpu":
        every = ",".join(map(str, range(len(_gpus()))))
        visible = (os.environ.get("CUDA_VISIBLE_DEVICES") or every).split(",")
        return {"CUDA_VISIBLE_DEVICES": visible[number % len(visible)]}
    return {}


def require_one_process(reason):
    """InputError with this reason unless the job has one process only."""
    if rank() or size() > 1:
        raise InputError(f"RANK_SIZE={size()}: {reason}")


def share(batch_size, parts=1):
    """slice of the rows of a batch that belong to this process: every size()-th.

    So the first part of every process's rows are the first part of the batch.

    Raises:
      InputError: the batch cannot be divided among the processes, or theirs into `parts`.
    """
    if size() > 1 and batch_size % (size() * parts):
        raise InputError(f"a batch of {batch_size} cannot be divided among RANK_SIZE={size()} "
                         f"processes: choose a multiple of {size() * parts}")
    return slice(rank(), None, size())


def worker_hosts():
    """'host:port' of every process of a job off the NPU.

    WORKER_HOSTS names them; without it they run on this machine, at the ports from
    WORKER_BASE_PORT on.
    """
    base = _environment_number("WORKER_BASE_PORT", 20000)
    hosts = (os.environ.get("WORKER_HOSTS") or ",".join(
        f"127.0.0.1:{base + number}" for number in range(size()))).split(",")
    for host in hosts:
        name, _, port = host.rpartition(":")
        if not (name and port.isdigit() and 0 < int(port) < 65536):
            raise InputError(f"WORKER_HOSTS: {host!r} is not of the form host:port")
    if len(set(hosts)) != size():
        raise InputError(f"WORKER_HOSTS names {len(set(hosts))} processes, RANK_SIZE is {size()}")
    return hosts


@functools.lru_cache(maxsize=None)
def _server(config):
    """This process's tf.train.Server, which others reach; config: a serialised ConfigProto."""
    hosts = worker_hosts()
    port = int(hosts[rank()].rpartition(":")[2])
    with contextlib.closing(socket.socket()) as trial:  # else TensorFlow's own error, or a crash
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("", port))
        except OSError as error:
            raise InputError(f"port {port} cannot be used ({error.strerror}): set WORKER_HOSTS or "
                             "WORKER_BASE_PORT to others") from None
    server = tf.train.Server({"worker": hosts}, "worker", rank(),
                             config=tf.ConfigProto.FromString(config))
    threading.Thread(target=_watch, args=(hosts,), daemon=True).start()
    return server


def _watch(hosts):
    """Ends this process when another one has gone, or does not come: TensorFlow 1.15 would wait
    for it for ever."""
    others = [host.rpartition(":")[::2] for host in hosts]
    del others[rank()]
    patience = _environment_number("WORKER_PATIENCE", 300)
    refused, began = dict.fromkeys(others, None), time.time()  # None: not seen yet
    while not _parted.wait(1):
        for name, port in others:
            try:
                socket.create_connection((name, int(port)), timeout=5).close()
                refused[name, port] = 0
            except OSError:
                if refused[name, port] is not None:
                    refused[name, port] += 1
            if refused[name, port] == 2 and not _parted.is_set():
                _end_process(PEER_LOST, f"the process at {name}:{port} has ended: what was saved "
                                        "before is untouched; start the job again to continue")
        missing = [":".join(other) for other in others if refused[other] is None]
        if missing and time.time() - began > patience:
            _end_process(PEER_LOST, f"no process at {', '.join(missing)} within {patience} s: "
                                    "start all of WORKER_HOSTS, or set WORKER_PATIENCE")


def _end_process(code, message=None):
    """Ends the process at once: with TensorFlow's server it may hang at the interpreter's end."""
    if message:
        print(f"error: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextlib.contextmanager
def open_session(config):
    """A tf.Session on the default graph; of several processes off the NPU, one connected to all.

    Every process must build its graph alike and run the same steps. They part together: the end of
    the block waits for all. Note that TensorFlow's servers accept anybody who reaches their port.
    """
    if size() == 1 or backend() == "npu":
        with tf.Session(config=config) as session:
            yield session
        return
    config.experimental.collective_group_leader = "/job:worker/replica:0/task:0"
    config.device_filters.append(f"/job:worker/task:{rank()}")
    parting = reduced(tf.zeros([1]), "sum")
    with tf.Session(_server(config.SerializeToString()).target, config=config) as session:
        yield session
        session.run(parting)
        _parted.set()


def reduced(tensor, operation):
    """A tensor's "mean" or "sum" over all processes, entry by entry. Not a scalar."""
    if backend() == "npu":
        return (_bridge().npu_allreduce(tensor, reduction="mean") if operation == "mean" else
                importlib.import_module("npu_bridge.hccl.hccl_ops").allreduce(tensor, "sum"))
    return tf.raw_ops.CollectiveReduce(
        input=tensor, group_size=size(), group_key=1, instance_key=next(_instance_keys),
        merge_op="Add", final_op="Div" if operation == "mean" else "Id", subdiv_offsets=[0])


def average_gradients(gradients):
    """Means over all processes of a list of gradients; None stays.

    One collective for all of them: the cost is per operation more than per number.
    """
    given = [gradient for gradient in gradients if gradient is not None]
    if size() == 1 or not given:
        return list(gradients)
    if backend() == "npu":
        means = iter([reduced(gradient, "mean") for gradient in given])
    else:
        dense = [tf.convert_to_tensor(gradient) for gradient in given]
        flat = reduced(tf.concat([tf.reshape(gradient, [-1]) for gradient in dense], 0), "mean")
        parts = tf.split(flat, [gradient.shape.num_elements() for gradient in dense])
        means = iter([tf.reshape(part, gradient.shape) for part, gradient in zip(parts, dense)])
    return [None if gradient is None else next(means) for gradient in gradients]


def average(tensor):
    """A tensor's mean over all processes, entry by entry."""
    return tensor if size() == 1 else reduced(tensor, "mean")


def gathered(tensor):
    """The rows of all processes, float32 [n, ...] -> [size() n, ...].

    Its gradient is made for average_gradients: if every process computes one loss of all rows,
    the mean of their gradients is that loss's.
    """
    if size() == 1:
        return tensor
    own, rest = tensor.shape.as_list()[0], tensor.shape.as_list()[1:]

    @tf.custom_gradient
    def gather(x):
        parts = [x if number == rank() else tf.zeros_like(x) for number in range(size())]

        def gradient(of_all):
            return size() * of_all[rank() * own:(rank() + 1) * own]
        return tf.reshape(reduced(tf.concat(parts, 0), "sum"), [size() * own] + rest), gradient
    return gather(tensor)


class Exchange:
    """`with Exchange(config) as exchange:` passes arrays between the processes, outside training.

    Every process must make the same calls. config: of session_config.
    """

    def __init__(self, config):
        self._config, self._operations = config, {}

    def __enter__(self):
        self._stack = contextlib.ExitStack()
        if size() > 1:
            self._graph = tf.Graph()
            self._stack.enter_context(self._graph.as_default())
            self._session = self._stack.enter_context(open_session(self._config))
        return self

    def gather(self, array):
        """The arrays of all processes, in the order of their numbers, of one shape.

        Those of several come back as float32, that of one as it is.
        """
        array = np.asarray(array)
        if size() == 1:
            return [array]
        if array.shape not in self._operations:
            with self._graph.as_default():
                own = tf.placeholder(tf.float32, array.shape)
                self._operations[array.shape] = own, gathered(own[None])
        own, everyone = self._operations[array.shape]
        return list(self._session.run(everyone, {own: array}))

    def __exit__(self, *reason):
        return self._stack.__exit__(*reason)


def _from_first(variables):
    """Operation that gives every process the variables of process 0."""
    updates = []
    for variable in variables:
        if backend() == "npu":
            broadcast = importlib.import_module("npu_bridge.hccl.hccl_ops").broadcast
            value = variable.read_value()
            if not variable.dtype.is_floating:
                value = tf.cast(value, tf.int32)  # HCCL knows no int64
            updates.append(variable.assign(tf.cast(broadcast([value], 0)[0],
                                                   variable.dtype.base_dtype)))
            continue
        common = {"group_size": size(), "group_key": 1, "instance_key": next(_instance_keys),
                  "shape": variable.shape}
        updates.append(
            tf.raw_ops.CollectiveBcastSend(input=variable.read_value(), **common) if rank() == 0
            else variable.assign(tf.raw_ops.CollectiveBcastRecv(
                T=variable.dtype.base_dtype, **common)))
    return tf.group(*updates)


# ---------------------------------------------------------------- optimizer and loop


def wrap_optimizer(optimizer, loss_scale=None):
    """The optimizer as the device needs it: averaged over processes and loss-scaled on the NPU.

    Args:
      optimizer: tf.train.Optimizer.
      loss_scale: None, or the arguments of the adapter's FixedLossScaleManager (a dict with
        `loss_scale`) or ExponentialUpdateLossScaleManager (a dict with `init_loss_scale`).
        Powers of two do not change float32 results, so other devices go without.
    """
    if backend() != "npu":
        return optimizer if size() == 1 else _averaging(optimizer)
    npu = _bridge()
    if size() > 1:
        optimizer = npu.npu_distributed_optimizer_wrapper(optimizer)
    if loss_scale is None:
        return optimizer
    fixed = "loss_scale" in loss_scale
    manager = npu.FixedLossScaleManager if fixed else npu.ExponentialUpdateLossScaleManager
    return npu.NPULossScaleOptimizer(optimizer, manager(**loss_scale), is_distributed=size() > 1)


def _averaging(optimizer):
    """The optimizer, computing means of gradients over all processes."""
    plain = optimizer.compute_gradients

    def compute_gradients(*arguments, **options):
        gradients, variables = zip(*plain(*arguments, **options))
        return list(zip(average_gradients(gradients), variables))
    optimizer.compute_gradients = compute_gradients
    return optimizer


class Loop:
    """Runs a training step many times in one session.run.

    CPU and GPU: tf.while_loop in the graph. NPU: the step stands in the graph once and the
    adapter repeats it on the device.

    Args:
      step: function that builds one step and returns (train_op, values); all that changes from
        step to step comes from variables or an initialisable iterator. values: one float32 tensor.
      iterations_per_loop: steps per session.run on the NPU; other devices take any count.
    """

    def __init__(self, step, iterations_per_loop):
        self._per_loop = iterations_per_loop if backend() == "npu" else 1
        if size() > 1:
            self._own_stop = tf.placeholder(tf.float32, [len(Stop.CODES)], "stop")
            self._stops = reduced(self._own_stop, "sum")
        if backend() == "npu":
            self._train_op, self._values = step()
            return
        self._count = tf.placeholder(tf.int32, [], "loop_count")

        def body(index, history):
            with tf.name_scope(None):  # else Adam's beta powers would be named while/beta1_power
                train_op, values = step()
            with tf.control_dependencies([train_op]):
                return index + 1, history.write(index, values)

        history = tf.TensorArray(tf.float32, self._count)
        _, history = tf.while_loop(lambda index, _: index < self._count, body, [0, history],
                                   parallel_iterations=1, back_prop=False)
        self._values = history.stack()

    def prepare(self, session):
        """Binds the device-side loop to a session; call before the graph is finalised."""
        if self._per_loop > 1:
            npu_util = importlib.import_module("npu_bridge.estimator.npu.util")
            self._train_op = npu_util.set_iteration_per_loop(session, self._train_op,
                                                             self._per_loop)

    def check(self, count):
        """InputError unless `count` steps in a row can be run."""
        if count % self._per_loop:
            raise InputError(f"{count} steps cannot be run {self._per_loop} at a time on the NPU: "
                             "choose a --log_every or --iterations_per_loop that divides them")

    def run(self, session, count):
        """Runs `count` steps. Returns the values of every step, [count, ...]; on the NPU those of
        the last step of each device-side loop."""
        if backend() != "npu":
            values = session.run(self._values, {self._count: count})
        else:
            self.check(count)
            values = np.stack([session.run([self._train_op, self._values])[1]
                               for _ in range(count // self._per_loop)])
        if size() > 1 and Stop.active:  # all stop after the same step, whoever got the signal
            own = [float(Stop.active.received == code) for code in Stop.CODES]
            stops = session.run(self._stops, {self._own_stop: own})
            Stop.active.code = Stop.CODES[int(stops.argmax())] if stops.any() else 0
        return values


def check_finite(values, names, first_step, folder):
    """Raises FloatingPointError naming the first step whose values [steps, terms] are not finite.

    names: of the terms. folder: where the last good checkpoint is.
    """
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        terms = ", ".join(f"{name} = {value}" for name, value in zip(names, values[bad[0]]))
        raise FloatingPointError(f"not finite at step {first_step + bad[0]}: {terms}. Try a "
                                 "smaller learning rate in another folder; what was saved in "
                                 f"{folder} before is untouched")


class Stop:
    """`with Stop() as stop:` SIGTERM and SIGINT set stop.code (143, 130) instead of killing.

    The loop saves and leaves when stop.code is set; a second signal interrupts at once. With
    several processes Loop.run sets stop.code, in all of them after the same step.
    """

    CODES = (143, 130)
    code = received = 0
    active = None

    def __enter__(self):
        Stop.active = self
        self._old = {number: signal.signal(number, self._handle)
                     for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _handle(self, number, _):
        if self.received:
            raise KeyboardInterrupt
        self.received = 128 + number
        if size() == 1:
            self.code = self.received

    def __exit__(self, *_):
        Stop.active = None
        for number, handler in self._old.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------- files of a run


class Checkpoints:
    """Checkpoints in one folder, by tf.train.Saver: the last `keep`, newest readable one restored.

    The Saver writes under temporary names and renews the `checkpoint` list last, so a killed save
    never costs an earlier one. Loss-scale variables exist on the NPU only and are left out.
    """

    def __init__(self, folder, variables=None, keep=5):
        adapter = ("loss_scale", "good_steps", "bad_steps", "npu_runconfig")
        self.folder = folder
        self.variables = variables or [variable for variable in tf.global_variables()
                                       if not variable.op.name.startswith(adapter)]
        self._saver = tf.train.Saver(self.variables, max_to_keep=keep, save_relative_paths=True)

    def save(self, session, name):
        """Writes <folder>/<name>.{index,meta,data-*}. Raises OSError when it cannot."""
        try:
            self._saver.save(session, os.path.join(self.folder, name))
        except (tf.errors.OpError, ValueError) as error:  # ValueError: the folder is gone
            reason = str(error).split("\n\t [[")[0].split("\n")[-1]  # TensorFlow adds where
            raise OSError(f"checkpoint {name} could not be written to {self.folder}: "
                          f"{reason}") from None

    def _listed(self):
        try:
            state = tf.train.get_checkpoint_state(self.folder)
        except (tf.errors.OpError, ValueError):  # the list itself is damaged
            state = None
        return list(state.all_model_checkpoint_paths) if state else []

    def found(self):
        """Checkpoint paths in the folder, oldest first, whether readable or not."""
        listed = self._listed()
        on_disk = sorted(glob.glob(os.path.join(glob.escape(self.folder), "*.index")),
                         key=os.path.getmtime)
        paths = [path[:-len(".index")] for path in on_disk]
        return [path for path in paths if path not in listed] + listed

    def restore(self, session, required=False):
        """Restores the newest readable checkpoint; returns its path, None if the folder has none.

        Raises:
          InputError: checkpoints are there, or required, but none is readable; or one belongs to
            another model (the variable that differs is named).
        """
        paths = self.found()
        for path in reversed(paths):
            try:
                self._check(path)
                self._saver.restore(session, path)
            except tf.errors.OpError as error:
                print(f"WARNING: checkpoint {path} is damaged ({type(error).__name__}); trying "
                      "the one before", file=sys.stderr)
                continue
            older = paths[:paths.index(path) + 1]
            self._saver.recover_last_checkpoints(  # it deletes them in time; unlisted ones stay
                [path for path in self._listed() if path in older])
            return path
        if paths or required:
            raise InputError(f"no readable checkpoint in {self.folder}: give the folder of a "
                             "trained model, or start anew in another folder")
        return None

    def _check(self, path):
        shapes = tf.train.load_checkpoint(path).get_variable_to_shape_map()
        for variable in self.variables:
            name, shape = variable.op.name, variable.shape.as_list()
            if shapes.get(name) != shape:
                raise InputError(f"checkpoint {path} has {name} {shapes.get(name, 'missing')}, "
                                 f"this model {shape}: it was made with other settings or by "
                                 "another program")


@contextlib.contextmanager
def replacing(path, mode="w", **options):
    """`with replacing(path) as file:` writes a file whole or not at all; its OSError names it."""
    try:
        with open(path + ".tmp", mode, **options) as file:
            yield file
        os.replace(path + ".tmp", path)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            os.remove(path + ".tmp")


def begin(session, args, loop, checkpoints, folder):
    """Initialises or restores all variables and finalises the graph, after which training begins.

    Args: the tf.Session, the flags of add_flags, and the run's Loop, Checkpoints and RunFolder.
    Returns:
      The global step to go on from; metrics beyond it are forgotten.
    Raises:
      InputError: see Checkpoints.restore and Loop.check.
    """
    with session.graph.as_default():
        session.run(tf.global_variables_initializer())
        loop.prepare(session)
        restored = checkpoints.restore(session, required=_resume(args) is True)
        if size() > 1:
            session.run(_from_first(tf.global_variables()))
        step = int(session.run(tf.train.get_or_create_global_step()))
    loop.check(step)
    print(f"Succesfully loaded model from {restored} at counter = {step}" if restored
          else "No checkpoint found")
    folder.rewind(step)
    session.graph.finalize()
    return step


def _resume(args):
    """--resume; of a job's processes only the first has a run folder to continue."""
    return "auto" if rank() else args.resume


def write_json(path, content):
    """Writes a JSON file whole or not at all."""
    with replacing(path) as file:
        json.dump(content, file, indent=1, sort_keys=True)
        file.write("\n")


def read_json(path, parse=json.load):
    """parse(file) of a JSON file, None if there is none. Raises InputError if it is damaged."""
    try:
        with open(path) as file:
            return parse(file)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, LookupError) as error:
        raise InputError(f"{path} is damaged ({error}): remove it") from None


class RunFolder:
    """A run's folder: config.json, metrics.jsonl, TensorBoard events and, last, result.json.

    `with RunFolder(...) as folder:` holds a lock on it meanwhile.

    Args:
      folder: made if missing.
      args: the program's flags (argparse.Namespace), written to config.json.
      fixed: names of flags that a resumed run must not change.
    Raises:
      InputError: the folder cannot be written, is in use by another run, or holds a run and
        --resume=False, none and --resume=True, or one with other values of `fixed`.
    """

    def __init__(self, folder, args, fixed=()):
        self.folder = folder
        self._metrics = os.path.join(folder, "metrics.jsonl")
        self._result = os.path.join(folder, "result.json")
        try:
            os.makedirs(folder, exist_ok=True)
            self._lock = open(os.path.join(folder, ".lock"), "a")
        except OSError as error:
            raise InputError(f"cannot write to the folder {folder}: {error.strerror}") from None
        self._take_lock()
        config = os.path.join(folder, "config.json")
        before = read_json(config, lambda file: dict(json.load(file)["flags"]))
        self._check_resume(args, before, fixed)
        write_json(config, {"flags": vars(args), "versions": versions(), "device": backend(),
                            "seed": args.seed, "process": rank(), "processes": size()})
        self._events = tf.summary.FileWriter(folder)

    def _take_lock(self):
        try:
            if fcntl:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another run is writing to {self.folder}: choose another "
                             "folder") from None
        except OSError:  # a file system without locks
            return

    def _check_resume(self, args, before, fixed):
        checkpoints = glob.glob(os.path.join(glob.escape(self.folder), "*.index"))
        if _resume(args) is False and (before or checkpoints):
            raise InputError(f"{self.folder} holds a run: continue it with --resume, or choose "
                             "another folder")
        if _resume(args) is True and not (before or checkpoints):
            raise InputError(f"--resume: there is no run in {self.folder}")
        for name in fixed if before else ():
            old, new = before.get(name), getattr(args, name)
            if old != new:
                raise InputError(f"the run in {self.folder} was started with {name}={old}, not "
                                 f"{new}: use the same, or another folder")

    def records(self):
        """The complete lines of metrics.jsonl, as dicts; a line cut by a kill is left out."""
        return read_json(self._metrics, lambda file: [
            json.loads(line) for line in file if line.endswith("}\n")]) or []

    def rewind(self, step):
        """Forgets the records after `step`: what a resumed run will log again."""
        kept = [record for record in self.records() if record["step"] <= step]
        with replacing(self._metrics) as file:
            file.writelines(json.dumps(record, sort_keys=True) + "\n" for record in kept)
        self._events.add_session_log(tf.SessionLog(status=tf.SessionLog.START), step)

    def log(self, step, **values):
        """Appends one record to metrics.jsonl and one scalar per number to the events.

        A result.json of a shorter run goes: what it says is no longer the run's result.
        """
        with contextlib.suppress(FileNotFoundError):
            os.remove(self._result)
        try:
            with open(self._metrics, "a") as file:
                file.write(json.dumps(dict(values, step=int(step)), sort_keys=True) + "\n")
        except OSError as error:
            raise OSError(f"{self._metrics} cannot be written: {error.strerror}") from None
        scalars = [tf.Summary.Value(tag=name, simple_value=value)
                   for name, value in values.items() if not isinstance(value, str)]
        self._events.add_summary(tf.Summary(value=scalars), step)
        self._events.flush()

    def finish(self, **result):
        """Writes result.json, the sign that the run is complete."""
        write_json(self._result, result)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._events.close()
        self._lock.close()


def versions():
    """Versions of what a result depends on."""
    return {"python": platform.python_version(), "tensorflow": tf.__version__,
            "numpy": np.__version__, "machine": platform.machine()}
