"""Several processes: the scripts for eight devices, and a job of two against one process.

Run as a program, this file is training with a narrow network whose batch norm uses its moving
averages: a process normalises with the moments of its own share, so that with the real one a job
is not to equal one process.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import sys
from unittest import mock

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import model_def
import npu_session
import VDSR
from processes_contract import *  # noqa: F403 (the tests of every model of several processes)
from processes_contract import assert_alike, launch
from test_factorized_shell import job  # noqa: F401 (a fixture)
from training_runs import (
    SHORT,
    narrow_network,
    program,
    read,
    records,
    train,
    trained,
    variables,
)


def with_moving_averages():
    """Within it batch norm is the same for all images: it takes its moving averages."""
    def normalised(halves, layer):
        return [tf.nn.fused_batch_norm(half, layer.gamma, layer.beta, layer.moving_mean,
                                       layer.moving_variance, is_training=False)[0]
                for half in halves], (), []
    return mock.patch.object(model_def, "_normalised", normalised)


@pytest.fixture
def batch_of_eight():
    return 32


def test_two_processes_do_what_one_does_and_one_goes_on_for_them(faces, tmp_path):
    alone, output = tmp_path / "alone", tmp_path / "output"
    launch(tmp_path, __file__, f"--input_dir={faces}", f"--output_dir={output}", *SHORT,
           "--max_steps=1")
    assert read(output, "config.json")["processes"] == 2
    with with_moving_averages():
        trained(faces, alone, "--max_steps=1")
        # Later a ReLU on whose kink rounding decides would make more of it than of a real error.
        assert_same_gradients(variables(output), variables(alone))
        for folder in (alone, output):
            trained(faces, folder)
    # Twelve updates make more of rounding than one.
    assert_alike(records(output), records(alone), rel=1e-3, tolerance=1e-5)


def assert_same_gradients(ours, theirs):
    """After one update Adam's first moment is a tenth of the gradient."""
    for name, value in theirs.items():
        bound = 1e-4 * np.abs(value).max()
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=bound, err_msg=name)


def test_a_batch_that_cannot_be_divided_is_refused(faces, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK_SIZE", "3")
    code, _, err = train(faces, tmp_path / "out")
    assert code == 2
    assert "a batch of 4 cannot be divided among RANK_SIZE=3 processes" in err


def test_stand_in_data_are_not_drawn_by_several(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK_SIZE", "2")
    code, _, err = program("--output_dir=out")
    assert code == 2 and "run make_standin_data.py first" in err
    assert os.listdir(str(tmp_path)) == []


if __name__ == "__main__":
    with narrow_network(), with_moving_averages():
        sys.exit(npu_session.run_main(VDSR.main))
