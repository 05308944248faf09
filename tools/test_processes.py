"""Several processes on this machine: npu_session's collectives, stops and ends, with a small model.

Each test starts processes that import TensorFlow, which takes seconds: it asks several things.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parent
# Fits y = x [0, 1, 2, 3, 4] in batches of 24 rows; prints what it found.
PROGRAM = f"""
import os
import signal
import sys
import time
sys.path.insert(0, {str(TOOLS)!r})
import numpy as np
import tensorflow.compat.v1 as tf
import npu_session


def pause(seconds):
    time.sleep(seconds)
    return np.float32(0)


def build(args):
    x = np.random.RandomState(0).standard_normal((24, 5)).astype(np.float32)
    y = x @ np.arange(5, dtype=np.float32)[:, None]
    rows = npu_session.share(24, 3)
    start = [npu_session.rank(), 1]  # differs: only process 0's counts
    w = tf.get_variable("w", initializer=lambda: tf.random.stateless_normal([5, 1], start))
    unused = tf.get_variable("unused", [2], initializer=tf.ones_initializer())
    step_number = tf.train.get_or_create_global_step()

    def step():
        wait = tf.py_func(lambda: pause(args.pause), [], tf.float32)
        errors = tf.square(tf.matmul(x[rows], w) - y[rows])
        everyone = npu_session.gathered(errors)
        loss = tf.reduce_mean(everyone) + tf.reduce_mean(errors)
        with tf.control_dependencies([wait]):
            optimizer = npu_session.wrap_optimizer(tf.train.AdamOptimizer(0.1))
            update = optimizer.minimize(loss, step_number, var_list=[w, unused])
        return update, npu_session.average(tf.stack([loss, tf.reduce_max(errors)]))

    return w, npu_session.Loop(step, 1)


def suffer(fault):
    if fault == "signal":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    if fault == "bug" and npu_session.rank() == 1:
        raise ZeroDivisionError("a bug")


def main(argv=None):
    parser = npu_session.argument_parser("a small model")
    npu_session.add_flags(parser, "must_keep_origin_dtype")
    parser.add_argument("--output_dir")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pause", type=float, default=0)
    parser.add_argument("--fault")
    args = parser.parse_args(argv)
    with npu_session.staged(args.data_url, args.train_url or args.output_dir) as (_, folder):
        with npu_session.new_graph().as_default():
            w, loop = build(args)
            with npu_session.RunFolder(folder, args, ("seed",)) as run:
                checkpoints = npu_session.Checkpoints(folder)
                with npu_session.open_session(npu_session.session_config(args)) as session:
                    step = npu_session.begin(session, args, loop, checkpoints, run)
                    suffer(args.fault)
                    with npu_session.Stop() as stop:
                        while step < args.steps and not stop.code:
                            values = loop.run(session, 5)
                            step += 5
                            run.log(step, loss=float(values[-1, 0]), largest=float(values[-1, 1]))
                            if step % 10 == 0:
                                checkpoints.save(session, f"model-{{step}}")
                    checkpoints.save(session, f"model-{{step}}")
                    print(f"process {{npu_session.rank()}} step {{step}}",
                          [f"{{number:.5f}}" for number in session.run(w)[:, 0]], flush=True)
                    if stop.code:
                        return stop.code
                run.finish(step=step)
    return 0


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "program.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture
def start(program, tmp_path):
    """Function that starts a job of some processes and returns its launcher's process."""
    started = []

    def begin(processes, *flags, **environment):
        command = [sys.executable]
        if processes > 1:
            command += [str(TOOLS / "launch.py"), f"--processes={processes}",
                        f"--log_folder={tmp_path}"]
        environment = dict(os.environ, OMP_NUM_THREADS="1", TF_CPP_MIN_LOG_LEVEL="3", **environment)
        started.append(subprocess.Popen(
            command + [str(program), f"--output_dir={tmp_path / 'out'}", "--threads=1"]
            + list(flags), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            universal_newlines=True))
        return started[-1]
    yield begin
    for process in started:
        process.kill()


