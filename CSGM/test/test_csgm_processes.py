"""Several processes: the scripts for eight devices, and a job of two against one process."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import pickle

import numpy as np
import pytest

import compressed_sensing
import main
import reproduce
import train_e2e
from processes_contract import *  # noqa: F403 (the tests of every model of several processes)
from processes_contract import assert_alike, launch
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
    assert_alike(records(folder), records(alone), rel=1e-5)
    for name, value in variables(folder).items():
        np.testing.assert_allclose(value, variables(alone)[name], rtol=0, atol=1e-5, err_msg=name)
    assert not os.path.exists(os.path.join(str(tmp_path), "models"))


def losses(output):
    """{model type: [losses of measurements, of images], each {image: loss}} of a recovery."""
    found = {}
    for path in sorted(output.rglob("*.pkl")):
        found.setdefault(path.parent.name, []).append(pickle.loads(path.read_bytes()))
    return found


def test_two_processes_recover_what_one_recovers_and_one_goes_on(small_data, golden_checkpoint,
                                                                 tmp_path):
    """Five images in three batches: the second process has one batch, and helps with the last."""
    def flags(output, images):
        return [f"--data_dir={small_data}", f"--pretrained_model_dir={golden_checkpoint}",
                f"--output_dir={output}", f"--num_input_images={images}", "--batch_size=2",
                "--num_measurements=30", "--max_update_iter=20", "--num_random_restarts=2",
                "--model_types", "vae", "vae-sparse", "lasso", "--save_stats", "--save_images",
                "--threads=1", "--print_iter=0"]

    alone, both = tmp_path / "alone", tmp_path / "both"
    assert compressed_sensing.main(flags(alone, 5)) == 0
    printed = launch(tmp_path, compressed_sensing.__file__, *flags(both, 5))
    assert "Processed upto image 5 / 5" in printed
    expected, found = losses(alone), losses(both)
    assert len(found) == 3 and sorted(found) == sorted(expected)
    for kind, files in expected.items():
        for ours, theirs in zip(found[kind], files):
            assert sorted(ours) == list(range(5))
            assert ours == pytest.approx(theirs, rel=1e-4), kind
    assert len(list(both.rglob("*.png"))) == 15
    printed = launch(tmp_path, compressed_sensing.__file__, *flags(both, 5))
    assert "the first 5 images are saved already" in printed and "Processed" not in printed


@pytest.mark.parametrize("program, flags, text", [
    (compressed_sensing, ["--gif"], "--gif shows the search of one process"),
    (train_e2e, [], "train_e2e.py trains in one process"),
    (reproduce, [], "reproduce.py runs its programs one after the other")])
def test_what_several_processes_cannot_do_is_refused(program, flags, text, tmp_path, monkeypatch,
                                                     capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK_SIZE", "2")
    assert main.npu_session.run_main(program.main, flags) == 2
    assert f"error: RANK_SIZE=2: {text}" in capsys.readouterr().err
    assert os.listdir(str(tmp_path)) == []


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
