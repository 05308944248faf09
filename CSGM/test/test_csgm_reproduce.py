"""All experiments in one command: numbers and pictures, going on after a kill, what is refused.

The runs have few cells: one noise level, one m of the end-to-end baseline, few updates.
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
import pytest

import compressed_sensing
import data_input
import main as train_vae
import make_standin_data
import npu_session
import reproduce
from conftest import SOURCE

SMALL = ["--num_input_images=4", "--batch_size=2", "--max_update_iter=3", "--learning_rate=0.1",
         "--num_random_restarts=2", "--threads=1", "--epochs=1", "--encoder_start=False"]
MEASUREMENTS = ["--measurements", "20", "200"]
FIGURES = ["mnist_gen_range.png", "mnist_inpaint.png", "mnist_noise_l2.png",
           "mnist_reconstr_200_orig_lasso_vae.png", "mnist_reconstr_20_orig_lasso_vae.png",
           "mnist_reconstr_l2.png", "mnist_reconstr_l2_all.png", "mnist_superres.png"]
# experiment, method, m, noise
CELLS = [("reconstr", method, m, 0.1) for m in (20, 200)
         for method in ("lasso", "vae-reg", "vae-sparse", "lasso-0.02", "vae")] + [
    ("gen_range", "generator", m, 0.1) for m in (20, 200)] + [
    ("noise", "lasso", 500, 1.0), ("noise", "vae-reg", 500, 1.0), ("noise", "vae-reg", 100, 1.0),
    ("inpaint", "vae-reg", 684, 0.1), ("superres", "vae-reg", 196, 0.1),
    ("project", "vae", 784, 0.0)]
# Runs the program with few cells in a process of its own.
PROGRAM = ("import sys; sys.path.insert(0, {!r}); import npu_session, reproduce; "
           "reproduce.NOISE_LEVELS = (1,); "
           "sys.exit(npu_session.run_main(reproduce.main))").format(SOURCE)


@pytest.fixture(scope="module")
def vae_dir(small_data, tmp_path_factory):
    """Folder (str) with a VAE after one epoch of 12 updates."""
    folder = str(tmp_path_factory.mktemp("vae"))
    assert train_vae.main(["--data_dir=" + small_data, "--ckpt_dir=" + folder, "--epochs=1",
                           "--output_dir=" + folder, "--threads=1"]) == 0
    return folder


@pytest.fixture(autouse=True)
def few_cells(monkeypatch):
    """One noise level and one m of the end-to-end baseline in this process."""
    monkeypatch.setattr(reproduce, "NOISE_LEVELS", (1,))
    monkeypatch.setattr(reproduce, "E2E_MEASUREMENTS", (10,))


def run(output, *flags):
    """Exit code of a small run in this process."""
    gc.collect()  # an earlier run's lock goes with its RunFolder
    return npu_session.run_main(reproduce.main, SMALL + MEASUREMENTS + [
        f"--output_dir={output}"] + list(map(str, flags)))


def read_json(output, name="result.json"):
    with open(os.path.join(str(output), name)) as file:
        return json.load(file)


def cells(rows):
    return [(row["experiment"], row["method"], int(row["measurements"]), float(row["noise_std"]))
            for row in rows]


def table(output):
    with open(os.path.join(str(output), "results.csv"), newline="") as file:
        return list(csv.DictReader(file))


def assert_complete(output, expected):
    """Each cell once, the same in CSV, JSON and metrics.jsonl; every picture is one."""
    result, rows = read_json(output), table(output)
    assert sorted(cells(rows)) == sorted(expected) and len(rows) == len(expected)
    assert cells(result["rows"]) == cells(rows)
    for row, shown in zip(result["rows"], rows):
        assert {name: str(row[name]) for name in row} == shown
    with open(os.path.join(str(output), "metrics.jsonl")) as file:
        records = [json.loads(line) for line in file]
    assert [record.pop("step") for record in records] == list(range(len(records)))
    assert records == result["rows"]
    assert sorted(os.path.basename(path) for path in result["figures"]) == sorted(
        os.listdir(os.path.join(str(output), "figures")))
    for path in result["figures"]:
        assert min(matplotlib.image.imread(path).shape[:2]) > 100


@pytest.fixture(scope="module")
def finished(small_data, tmp_path_factory):
    """Output folder and printed text of a whole run with its own VAE and end-to-end training."""
    output = tmp_path_factory.mktemp("finished")
    program = PROGRAM.replace("(1,); ", "(1,); reproduce.E2E_MEASUREMENTS = (10,); ")
    done = subprocess.run(
        [sys.executable, "-c", program] + SMALL + MEASUREMENTS + [
            f"--output_dir={output}", f"--data_dir={small_data}", "--e2e_steps=20",
            "--encoder_start=True"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return output, done.stdout


# ---------------------------------------------------------------- a whole run


def test_whole_run(finished):
    output, _ = finished
    assert_complete(output, CELLS + [("reconstr", "fixed", 10, 0.0),
                                     ("reconstr", "learned", 10, 0.0)])
    assert sorted(os.listdir(str(output / "figures"))) == sorted(FIGURES)
    result = read_json(output)
    assert result["data"] == "stand-in digits"
    assert all(row["images"] == 4 and row["mean_l2_loss"] > 0 for row in result["rows"])


def test_console_of_a_whole_run(finished):
    """Which data, a sentence per experiment, a line per result, and at the end where it all is."""
    output, out = finished
    lines = out.splitlines()
    assert lines[-2] == f"numbers: {output}/results.csv"
    assert lines[-1].startswith(f"pictures: {output}/figures (8")
    assert re.match(r"20 results in \d+ s$", lines[-3])
    assert "recovery on stand-in digits, 4 test images, preset fast" in out
    for sentence in ("training the VAE, 1 epochs", "error against the number of measurements",
                     "images drawn from G", "error against the noise", "super-resolution",
                     "trained end to end"):
        assert sentence in out
    results = [line for line in lines if line.startswith("  m = ")]
    assert len(results) == 20 and all(len(line) < 100 for line in results)


def test_rows_are_those_of_the_recovery_program(finished, small_data, tmp_path, capsys):
    """The same flags given to compressed_sensing.py give the same mean error."""
    output, _ = finished
    assert compressed_sensing.main([
        f"--pretrained_model_dir={output}/models/mnist-vae", "--data_dir=" + small_data,
        "--num_measurements=200", "--model_types", "lasso", "vae", "--encoder_start",
        "--print_stats", f"--output_dir={tmp_path}"] + [
            flag for flag in SMALL if not flag.startswith(("--epochs", "--encoder"))]) == 0
    shown = [float(line.split()[4]) for line in capsys.readouterr().out.splitlines()
             if line.startswith("mean l2 loss")]
    rows = dict(zip(cells(read_json(output)["rows"]), read_json(output)["rows"]))
    for method, value in zip(("lasso", "vae-reg"), shown):
        assert rows["reconstr", method, 200, 0.1]["mean_l2_loss"] == pytest.approx(value, rel=1e-4)


def test_finished_run_again_recovers_nothing(finished, small_data, monkeypatch, capsys):
    output, _ = finished
    before = read_json(output)
    for program in ("recover", "make_batches"):
        monkeypatch.setattr(compressed_sensing, program, None)
    monkeypatch.setattr(train_vae, "main", None)
    assert run(output, f"--data_dir={small_data}", "--e2e_steps=20", "--encoder_start=True") == 0
    out = capsys.readouterr().out
    assert "trained already" in out and "0 results in" in out and "20 were there before" in out
    assert f"numbers: {output}/results.csv" in out and read_json(output) == before


def test_measurements_may_be_added(small_data, vae_dir, tmp_path):
    flags = [f"--data_dir={small_data}", f"--pretrained_model_dir={vae_dir}"]
    assert run(tmp_path, *flags, "--measurements", "20") == 0
    assert len(table(tmp_path)) == len(CELLS) - 6
    assert run(tmp_path, *flags, "--measurements", "200", "20") == 0
    assert_complete(tmp_path, CELLS)
    assert not os.path.exists(str(tmp_path / "models"))  # it used the given VAE


def test_without_data_it_draws_stand_in_digits(vae_dir, tmp_path, monkeypatch, capsys):
    original = make_standin_data.make_standin_data
    monkeypatch.setattr(make_standin_data, "make_standin_data", lambda folder, seed: original(
        folder, 1200, 300, seed=seed, workers=1))
    flags = ["--measurements", "20", f"--pretrained_model_dir={vae_dir}", "--seed=3"]
    assert run(tmp_path, *flags) == 0
    out = capsys.readouterr().out
    assert "stand-in digits (not MNIST)" in out and "recovery on stand-in digits" in out
    assert read_json(tmp_path)["data"] == "stand-in digits"
    folder = str(tmp_path / "standin-digits")
    assert data_input.load(folder, log=lambda _: None).name == "stand-in digits"
    monkeypatch.setattr(make_standin_data, "make_standin_data", None)
    assert run(tmp_path, *flags) == 0  # they are drawn once


# ---------------------------------------------------------------- going on


def test_killed_run_goes_on(small_data, vae_dir, tmp_path, capsys):
    """kill -9 after some cells; the next run recovers the others only, and all is there once."""
    flags = SMALL + MEASUREMENTS + [f"--output_dir={tmp_path}", f"--data_dir={small_data}",
                                    f"--pretrained_model_dir={vae_dir}"]
    process = subprocess.Popen([sys.executable, "-c", PROGRAM] + flags, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    metrics, limit = str(tmp_path / "metrics.jsonl"), time.time() + 100
    while time.time() < limit:
        time.sleep(0.05)
        if os.path.exists(metrics) and os.path.getsize(metrics) > 1500:  # about 5 rows
            break
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=20)
    with open(metrics) as file:
        done = file.readlines()
    assert 4 <= len(done) < len(CELLS)
    assert not os.path.exists(str(tmp_path / "result.json"))
    with open(metrics, "a") as file:
        file.write('{"experiment": "noi')  # a line cut by the kill
    before = [json.loads(line) for line in done if line.endswith("\n")]
    assert run(tmp_path, *flags) == 0
    out = capsys.readouterr().out
    assert_complete(tmp_path, CELLS)
    assert sorted(os.listdir(str(tmp_path / "figures"))) == sorted(FIGURES)
    for row, old in zip(read_json(tmp_path)["rows"], before):
        assert dict(row, step=old["step"]) == old
    assert f"{len(CELLS) - len(before)} results in" in out


def test_picture_comes_before_its_rows(small_data, vae_dir, tmp_path, monkeypatch):
    """A run cut in between redoes the cell; rows without their picture would stay without."""
    flags = [f"--data_dir={small_data}", f"--pretrained_model_dir={vae_dir}",
             "--measurements", "20"]

    def fails(*_):
        raise OSError("cut here")

    monkeypatch.setattr(reproduce.Experiments, "_record", fails)
    assert run(tmp_path, *flags) == 1
    assert os.listdir(str(tmp_path / "figures")) == ["mnist_reconstr_20_orig_lasso_vae.png"]
    assert not (tmp_path / "metrics.jsonl").read_text()


def test_interrupted_training_ends_the_run(small_data, tmp_path, monkeypatch):
    monkeypatch.setattr(train_vae, "main", lambda _: 143)
    assert run(tmp_path, f"--data_dir={small_data}") == 143
    assert not os.path.exists(str(tmp_path / "result.json"))


def test_interrupted_end_to_end_training_ends_the_run(small_data, vae_dir, tmp_path,
                                                      monkeypatch):
    monkeypatch.setattr(reproduce.train_e2e, "main", lambda _: 130)
    monkeypatch.setattr(reproduce, "measurement_sweep", lambda *_: None)
    monkeypatch.setattr(reproduce, "generator_range", lambda *_: None)
    monkeypatch.setattr(reproduce, "noise_sweep", lambda *_: None)
    monkeypatch.setattr(reproduce, "other_measurements", lambda *_: None)
    assert run(tmp_path, f"--data_dir={small_data}", f"--pretrained_model_dir={vae_dir}",
               "--e2e_steps=5") == 130
    assert not os.path.exists(str(tmp_path / "result.json"))


# ---------------------------------------------------------------- flags


def test_presets():
    paper = reproduce.parse_args(["--preset=paper"])
    assert (paper.epochs, paper.num_input_images, paper.batch_size, paper.max_update_iter,
            paper.learning_rate, paper.encoder_start, paper.e2e_steps,
            paper.num_random_restarts) == (100, 300, 50, 1000, 0.01, False, 50000, 10)
    assert paper.measurements == [10, 25, 50, 100, 200, 300, 400, 500, 750]
    own = reproduce.parse_args(["--preset=paper", "--epochs=7", "--e2e_steps=0",
                                "--encoder_start=True", "--learning_rate=0.5"])
    assert (own.epochs, own.e2e_steps, own.encoder_start, own.learning_rate,
            own.num_input_images) == (7, 0, True, 0.5, 300)
    fast = reproduce.parse_args([])
    assert (fast.epochs, fast.encoder_start, fast.max_update_iter) == (10, True, 300)


def test_flags_reach_the_programs(small_data, tmp_path, monkeypatch):
    """What training and recovery are given, of all that can be said."""
    given = ["--seed=5", "--threads=2", "--over_dump=True", "--data_dump_flag=True",
             "--data_dump_step=3", "--profiling=True"]
    seen = {}

    def train(argv):
        seen["train"] = argv
        return 0

    def recover(args, _):
        seen["recover"] = args
        raise OSError("enough")

    monkeypatch.setattr(train_vae, "main", train)
    monkeypatch.setattr(compressed_sensing, "recover", recover)
    assert run(tmp_path, *given, f"--data_dir={small_data}", "--precision_mode=force_fp32") == 1
    assert set(given) <= set(seen["train"]) and "--epochs=1" in seen["train"]
    args = seen["recover"]
    assert (args.seed, args.threads, args.over_dump, args.data_dump_flag, args.data_dump_step,
            args.profiling, args.precision_mode) == (5, 2, True, True, "3", True, "force_fp32")
    assert (args.num_input_images, args.batch_size, args.max_update_iter, args.learning_rate,
            args.num_random_restarts, args.encoder_start) == (4, 2, 3, 0.1, 2, False)


def test_modelarts_addresses(finished, small_data, tmp_path, capsys):
    """A finished run at --train_url is found there, with the data of --data_url."""
    shutil.copytree(str(finished[0]), str(tmp_path / "moved"))
    assert run("ignored", f"--data_url={small_data}", f"--train_url={tmp_path / 'moved'}",
               "--e2e_steps=20", "--encoder_start=True") == 0
    assert "0 results in" in capsys.readouterr().out and not os.path.exists("ignored")


def test_help_and_unknown_flag(run_program):
    shown = run_program("reproduce.py", "--help")
    assert shown.returncode == 0 and "paper: 100, 300, 50, 1000" in shown.stdout
    assert run_program("reproduce.py", "--no_such_flag").returncode == 2


@pytest.mark.parametrize("words, named", [
    (["--batch_size=5"], ["--batch_size=5", "--num_input_images=4"]),
    (["--num_input_images=301"], ["301", "300 test images"]),
    (["--data_dir=/nowhere"], ["/nowhere"]),
    (["--pretrained_model_dir=/nowhere"], ["/nowhere", "src/main.py"])], ids=lambda words: words[0])
def test_bad_input_leaves_the_output_folder_alone(small_data, tmp_path, capsys, words, named):
    output = tmp_path / "results"
    assert run(output, f"--data_dir={small_data}", *words) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert all(word in err for word in named)
    assert not os.path.exists(str(output))


@pytest.mark.parametrize("word", ["--learning_rate=-1", "--epochs=0", "--measurements=0",
                                  "--max_update_iter=0", "--e2e_steps=-1", "--preset=other",
                                  "--seed=-1", "--encoder_start=maybe", "--num_random_restarts=0"])
def test_value_out_of_range_is_refused_by_the_parser(word, capsys):
    with pytest.raises(SystemExit) as stop:
        reproduce.parse_args([word])
    assert stop.value.code == 2 and word[2:].split("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize("changed", ["--seed=2", "--max_update_iter=4", "--preset=paper",
                                     "--num_random_restarts=3"])
def test_finished_run_with_other_flags_is_refused(finished, small_data, capsys, changed):
    output, _ = finished
    before = read_json(output)
    assert run(output, f"--data_dir={small_data}", "--e2e_steps=20", "--encoder_start=True",
               changed) == 2
    assert changed[2:].split("=")[0] in capsys.readouterr().err and read_json(output) == before


def test_savings_compare_with_lasso():
    """On hand-made curves: the smallest m with an error no larger than Lasso's."""
    experiments = reproduce.Experiments.__new__(reproduce.Experiments)
    errors = {"lasso": {10: 0.1, 100: 0.09, 200: 0.05, 500: 0.005},
              "vae-reg": {10: 0.06, 100: 0.01, 200: 0.008, 500: 0.008},
              "vae-sparse": {10: 0.06, 100: 0.005, 200: 0.004, 500: 0.001}}
    experiments.rows = [
        {"experiment": "reconstr", "method": method, "measurements": m, "mean_l2_loss": error,
         "l2_bar": 0}
        for method in errors for m, error in errors[method].items()]
    assert reproduce.savings(experiments) == [
        (200, 0.05, "vae-reg", 100), (200, 0.05, "vae-sparse", 100),
        (500, 0.005, "vae-sparse", 100)]
