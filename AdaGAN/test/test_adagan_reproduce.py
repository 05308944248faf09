"""All experiments in one command: numbers and pictures, going on after a signal, what is refused.

Real runs are few and tiny; where only their number and order count, a stand-in of adagan_gmm.py
leaves copies of a real one.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import csv
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import matplotlib.image
import numpy as np
import pytest

import adagan_gmm
import metrics
import mixture
import npu_session
import reproduce
from conftest import SOURCE

SMALL = ["--toy_dataset_size=640", "--epochs=1", "--steps=2", "--threads=1", "--workers=2"]
TABLE1 = SMALL + ["--experiment=table1", "--modes", "3", "--seeds=1"]
METHODS = ["vanilla", "best of 2", "ensemble of 2", "TopK 0.5, T = 2", "boosted, T = 2"]
TIMES = ("seconds", "iterations_per_second")
# What the stand-in does: fails for seed {failing}; else leaves a copy of a run in the output
# folder, and waits for SIGTERM if there is a file `wait` beside that run.
STAND_IN = """
import json, os, shutil, signal, sys, time
flags = dict(word[2:].split("=", 1) for word in sys.argv[1:])
source, output = {source!r}, flags["output_dir"]
print("started", flags["seed"], flush=True)
if flags["seed"] == "{failing}":
    sys.exit("error: seed {failing} is not liked")
if os.path.exists({wait!r}):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    time.sleep(60)
shutil.rmtree(output + ".new", ignore_errors=True)
shutil.copytree(source, output + ".new")
for name in os.listdir(output + ".new"):
    shutil.move(os.path.join(output + ".new", name), os.path.join(output, name))
