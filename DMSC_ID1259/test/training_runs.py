"""Short runs of both programs in this process, and what they leave behind: for the tests.

The data are stand-in faces: 3 subjects, 8 images each, two modalities.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import contextlib
import gc
import io
import json
import os
import signal

import numpy as np
import scipy.io
import tensorflow.compat.v1 as tf

import affinity_fusion
import npu_session
import pretrain_affinity_fusion
import standin_faces

SUBJECTS, IMAGES, MODALITIES = 3, 8, 2
SAMPLES = SUBJECTS * IMAGES
PRETRAIN_STEPS, AFFINITY_STEPS = 12, 14
COMMON = ["--mat=small", "--threads=1"]
PRETRAIN = COMMON + ["--mode=train", f"--epoch={PRETRAIN_STEPS}", "--log_every=4",
                     "--steps_per_call=3"]
AFFINITY = COMMON + ["--model=mymodel", f"--affinity_steps={AFFINITY_STEPS}", "--eval_from=4",
                     "--eval_every=4", "--save_every=6", "--steps_per_call=3"]
TIMES = ("seconds_per_step", "images_per_second")


def small_content(modalities=MODALITIES):
    """Content of a small .mat file: a dict."""
    lights = standin_faces.spread_lights(IMAGES)
    pixels = np.concatenate([standin_faces.draw_subject(7, subject, lights)
                             for subject in range(SUBJECTS)], axis=1)[:modalities]
    columns = np.transpose(pixels, (0, 3, 2, 1)).reshape(modalities, 1024, SAMPLES)
    content = {f"modality_{number}": matrix for number, matrix in enumerate(columns)}
    return dict(content, num_modalities=modalities,
                Label=np.repeat(np.arange(1, SUBJECTS + 1), IMAGES)[None])


def write_mat(folder, content, name="small"):
    """Writes <folder>/<name>.mat and returns the folder as str."""
    os.makedirs(str(folder), exist_ok=True)
    scipy.io.savemat(os.path.join(str(folder), name + ".mat"), content)
    return str(folder)


def call(main, flags):
    """(exit code, standard output, standard error) of a program's main in this process."""
    gc.collect()  # an earlier run's lock goes with its RunFolder
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = npu_session.run_main(main, [str(flag) for flag in flags])
    return code, out.getvalue(), err.getvalue()


def pretrain(data, output, *flags):
    """call() of stage 1 with short settings; flags win over them."""
    return call(pretrain_affinity_fusion.main,
                [f"--data_dir={data}", f"--output_dir={output}"] + PRETRAIN + list(flags))


def cluster(data, output, *flags, pictures=False):
    """call() of stages 2 and 3 with short settings; flags win over them.

    pictures: draw them, which takes a third of the time.
    """
    plain = affinity_fusion.draw
    affinity_fusion.draw = plain if pictures else lambda *_: None
    try:
        return call(affinity_fusion.main,
                    [f"--data_dir={data}", f"--output_dir={output}"] + AFFINITY + list(flags))
    finally:
        affinity_fusion.draw = plain


def succeeded(result):
    """The standard output of a call that must have exit code 0."""
    code, out, err = result
    assert code == 0, err
    return out


def refused(result, code=2):
    """The sentence of a call that must end with this code and one sentence, no traceback."""
    found, _, err = result
    lines = [line for line in err.splitlines() if not line.startswith("WARNING: ")]
    assert found == code and len(lines) == 1 and lines[0].startswith("error: "), (found, err)
    return lines[0]


def pretrain_folder(output, model="mymodel"):
    """Run folder of stage 1."""
    return os.path.join(str(output), "logs", model)


def affinity_folder(output, model="mymodel"):
    """Run folder of stages 2 and 3."""
    return os.path.join(str(output), "results", model)


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


def stopped(monkeypatch, step, program, *arguments, number=signal.SIGTERM):
    """Calls pretrain or cluster until a signal after `step`; returns what it printed."""
    with monkeypatch.context() as patch:
        signal_at(patch, step, number)
        code, out, err = program(*arguments)
    assert code == 128 + number, err
    return out


def variables(path):
    """All arrays of a checkpoint; path: its prefix, or a folder with checkpoints."""
    reader = tf.train.load_checkpoint(str(path))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def records(folder):
    """metrics.jsonl without the speeds."""
    with open(os.path.join(folder, "metrics.jsonl")) as file:
        lines = [json.loads(line) for line in file]
    return [{name: line[name] for name in line if name not in TIMES} for line in lines]


def read(folder, name):
    """Content of a JSON file of the run folder."""
    with open(os.path.join(folder, name)) as file:
        return json.load(file)


def assert_same_arrays(ours, theirs):
    """Two dicts of arrays are bit-equal."""
    assert sorted(ours) == sorted(theirs)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def assert_same_end(folder, expected):
    """Both runs end with bit-equal variables, the same records and the same result."""
    assert_same_arrays(variables(folder), variables(expected))
    assert records(folder) == records(expected)
    ours, theirs = read(folder, "result.json"), read(expected, "result.json")
    for result in (ours, theirs):
        result.pop("weights", None)  # a path
    assert ours == theirs


def contents(folder, *endings):
    """{file name: bytes} of the files with these endings."""
    found = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(endings):
            with open(os.path.join(folder, name), "rb") as file:
                found[name] = file.read()
    return found
