"""Puts CSGM/src first on sys.path; fixtures that several test files share."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import subprocess
import sys

import pytest

SOURCE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "src")
sys.path.insert(0, SOURCE)
pytest.register_assert_rewrite("shell_contract", "processes_contract")


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
    """Folder (str) with 1200 + 300 stand-in digits in MNIST's format; do not change it."""
    from make_standin_data import make_standin_data
    folder = str(tmp_path_factory.mktemp("small_data"))
    make_standin_data(folder, 1200, 300, seed=7, workers=1)
    return folder


@pytest.fixture(scope="session")
def run_program():
    """Function (script, *flags, env=None, timeout=120, cwd=None) -> CompletedProcess.

    Runs CSGM/src/<script> with this Python; env is added to the environment. Text streams.
    """
    def run(script, *flags, env=None, timeout=120, cwd=None):
        command = [sys.executable, os.path.join(SOURCE, script)] + [str(flag) for flag in flags]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=cwd,
                              env=dict(os.environ, **(env or {})), check=False)
    return run


@pytest.fixture(scope="session")
def golden_checkpoint(tmp_path_factory):
    """Folder (str) with a checkpoint of the VAE whose weights follow the golden rule FILL."""
    import tensorflow.compat.v1 as tf

    import golden_rules
    import model_def
    import npu_session
    folder = str(tmp_path_factory.mktemp("golden_vae"))
    with npu_session.new_graph().as_default(), tf.Session() as session:
        initializer = model_def.xavier_uniform(0)
        model_def.vae(tf.zeros([1, model_def.N_INPUT]), tf.zeros([1, model_def.N_Z]), initializer)
        for variable in tf.global_variables():
            shape, name = variable.shape.as_list(), variable.op.name
            variable.load(golden_rules.FILL(name, shape, golden_rules.find_seed()), session)
        npu_session.Checkpoints(folder).save(session, "mnist_vae_model-0")
    return folder
