"""The benchmark: that both sides compute the same, what it reports; never how fast it is."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import json

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import bench
import metrics

TINY = ("--repeats=2", "--steps=2", "--subjects=3", "--images=12", "--threads=1")
SIDE = {"median", "low", "high", "processor"}


@pytest.fixture(scope="module")
def tiny_args():
    """Flags of a benchmark of seconds, N = 36."""
    return bench.parse_args(list(TINY))


@pytest.fixture(scope="module")
def tiny_data(tiny_args):
    """Its stand-in faces."""
    return bench.load_data(tiny_args)


def test_program_reports_both_parts_as_table_and_json(tmp_path, capsys):
    path = tmp_path / "bench.json"
    assert bench.main(list(TINY) + ["--json", str(path)]) == 0
    result, out = json.loads(path.read_text()), capsys.readouterr().out
    assert json.loads(out.splitlines()[-1]) == result
    assert set(result) == {"data", "samples", "clusters", "modalities", "seed", "repeats",
                           "device", "threads", "versions", "training", "evaluation"}
    assert result["data"].startswith("stand-in faces")
    assert (result["samples"], result["clusters"], result["modalities"]) == (36, 3, 5)
    assert (result["threads"], result["repeats"]) == (1, 2)
    for part in ("training", "evaluation"):
        assert set(result[part]["ours"]) == set(result[part]["reference"]) == SIDE
        in_bfloat16 = part == "training" and not tf.__version__.startswith("1.")
        assert ("ours_bfloat16" in result[part]) == in_bfloat16
        assert ("training, --compute_dtype=bfloat16" in out) or not in_bfloat16
        assert result[part]["share"] == pytest.approx(
            result[part]["ours"]["median"] / result[part]["reference"]["median"])
        assert f"| {part} | " in out
    assert min(result["training"]["graph_operations"]) > 0
    assert result["training"]["largest_cost_difference"] < bench.COST_RTOL
    assert result["training"]["largest_theta_difference"] <= bench.THETA_TOLERANCE
    assert result["evaluation"]["largest_affinity_difference"] <= bench.AFFINITY_ATOL
    assert "labels are equal" in out and "data: stand-in faces" in out


def test_both_trainings_go_on_alike(tiny_args, tiny_data, tmp_path):
    data = tiny_data._replace(images=tiny_data.images[:2])
    ours = bench.OurTraining(tiny_args, data)
    reference = bench.ReferenceTraining(tiny_args, data, str(tmp_path))
    for _ in range(3):  # each time from where the last ended
        np.testing.assert_allclose(ours.run(), reference.run(), rtol=bench.COST_RTOL)
    theta = reference.theta()
    np.testing.assert_allclose(ours.theta(), theta, rtol=0,
                               atol=bench.THETA_TOLERANCE * np.abs(theta).max())
    assert not np.diag(theta).any() and np.abs(theta).max() > 1e-3
    reference.close()
    events, = tmp_path.iterdir()
    assert events.stat().st_size > 1000


def test_costs_that_differ_fail_the_comparison():
    assert bench.assert_same([1.0, 2.0], [1.0, 2.0001], "costs", rtol=1e-4) < 2e-4
    with pytest.raises(AssertionError, match="costs: ours and the reference's shape disagree"):
        bench.assert_same([1.0, 2.0], [1.0, 2.001], "costs", rtol=bench.COST_RTOL)


@pytest.mark.parametrize("ro", [0.1, 0.38, 0.9])
def test_both_thresholds_keep_the_same(ro):
    C = (np.random.RandomState(0).standard_normal((50, 50)) ** 3).astype(np.float32)
    np.testing.assert_array_equal(bench.reference_threshold(C, ro), metrics.thrC(C, ro))


def test_both_evaluations_draw_alike_and_find_the_same(tiny_data):
    C = np.random.RandomState(0).standard_normal((36, 36)).astype(np.float32)
    C = np.abs(C) * (tiny_data.labels[:, None] == tiny_data.labels) + 0.2 * np.abs(C.T)
    randoms = [np.random.RandomState(3) for _ in range(2)]
    (labels, L, scores), (expected, expected_L, _) = (
        evaluation(C, 3, tiny_data.labels, random) for evaluation, random in
        zip((bench.our_evaluation, bench.reference_evaluation), randoms))
    np.testing.assert_allclose(L, expected_L, rtol=0, atol=1e-10)
    assert metrics.adjusted_rand_index(expected, labels) == 1 and scores.accuracy == 1
    assert randoms[0].uniform() == randoms[1].uniform()


def test_functions_alternate_in_rotating_order():
    calls = []
    seconds = bench.alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert "".join(calls) == "abbaab"
    assert {name: values.shape for name, values in seconds.items()} == {"a": (3, 2), "b": (3, 2)}


def test_summary_of_known_times():
    seconds = np.column_stack([[1.0, 2.0, 3.0, 4.0, 5.0], [0.5] * 5])
    result = bench.summary({"ours": seconds, "reference": 2 * seconds}, 10)
    assert result["ours"] == {"median": 300.0, "low": 200.0, "high": 400.0, "processor": 50.0}
    assert bench.shares(result) == {"share": 0.5, "share_processor": 0.5}


def test_a_growing_graph_is_noticed():
    with bench.npu_session.new_graph().as_default() as graph:
        def grow():
            with graph.as_default():
                bench.tf.constant(1.0)
        with pytest.raises(AssertionError, match="the graphs grew"):
            bench.measure({"ours": grow}, 1, [graph])


@pytest.mark.parametrize("flag", ["--resume=True", "--repeats=0", "--part=all", "--quick"])
def test_wrong_flags_are_refused(flag):
    with pytest.raises(SystemExit) as leaving:
        bench.parse_args([flag])
    assert leaving.value.code == 2
