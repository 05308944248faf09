"""The ModelZoo scripts with this model's job.sh: the shared contract, and what is MASF's own."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import pytest

from shell_contract import *  # noqa: F403 (the tests that every model must pass)
from shell_contract import SCRIPTS, Job

LOSSES = [7.8945694, 6.5, 3.25]
LINES = "".join(
    "------------------------------\nmasf_cartoon.mbs_9\n"
    "number of samples per category: [0. 0. 2. 3. 3. 0. 0.]\n"
    f"global loss: {loss}\nmetric_loss: 0.0000000 \n"
    f"Iteration {number}: Loss training domains 306.22394\n"
    f"Iteration {number}: Accuracy training domains {accuracy}\nPerf:  {seconds}\n"
    for number, (loss, accuracy, seconds) in enumerate(
        zip(LOSSES, [16.666668, 20.5, 33.25], [97.0, 1.5, 1.5])))
KEYS = {"ActualFPS": 84.0, "TrainingTime": 1.5, "ActualLoss": 3.25, "TrainAccuracy": 33.25}


@pytest.fixture
def job():
    return Job(
        network="MASF_ID1191_for_TensorFlow", program="main.py", batch_size=126, lines=LINES,
        losses=LOSSES, needs_data=True, run_marker="masf_cartoon.mbs_126/config.json",
        keys=dict.fromkeys(SCRIPTS, KEYS),
        console=["Final Performance images/sec : 84.00", "Final Performance sec/step : 1.5",
                 "Final Train Accuracy : 33.25"],
        flags={script: [f"--train_iterations={iterations}", "--meta_batch_size=126",
                        "--dataroot={data}/kfold", "--output_dir={output}"]
               for script, iterations in zip(SCRIPTS, (300, 5))},
        passed_on={"--ckpt_path=/a b/w.npy": "--weights_path=/a b/w.npy",
                   "--train_iterations=7": "--train_iterations=7",
                   "--target_domain=photo": "--target_domain=photo",
                   "--batch_size=9": "--meta_batch_size=9"})


def test_weights_and_lists_in_the_data_folder_are_used(bench):
    (bench.data / "filelist").mkdir()
    (bench.data / "bvlc_alexnet.npy").write_text("weights")
    assert bench.train().returncode == 0
    assert f"--weights_path={bench.data}/bvlc_alexnet.npy" in bench.arguments()
    assert f"--filelist_root={bench.data}/filelist" in bench.arguments()
