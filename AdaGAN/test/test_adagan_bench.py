"""The benchmark: that both sides compute the same, what it reports; never how fast it is."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import json

import numpy as np
import pytest

import bench
import draws
import npu_session

TINY = ("--toy_dataset_size=640", "--repeats=2", "--threads=1")
SIDE = {"median", "low", "high", "processor_ms"}


@pytest.fixture(scope="module")
def sides():
    """(flags of adagan_gmm.py, ours, reference, samples) for epochs of ten iterations."""
    args = bench.parse_args(list(TINY))
    options = bench.component_options(args)
    data, weights, samples = bench.make_inputs(args, options)
    return (options, bench.OurTraining(options, data, weights),
            bench.ReferenceTraining(options, data, weights), samples)


def test_program_reports_both_parts_as_table_and_json(run_program, tmp_path):
    path = tmp_path / "bench.json"
    done = run_program("bench.py", *TINY, "--json", path)
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == result
    assert set(result) == {"points", "batch_size", "seed", "repeats", "device", "threads",
                           "versions", "training", "classifier"}
    assert (result["points"], result["threads"], result["repeats"]) == (640, 1, 2)
    for part, epochs in (("training", 15), ("classifier", 5)):
        found = result[part]
        assert set(found["ours"]) == set(found["reference"]) == SIDE
        assert found["ratio"] == pytest.approx(
            found["ours"]["median"] / found["reference"]["median"])
        assert (found["iterations"], found["epochs"]) == (10, epochs)
        assert found["seconds_of_all_epochs"]["ours"] == pytest.approx(
            epochs * 10 / found["ours"]["median"])
        assert 0 < found["largest_difference"] <= bench.TOLERANCE
        assert abs(found["memory_mb_gained"]) < 100
        assert f"| {part} | " in done.stdout


def train_both(sides, part, our_seed, seed):
    """Variables of ours and of the reference loop after an epoch from the same ones."""
    options, ours, reference, samples = sides
    ours.start(draws.ReferenceDraws(our_seed, options))
    reference.start(np.random.RandomState(seed), ours.values(sum(bench.PARTS.values(), ())))
    for side in (ours, reference):
        bench.one_epoch(side, part, samples)()
    return ours.values(bench.PARTS[part]), reference.values(bench.PARTS[part])


@pytest.mark.parametrize("part", sorted(bench.PARTS))
def test_loops_with_the_same_draws_end_with_the_same_variables(sides, part):
    options, ours, reference, samples = sides
    assert bench.compare(ours, reference, part, samples, options) < 1e-5
    first = ours.values(bench.PARTS[part])
    bench.one_epoch(ours, part, samples)()
    second = ours.values(bench.PARTS[part])
    assert all(np.any(first[name] != second[name]) for name in first)


@pytest.mark.parametrize("part", sorted(bench.PARTS))
def test_other_draws_fail_the_comparison(sides, part):
    assert bench.assert_same(*train_both(sides, part, 3, 3)) < 1e-5
    with pytest.raises(AssertionError, match="ours and the reference loop disagree: [A-Z]"):
        bench.assert_same(*train_both(sides, part, 3, 4))


def test_functions_alternate_in_rotating_order():
    calls = []
    seconds = bench.alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert "".join(calls) == "abbaab"
    assert {name: values.shape for name, values in seconds.items()} == {"a": (3, 2), "b": (3, 2)}


def test_summary_of_known_times():
    seconds = np.column_stack([[0.5, 1.0, 2.0, 4.0, 8.0], [0.5] * 5])
    assert bench.summary({"ours": seconds}, 8) == {
        "ours": {"median": 4.0, "low": 2.0, "high": 8.0, "processor_ms": 62.5}}


def test_a_growing_graph_is_noticed():
    with npu_session.new_graph().as_default() as graph:
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


def test_fewer_points_than_a_batch_are_refused(run_program):
    done = run_program("bench.py", "--toy_dataset_size=10")
    assert done.returncode == 2 and "--toy_dataset_size=10" in done.stderr
