"""The ModelZoo scripts with this model's job.sh: the shared contract, and Factorized's own."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import pytest

from shell_contract import *  # noqa: F403 (the tests that every model must pass)
from shell_contract import SCRIPTS, Job

LOSSES = [540.25, 120.5, 7.75, 5.5]
LINES = "----------------------examples count = 100\n" + "".join(
    f"progress  epoch {number}  step {20 * number}  image/sec {speed}  remaining 3m\n"
    f"loss_align {loss}\nloss_diversity 1.5\nloss_decay 0.07\n------------------------------\n"
    for number, (loss, speed) in enumerate(zip(LOSSES, [1.0, 190.5, 200.0, 196.5]), 1))
KEYS = {"ActualFPS": 196.5, "TrainingTime": 0.16285, "ActualLoss": 5.5}


@pytest.fixture
def job():
    return Job(
        network="Factorized_ID1301_for_TensorFlow", program="train.py", batch_size=32, lines=LINES,
        losses=LOSSES, needs_data=True, run_marker="config.json",
        keys=dict.fromkeys(SCRIPTS, KEYS),
        console=["progress epoch 4 step 80 image/sec 196.50 remaining 0m", "loss_align 5.5",
                 "loss_diversity 1.5", "loss_decay 0.07"],
        flags={script: [f"--max_epochs={epochs}", "--input_dir={data}", "--output_dir={output}"]
               for script, epochs in zip(SCRIPTS, (200, 1))},
        passed_on={"--train_epochs=3": "--max_epochs=3", "--train_steps=7": "--max_steps=7",
                   "--batch_size=8": "--batch_size=8"})


def test_batch_size_names_the_case_and_scales_the_time(bench):
    assert bench.train(SCRIPTS[1], "--batch_size=64").returncode == 0
    keys = bench.keys(bench.case(SCRIPTS[1], 64))
    assert keys["BatchSize"] == "64"
    assert float(keys["TrainingTime"]) == pytest.approx(64 / 196.5, abs=1e-6)