def finish(process, code=0):
    """(standard output, the last line of standard error) of a process with this exit code."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    return out, lines[-1] if lines else ""


def found(text):
    """{process: (step, numbers)} of the lines that the program printed."""
    lines = re.findall(r"^process (\d) step (\d+) (\[.*\])", text, re.M)
    return {int(process): (int(step), [float(number) for number in re.findall(r"-?\d\.\d+", rest)])
            for process, step, rest in lines}


def logs(folder):
    return "".join(path.read_text() for path in sorted(folder.glob("train_*.log")))


def records(folder):
    with open(str(folder / "out" / "metrics.jsonl")) as file:
        return [json.loads(line) for line in file if line.endswith("}\n")]  # not half of one


def test_processes_find_what_one_finds_and_continue_in_any_number(start, tmp_path):
    out, _ = finish(start(1, "--steps=30"))
    (_, expected), = found(out).values()
    whole = records(tmp_path)
    os.rename(str(tmp_path / "out"), str(tmp_path / "one"))
    for processes, steps in ((2, 10), (4, 20), (1, 30)):
        out, _ = finish(start(processes, f"--steps={steps}"))
        everyone = found(out + logs(tmp_path))
        assert everyone[0][0] == steps
        if processes > 1:
            assert sorted(everyone) == list(range(processes))
            assert len({tuple(numbers) for _, numbers in everyone.values()}) == 1
        for path in tmp_path.glob("train_*.log"):
            path.unlink()
    assert everyone[0][1] == pytest.approx(expected, abs=2e-5)
    for one, several in zip(whole, records(tmp_path)):
        assert several["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert len(records(tmp_path)) == len(whole) == 6
    assert (tmp_path / "out" / "result.json").exists()


def wait_for_records(folder, count):
    end = time.time() + 120
    while not (folder / "out" / "metrics.jsonl").exists() or len(records(folder)) < count:
        assert time.time() < end
        time.sleep(0.1)


def test_a_signal_stops_all_after_the_same_step_and_the_job_continues(start, tmp_path):
    job = start(2, "--steps=100000", "--pause=0.05")
    wait_for_records(tmp_path, 2)
    job.send_signal(signal.SIGTERM)
    out, _ = finish(job, 143)
    stopped = found(out + logs(tmp_path))
    assert sorted(stopped) == [0, 1] and stopped[0] == stopped[1]
    out, _ = finish(start(2, f"--steps={stopped[0][0] + 5}", "--resume"))
    assert f"at counter = {stopped[0][0]}" in out
    assert [record["step"] for record in records(tmp_path)] == list(
        range(5, stopped[0][0] + 10, 5))


def test_a_process_that_is_killed_ends_the_job_which_goes_on_later(start, program, tmp_path):
    job = start(2, "--steps=100000", "--pause=0.05")
    wait_for_records(tmp_path, 4)
    second, = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/environ")
               if is_second(path, program)]
    os.kill(second, signal.SIGKILL)
    began = time.time()
    finish(job, 137)
    assert time.time() - began < 10
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline")
                if str(program) in read(path)]
    done = records(tmp_path)[-1]["step"]
    out, _ = finish(start(2, f"--steps={done + 10}", "--resume"))
    kept = int(re.search(r"at counter = (\d+)", out).group(1))
    assert kept % 10 == 0 and 0 < kept <= done
    assert [record["step"] for record in records(tmp_path)] == list(range(5, done + 11, 5))


@pytest.mark.parametrize("fault, code, text", [("signal", 143, ""), ("bug", 1, "a bug")])
def test_what_happens_outside_training_ends_the_job_too(fault, code, text, start):
    job = start(2, f"--fault={fault}")
    _, err = job.communicate(timeout=120)
    assert job.returncode == code and text in err, err


def read(path):
    """Text of a file in /proc; empty if the process has gone."""
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def is_second(path, program):
    return "\0RANK_ID=1\0" in "\0" + read(path) and str(program) in read(path.parent / "cmdline")


@pytest.mark.parametrize("values, text", [
    ({"WORKER_HOSTS": "127.0.0.1:1"}, "WORKER_HOSTS names 1 processes, RANK_SIZE is 2"),
    ({"WORKER_HOSTS": "127.0.0.1:20000,nowhere"}, "'nowhere' is not of the form host:port"),
    ({"RANK_ID": "2"}, "RANK_ID=2 is outside 0..RANK_SIZE-1 = 0..1"),
    ({"RANK_SIZE": "5"}, "a batch of 24 cannot be divided among RANK_SIZE=5")])
def test_what_cannot_be_is_refused(values, text, start):
    environment = dict({"RANK_SIZE": "2", "RANK_ID": "0"}, **values)
    assert text in finish(start(1, **environment), 2)[1]


def test_a_port_in_use_and_a_process_that_does_not_come(start):
    with socket.socket() as taken:
        taken.bind(("", 0))
        port = taken.getsockname()[1]
        environment = {"RANK_SIZE": "2", "RANK_ID": "0",
                       "WORKER_HOSTS": f"127.0.0.1:{port},127.0.0.1:{port + 1}"}
        sentence = finish(start(1, **environment), 2)[1]
        assert f"port {port} cannot be used" in sentence
    environment["WORKER_PATIENCE"] = "3"
    sentence = finish(start(1, **environment), 75)[1]
    assert f"no process at 127.0.0.1:{port + 1} within 3 s" in sentence
