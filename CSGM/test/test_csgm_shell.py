"""The ModelZoo scripts with this model's job.sh: the shared contract, and what is CSGM's own."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import pytest

from shell_contract import *  # noqa: F403 (the tests that every model must pass)
from shell_contract import SCRIPTS, Job

# Eight steps: the first quarter (10 and 20 examples/sec) is warm-up, the median of the rest is 350.
LOSSES = [638, 500, 400, 300, 200, 180, 170, 131.75]
LINES = "\n".join(
    ["Extracting train-images-idx3-ubyte.gz"]
    + [f"step {step}, loss = {loss:.2f} ({speed:.1f} examples/sec; 0.250 sec/batch)"
       for step, (loss, speed) in enumerate(zip(LOSSES, [10, 20, 300, 400, 350, 340, 9000, 350]))]
    + ["================test_reconstruct_error==================== 0.0318",
       "===============min_reconstruct_error_in_epoch:12,reis0.01141====================", ""])
KEYS = {"ActualFPS": 350.0, "TrainingTime": 100 / 350, "ActualLoss": 131.75}


@pytest.fixture
def job():
    return Job(
        network="CSGM_ID2109_for_TensorFlow", program="mnist_vae/src/main.py", batch_size=100,
        lines=LINES, losses=LOSSES, needs_data=True, run_marker="models/mnist-vae/config.json",
        keys={SCRIPTS[0]: dict(KEYS, TrainAccuracy=0.01141),
              SCRIPTS[1]: dict(KEYS, TrainAccuracy="None")},
        console=["Final Performance images/sec : 350.00", "Final Performance sec/step : 0.285714",
                 "Final Train Accuracy : 0.01141"],
        flags={script: [f"--epochs={epochs}", "--batch_size=100", "--data_dir={data}",
                        "--output_dir={output}"]
               for script, epochs in zip(SCRIPTS, (750, 1))},
        passed_on={"--ckpt_path=/a b/ckpt": "--ckpt_dir=/a b/ckpt",
                   "--train_steps=7": "--max_steps=7", "--train_epochs=3": "--epochs=3",
                   "--batch_size=10": "--batch_size=10"})


@pytest.mark.parametrize("value", ["0", "ten", "", "1/2"])
def test_batch_size_that_is_no_number_is_refused(bench, value):
    process = bench.train(SCRIPTS[0], "--batch_size=" + value)
    assert process.returncode == 2
    assert "--batch_size=" + value in process.err


def test_batch_size_names_the_case_and_scales_the_time(bench):
    assert bench.train(SCRIPTS[1], "--batch_size=64").returncode == 0
    keys = bench.keys(bench.case(SCRIPTS[1], 64))
    assert keys["BatchSize"] == "64"
    assert float(keys["TrainingTime"]) == pytest.approx(64 / 350, abs=1e-6)


@pytest.mark.parametrize("speeds, median", [([5], 5), ([4, 8], 6), ([1, 2, 3, 4, 50], 3.5)])
def test_speed_is_the_median_after_the_first_quarter(bench, speeds, median):
    bench.log_is("".join(f"step 3, loss = 1.00 ({speed:.1f} examples/sec; 1.000 sec/batch)\r\n"
                         for speed in speeds))
    assert bench.train(SCRIPTS[1]).returncode == 0
    assert float(bench.keys(bench.case(SCRIPTS[1]))["ActualFPS"]) == median


def test_without_a_finished_epoch_the_accuracy_is_none(bench):
    bench.log_is(LINES.replace("reis0.01141", "reis10000.00000"))
    assert bench.train(SCRIPTS[0], "--train_steps=8").returncode == 0
    assert bench.keys()["TrainAccuracy"] == "None"


def test_a_loss_that_is_no_number_is_no_result(bench):
    bench.log_is("step 1, loss = nan (1.0 examples/sec; 1.000 sec/batch)\n")
    assert bench.train().returncode == 1
