"""The benchmark: that all sides compute the same, what it reports; never how fast it is."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import json

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import bench
import data_input
import npu_session
from npu_session import InputError

TINY = ("--repeats=1", "--batch_size=1", "--images=2", "--K=3", "--threads=1")
SIDE = {"median", "low", "high", "processor"}


@pytest.fixture(scope="module")
def paths(faces):
    return data_input.find_images(faces)


@pytest.fixture(scope="module")
def report(faces, tmp_path_factory):
    """(what the program printed, the JSON it wrote) of a benchmark of seconds."""
    path, printed = tmp_path_factory.mktemp("bench") / "bench.json", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *text, **_: printed.append(" ".join(text)))
        assert bench.main(list(TINY) + [f"--input_dir={faces}", f"--json={path}"]) == 0
    return "\n".join(printed), json.loads(path.read_text())


def test_both_parts_are_reported_as_table_and_json(report):
    printed, result = report
    assert json.loads(printed.splitlines()[-1]) == result
    assert set(result) == {"data", "seed", "repeats", "device", "threads", "versions", "training",
                           "input"}
    assert result["data"] == "stand-in faces" and result["threads"] == 1
    for part in ("training", "input"):
        assert set(result[part]["ours"]) == set(result[part]["reference"]) == SIDE
        assert result[part]["ratio"] == pytest.approx(
            result[part]["reference"]["median"] / result[part]["ours"]["median"])
    assert set(result["input"]["ours_two_threads"]) == SIDE
    assert ("ours_bfloat16" in result["training"]) == (not tf.__version__.startswith("1."))
    for label in ("| training |", "| input, one thread |", "| input, two threads |"):
        assert label in printed


def test_sides_agree(report):
    _, result = report
    assert result["training"]["largest_loss_difference"] < 1
    assert result["input"]["share_of_pixels_apart"] <= bench.EDGE_SHARE


@pytest.fixture(scope="module")
def training_sides(paths):
    """PipelineTraining and FedTraining of three updates."""
    args = bench.parse_args(list(TINY) + ["--steps=3"])
    ours = bench.PipelineTraining(args, paths)
    return ours, bench.FedTraining(args, ours.batches())


def test_training_gives_the_same_losses_update_by_update(training_sides):
    ours, reference = training_sides
    ours.start()
    terms = ours.run()[:, :3]
    assert terms.shape == (3, 3) and np.ptp(terms[:, 0]) > 0.1
    np.testing.assert_allclose(terms, reference.run(), rtol=bench.TRAINING_RTOL)


def test_another_warp_fails_the_comparison(training_sides, monkeypatch):
    ours, reference = training_sides
    ours.start()
    monkeypatch.setattr(reference, "_batches", [
        batch[:2] + [batch[2] + np.float32(0.1)] for batch in ours.batches()])
    ours.start()
    with pytest.raises(AssertionError, match="losses: ours and the reference's disagree"):
        bench.assert_same(ours.run()[:, :3], reference.run(), "losses", rtol=bench.TRAINING_RTOL)


def test_pictures_that_differ_are_noticed():
    pictures = [np.zeros((2, 4, 128, 128, 3)) for _ in range(2)]
    assert bench.assert_same_pictures(pictures, pictures) == 0
    with pytest.raises(AssertionError, match="of the pixels differ"):
        bench.assert_same_pictures(pictures, [pictures[0], pictures[1] + 1e-3])


def test_images_come_over_and_over(paths):
    args = bench.parse_args(["--images=70", "--batch_size=4"])
    rows = bench.input_rows(args, paths)
    assert rows.shape == (17, 4) and rows.max() == len(paths) - 1
    assert rows.ravel()[len(paths)] == 0


class Side:
    """Counts what is done to it."""

    def __init__(self, name, calls):
        self._name, self._calls, self.tf_graph = name, calls, tf.Graph()

    def start(self):
        self._calls.append(self._name.upper())

    def run(self):
        self._calls.append(self._name)


def test_sides_alternate_in_rotating_order_and_start_before_each_run():
    calls = []
    seconds = bench.alternate({name: Side(name, calls) for name in "ab"}, 3)
    assert "".join(calls) == "AaBbBbAaAaBb"
    assert {name: values.shape for name, values in seconds.items()} == {"a": (3, 2), "b": (3, 2)}


def test_summary_of_known_times():
    seconds = np.column_stack([[1.0, 2.0, 3.0, 4.0, 5.0], [0.5] * 5])
    assert bench.summary({"ours": seconds}, 10, 1e3) == {
        "ours": {"median": 300.0, "low": 200.0, "high": 400.0, "processor": 50.0}}


def test_a_growing_graph_is_noticed():
    class Growing(Side):
        def run(self):
            with self.tf_graph.as_default():
                tf.constant(1.0)

    with pytest.raises(AssertionError, match="the graphs grew"):
        bench.measure({"ours": Growing("a", [])}, 1)


@pytest.mark.parametrize("flag", ["--resume=True", "--repeats=0", "--part=all", "--quick"])
def test_wrong_flags_are_refused(flag):
    with pytest.raises(SystemExit) as leaving:
        bench.parse_args([flag])
    assert leaving.value.code == 2


def test_fewer_images_than_a_batch_are_refused():
    with pytest.raises(InputError, match="--images=3 is less than one batch of 4"):
        bench.main(["--images=3", "--batch_size=4"])
    assert npu_session.backend() == "cpu"
