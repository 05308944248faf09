"""The ModelZoo scripts, run with a stub in place of Python.

The stub writes down its arguments and environment and prints log lines of the trainer's shapes, so
these tests take no training. The scripts are copied into a folder with a blank in its name.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import platform
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
NETWORK = "CSGM_ID2109_for_TensorFlow"
KEYS = ["Network", "RankSize", "BatchSize", "DeviceType", "CaseName", "ActualFPS", "TrainingTime",
        "ActualLoss", "TrainAccuracy", "E2ETrainingTime"]
FLAGS = ["data_path", "ckpt_path", "output_path", "precision_mode", "over_dump", "data_dump_flag",
         "data_dump_step", "profiling", "train_steps", "train_epochs", "batch_size", "resume",
         "seed"]
SCRIPTS = ["train_full_1p.sh", "train_performance_1p.sh"]
STUB = r"""#!/bin/bash
printf '%s\n' "$@" >"$STUB_FOLDER/arguments"
printf '%s\n' "$ASCEND_DEVICE_ID" "$RANK_SIZE" "$RANK_ID" "$JOB_ID" >"$STUB_FOLDER/environment"
case $STUB_MODE in
  good) cat "$STUB_FOLDER/lines" ;;
  bad)
    for ((i = 1; i <= 30; i++)); do echo "line $i before the crash"; done
    cat "$STUB_FOLDER/lines"
    exit 7
    ;;
  endless)
    trap 'echo terminated; exit 143' TERM
    trap 'echo interrupted; exit 130' INT
    echo started >"$STUB_FOLDER/started"
    for ((i = 0; i < 200; i++)); do sleep 0.1; done
    ;;
