"""The benchmark: that both sides compute the same, what it reports; never how fast it is."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import contextlib
import io
import json
import os

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import bench
import masf_func
from golden_rules import load
from npu_session import InputError
from training_runs import narrow_network

TINY = ("--repeats=1", "--meta_batch_size=3", "--images=5", "--test_batch_size=4", "--threads=1")
SIDE = {"median", "low", "high", "processor"}


@pytest.fixture(scope="module", autouse=True)
def narrow():
    """All layers are narrow: a step takes a tenth of a second."""
    patch = pytest.MonkeyPatch()
    narrow_network(patch)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def args(small_data):
    """Flags of a benchmark of seconds."""
    return bench.parse_args(list(TINY) + [f"--dataroot={small_data}/kfold",
                                          f"--filelist_root={small_data}/filelist"])


@pytest.fixture(scope="module")
def whole(args, tmp_path_factory):
    """(what main printed, what it wrote to --json, {side: kinds of its graph's operations})."""
    path, out = str(tmp_path_factory.mktemp("bench") / "bench.json"), io.StringIO()
    flags = [f"--dataroot={args.dataroot}", f"--filelist_root={args.filelist_root}"]
    graphs, assert_parity = {}, bench.assert_parity

    def noting_graphs(sides):
        graphs.update((name, [operation.type for operation in side.tf_graph.get_operations()])
                      for name, side in sides.items())
        return assert_parity(sides)

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(bench, "assert_parity", noting_graphs)
        assert bench.main(list(TINY) + flags + [f"--json={path}"]) == 0
    with open(path) as file:
        return out.getvalue(), json.load(file), graphs


def test_program_reports_both_parts_as_table_and_json(whole):
    printed, result, _ = whole
    assert json.loads(printed.splitlines()[-1]) == result
    assert set(result) == {"data", "weights", "seed", "repeats", "keep_prob", "device", "threads",
                           "versions", "step", "evaluation"}
    assert (result["data"], result["threads"], result["repeats"]) == ("stand-in for PACS", 1, 1)
    part, = result["step"]
    assert part["meta_batch_size"] == 3
    for found in (part, result["evaluation"]):
        assert set(found["ours"]) == set(found["reference"]) == SIDE
        assert found["share"] == pytest.approx(
            found["ours"]["median"] / found["reference"]["median"])
    assert "| step, meta batch 3 | s per step | " in printed
    assert "| evaluation, batch 4 against 1 | ms per image | " in printed


def test_both_steps_give_the_same_losses_and_updates(whole):
    """With dropout: both sides drop the same entries."""
    part, = whole[1]["step"]
    assert whole[1]["keep_prob"] == 0.5
    assert part["largest_loss_difference"] < bench.LOSS_RTOL[1]
    assert part["largest_change_difference"] < bench.CHANGE_RTOL
    assert whole[1]["evaluation"]["largest_loss_difference"] < bench.EVALUATION_RTOL
    assert whole[1]["evaluation"]["same_predictions"] == 1


def test_the_reference_s_graph_has_its_passes_and_histograms(whole):
    kinds = whole[2]
    assert kinds["reference"].count("HistogramSummary") == 120
    assert kinds["reference"].count("ScalarSummary") == 6
    assert kinds["reference"].count("Conv2D") == 6 * 8  # two plain and three grouped layers
    assert kinds["reference"].count("MaxPoolGrad") == 3 * (2 + 2 + 4)  # inner, task, meta
    assert kinds["ours"].count("Conv2D") == 2 * 8 and "HistogramSummary" not in kinds["ours"]


def test_differences_fail_the_comparison():
    class Side:
        def __init__(self, losses, weights):
            self.variables, self._losses, self._weights = {"w": None}, losses, weights
            self.session, self.steps = self, 0

        def run(self, fetches=None):
            if fetches is not None:
                return [np.array(self._weights[self.steps])]
            self.steps += 1
            return np.array(self._losses[self.steps - 1])

    losses, weights = [[2.0], [1.0]], [[0.0], [1.0], [2.0]]
    ours = Side(losses, weights)
    assert bench.assert_parity({"ours": ours, "reference": Side(losses, weights)}) == {
        "largest_loss_difference": 0, "largest_change_difference": 0}
    for other, message in ((Side([[2.01], [1.0]], weights), "losses at step 0: ours and"),
                           (Side([[2.0], [1.01]], weights), "losses at step 1: ours and"),
                           (Side(losses, [[0.0], [1.1], [2.0]]), "changes of the variables: ours")):
        with pytest.raises(AssertionError, match=message):
            bench.assert_parity({"ours": Side(losses, weights), "reference": other})


@pytest.mark.parametrize("case", ["kd1", "kd2_allones", "kd3_zero_rows", "kd4_extreme"])
def test_golden_class_by_class_alignment(case):
    """CASE_kd_loss and its gradients of unit.npz by the loop over the classes."""
    golden = {key[len(case) + 1:]: value for key, value in load("unit").items()
              if key.startswith(case + "_")}
    with tf.Graph().as_default(), tf.Session() as session:
        logits = [tf.constant(golden[f"data{number}"]) for number in (1, 2)]
        labels = [np.eye(8, 7, dtype=np.float32)[golden[f"lab{number}"]] for number in (1, 2)]
        loss = bench.class_by_class_kd(logits[0], labels[0], logits[1], labels[1],
                                       np.ravel(golden["ind"]))
        found = session.run([loss] + tf.gradients(loss, logits))
    atol = 1e-5 if case == "kd4_extreme" else 1e-6
    for value, key in zip(found, ("kd_loss", "kd_grad1", "kd_grad2")):
        np.testing.assert_allclose(value, golden[key], rtol=1e-5, atol=atol)


def test_dropped_rows_are_those_of_the_larger_pass(args):
    options, step = bench.settings(args), tf.constant
    with tf.Graph().as_default(), tf.Session() as session:
        ones = tf.ones([6, 5])
        whole = masf_func.dropout_layers(options, step(4), "outer")(ones, "dropout6")
        part = bench.rows_of_dropout(options, step(4), "outer", 2, 3, 6)(ones[:3], "dropout6")
        expected, found = session.run([whole, part])
    np.testing.assert_array_equal(found, expected[2:5])
    assert 0 < (expected == 0).sum() < 30


def test_one_step_reports_time_and_peak_memory(args, tmp_path, capsys, monkeypatch):
    steps = []

    class Step:
        def __init__(self, *_):
            self.run = lambda: steps.append(1)
    monkeypatch.setattr(bench, "OurStep", Step)
    path = tmp_path / "once.json"
    assert bench.main(["--part=once", "--side=ours", "--meta_batch_size=3", "--threads=1",
                       f"--dataroot={args.dataroot}", f"--filelist_root={args.filelist_root}",
                       f"--json={path}"]) == 0
    part, = json.loads(path.read_text())["once"]
    assert set(part["ours"]) == SIDE | {"first", "peak_memory_mb"} and len(steps) == 2
    assert 100 < part["ours"]["peak_memory_mb"] < 20000
    printed = capsys.readouterr().out
    assert "peak memory" in printed and "not measured" in printed


def test_both_sides_once_are_put_together(monkeypatch):
    asked = []

    def run(command, **_):
        flags = dict(flag[2:].split("=", 1) for flag in command[2:])
        asked.append(flags)
        seconds = {"ours": 2.0, "reference": 4.0}[flags["side"]]
        with open(flags["json"], "w") as file:
            json.dump({"once": [{flags["side"]: {"median": seconds, "processor": seconds}}]}, file)
    monkeypatch.setattr(bench.subprocess, "run", run)
    flags = bench.parse_args(["--part=once", "--meta_batch_size=9,30"])
    first, second = bench.run(flags)["once"]
    assert first["share"] == 0.5 and second["meta_batch_size"] == 30
    assert [flags["side"] for flags in asked] == ["reference", "ours"] * 2
    assert "dataroot" not in asked[0]


def test_stand_in_pictures_suffice_for_the_batch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = bench.parse_args(["--meta_batch_size=3,9", "--images=20"])
    with bench.opened_data(args) as data:
        assert data.name == "stand-in for PACS"
        assert min(len(images.paths) for images in data.sources) >= 9
        assert len(data.target.paths) >= 20
        folder = os.path.dirname(data.target.paths[0])
    assert not os.path.exists(folder) and os.listdir(str(tmp_path)) == []


def test_too_few_images_are_refused(args):
    flags = bench.parse_args(["--meta_batch_size=600", f"--dataroot={args.dataroot}",
                              f"--filelist_root={args.filelist_root}"])
    with pytest.raises(InputError, match="fewer than one batch of 600"), bench.opened_data(flags):
        pass


def test_functions_alternate_in_rotating_order():
    calls = []
    seconds = bench.alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert "".join(calls) == "abbaab"
    assert {name: values.shape for name, values in seconds.items()} == {"a": (3, 2), "b": (3, 2)}


def test_summary_of_known_times():
    ours = np.column_stack([[1.0, 2.0, 3.0, 4.0, 5.0], [0.5] * 5])
    result = bench.summary({"ours": ours, "reference": 2 * ours}, 10, 1e3)
    assert result["ours"] == {"median": 300.0, "low": 200.0, "high": 400.0, "processor": 50.0}
    assert result["share"] == result["share_processor"] == 0.5
    assert set(bench.summary({"ours": ours}, 1, 1)) == {"ours"}


@pytest.mark.parametrize("flag", ["--resume=True", "--repeats=0", "--part=all", "--quick",
                                  "--meta_batch_size=10", "--meta_batch_size=9,x"])
def test_wrong_flags_are_refused(flag):
    with pytest.raises(SystemExit) as leaving:
        bench.parse_args([flag])
    assert leaving.value.code == 2
