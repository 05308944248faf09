"""All targets x methods x seeds in one command: cells, resume, table, picture, refusals."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import csv
import os

import pytest

import npu_session
import reproduce
from training_runs import FEW, data_flags, narrow_network, read, signal_at, undrawn

SMALL = ["--targets", "photo", "sketch", "--methods", "masf-EL", "--seeds", "0", "--warm_up=1"]
FORWARDED = ["--meta_batch_size=3", "--train_iterations=1", "--test_print_interval=1",
             "--test_batch_size=7", FEW, "--threads=1", "--weights_path=random",
             "--save_best=False"]


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """All tests of this file train a narrow network."""
    narrow_network(monkeypatch)


def run(output, *flags):
    """Exit code of the program; of its pictures only the comparison is drawn."""
    with undrawn("comparison.png"):
        return npu_session.run_main(reproduce.main, [f"--output_dir={output}"] + list(flags))


@pytest.fixture(scope="module")
def finished(small_data, tmp_path_factory):
    """Output folder of a finished run of four cells; do not change it."""
    output = str(tmp_path_factory.mktemp("reproduce"))
    with pytest.MonkeyPatch.context() as patch:
        narrow_network(patch)
        assert run(output, *SMALL, *data_flags(small_data), *FORWARDED) == 0
    return output


def rows(output):
    """results.csv."""
    with open(os.path.join(output, "results.csv"), newline="") as file:
        return list(csv.DictReader(file))


def test_every_cell_is_a_row_of_its_trainings_result(finished):
    """All methods start from the weights of the warm-up, which is a row of its own."""
    found = {(row["method"], row["target"], row["seed"]): row for row in rows(finished)}
    assert set(found) == {(method, target, "0") for method in ("start", "masf-EL")
                          for target in ("photo", "sketch")}
    for (method, target, seed), row in found.items():
        place = os.path.join(finished, {"start": "warm_up"}.get(method, "runs"), "seed" + seed)
        name, = [name for name in os.listdir(place)
                 if name.startswith(f"{method.replace('start', 'deepall')}_{target}.")]
        result = read(os.path.join(place, name), "result.json")
        assert name.startswith(result["method"]) and result["target_domain"] == target
        assert result["seed"] == (reproduce.WARM_UP_SEEDS if method == "start" else 0)
        for rule in reproduce.RULES:
            assert float(row[rule]) == result["selection"][rule]["target_accuracy"]
        assert row["data"] == "stand-in for PACS"
        assert row["weights"] == ("random start" if method == "start" else
                                  f"{name.replace('masf-EL', 'deepall')}/checkpoints")
        assert not os.path.exists(os.path.join(place, name, "checkpoints"))
    assert 5000 < os.path.getsize(os.path.join(finished, "comparison.png")) < 300000
    tables = read(finished, "result.json")["tables"]
    assert tables["last"]["masf-EL"][1] == [float(found["masf-EL", "sketch", "0"]["last"])]


def test_finished_run_again_trains_nothing(finished, small_data, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "run_cell", None)
    before = rows(finished)
    assert run(finished, *SMALL, *data_flags(small_data), *FORWARDED) == 0
    out = capsys.readouterr().out
    assert rows(finished) == before and "cell" not in out
    assert "\nstart " in out and "masf-EL" in out and "comparison.png" in out
    assert "stand-in for PACS, 1 iterations of warm-up, then 1 iterations from random start" in out


def test_a_cut_run_goes_on_with_the_cell_it_was_in(small_data, tmp_path, monkeypatch):
    """A signal in the second cell: exit code 143; the first cell is not trained again."""
    flags = ["--targets", "photo", "--seeds", "0", "--methods", "deepall", "masf-G",
             *data_flags(small_data), *FORWARDED, "--train_iterations=2"]
    plain, trained = reproduce.run_cell, []

    def run_cell(args, further, method, target, seed):
        trained.append(method)
        return plain(args, further, method, target, seed)

    with monkeypatch.context() as patch:
        patch.setattr(reproduce, "run_cell", run_cell)
        with patch.context() as inner:
            def stop_second(args, further, method, target, seed):
                if method == "masf-G":
                    signal_at(inner, 1, 15)
                return run_cell(args, further, method, target, seed)
            inner.setattr(reproduce, "run_cell", stop_second)
            assert run(tmp_path, *flags) == 143
        assert not os.path.exists(str(tmp_path / "results.csv"))
        assert run(tmp_path, *flags) == 0
    assert trained == ["deepall", "masf-G", "masf-G"]
    assert [row["iterations"] for row in rows(str(tmp_path))] == ["2", "2"]


def test_table_has_means_and_deviations_over_seeds():
    args, _ = reproduce.parse_args(["--targets", "photo", "sketch", "--methods", "deepall", "masf",
                                    "--seeds", "1", "2"])
    done = [{"method": "deepall", "target": target, "seed": seed, "last": value}
            for (target, seed), value in {("photo", 1): 0.5, ("photo", 2): 0.7, ("sketch", 1): 0.3,
                                          ("sketch", 2): 0.3}.items()]
    done.append({"method": "masf", "target": "photo", "seed": 1, "last": 0.9})  # not all cells
    found = reproduce.table(args, done, "last")
    assert found == {"deepall": [[0.5, 0.7], [0.3, 0.3]]}
    line = reproduce.lines(args, found)[1].split()
    assert line[0] == "DeepAll"
    assert " ".join(line[1:]) == "60.00+-14.14 30.00+- 0.00 45.00+- 7.07"


@pytest.mark.parametrize("flag, text", [
    ("--target_domain=photo", "--targets"), ("--method=masf", "--methods"), ("--seed=3", "--seeds"),
    ("--episodic=False", "--methods"), ("--meta_batch_size=4", "multiple of 3")])
def test_flags_that_cannot_be_forwarded_are_refused_before_training(flag, text, small_data,
                                                                   tmp_path, capsys):
    assert run(tmp_path / "out", *SMALL, *data_flags(small_data), *FORWARDED, flag) == 2
    assert text in capsys.readouterr().err
    assert not os.path.exists(str(tmp_path / "out"))


def test_help_and_an_unknown_flag(run_program):
    code, out, _ = run_program("reproduce.py", "--help")
    assert code == 0 and "--targets" in out
    code, _, err = run_program("reproduce.py", "--unknown=1")
    assert code == 2 and "--unknown" in err
