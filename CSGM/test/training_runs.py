"""Short trainings of the VAE in this process, and what they leave behind: for the training tests.

Ten updates make an epoch; step lines, checkpoints and errors come often.
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

import main
import npu_session

EPOCHS, PER_EPOCH = 3, 10
SHORT = ["--num_samples=500", "--batch_size=50", "--log_every=4", "--ckpt_epoch=1",
         "--sample_epoch=2", "--eval_epoch=1", "--threads=1", "--seed=0"]


def train(data, output, *flags):
    """(exit code, standard output, standard error) of main.py's program in this process."""
    gc.collect()  # an earlier run's lock goes with its RunFolder
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = npu_session.run_main(main.main, [f"--data_dir={data}", f"--output_dir={output}"]
                                    + SHORT + [f"--epochs={EPOCHS}"] + [str(f) for f in flags])
    return code, out.getvalue(), err.getvalue()


def trained(data, output, *flags):
    """The run folder of a training that must succeed."""
    code, _, err = train(data, output, *flags)
    assert code == 0, err
    return run_folder(output)


def refused(data, output, *flags, code=2):
    """The sentence of a training that must end with this code and one sentence, no traceback."""
    found, _, err = train(data, output, *flags)
    lines = [line for line in err.splitlines() if not line.startswith("WARNING: checkpoint")]
    assert found == code and len(lines) == 1 and lines[0].startswith("error: "), (found, err)
    return lines[0]


def run_folder(output):
    """Where main.py puts checkpoints and metrics below an output folder."""
    return os.path.join(str(output), "models", "mnist-vae")


def signal_at(monkeypatch, step, *numbers):
    """The first record of `step` is followed by these signals to this process."""
    plain, sent = npu_session.RunFolder.log, []

    def log(self, now, **values):
        plain(self, now, **values)
        if now == step and not sent:
            sent.extend(numbers)
            for number in numbers:
                os.kill(os.getpid(), number)
    monkeypatch.setattr(npu_session.RunFolder, "log", log)


def stopped(monkeypatch, step, data, output, *flags, number=signal.SIGTERM):
    """Trains until a signal after `step`; returns what it printed."""
    with monkeypatch.context() as patch:
        signal_at(patch, step, number)
        code, out, err = train(data, output, *flags)
    assert code == 128 + number, err
    return out


def variables(folder, name=None):
    """All arrays of a checkpoint, of the newest one without a name."""
    path = os.path.join(folder, name) if name else tf.train.latest_checkpoint(folder)
    reader = tf.train.load_checkpoint(path)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def records(folder):
    """metrics.jsonl without the speeds."""
    with open(os.path.join(folder, "metrics.jsonl")) as file:
        lines = [json.loads(line) for line in file]
    return [{name: line[name] for name in line if name != "examples_per_second"} for line in lines]


def read(folder, name):
    """Content of a JSON file of the run folder."""
    with open(os.path.join(folder, name)) as file:
        return json.load(file)


def assert_same_end(folder, expected):
    """Both runs end with bit-equal variables, the same records and the same result."""
    ours, theirs = variables(folder), variables(expected)
    assert sorted(ours) == sorted(theirs)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert records(folder) == records(expected)
    assert read(folder, "result.json") == read(expected, "result.json")


def contents(folder, *endings):
    """{file name: bytes} of the files with these endings."""
    found = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(endings):
            with open(os.path.join(folder, name), "rb") as file:
                found[name] = file.read()
    return found
