"""The ModelZoo scripts with this model's job.sh: the shared contract, and what is AdaGAN's own."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import pytest

from shell_contract import *  # noqa: F403 (the tests that every model must pass)
from shell_contract import SCRIPTS, Job


def epoch(number, speed):
    """What tqdm writes of an epoch: half of it, then all of it."""
    return (f"Epoch {number:2d}/ 3:  50%|#####     | 500/1000 [00:01<00:01, 7.25it/s]\r"
            f"Epoch {number:2d}/ 3: 100%|##########| 1000/1000 [00:02<00:00, {speed}it/s]\n")


LINES = "".join(
    [epoch(number, speed) for number, speed in enumerate([10.5, 400.0, 420.5, 4000.0], 1)]
    + ["Perf:  2.38\n", "2026-01-01 00:00:00,000 - Evaluating: log_p=-6.022, C=0.882\n",
       "2026-01-01 00:00:09,000 - Evaluating: log_p= -4.282, C= 1.000\n"])
KEYS = {"ActualFPS": 420.5, "TrainingTime": 0.002378, "ActualLoss": 4.282, "TrainAccuracy": 1.0}


@pytest.fixture
def job():
    return Job(
        network="ADAGAN_ID2115_for_TensorFlow", program="adagan_gmm.py", batch_size=64,
        lines=LINES, losses=[6.022, 4.282], needs_data=False, run_marker="config.json",
        keys=dict.fromkeys(SCRIPTS, KEYS),
        console=["Final Performance iterations/sec : 420.50", "Final Coverage C : 1.000"],
        flags={SCRIPTS[0]: ["--epochs=15", "--steps=10", "--output_dir={output}"],
               SCRIPTS[1]: ["--epochs=3", "--steps=4", "--output_dir={output}"]},
        passed_on={"--ckpt_path=/a b/ckpt": "--ckpt_dir=/a b/ckpt", "--epochs=2": "--epochs=2",
                   "--steps=7": "--steps=7", "--modes=3": "--modes=3",
                   "--batch_size=32": "--batch_size=32"})


def test_the_median_leaves_out_the_first_quarter_of_the_epochs(bench):
    bench.log_is(LINES.replace("10.5it/s", "100000.0it/s"))
    assert bench.train().returncode == 0
    assert float(bench.keys()["ActualFPS"]) == 420.5


def test_a_run_without_evaluation_has_no_results(bench):
    bench.log_is(epoch(1, 100.0))
    assert bench.train().returncode == 1