esac
"""
# Eight steps: the first quarter (10 and 20 examples/sec) is warm-up, the median of the rest is 350.
LINES = "\n".join(
    ["Extracting train-images-idx3-ubyte.gz"]
    + [f"step {step}, loss = {loss:.2f} ({speed:.1f} examples/sec; 0.250 sec/batch)"
       for step, (loss, speed) in enumerate(zip(
           [638, 500, 400, 300, 200, 180, 170, 131.75],
           [10, 20, 300, 400, 350, 340, 9000, 350]))]
    + ["================test_reconstruct_error==================== 0.0318",
       "===============min_reconstruct_error_in_epoch:12,reis0.01141====================", ""])


class Bench:
    """A copy of the scripts beside a stub trainer; `run` starts one of them and waits."""

    def __init__(self, folder):
        self.model = folder / "a model"
        self.data = folder / "the data"
        self.data.mkdir()
        (self.model / "test").mkdir(parents=True)
        for script in HERE.glob("*.sh"):
            shutil.copy(str(script), str(self.model / "test"))
        stub = folder / "stub python"
        stub.write_text(STUB)
        stub.chmod(0o755)
        (folder / "lines").write_text(LINES)
        self.folder = folder
        self.environment = dict(os.environ, PYTHON=str(stub), STUB_FOLDER=str(folder),
                                STUB_MODE="good")
        for name in ("ASCEND_DEVICE_ID", "RANK_SIZE", "RANK_ID", "JOB_ID"):
            self.environment.pop(name, None)

    def start(self, script, *flags, mode="good", cwd=None, **environment):
        return subprocess.Popen(
            ["bash", str(self.model / "test" / script)] + list(flags), cwd=str(cwd or self.folder),
            env=dict(self.environment, STUB_MODE=mode, **environment), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, universal_newlines=True)

    def run(self, script, *flags, **options):
        process = self.start(script, *flags, **options)
        process.out, process.err = process.communicate(timeout=60)
        return process

    def train(self, script=SCRIPTS[0], *flags, **options):
        return self.run(script, "--data_path=" + str(self.data), *flags, **options)

    def arguments(self):
        return (self.folder / "arguments").read_text().splitlines()

    def output(self, device="0"):
        return self.model / "test" / "output" / device

    def keys(self, case, device="0"):
        text = (self.output(device) / (case + ".log")).read_text()
        return [tuple(line.split(" = ")) for line in text.splitlines()]


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def wait_for(path):
    for _ in range(200):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


def files_with_results(folder):
    return [path.name for path in folder.rglob("*.log") if "ActualFPS" in path.read_text()]


@pytest.mark.parametrize("script", SCRIPTS + ["train_1p.sh"])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_exits_0_and_names_every_flag(bench, script, flag):
    process = bench.run(script, flag)
    assert process.returncode == 0
    assert not process.err
    for name in FLAGS:
        assert "--" + name in process.out
    assert not bench.output().exists()


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("flags", [["--colour=red"], ["--data_path"], ["stray"], ["--seed"]])
def test_unknown_flag_is_refused(bench, script, flags):
    process = bench.train(script, *flags)
    assert process.returncode == 2
    assert flags[0] in process.err
    assert not (bench.folder / "arguments").exists()


@pytest.mark.parametrize("value", ["0", "ten", "", "1/2"])
def test_batch_size_that_is_no_number_is_refused(bench, value):
    process = bench.train(SCRIPTS[0], "--batch_size=" + value)
    assert process.returncode == 2
    assert "--batch_size=" + value in process.err


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("flags", [[], ["--data_path="], ["--seed=1"]])
def test_missing_data_path_is_refused(bench, script, flags):
    process = bench.run(script, *flags)
    assert process.returncode == 1
    assert '[Error] para "data_path" must be config' in process.err
    assert not (bench.folder / "arguments").exists()


def test_key_file_of_the_full_script(bench):
    process = bench.train("train_full_1p.sh")
    assert process.returncode == 0, process.err
    case = NETWORK + "_bs100_1p_acc"
    keys = bench.keys(case)
    assert [key for key, _ in keys] == KEYS
    values = dict(keys)
    assert values["Network"] == NETWORK
    assert values["RankSize"] == "1"
    assert values["BatchSize"] == "100"
    assert values["DeviceType"] == platform.machine()
    assert values["CaseName"] == case
    assert float(values["ActualFPS"]) == 350.0
    assert float(values["TrainingTime"]) == pytest.approx(100 / 350, abs=1e-6)
    assert float(values["ActualLoss"]) == 131.75
    assert float(values["TrainAccuracy"]) == 0.01141
    assert int(values["E2ETrainingTime"]) >= 0
    losses = (bench.output() / f"train_{case}_loss.txt").read_text().split()
    assert [float(loss) for loss in losses] == [638, 500, 400, 300, 200, 180, 170, 131.75]
    assert (bench.output() / "train_0.log").read_text() == LINES
    assert not list(bench.output().glob("*.part"))


def test_key_file_of_the_performance_script(bench):
    assert bench.train("train_performance_1p.sh", "--batch_size=64").returncode == 0
    keys = bench.keys(NETWORK + "_bs64_1p_perf")
    assert [key for key, _ in keys] == KEYS
    values = dict(keys)
    assert values["BatchSize"] == "64"
    assert values["TrainAccuracy"] == "None"
    assert float(values["TrainingTime"]) == pytest.approx(64 / 350, abs=1e-6)


def test_standard_output_ends_with_the_results(bench):
    out = bench.train().out
    results = out[out.index("------------------ Final result ------------------"):].splitlines()
    assert results[1:] == [
        "Final Performance images/sec : 350.00", "Final Performance sec/step : 0.285714",
        results[3], "Final Train Accuracy : 0.01141"]
    assert results[3].startswith("Final Training Duration sec : ")


@pytest.mark.parametrize("speeds, median", [([5], 5), ([4, 8], 6), ([1, 2, 3, 4, 50], 3.5)])
def test_speed_is_the_median_after_the_first_quarter(bench, speeds, median):
    (bench.folder / "lines").write_text("".join(
        f"step 3, loss = 1.00 ({speed:.1f} examples/sec; 1.000 sec/batch)\r\n"
        for speed in speeds))
    assert bench.train(SCRIPTS[1]).returncode == 0
    assert float(dict(bench.keys(NETWORK + "_bs100_1p_perf"))["ActualFPS"]) == median


@pytest.mark.parametrize("script, epochs", list(zip(SCRIPTS, (750, 1))))
def test_without_flags_only_the_necessary_is_passed_on(bench, script, epochs):
    assert bench.train(script).returncode == 0
    program, *flags = bench.arguments()
    assert Path(program) == bench.model / "mnist_vae" / "src" / "main.py"
    assert flags == [f"--epochs={epochs}", f"--data_dir={bench.data}",
                     f"--output_dir={bench.output()}"]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("flag, passed_on", [
    ("--ckpt_path=/a b/ckpt", "--ckpt_dir=/a b/ckpt"),
    ("--output_path=/a b/c", "--output_dir=/a b/c"),
    ("--train_steps=7", "--max_steps=7"), ("--train_epochs=3", "--epochs=3"),
    ("--precision_mode=force_fp32", None), ("--over_dump=True", None), ("--profiling=True", None),
    ("--data_dump_flag=True", None), ("--data_dump_step=0|5|8-10", None), ("--batch_size=10", None),
    ("--resume", None), ("--resume=True", None), ("--seed=5", None)])
def test_flag_reaches_the_program(bench, script, flag, passed_on):
    assert bench.train(script, flag).returncode == 0
    assert bench.arguments().count(passed_on or flag) == 1


def test_without_a_finished_epoch_the_accuracy_is_none(bench):
    (bench.folder / "lines").write_text(LINES.replace("reis0.01141", "reis10000.00000"))
    assert bench.train(SCRIPTS[0], "--train_steps=8").returncode == 0
    assert dict(bench.keys(NETWORK + "_bs100_1p_acc"))["TrainAccuracy"] == "None"


@pytest.mark.parametrize("where", ["/", "test", "elsewhere"])
def test_runs_from_any_directory(bench, where):
    (bench.folder / "elsewhere").mkdir()
    cwd = {"/": Path("/"), "test": bench.model / "test",
           "elsewhere": bench.folder / "elsewhere"}[where]
    assert bench.train(cwd=cwd).returncode == 0
    assert bench.keys(NETWORK + "_bs100_1p_acc")
    assert not list((bench.folder / "elsewhere").iterdir())


def test_relative_script_path_works(bench):
    process = subprocess.run(
        ["bash", "test/train_full_1p.sh", "--data_path=../the data"], cwd=str(bench.model),
        env=bench.environment)
    assert process.returncode == 0
    assert "--data_dir=../the data" in bench.arguments()


def test_device_defaults_to_0(bench):
    assert bench.train().returncode == 0
    assert (bench.folder / "environment").read_text().split() == ["0", "1", "0", "10087"]
    assert bench.keys(NETWORK + "_bs100_1p_acc", device="0")


def test_device_from_the_environment_names_log_and_folder(bench):
    assert bench.train(ASCEND_DEVICE_ID="3", JOB_ID="99").returncode == 0
    assert (bench.folder / "environment").read_text().split() == ["3", "1", "0", "99"]
    assert bench.keys(NETWORK + "_bs100_1p_acc", device="3")
    assert (bench.output("3") / "train_3.log").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_crash_keeps_its_code_and_writes_no_results(bench, script):
    process = bench.train(script, mode="bad")
    assert process.returncode == 7
    shown = process.err.splitlines()
    assert LINES.splitlines()[-1] in shown
    assert sum(line.startswith("line ") for line in shown) == 20 - len(LINES.splitlines())
    assert "Final" not in process.out
    assert not files_with_results(bench.output())
    assert not list(bench.output().glob("*_loss.txt"))


def test_missing_interpreter_fails_without_results(bench):
    assert bench.train(PYTHON=str(bench.folder / "no such python")).returncode == 127
    assert not files_with_results(bench.output())


@pytest.mark.parametrize("lines", ["", "nothing of use\n", "step 1, loss = nan (1.0 examples/sec"])
def test_log_without_step_lines_is_a_failure(bench, lines):
    (bench.folder / "lines").write_text(lines)
    process = bench.train()
    assert process.returncode == 1
    assert "no step line" in process.err
    assert not files_with_results(bench.output())
    assert not list(bench.output().glob("*_loss.txt"))


def test_results_of_an_earlier_run_do_not_pass_for_those_of_a_failed_one(bench):
    assert bench.train().returncode == 0
    (bench.output() / "notes.txt").write_text("mine")
    before = (bench.output() / (NETWORK + "_bs100_1p_acc.log")).read_text()
    assert bench.train(mode="bad").returncode == 7
    assert not files_with_results(bench.output())
    kept = bench.output() / (NETWORK + "_bs100_1p_acc.log.previous")
    assert kept.read_text() == before
    assert (bench.output() / "notes.txt").read_text() == "mine"


def test_results_of_the_other_script_survive(bench):
    assert bench.train(SCRIPTS[0]).returncode == 0
    assert bench.train(SCRIPTS[1]).returncode == 0
    assert sorted(files_with_results(bench.output())) == [
        NETWORK + "_bs100_1p_acc.log", NETWORK + "_bs100_1p_perf.log"]


@pytest.mark.parametrize("flags, name", [
    ([], "run_3"), (["--resume=False"], "run_3"), (["--resume"], "run_2"),
    (["--resume=True"], "run_2"), (["--resume=auto"], "run_2")])
def test_a_new_run_gets_its_own_folder_and_resume_the_newest(bench, flags, name):
    for folder in (bench.output(), bench.output() / "run_2"):
        (folder / "models" / "mnist-vae").mkdir(parents=True)
        (folder / "models" / "mnist-vae" / "config.json").write_text("{}")
    assert bench.train(SCRIPTS[0], *flags).returncode == 0
    assert f"--output_dir={bench.output() / name}" in bench.arguments()


@pytest.mark.parametrize("number, code, word", [
    (signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")])
def test_signal_reaches_the_trainer_and_its_code_comes_back(bench, number, code, word):
    process = bench.start(SCRIPTS[0], "--data_path=" + str(bench.data), mode="endless")
    wait_for(bench.folder / "started")
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert word in (bench.output() / "train_0.log").read_text()
    assert not files_with_results(bench.output())
