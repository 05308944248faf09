"""Several processes: the scripts for eight devices, and a job of two against one process.

Run as a program, this file is training with a narrow network.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
import pytest

import main
import npu_session
from processes_contract import *  # noqa: F403 (the tests of every model of several processes)
from processes_contract import assert_alike, launch
from test_masf_shell import job  # noqa: F401 (a fixture)
from training_runs import (
    FEW,
    ITERATIONS,
    SHORT,
    data_flags,
    last_state,
    narrow_network,
    records,
    refused_early,
    run_folder,
    trained,
    undrawn,
)

# Every process draws dropout masks of its own: without dropout a job does what one process does.
ALIKE = ["--meta_batch_size=6", "--keep_prob=1", FEW]


@pytest.fixture
def batch_of_eight():
    return 120


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    narrow_network(monkeypatch)


def test_two_processes_do_what_one_does_and_one_goes_on_for_them(small_data, tmp_path):
    """Class means and triplets are those of all processes' samples, not of each one's."""
    output = tmp_path / "output"
    flags = data_flags(small_data) + [f"--output_dir={output}"] + SHORT + ALIKE
    launch(tmp_path, __file__, *flags, f"--train_iterations={ITERATIONS // 2}")
    folder = run_folder(output)
    assert npu_session.read_json(os.path.join(folder, "config.json"))["processes"] == 2
    assert trained(small_data, output, *ALIKE) == folder
    alone = trained(small_data, tmp_path / "alone", *ALIKE)
    assert_alike(records(folder), records(alone), rel=1e-4, tolerance=1e-6,
                 but=["seconds_per_step"])
    expected = last_state(alone)
    for name, value in last_state(folder).items():
        bound = 2e-3 * np.abs(expected[name]).max() if "Adam" in name else 1e-7
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=bound, err_msg=name)


def test_a_batch_that_cannot_be_divided_into_thirds_is_refused(small_data, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK_SIZE", "2")
    sentence = refused_early(small_data, tmp_path / "out", "--meta_batch_size=9")
    assert "a batch of 9 cannot be divided among RANK_SIZE=2 processes" in sentence
    assert "choose a multiple of 6" in sentence


def test_second_order_and_drawing_stand_in_data_take_one_process(small_data, tmp_path,
                                                                 monkeypatch, capsys):
    monkeypatch.setenv("RANK_SIZE", "2")
    sentence = refused_early(small_data, tmp_path / "out", "--meta_batch_size=6",
                             "--second_order=True")
    assert "RANK_SIZE=2: --second_order trains in one process" in sentence
    monkeypatch.chdir(tmp_path)
    assert npu_session.run_main(main.main, ["--output_dir=drawn"]) == 2
    assert "run make_standin_data.py first" in capsys.readouterr().err
    assert not os.path.exists("drawn")


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch, undrawn():
        narrow_network(patch)
        sys.exit(npu_session.run_main(main.main))
