"""Short trainings of a narrow network in this process, and what they leave behind.

32 stand-in faces in batches of 4: eight updates make an epoch. The layers have 4 channels instead
of 20 to 256, which changes nothing that these tests look at but their time.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import contextlib
import gc
import io
import json
import os
import signal
from unittest import mock

import numpy as np
import tensorflow.compat.v1 as tf

import figures
import model_def
import npu_session
import train as train_program
import VDSR

CHANNELS = (4, 4, 4, 4, 4)
STEPS = 12
SHORT = ["--batch_size=4", "--K=3", "--summary_freq=2", "--save_freq=4", "--threads=1",
         "--seed=5", f"--max_steps={STEPS}"]


@contextlib.contextmanager
def narrow_network():
    """Within it the network's layers have CHANNELS."""
    with mock.patch.object(model_def, "CHANNELS", CHANNELS):
        yield


@contextlib.contextmanager
def without(*functions):
    """Within it these functions, (module, name), do nothing."""
    with contextlib.ExitStack() as stack:
        for owner, name in functions:
            stack.enter_context(mock.patch.object(owner, name))
        yield


def no_pictures():
    """Within it training draws nothing, which takes a fifth of a short run."""
    return without((train_program, "example_pairs"), (train_program, "build_pictures"),
                   (train_program, "save_pictures"), (figures, "loss_curves"))


def no_graph():
    """Within it no training graph is built: a run that comes to the first session fails."""
    return without((model_def, "create_variables"), (train_program, "build_graph"))


def program(*flags, mode="train", is_narrow=True, is_drawn=False):
    """(exit code, standard output, standard error) of VDSR.py in this process."""
    gc.collect()  # an earlier run's lock goes with its RunFolder
    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        for manager in (contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)):
            stack.enter_context(manager)
        if is_narrow:
            stack.enter_context(narrow_network())
        if not is_drawn and mode == "train":
            stack.enter_context(no_pictures())
        code = npu_session.run_main(lambda argv: VDSR.main(argv, mode), [str(f) for f in flags])
    return code, out.getvalue(), err.getvalue()


def train(data, output, *flags, **options):
    """program's answer of a short training."""
    return program(f"--input_dir={data}", f"--output_dir={output}", *SHORT, *flags, **options)


def trained(data, output, *flags, **options):
    """The run folder of a training that must succeed."""
    code, _, err = train(data, output, *flags, **options)
    assert code == 0, err
    return str(output)


def sentence(answer, code=2):
    """The one sentence, without traceback, of a program that had to end with this code."""
    found, _, err = answer
    lines = [line for line in err.splitlines() if not line.startswith("WARNING: checkpoint")]
    assert found == code and len(lines) == 1 and lines[0].startswith("error: "), (found, err)
    return lines[0]


def refused(data, output, *flags, code=2):
    """The sentence of a training that must end with this code."""
    return sentence(train(data, output, *flags), code)


def refused_early(data, output, *flags, code=2):
    """refused, where the graph is not needed for it: building it would take most of the time."""
    with no_graph():
        return refused(data, output, *flags, code=code)


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


def checkpoint_folder(folder):
    """Where a run folder's checkpoints are."""
    return os.path.join(str(folder), "ckpt")


def variables(folder, name=None):
    """All arrays of a run's checkpoint, of the newest one without a name."""
    folder = checkpoint_folder(folder)
    path = os.path.join(folder, name) if name else tf.train.latest_checkpoint(folder)
    reader = tf.train.load_checkpoint(path)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def records(folder):
    """metrics.jsonl without the speeds."""
    with open(os.path.join(str(folder), "metrics.jsonl")) as file:
        lines = [json.loads(line) for line in file]
    return [{name: line[name] for name in line if name != "images_per_second"} for line in lines]


def read(folder, name):
    """Content of a JSON file of the run folder."""
    with open(os.path.join(str(folder), name)) as file:
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
    """{path: bytes} of the files below a folder with these endings."""
    found = {}
    for place, _, names in os.walk(str(folder)):
        for name in names:
            if name.endswith(endings):
                with open(os.path.join(place, name), "rb") as file:
                    found[os.path.join(place, name)] = file.read()
    return found
