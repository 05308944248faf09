"""cluster.py: stage 3 again on the matrix of a finished run."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import json
import os
import shutil

import numpy as np
import pytest

import cluster
import metrics
import training_runs
from training_runs import SAMPLES, SUBJECTS, affinity_folder, refused, succeeded


@pytest.fixture
def output(clustered, tmp_path):
    """An output folder (str) that holds the results of stage 3 only."""
    folder = affinity_folder(str(tmp_path))
    os.makedirs(folder)
    shutil.copy(os.path.join(affinity_folder(clustered[0]), "results.npz"), folder)
    return str(tmp_path)


def recluster(output, *flags):
    return training_runs.call(cluster.main, [f"--output_dir={output}"] + list(flags))


def rows(printed):
    """The cells of the table that was printed."""
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_defaults_are_those_of_stage_3(output):
    printed = succeeded(recluster(output))
    assert printed.startswith(f"data: small, N = {SAMPLES}, K = {SUBJECTS}, matrix of step 14")
    (ro, dimension, power, *scores), = rows(printed)
    assert (float(ro), dimension, power) == (pytest.approx(metrics.alpha(SUBJECTS)), "6", "8")
    with np.load(os.path.join(affinity_folder(output), "results.npz")) as arrays:
        labels, _ = metrics.post_proC(metrics.thrC(arrays["C"], metrics.alpha(SUBJECTS)), SUBJECTS)
        expected = metrics.scores(arrays["Label"], labels)
    assert scores == [f"{100 * score:.2f} %" for score in expected]


def test_every_combination_is_tried_and_written(output, tmp_path):
    path = str(tmp_path / "scores.json")
    printed = succeeded(recluster(output, "--ro", "0.2", "1", "--subspace_dimension", "2", "4",
                                  "--power", "1", "3.5", "--starts=3", f"--json={path}"))
    found = [[float(row[0]), int(row[1]), float(row[2])] for row in rows(printed)]
    assert found == [[ro, d, power] for ro in (0.2, 1) for d in (2, 4) for power in (1, 3.5)]
    with open(path) as file:
        written = json.load(file)
    assert found == [[entry["ro"], entry["subspace_dimension"], entry["power"]]
                     for entry in written]
    assert [f"{100 * entry['accuracy']:.2f} %" for entry in written] == [
        row[3] for row in rows(printed)]
    assert sorted(set(written[0]["labels"])) == list(range(1, SUBJECTS + 1))


def test_without_true_labels_there_are_no_scores(output):
    path = os.path.join(affinity_folder(output), "results.npz")
    with np.load(path) as arrays:
        content = {name: arrays[name] for name in arrays.files if name != "Label"}
    np.savez(path, **content)
    assert rows(succeeded(recluster(output)))[0][3:] == ["-", "-", "-"]


def test_results_that_cannot_be_used(output, tmp_path):
    assert "more than 8 K + 1 = 25 are needed" in refused(
        recluster(output, "--subspace_dimension", "6", "8"))
    assert "there is no" in refused(recluster(tmp_path / "nothing"))
    path = os.path.join(affinity_folder(output), "results.npz")
    np.savez(path, C=np.eye(3))
    assert "has no K, data, steps" in refused(recluster(output))
    with open(path, "wb") as file:
        file.write(b"PK damaged")
    assert "is damaged" in refused(recluster(output))
