"""Short runs of adagan_gmm.py in this process, and what they leave behind.

Ten iterations make an epoch, twenty a component, three components a run.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import contextlib
import gc
import io
import json
import os
import signal

import numpy as np
import tensorflow.compat.v1 as tf

import adagan_gmm
import npu_session

STEPS, PER_EPOCH, PER_COMPONENT = 3, 10, 20
SHORT = ["--toy_dataset_size=640", "--epochs=2", "--mixture_c_epoch_num=1", "--log_every=4",
         "--unrolling_steps=1", "--samples_per_component=200", "--eval_points_num=100",
         "--threads=1", "--seed=0", "--plots=False", "--learning_rate=0.05"]
TIMES = ("seconds", "iterations_per_second")  # they differ from run to run


def train(output, *flags):
    """(exit code, standard output, standard error) of adagan_gmm.py's program in this process."""
    gc.collect()  # an earlier run's lock goes with its RunFolder
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = npu_session.run_main(adagan_gmm.main, [f"--output_dir={output}"] + SHORT + [
            f"--steps={STEPS}"] + [str(flag) for flag in flags])
    return code, out.getvalue(), err.getvalue()


def trained(output, *flags):
    """Runs to a good end; returns the run folder, str."""
    code, _, err = train(output, *flags)
    assert code == 0, err
    return str(output)


def refused(output, *flags, code=2):
    """The sentence of a run that must end with this code and one sentence, no traceback."""
    found, _, err = train(output, "--use_tqdm=False", *flags)
    lines = [line for line in err.splitlines() if not line.startswith("WARNING: checkpoint")]
    assert found == code and len(lines) == 1 and lines[0].startswith("error: "), (found, err)
    return lines[0]


def ckpt(folder):
    """Where the checkpoints of a run folder are."""
    return os.path.join(str(folder), "ckpt")


def call_after(monkeypatch, owner, name, number, function):
    """`function` is called once, after the call of that number (from 1) of owner.name."""
    plain, calls = getattr(owner, name), []

    def counted(*args, **keywords):
        result = plain(*args, **keywords)
        calls.append(name)
        if len(calls) == number:
            function()
        return result
    monkeypatch.setattr(owner, name, counted)


def send(*numbers):
    """A function that sends these signals to this process."""
    return lambda: [os.kill(os.getpid(), number) for number in numbers]


def stopped(monkeypatch, owner, name, number, output, *flags, signals=(signal.SIGTERM,)):
    """Runs until a signal after a call (see call_after); returns what was printed."""
    with monkeypatch.context() as patch:
        call_after(patch, owner, name, number, send(*signals))
        code, out, err = train(output, *flags)
    assert code == 128 + signals[0], err
    return out


def variables(folder, name=None):
    """All arrays of a checkpoint, of the newest one without a name."""
    path = os.path.join(ckpt(folder), name) if name else tf.train.latest_checkpoint(ckpt(folder))
    reader = tf.train.load_checkpoint(path)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def records(folder):
    """metrics.jsonl without the speeds."""
    with open(os.path.join(str(folder), "metrics.jsonl")) as file:
        lines = [json.loads(line) for line in file]
    return [{name: line[name] for name in line if name not in TIMES} for line in lines]


def read(folder, name):
    """Content of a JSON file of the run folder, without the speeds."""
    with open(os.path.join(str(folder), name)) as file:
        content = json.load(file)
    return {key: content[key] for key in content if key not in TIMES}


def samples(folder):
    """Stored samples of all components."""
    names = sorted(name for name in os.listdir(str(folder)) if name.endswith(".npy"))
    return [np.load(os.path.join(str(folder), name)) for name in names]


def assert_same_end(folder, expected):
    """Both runs end with bit-equal variables and samples, the same records and result."""
    ours, theirs = variables(folder), variables(expected)
    assert sorted(ours) == sorted(theirs)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    np.testing.assert_array_equal(samples(folder), samples(expected))
    assert records(folder) == records(expected)
    for name in ("result.json", "mixture.json"):
        assert read(folder, name) == read(expected, name)


def contents(folder, *endings):
    """{path below the folder: bytes} of the files with these endings."""
    found = {}
    for place, _, names in os.walk(str(folder)):
        for name in names:
            if name.endswith(endings):
                with open(os.path.join(place, name), "rb") as file:
                    found[os.path.relpath(os.path.join(place, name), str(folder))] = file.read()
    return found
