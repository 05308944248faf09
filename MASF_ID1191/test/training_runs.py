"""Short trainings in this process, and what they leave behind: for the training tests.

The network is narrow (see narrow_network), so that a checkpoint takes 1.3 MB, not 1.2 GB; layers,
strides and groups, the losses and the program are the real ones.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import contextlib
import gc
import io
import json
import os
import re
import resource
import signal
from unittest import mock

import numpy as np
import tensorflow.compat.v1 as tf

import figures
import main
import masf_func
import npu_session

ITERATIONS = 4
SHORT = ["--meta_batch_size=3", "--test_print_interval=2", "--test_batch_size=7", "--threads=1",
         "--seed=0", "--target_domain=photo", "--weights_path=random"]
FEW = "--test_images=7"  # one of each class in every list: where it does not matter what is tested
CHANNELS = {"conv1": (11, 11, 3, 16), "conv2": (5, 5, 8, 32), "conv3": (3, 3, 32, 32),
            "conv4": (3, 3, 16, 32), "conv5": (3, 3, 16, 32)}
CONVOLUTIONS = collections.OrderedDict(
    (name, layer._replace(kernel=CHANNELS[name])) for name, layer in
    masf_func.CONVOLUTIONS.items())
WIDTH = 24
DENSE = collections.OrderedDict([("fc6", (6 * 6 * 32, WIDTH)), ("fc7", (WIDTH, WIDTH)),
                                 ("fc8", (WIDTH, 7))])
METRIC = collections.OrderedDict([("metric/w1", (WIDTH, 16)), ("metric/b1", (16,)),
                                  ("metric/w2", (16, 8)), ("metric/b2", (8,))])


def narrow_network(monkeypatch):
    """Makes all layers narrow for as long as monkeypatch lives."""
    monkeypatch.setattr(masf_func, "CONVOLUTIONS", CONVOLUTIONS)
    monkeypatch.setattr(masf_func, "DENSE", DENSE)
    monkeypatch.setattr(masf_func, "METRIC", METRIC)


def data_flags(data):
    """Flags for a folder with kfold/ and filelist/."""
    return [f"--dataroot={data}/kfold", f"--filelist_root={data}/filelist"]


@contextlib.contextmanager
def undrawn(*kept):
    """Figures are made but not drawn into files, which takes a quarter of a short run.

    kept: names of the files that are written all the same.
    """
    plain = figures.save

    def save(figure, path):
        if os.path.basename(path) in kept:
            plain(figure, path)

    with mock.patch.object(figures, "save", save):
        yield


def train(data, output, *flags, pictures=False):
    """(exit code, standard output, standard error) of main.py's program in this process.

    pictures: whether they are drawn into files, see undrawn.
    """
    gc.collect()  # an earlier run's lock goes with its RunFolder
    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as during:
        during.enter_context(contextlib.redirect_stdout(out))
        during.enter_context(contextlib.redirect_stderr(err))
        if not pictures:
            during.enter_context(undrawn())
        code = npu_session.run_main(main.main, data_flags(data) + [f"--output_dir={output}"]
                                    + SHORT + [f"--train_iterations={ITERATIONS}"]
                                    + [str(flag) for flag in flags])
    return code, out.getvalue(), err.getvalue()


def trained(data, output, *flags):
    """The run folder of a training that must succeed."""
    code, _, err = train(data, output, *flags)
    assert code == 0, err
    return run_folder(output)


def no_step(*_):
    """In masf_func.train_step's place: a graph that is built in no time and trains nothing."""
    return tf.assign_add(tf.train.get_global_step(), 1), tf.zeros([len(masf_func.TERMS) + 7])


def refused_early(data, output, *flags):
    """As `refused`, of a training that must end before its first step: the graph has none."""
    with mock.patch.object(masf_func, "train_step", no_step):
        return refused(data, output, *flags)


def refused(data, output, *flags, code=2):
    """The sentence of a training that must end with this code and one sentence, no traceback."""
    found, _, err = train(data, output, *flags)
    lines = [line for line in err.splitlines() if not line.startswith("WARNING: ")]
    assert found == code and len(lines) == 1 and lines[0].startswith("error: "), (found, err)
    return lines[0]


def run_folder(output):
    """The only run folder below an output folder."""
    name, = [name for name in os.listdir(str(output)) if re.match(r"(masf|deepall)", name)]
    return os.path.join(str(output), name)


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


@contextlib.contextmanager
def small_files(size):
    """No file can grow beyond `size` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def variables(folder, name=None):
    """All arrays of a checkpoint in the folder, of the newest one without a name."""
    path = os.path.join(folder, name) if name else tf.train.latest_checkpoint(folder)
    reader = tf.train.load_checkpoint(path)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def last_state(folder):
    """All arrays of the newest checkpoint of a run folder."""
    return variables(os.path.join(folder, "checkpoints"))


def records(folder):
    """metrics.jsonl."""
    with open(os.path.join(folder, "metrics.jsonl")) as file:
        return [json.loads(line) for line in file]


def read(folder, name):
    """Content of a JSON file of the run folder."""
    with open(os.path.join(folder, name)) as file:
        return json.load(file)


def text(folder, name):
    """Content of a text file of the run folder."""
    with open(os.path.join(folder, name)) as file:
        return file.read()


def assert_same_end(folder, expected):
    """Both runs end with bit-equal variables, the same records, evaluations and result."""
    ours, theirs = last_state(folder), last_state(expected)
    assert sorted(ours) == sorted(theirs)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert records(folder) == records(expected)
    assert text(folder, "eva.txt") == text(expected, "eva.txt")
    assert read(folder, "result.json") == read(expected, "result.json")


def contents(folder, *endings):
    """{path in the folder: bytes} of the files with these endings."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in sorted(names):
            if name.endswith(endings):
                path = os.path.join(place, name)
                with open(path, "rb") as file:
                    found[os.path.relpath(path, folder)] = file.read()
    return found
