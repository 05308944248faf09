"""Samples from a run folder: the mixture's law, the files, and folders that are none."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import shutil

import numpy as np
import pytest

import datahandler
import mixture
import sample
from made_runs import change_flags, make_run
from npu_session import InputError


def clouds(count=3, size=200):
    """Samples of components that lie apart: around (10 c, 0)."""
    random = np.random.RandomState(0)
    return [random.standard_normal((size, 2)) + [10 * number, 0] for number in range(count)]


@pytest.fixture
def run(tmp_path):
    """Folder (str) of a run with three components."""
    folder = str(tmp_path / "run")
    make_run(folder, clouds())
    return folder


def test_program_writes_samples_and_a_picture(run_program, run):
    done = run_program("sample.py", "--output_dir", run, "--count=300", "--seed=5")
    assert done.returncode == 0, done.stderr
    path = os.path.join(run, "mixture_samples.npy")
    assert (f"300 samples of 3 components -> {path}, {run}/mixture_samples.png" in done.stdout)
    assert "modes covered " in done.stdout and " of 10, high quality " in done.stdout
    found = np.load(path)
    assert found.shape == (300, 2) and found.dtype == np.float32
    expected = mixture.load(run).sample(300, np.random.RandomState(5))
    np.testing.assert_array_equal(found, expected[..., 0, 0])
    assert 5e3 < os.path.getsize(os.path.join(run, "mixture_samples.png")) < 300e3


def test_csv_holds_the_same_numbers(run, tmp_path):
    names = [str(tmp_path / "out" / ("samples" + ending)) for ending in (".npy", ".csv")]
    for name in names:
        sample.main(["--output_dir", run, "--count=50", "--output", name])
    with open(names[1]) as file:
        assert file.readline() == "x0,x1\n"
        table = np.loadtxt(file, np.float32, delimiter=",")
    np.testing.assert_array_equal(table, np.load(names[0]))
    assert sorted(os.listdir(str(tmp_path / "out"))) == [
        "samples.csv", "samples.npy", "samples.png"]


def drawn(run, *flags):
    """What sample.py writes with these flags."""
    path = os.path.join(run, "drawn.npy")
    sample.main(["--output_dir", run, "--output", path] + list(flags))
    return np.load(path)


def test_seed_decides(run):
    np.testing.assert_array_equal(drawn(run, "--seed=1"), drawn(run, "--seed=1"))
    assert not np.array_equal(drawn(run, "--seed=1"), drawn(run, "--seed=2"))


def test_components_are_chosen_by_weight(tmp_path):
    """betas 1, 0.5, 0.2 make the weights 0.4, 0.4, 0.2; within five standard errors."""
    folder = str(tmp_path)
    make_run(folder, clouds(), betas=[1, 0.5, 0.2])
    component = np.round(drawn(folder, "--count=4000")[:, 0] / 10).astype(int)
    counts = np.bincount(component, minlength=3)
    assert np.all(np.abs(counts - [1600, 1600, 800]) < 5 * np.sqrt(4000 * 0.24))


def test_mixture_as_it_was_after_some_components(tmp_path):
    folder = str(tmp_path)
    make_run(folder, clouds(), betas=[1, 0.5, 0.2])
    found = drawn(folder, "--count=500", "--components=2")
    assert found[:, 0].max() < 15 and np.mean(found[:, 0] > 5) == pytest.approx(0.5, abs=0.12)
    assert drawn(folder, "--components=1")[:, 0].max() < 5


def test_data_of_the_run_are_drawn_again(tmp_path):
    """In both ways of drawing."""
    for number, flag in enumerate(("--reference_stream=False", "--reference_stream=True")):
        settings = make_run(str(tmp_path / str(number)), clouds(), flag, "--seed=3")
        random = np.random.RandomState(3 if number else [3, 0])
        expected = datahandler.load("gmm", 10, 2, 640, 15., 821, random)
        found = sample.training_data(settings)
        np.testing.assert_array_equal(found.points, expected.points)
        np.testing.assert_array_equal(found.means, expected.means)


def test_other_dimension_and_circle(tmp_path, capsys):
    line = [samples[:, :1] for samples in clouds()]
    make_run(str(tmp_path / "line"), line, "--dim=1", "--modes=3")
    assert drawn(str(tmp_path / "line")).shape == (1000, 1)
    make_run(str(tmp_path / "circle"), clouds(), "--dataset=circle_gmm", "--modes=8")
    drawn(str(tmp_path / "circle"))
    assert "of 7, high quality" in capsys.readouterr().out  # two of the eight modes coincide


def test_moved_run_can_be_sampled(run, tmp_path):
    before = drawn(run)
    shutil.move(run, str(tmp_path / "elsewhere"))
    np.testing.assert_array_equal(drawn(str(tmp_path / "elsewhere")), before)


# ---------------------------------------------------------------- what cannot be sampled


def test_folder_without_a_run(tmp_path):
    with pytest.raises(InputError, match="holds no config.json: give the folder of a run"):
        sample.main(["--workdir", str(tmp_path)])
    assert os.listdir(str(tmp_path)) == []


def test_run_of_another_program_and_damaged_config(run):
    change_flags(run, gmm_max_val=None)
    with pytest.raises(InputError, match="has no gmm_max_val: it is not from a run of adagan"):
        sample.main(["--output_dir", run])
    for text in ("{", "[]", '{"flags": 3}'):
        with open(os.path.join(run, "config.json"), "w") as file:
            file.write(text)
        with pytest.raises(InputError, match="config.json is damaged"):
            sample.main(["--output_dir", run])


def test_run_without_a_complete_component(run):
    os.remove(os.path.join(run, "mixture.json"))
    with pytest.raises(InputError, match="holds no mixture.json"):
        sample.main(["--output_dir", run])


def test_damaged_and_missing_samples_are_named(run):
    path = os.path.join(run, "samples01.npy")
    with open(path, "r+b") as file:
        file.truncate(500)
    with pytest.raises(InputError, match="samples01.npy cannot be read"):
        sample.main(["--output_dir", run])
    os.remove(path)
    with pytest.raises(InputError, match="samples01.npy cannot be read"):
        sample.main(["--output_dir", run])


def test_more_components_than_there_are(run):
    with pytest.raises(InputError, match="has 3 components, not 4"):
        sample.main(["--output_dir", run, "--components=4"])


def test_ending_of_the_output(run):
    for name in ("samples.txt", "samples"):
        with pytest.raises(InputError, match="expected a name that ends in .npy or .csv"):
            sample.main(["--output_dir", run, "--output", name])


@pytest.mark.parametrize("flag", ["--count=0", "--components=0", "--seed=-1", "--epochs=3"])
def test_wrong_flags_are_refused(flag):
    with pytest.raises(SystemExit) as leaving:
        sample.parse_args([flag])
    assert leaving.value.code == 2


def test_output_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        sample.main(["--output_dir", run, "--output", str(tmp_path / "file" / "a.npy")])
