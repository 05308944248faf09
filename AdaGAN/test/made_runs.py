"""Run folders as adagan_gmm.py leaves them, made without training."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import json
import os

import numpy as np
import tensorflow.compat.v1 as tf

import adagan_gmm
import export
import npu_session
from mixture import Mixture


def make_run(folder, components, *flags, betas=None):
    """Writes config.json, mixture.json and samplesNN.npy; returns the run's flags.

    Args:
      components: [n, dim] samples of each. flags: of adagan_gmm.py; few data if not given.
      betas: their weights when they joined; default: all end up equal.
    """
    os.makedirs(folder, exist_ok=True)
    settings = adagan_gmm.parse_args(["--toy_dataset_size=640"] + list(flags))
    npu_session.write_json(os.path.join(folder, "config.json"), {"flags": vars(settings)})
    mixture = Mixture()
    for number, samples in enumerate(components):
        beta = betas[number] if betas else 1 / (number + 1)
        mixture.add(np.asarray(samples, np.float32)[..., None, None], beta)
        mixture.save_component(folder)
    mixture.save_weights(folder)
    return settings


def save_component(folder, settings, number, value, last=""):
    """Writes the checkpoint of a component's generator.

    value: function (name, shape) -> values of a variable. last: ending of the checkpoint's name.
    """
    os.makedirs(os.path.join(folder, "ckpt"), exist_ok=True)
    with npu_session.new_graph().as_default(), tf.Session() as session:
        export.build_graph(settings, 1)
        for variable in tf.global_variables():
            variable.load(value(variable.op.name, variable.shape.as_list()), session)
        npu_session.Checkpoints(os.path.join(folder, "ckpt")).save(
            session, f"component-{number:02d}{last}")


def change_flags(folder, **changes):
    """Changes flags in config.json; None removes one."""
    path = os.path.join(folder, "config.json")
    with open(path) as file:
        content = json.load(file)
    flags = dict(content["flags"], **changes)
    content["flags"] = {name: value for name, value in flags.items() if value is not None
                        or name not in changes}
    npu_session.write_json(path, content)