os.rmdir(output + ".new")
"""


def run(output, *flags):
    """Exit code of reproduce.py in this process."""
    gc.collect()  # an earlier run's lock goes with its RunFolder
    return npu_session.run_main(reproduce.main, list(map(str, flags)) + [f"--output_dir={output}"])


def read_json(output, name="result.json"):
    with open(os.path.join(str(output), name)) as file:
        return json.load(file)


def table(output, name):
    with open(os.path.join(str(output), name), newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Output folder and printed text of Table 1 with one column, two components and one seed."""
    output = tmp_path_factory.mktemp("finished")
    done = subprocess.run(
        [sys.executable, os.path.join(SOURCE, "reproduce.py"), f"--output_dir={output}"] + TABLE1,
        capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return output, done.stdout


@pytest.fixture
def stand_in(finished, tmp_path, monkeypatch):
    """Function (failing=seed): programs started from here are the stand-in; returns `wait`'s path.
    """
    source, wait = tmp_path / "source", tmp_path / "wait"
    shutil.copytree(str(finished[0] / "runs" / "star_modes03_seed1"), str(source),
                    ignore=shutil.ignore_patterns("*.png", "ckpt", "log.txt", ".lock"))

    def use(failing=-1):
        path = tmp_path / "program.py"
        path.write_text(STAND_IN.format(source=str(source), wait=str(wait), failing=failing))
        monkeypatch.setattr(reproduce, "PROGRAM", str(path))
        return wait
    return use


# ---------------------------------------------------------------- a whole run


def test_whole_run(finished):
    output, _ = finished
    result = read_json(output)["table1"]
    assert [row["method"] for row in result["rows"]] == METHODS
    for row, shown in zip(result["rows"], table(output, "table1.csv")):
        assert {name: str(value) for name, value in row.items()} == shown
        assert all(row[f"{name}_p5"] <= row[name] <= row[f"{name}_p95"]
                   for name in reproduce.METRICS)
    assert [row["runs"] for row in result["rows"]] == [2, 1, 1, 1, 1]
    assert [row["components"] for row in result["rows"]] == [1, 1, 2, 2, 2]
    assert len(result["steps"]) == len(table(output, "table1_steps.csv")) == 3 * 2
    assert sorted(os.listdir(str(output / "figures"))) == ["table1_steps_3_modes.png",
                                                           "table1_table.png"]
    for path in result["figures"]:
        assert min(matplotlib.image.imread(path).shape[:2]) > 100
        assert os.path.getsize(path) < 300e3


def test_console_of_a_whole_run(finished):
    """A line per run, the table, the scale, and at the end where everything is."""
    output, out = finished
    lines = out.splitlines()
    assert lines[0] == ("table1: 3 runs, 2 at a time; 1 seed, 2 components, 1 epochs of 640 points")
    assert len([line for line in lines if " 3 modes, seed 1: C " in line]) == 3
    assert all(any(line.startswith(f"| 3 | {method} | ") for line in lines) for method in METHODS)
    assert any(line.startswith("3 modes: exact samples of the data's distribution score C 0.9")
               for line in lines)
    assert f"numbers: {output}/table1.csv, table1_steps.csv, result.json" in lines
    assert str(output / "figures" / "table1_table.png") in lines[-1]
    folder = next(line for line in lines if line.startswith("the mixture step by step: "))
    assert os.path.isfile(os.path.dirname(folder.split(": ")[1]) + "/mixture01.png")


def test_rows_are_those_of_the_runs(finished):
    """The steps' numbers are those that adagan_gmm.py logged; the same flags give the same run."""
    output, _ = finished
    folder = str(output / "runs" / "topk_modes03_seed1")
    flags = read_json(folder, "config.json")["flags"]
    assert (flags["weights_heur"], flags["topk_constant"], flags["gmm_modes_num"], flags["seed"],
            flags["gan_epoch_num"], flags["toy_dataset_size"]) == ("topk", 0.5, 3, 1, 1, 640)
    with open(os.path.join(folder, "metrics.jsonl")) as file:
        records = [record for record in map(json.loads, file) if "C" in record]
    rows = [row for row in read_json(output)["table1"]["steps"] if row["family"] == "topk"]
    assert [row["C"] for row in rows] == [record["C"] for record in records]
    row = read_json(output)["table1"]["rows"][METHODS.index("TopK 0.5, T = 2")]
    assert (row["C"], row["log_p"]) == (records[-1]["C"], records[-1]["log_p"])


def test_best_is_the_component_with_the_largest_coverage(finished):
    output, _ = finished
    records = read_json(output, "runs/bagging_modes03_seed1/components.json")
    rows = read_json(output)["table1"]["rows"]
    best = max(records, key=lambda record: record["C"])
    assert (rows[1]["C"], rows[1]["log_p"]) == (best["C"], best["log_p"])
    assert rows[0]["C"] == pytest.approx(np.mean([record["C"] for record in records]))


def test_a_component_alone_is_evaluated_as_a_mixture_is():
    """Samples of the very modes score what exact samples score."""
    settings = adagan_gmm.parse_args(["--toy_dataset_size=640", "--modes=3"])
    settings.output_dir = "unused"
    data = adagan_gmm.load_data(settings, adagan_gmm.make_draws(settings))
    samples = data.means[np.arange(5000) % 3] + np.sqrt(data.variance) * np.random.RandomState(
        0).standard_normal((5000, 2))
    found = reproduce.component_record(settings, data, 0, np.float32(samples)[..., None, None])
    assert found["C"] > 0.85 and found["modes_covered"] == 3 and found["high_quality"] > 0.98
    assert set(found) == set(reproduce.METRICS)
    assert reproduce.truth(reproduce.parse_args([]), 3)["log_p"] == pytest.approx(
        found["log_p"], abs=0.15)
    assert isinstance(mixture.Mixture().weights, np.ndarray) and metrics.THRESHOLD_PERCENTILE == 5


# ---------------------------------------------------------------- going on


def test_finished_runs_are_never_trained_again(finished, monkeypatch, capsys):
    output, _ = finished
    before = read_json(output)
    monkeypatch.setattr(reproduce, "start", None)
    monkeypatch.setattr(reproduce, "component_record", None)
    assert run(output, *TABLE1) == 0
    assert "3 of 3 runs are complete already" in capsys.readouterr().out
    assert read_json(output) == before


def test_experiments_share_runs_and_result(finished, tmp_path, monkeypatch):
    """A copied folder goes on; runs of one experiment serve another, and its results stay."""
    output = tmp_path / "moved"
    shutil.copytree(str(finished[0]), str(output))
    monkeypatch.setattr(reproduce, "start", None)
    assert run(output, *SMALL, "--experiment=quick", "--modes=3") == 0
    result = read_json(output)
    assert set(result) == {"table1", "quick"}
    assert [row["method"] for row in result["quick"]["rows"]] == [
        "vanilla", "best of 2", "ensemble of 2", "boosted, T = 2"]
    assert os.path.exists(str(output / "quick.csv")) and os.path.exists(str(output / "table1.csv"))


def test_more_components_go_on_from_the_last(finished, tmp_path, capsys):
    """Runs of two components become runs of four; those that were there stay as they are."""
    output = tmp_path / "longer"
    shutil.copytree(str(finished[0]), str(output))
    for family in ("bagging", "topk"):  # one run is enough to see
        shutil.rmtree(str(output / "runs" / f"{family}_modes03_seed1"))
    assert run(output, *SMALL, "--experiment=default", "--modes=3", "--seeds=1", "--steps=4") == 0
    result = read_json(output)
    assert [row["method"] for row in result["default"]["rows"]] == ["boosted, T = 3",
                                                                    "boosted, T = 4"]
    old = [row for row in result["table1"]["steps"] if row["family"] == "star"]
    assert len(result["default"]["steps"]) == 4 and result["default"]["steps"][:2] == old
    assert "log_p at least" in capsys.readouterr().out


def test_signal_stops_the_runs_which_go_on_later(finished, tmp_path):
    """SIGTERM: exit code 143, no process is left; then the same numbers as without it."""
    output = tmp_path / "stopped"
    flags = SMALL + ["--experiment=default", "--modes", "3", "--seeds=1", "--epochs=1",
                     f"--output_dir={output}"]
    process = subprocess.Popen([sys.executable, os.path.join(SOURCE, "reproduce.py")] + flags,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    folder, limit = output / "runs" / "star_modes03_seed1", time.time() + 100
    while time.time() < limit and not os.path.exists(str(folder / "mixture.json")):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "the same command goes on" in out
    assert not os.path.exists(str(output / "result.json"))
    assert "stopped by a signal" in (folder / "log.txt").read_text()
    assert run(output, *flags) == 0
    expected = [row for row in read_json(finished[0])["table1"]["steps"] if row["family"] == "star"]
    found = read_json(output)["default"]["steps"]
    assert [{name: row[name] for name in row if name not in TIMES} for row in found] == [
        {name: row[name] for name in row if name not in TIMES} for row in expected]


def test_runs_start_in_order_and_no_more_than_workers(stand_in, tmp_path, monkeypatch):
    stand_in()
    active, most, order, devices, start = [], [], [], set(), reproduce.start

    def counted(args, wanted, device):
        process = start(args, wanted, device)
        active.append(process)
        order.append(wanted)
        devices.add(device)
        most.append(sum(other.poll() is None for other in active))
        return process

    monkeypatch.setattr(reproduce, "start", counted)
    assert run(tmp_path / "out", *SMALL, "--experiment=default", "--modes", "3", "1",
               "--seeds=3") == 0
    assert order == [reproduce.Run("star", modes, seed) for seed in (1, 2, 3) for modes in (1, 3)]
    assert max(most) <= 2 and devices == {0, 1}
    assert len(table(tmp_path / "out", "default_steps.csv")) == 6 * 2


def test_a_run_that_fails_stops_the_others_and_is_named(stand_in, tmp_path, capsys):
    stand_in(failing=2)
    output = tmp_path / "out"
    flags = SMALL + ["--experiment=default", "--modes", "3", "--seeds=4"]
    assert run(output, *flags) == 1
    captured = capsys.readouterr()
    assert ("error: the run star_modes03_seed2 failed: error: seed 2 is not liked" in captured.err
            and "log.txt" in captured.err and "the same command goes on" in captured.out)
    assert not os.path.exists(str(output / "result.json"))
    stand_in()
    assert run(output, *flags) == 0
    # The third may have ended before it was stopped.
    assert re.search("^[12] of 4 runs are complete already", capsys.readouterr().out, re.M)


def test_a_signal_ends_waiting_programs(stand_in, tmp_path, monkeypatch):
    stand_in().write_text("")
    processes, start = [], reproduce.start

    def signalled(args, wanted, device):
        processes.append(start(args, wanted, device))
        time.sleep(0.5)  # until it has its handler
        os.kill(os.getpid(), signal.SIGTERM)
        return processes[-1]

    monkeypatch.setattr(reproduce, "start", signalled)
    assert run(tmp_path / "out", *SMALL, "--experiment=default", "--modes", "3", "--seeds=2",
               "--workers=1") == 143
    assert [process.poll() for process in processes] == [143]


# ---------------------------------------------------------------- flags


def test_experiments():
    args = reproduce.parse_args([])
    assert (args.experiment, args.modes, args.seeds) == ("quick", [10], 1)
    args = reproduce.parse_args(["--experiment=table1"])
    assert (args.modes, args.seeds, args.steps) == ([1, 2, 3, 5, 7, 10], 5, 10)
    args.workers = 2
    runs = reproduce.runs_of(args)
    assert len(set(runs)) == 3 * 6 * 5
    args = reproduce.parse_args(["--experiment=default"])
    assert (args.modes, args.seeds, args.steps) == ([10], 10, 10)
    args = reproduce.parse_args(["--modes", "7", "3", "7", "--seeds=2", "--steps=4"])
    assert (args.modes, args.seeds, args.steps) == ([3, 7], 2, 4)


def test_every_family_is_a_valid_command(tmp_path):
    """The defaults are adagan_gmm.py's: nothing but the family and the size of the run is set."""
    args = reproduce.parse_args(["--experiment=table1", f"--output_dir={tmp_path}", "--workers=2"])
    for family in reproduce.FAMILIES:
        flags = adagan_gmm.parse_args(reproduce.flags_of(args, reproduce.Run(family, 7, 1)))
        assert (flags.gmm_modes_num, flags.toy_dataset_size, flags.adagan_steps_total) == (
            7, 64000, 10)
        assert flags.beta_heur == "uniform"  # else the first three of ten were not those of three
        if family != "sharp":
            assert (flags.gan_epoch_num, flags.optimizer, flags.batch_size) == (15, "sgd", 64)


def test_preset_sets_defaults_that_flags_go_before():
    plain, sharp = (adagan_gmm.parse_args(words) for words in ([], ["--preset=sharp"]))
    changed = {name: value for name, value in vars(sharp).items() if vars(plain)[name] != value}
    assert changed == dict(adagan_gmm.PRESETS["sharp"], preset="sharp")
    own = adagan_gmm.parse_args(["--epochs=3", "--preset=sharp", "--optimizer=sgd"])
    assert (own.gan_epoch_num, own.optimizer, own.objective) == (3, "sgd", "JS_modified")
    shown = " ".join(f"--{name}={value}" for name, value in (
        ("optimizer", sharp.optimizer), ("objective", sharp.objective),
        ("g_learning_rate", sharp.opt_g_learning_rate),
        ("d_learning_rate", sharp.opt_d_learning_rate), ("epochs", sharp.gan_epoch_num)))
    with open(os.path.join(SOURCE, "adagan_gmm.py")) as file:  # what --help says of it
        assert shown in file.read().replace('"\n' + 29 * " " + '"', "")


def test_flags_reach_the_program(tmp_path):
    args = reproduce.parse_args([
        "--over_dump=True", "--data_dump_flag=True", "--data_dump_step=3", "--profiling=True",
        "--precision_mode=force_fp32", "--threads=2", "--workers=1", "--seed=5", "--epochs=3",
        "--toy_dataset_size=1280", "--steps=7", f"--output_dir={tmp_path}"])
    flags = adagan_gmm.parse_args(reproduce.flags_of(args, reproduce.runs_of(args)[0]))
    assert (flags.over_dump, flags.data_dump_flag, flags.data_dump_step, flags.profiling,
            flags.precision_mode, flags.threads, flags.seed, flags.gan_epoch_num,
            flags.toy_dataset_size, flags.adagan_steps_total, flags.plots, flags.verbose) == (
                True, True, "3", True, "force_fp32", 2, 5, 3, 1280, 7, True, False)


def test_modelarts_address(finished, tmp_path, monkeypatch, capsys):
    shutil.copytree(str(finished[0]), str(tmp_path / "moved"))
    monkeypatch.setattr(reproduce, "start", None)
    assert run("ignored", *TABLE1, f"--train_url={tmp_path / 'moved'}") == 0
    assert "3 of 3 runs are complete" in capsys.readouterr().out and not os.path.exists("ignored")


def test_other_sizes_need_another_folder(finished, capsys):
    assert run(finished[0], *TABLE1, "--epochs=2") == 2
    assert "epochs=1, not 2" in capsys.readouterr().err


def test_help_and_unknown_flag(run_program):
    shown = run_program("reproduce.py", "--help")
    assert shown.returncode == 0
    assert "table1: bagging topk star; 1 2 3 5 7 10; 5; 10" in shown.stdout
    assert run_program("reproduce.py", "--no_such_flag").returncode == 2


@pytest.mark.parametrize("word", ["--steps=0", "--modes=0", "--seeds=0", "--workers=0",
                                  "--experiment=all", "--epochs=0", "--toy_dataset_size=0"])
def test_wrong_flags_are_refused(word):
    with pytest.raises(SystemExit) as leaving:
        reproduce.parse_args([word])
    assert leaving.value.code == 2


def test_bad_input_leaves_the_output_folder_alone(tmp_path, capsys):
    output = tmp_path / "results"
    assert run(output, "--toy_dataset_size=10") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and "--toy_dataset_size=10" in err
    assert not os.path.exists(str(output))


def test_damaged_run_is_named(finished, tmp_path, monkeypatch, capsys):
    output = tmp_path / "damaged"
    shutil.copytree(str(finished[0]), str(output))
    path = output / "runs" / "star_modes03_seed1" / "metrics.jsonl"
    path.write_text("")
    monkeypatch.setattr(reproduce, "start", None)
    assert run(output, *TABLE1) == 2
    assert f"{path} has 0 of 2 steps: remove the folder" in capsys.readouterr().err
