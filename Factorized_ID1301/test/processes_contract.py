"""What every model that trains in several processes must do: its scripts, and a way to start a job.

test_<model>_processes.py imports it, gives the fixtures `job` (of its shell tests) and
`batch_of_eight` (BatchSize of the scripts for eight devices), and compares a job of its program
with one process. The master is tools/processes_contract.py; tools/sync copies it byte for byte.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import subprocess
import sys

import pytest

from shell_contract import HERE, SCRIPTS, bench, files_with_results  # noqa: F401 (a fixture)

EIGHT = [script.replace("_1p", "_8p") for script in SCRIPTS]


def launch(folder, program, *flags, processes=2):
    """Runs a program as a job that must succeed; returns its standard output.

    folder: receives the logs of all processes but the first.
    """
    command = [sys.executable, str(HERE / "launch.py"), f"--processes={processes}",
               f"--log_folder={folder}", str(program)] + [str(flag) for flag in flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600,
                          env=dict(os.environ, OMP_NUM_THREADS="1"), check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_alike(ours, theirs, rel, tolerance=0, but=()):
    """Records of two metrics.jsonl agree, as far as float32's rounding lets them.

    rel, tolerance: relative and absolute. but: names of numbers that may differ.
    """
    assert [record["step"] for record in ours] == [record["step"] for record in theirs]
    for one, other in zip(ours, theirs):
        assert sorted(one) == sorted(other)
        for name in set(one) - set(but):
            assert one[name] == pytest.approx(other[name], rel=rel, abs=tolerance), name


@pytest.mark.parametrize("script", EIGHT)
def test_eight_processes_are_launched(bench, job, batch_of_eight, script):  # noqa: F811
    process = bench.train(script)
    assert process.returncode == 0, process.err
    launcher, *words = bench.arguments()
    assert launcher == str(bench.model / "test" / "launch.py")
    assert words[:3] == ["--processes=8", "--first=0", f"--log_folder={bench.output()}"]
    assert words[3] == str(bench.model / job.program)
    batch = f"batch_size={job.batch_size}"
    assert words[4:] == [
        flag.format(data=bench.data, output=bench.output()).replace(
            batch, f"batch_size={batch_of_eight}")
        for flag in job.flags[script.replace("_8p", "_1p")]]
    kind = "perf" if "performance" in script else "acc"
    keys = bench.keys(f"{job.network}_bs{batch_of_eight}_8p_{kind}")
    assert keys["RankSize"] == "8" and keys["BatchSize"] == str(batch_of_eight)


def test_a_host_runs_its_part_and_leaves_the_results_to_the_first(bench):  # noqa: F811
    process = bench.train(EIGHT[0], RANK_SIZE="16", RANK_ID_START="8", LOCAL_RANK_SIZE="8")
    assert process.returncode == 0, process.err
    assert "process 0, on another host, writes the results" in process.out
    assert bench.arguments()[1:5] == [
        "--processes=16", "--first=8", f"--log_folder={bench.output()}", "--local=8"]
    assert not files_with_results(bench.output())


@pytest.mark.parametrize("name", ["RANK_SIZE", "RANK_ID_START", "LOCAL_RANK_SIZE"])
def test_numbers_of_processes_that_are_none_are_refused(bench, name):  # noqa: F811
    process = bench.train(EIGHT[0], **{name: "eight"})
    assert process.returncode == 2 and f"{name}=eight" in process.err
    assert not (bench.folder / "arguments").exists()


@pytest.mark.parametrize("script", EIGHT)
def test_help_names_what_a_job_of_several_needs(bench, script):  # noqa: F811
    process = bench.run(script, "--help")
    assert process.returncode == 0 and not process.err
    for name in ("RANK_SIZE", "RANK_ID_START", "LOCAL_RANK_SIZE", "RANK_TABLE_FILE",
                 "WORKER_HOSTS", "WORKER_PATIENCE", "--batch_size is of all processes together"):
        assert name in process.out
    alone = bench.run(script.replace("_8p", "_1p"), "--help")
    assert "WORKER_HOSTS" not in alone.out
