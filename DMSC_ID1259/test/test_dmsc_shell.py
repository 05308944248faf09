"""The ModelZoo scripts with this model's job.sh: the shared contract, and what is DMSC's own."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import pytest

from shell_contract import *  # noqa: F403 (the tests that every model must pass)
from shell_contract import SCRIPTS, Job

LOSSES = [0.01496168, 0.00686, 0.00518, 0.00443]
LINES = "batch_size = 2414\n" + "".join(
    f"epoch: {49 + 50 * number}\ncost: {loss:.8f}\nperf: {seconds:.4f}\n"
    for number, (loss, seconds) in enumerate(zip(LOSSES, [9.0, 0.15, 0.16, 0.15]))) + (
    "finish\nepoch: 200 cost: 417683.86111111\naccuracy: 84.72%\nMax ACC: 97.22%\n"
    "last step 800: ACC 96.88% NMI 96.01% ARI 95.00%\n"
    "last step 800 without post-processing: ACC 90.00% NMI 90.00% ARI 90.00%\n")
KEYS = {"ActualFPS": 16093.33, "TrainingTime": 0.15, "ActualLoss": 0.00443, "TrainAccuracy": 96.88}


@pytest.fixture
def job():
    flags = ["--mat=EYB_fc", "--model=mymodel"]
    return Job(
        network="Deep-multimodal-subspace-clustering-networks_ID1259_for_TensorFlow",
        program="pretrain_affinity_fusion.py", batch_size=256,
        reported_batch=2414, lines=LINES, losses=LOSSES,
        needs_data=True, run_marker="logs/mymodel/config.json", keys=dict.fromkeys(SCRIPTS, KEYS),
        console=["Final Performance images/sec : 16093.33"],
        flags={SCRIPTS[0]: flags + ["--epoch=100000", "--mode=train_and_evaluate",
                                    "--output_dir={output}", "--data_path={data}"],
               SCRIPTS[1]: flags + ["--max_train_steps=150", "--mode=train",
                                    "--output_dir={output}", "--data_path={data}"]},
        passed_on={"--mat=YaleB": "--mat=YaleB", "--model=m": "--model=m", "--epoch=7": "--epoch=7",
                   "--mode=evaluate": "--mode=evaluate", "--data_dir=/a b/c": "--data_dir=/a b/c",
                   "--rank_size=8": "--rank_size=8"})


def test_the_steps_replace_the_epochs(bench):
    assert bench.train(SCRIPTS[0], "--max_train_steps=9").returncode == 0
    assert "--max_train_steps=9" in bench.arguments()
    assert not any(flag.startswith("--epoch") for flag in bench.arguments())


def test_without_clustering_the_accuracy_is_none(bench):
    bench.log_is(LINES.split("finish")[0])
    assert bench.train().returncode == 0
    assert bench.keys()["TrainAccuracy"] == "None"
