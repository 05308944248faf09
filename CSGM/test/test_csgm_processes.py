"""Several processes: the scripts for eight devices, and a job of two against one process."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os

import numpy as np
import pytest

import main
from processes_contract import *  # noqa: F403 (the tests of every model of several processes)
from processes_contract import launch
from test_csgm_shell import job  # noqa: F401 (a fixture)
from training_runs import (
    SHORT,
    read,
    records,
    refused,
    run_folder,
    trained,
    variables,
)

BATCH = "--batch_size=48"


@pytest.fixture
def batch_of_eight():
    return 104


@pytest.fixture(scope="module")
def alone(small_data, tmp_path_factory):
    """Run folder of one process."""
    return trained(small_data, tmp_path_factory.mktemp("alone"), BATCH)


def test_two_processes_do_what_one_does_and_one_goes_on_for_them(alone, small_data, tmp_path):
    output = tmp_path / "output"
    flags = [f"--data_dir={small_data}", f"--output_dir={output}"] + SHORT + [BATCH, "--epochs=3"]
    launch(tmp_path, main.__file__, *flags, "--max_steps=16")
    folder = run_folder(output)
    assert read(folder, "config.json")["processes"] == 2
    assert read(folder, "result.json")["step"] == 16
    both = variables(folder)
    assert trained(small_data, output, BATCH) == folder  # in one process, from there on
    assert both["global_step"] < variables(folder)["global_step"]
    assert_alike(records(folder), records(alone))
    for name, value in variables(folder).items():
        np.testing.assert_allclose(value, variables(alone)[name], rtol=0, atol=1e-5, err_msg=name)
    assert not os.path.exists(os.path.join(str(tmp_path), "models"))


def assert_alike(ours, theirs):
    """Records of metrics.jsonl agree within float32's rounding."""
    assert [record["step"] for record in ours] == [record["step"] for record in theirs]
    for one, other in zip(ours, theirs):
        assert sorted(one) == sorted(other)
        for name, value in one.items():
            assert value == pytest.approx(other[name], rel=1e-5), name


def test_a_batch_that_cannot_be_divided_is_refused(small_data, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK_SIZE", "3")
    sentence = refused(small_data, tmp_path / "out")
    assert "a batch of 50 cannot be divided among RANK_SIZE=3 processes" in sentence


def test_stand_in_data_are_not_drawn_by_several(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK_SIZE", "2")
    assert main.npu_session.run_main(main.main, []) == 2
    assert "run make_standin_data.py first" in capsys.readouterr().err
    assert os.listdir(str(tmp_path)) == []
