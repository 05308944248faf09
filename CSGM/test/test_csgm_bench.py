"""The benchmark: that both sides compute the same, what it reports; never how fast it is."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import json

import numpy as np
import pytest

import bench
import recovery
from npu_session import InputError

TINY = ("--repeats=2", "--steps=3", "--updates=4", "--batch_size=10", "--threads=1")
SIDE = {"median", "low", "high", "processor"}


@pytest.fixture(scope="module")
def tiny_args(small_data):
    """Flags of a benchmark of seconds, on 1200 stand-in images."""
    return bench.parse_args(list(TINY) + ["--data_dir", small_data])


@pytest.fixture(scope="module")
def tiny_data(tiny_args):
    """Their Data."""
    return bench.load_data(tiny_args)


@pytest.fixture(scope="module")
def random_vae(tmp_path_factory):
    """Folder with a checkpoint of an untrained VAE."""
    folder = str(tmp_path_factory.mktemp("random_vae"))
    bench.write_random_vae(folder, seed=3)
    return folder


def test_program_reports_both_parts_as_table_and_json(run_program, small_data, tmp_path):
    path = tmp_path / "bench.json"
    done = run_program("bench.py", *TINY, "--data_dir", small_data, "--json", path)
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == result
    assert set(result) == {"data", "weights", "seed", "repeats", "device", "threads", "versions",
                           "training", "recovery"}
    assert (result["data"], result["weights"]) == ("stand-in digits", "random")
    assert (result["threads"], result["repeats"]) == (1, 2)
    for part in ("training", "recovery"):
        assert set(result[part]["ours"]) == set(result[part]["reference"]) == SIDE
        assert result[part]["ratio"] == pytest.approx(
            result[part]["reference"]["median"] / result[part]["ours"]["median"])
        assert min(result[part]["graph_operations"]) > 0
        assert abs(result[part]["memory_mb_gained"]) < 100
        assert f"| {part} | " in done.stdout
    assert set(result["training"]["step_only"]) == SIDE
    assert set(result["training"]["overhead_ms"]) == {"reference", "ours"}
    assert result["training"]["largest_loss_difference"] < 0.1
    assert result["recovery"]["largest_difference"]["x_hat"] <= bench.RECOVERY_ATOL


def test_without_data_the_images_are_random_and_named_so():
    data = bench.load_data(bench.parse_args([]))
    assert data.name.startswith("random images")
    assert data.train.shape == (bench.RANDOM_IMAGES, 784)
    assert data.train.dtype == np.uint8
    assert 0.7 < np.mean(data.train == 0) < 0.9


def test_training_loops_give_the_same_losses_update_by_update(tiny_args, tiny_data):
    ours = bench.PipelineTraining(tiny_args, tiny_data)
    reference = bench.FedTraining(tiny_args, ours.batches())
    for _ in range(2):  # the second time from the weights of the first
        np.testing.assert_allclose(ours.run(), reference.run(), rtol=1e-5)


def test_other_batches_fail_the_comparison(tiny_args, tiny_data):
    ours = bench.PipelineTraining(tiny_args, tiny_data)
    reference = bench.FedTraining(tiny_args, ours.batches()[::-1])
    with pytest.raises(AssertionError, match="losses: ours and the reference loop disagree"):
        bench.assert_same(ours.run(), reference.run(), "losses", rtol=bench.TRAINING_RTOL)


def test_recovery_loops_give_the_same_images(tiny_args, tiny_data, random_vae):
    settings = bench.recovery_settings(12)._replace(learning_rate=0.1)
    inputs = bench.recovery_inputs(tiny_data, seed=1)
    config = bench.npu_session.session_config(tiny_args)
    with recovery.Recovery(settings, random_vae, 1, bench.RECOVERY_BATCH, bench.MEASUREMENTS, False,
                           config) as ours:
        found = ours.run(*inputs)
    expected = bench.RestartLoop(tiny_args, settings, random_vae).run(*inputs)
    np.testing.assert_allclose(found.x_hat[0], expected.x_hat, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.total_loss[0], expected.total_loss, rtol=1e-5)


def test_recovery_without_checkpoint_is_refused(tiny_args, tiny_data, tmp_path):
    with pytest.raises(InputError, match="no readable checkpoint in "):
        bench.bench_recovery(tiny_args, tiny_data, str(tmp_path))


def test_better_keeps_the_strictly_lower_objective():
    first = bench.Recovered(np.zeros((3, 2)), np.array([1.0, 2.0, 3.0]))
    second = bench.Recovered(np.ones((3, 2)), np.array([1.0, 1.5, 4.0]))
    assert bench.better(None, first) is first
    kept = bench.better(first, second)
    np.testing.assert_array_equal(kept.x_hat[:, 0], [0, 1, 0])
    np.testing.assert_array_equal(kept.total_loss, [1.0, 1.5, 3.0])


def test_functions_alternate_in_rotating_order():
    calls = []
    seconds = bench.alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert "".join(calls) == "abbaab"
    assert {name: values.shape for name, values in seconds.items()} == {"a": (3, 2), "b": (3, 2)}


def test_summary_of_known_times():
    seconds = np.column_stack([[1.0, 2.0, 3.0, 4.0, 5.0], [0.5] * 5])
    assert bench.summary({"ours": seconds}, 10, 1e3) == {
        "ours": {"median": 300.0, "low": 200.0, "high": 400.0, "processor": 50.0}}


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
