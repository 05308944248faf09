"""What the ModelZoo and ModelArts scripts of every model must do, with a stub for Python.

The stub writes down its arguments and environment and prints log lines of the trainer's shapes, so
these tests take no training. The scripts are copied into a folder with a blank in its name.
test_<model>_shell.py says what its model's job.sh must make of them: a fixture `job`, a Job.
The master is tools/shell_contract.py; tools/sync copies it byte for byte into each test/ folder.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import contextlib
import importlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SCRIPTS = ["train_full_1p.sh", "train_performance_1p.sh"]
ENTRIES = ["modelarts_entry_acc.py", "modelarts_entry_perf.py"]  # in the order of SCRIPTS
COMMON_FLAGS = ["data_path", "output_path", "resume", "seed", "precision_mode", "over_dump",
                "data_dump_flag", "data_dump_step", "profiling"]
STUB = r"""#!/bin/bash
printf '%s\n' "$@" >"$STUB_FOLDER/arguments"
printf '%s\n' "$ASCEND_DEVICE_ID" "$RANK_SIZE" "$RANK_ID" "$JOB_ID" >"$STUB_FOLDER/environment"
case $STUB_MODE in
  good) cat "$STUB_FOLDER/lines" ;;
  bad)
    for ((i = 1; i <= 30; i++)); do echo "line $i before the crash"; done
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

# program: path in the model's folder. case: middle of the case name, bs<batch>. lines: a good log.
# keys: {script: {key: text or number}} after CaseName, in order. losses: those of the log.
# console: what follows "Final result" but the duration. flags: {script: flags the program gets
# without any of the user's, with {data} and {output}}. passed_on: {flag of the script: flag of the
# program}. needs_data: whether --data_path is required. run_marker: a file that is in run folders.
# reported_batch: BatchSize in the key file, if it is not that of the case name.
Job = collections.namedtuple("Job", "network program batch_size lines keys losses console flags "
                                    "passed_on needs_data run_marker reported_batch",
                             defaults=[None])


@contextlib.contextmanager
def interrupts():
    """Within it SIGINT is not ignored here, so that it isn't in what is started.

    A script can't trap what its caller ignores, and shells' background jobs ignore it.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Bench:
    """A copy of the scripts beside a stub trainer; `run` starts one of them and waits."""

    def __init__(self, folder, job):
        self.job = job
        self.model = folder / "a model"
        self.data = folder / "the data"
        self.data.mkdir()
        (self.model / "test").mkdir(parents=True)
        for script in HERE.glob("*.sh"):
            shutil.copy(str(script), str(self.model / "test"))
        stub = folder / "stub python"
        stub.write_text(STUB)
        stub.chmod(0o755)
        self.folder = folder
        self.log_is(job.lines)
        self.environment = dict(os.environ, PYTHON=str(stub), STUB_FOLDER=str(folder),
                                STUB_MODE="good")
        for name in ("ASCEND_DEVICE_ID", "RANK_SIZE", "RANK_ID", "JOB_ID"):
            self.environment.pop(name, None)

    def log_is(self, lines):
        (self.folder / "lines").write_bytes(lines.encode())

    def start(self, script, *flags, mode="good", cwd=None, **environment):
        with interrupts():
            return subprocess.Popen(
                ["bash", str(self.model / "test" / script)] + list(flags),
                cwd=str(cwd or self.folder),
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

    def case(self, script=SCRIPTS[0], batch_size=None):
        kind = "perf" if "performance" in script else "acc"
        return f"{self.job.network}_bs{batch_size or self.job.batch_size}_1p_{kind}"

    def keys(self, case=None, device="0"):
        text = (self.output(device) / ((case or self.case()) + ".log")).read_text()
        return dict(line.split(" = ") for line in text.splitlines())


@pytest.fixture
def bench(tmp_path, job):
    return Bench(tmp_path, job)


@pytest.fixture(scope="module")
def finished_runs():
    """Empty; holds what `finished` returns from its first use on."""
    return []


@pytest.fixture
def finished(job, finished_runs, tmp_path_factory):
    """Bench on which both scripts succeeded, one after the other, without optional flags.

    Its `runs`: {script: finished process, also with its `arguments` and `environment`}. Tests that
    only look at results share it: do not change it.
    """
    if not finished_runs:
        bench = Bench(tmp_path_factory.mktemp("finished"), job)
        bench.runs = {}
        for script in SCRIPTS:
            bench.runs[script] = process = bench.train(script)
            assert process.returncode == 0, process.err
            process.arguments = bench.arguments()
            process.environment = (bench.folder / "environment").read_text().split()
        finished_runs.append(bench)
    return finished_runs[0]


def wait_for(path):
    for _ in range(200):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


def files_with_results(folder):
    return sorted(path.name for path in folder.rglob("*.log")
                  if "ActualFPS" in path.read_text())


@pytest.mark.parametrize("script", SCRIPTS + ["train_1p.sh"])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_exits_0_and_names_every_flag(bench, script, flag):
    process = bench.run(script, flag)
    assert process.returncode == 0
    assert not process.err
    for name in COMMON_FLAGS + [flag.split("=")[0].lstrip("-") for flag in bench.job.passed_on]:
        assert "--" + name in process.out
    assert not bench.output().exists()


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("flags", [["--colour=red"], ["--data_path"], ["stray"], ["--seed"]])
def test_unknown_flag_is_refused(bench, script, flags):
    process = bench.train(script, *flags)
    assert process.returncode == 2
    assert flags[0] in process.err
    assert not (bench.folder / "arguments").exists()


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("flags", [[], ["--data_path="], ["--seed=1"]])
def test_missing_data_path_is_refused_where_data_are_needed(bench, script, flags):
    process = bench.run(script, *flags)
    assert process.returncode == (1 if bench.job.needs_data else 0)
    assert ('[Error] para "data_path" must be config' in process.err) == bench.job.needs_data
    assert (bench.folder / "arguments").exists() != bench.job.needs_data


@pytest.mark.parametrize("script", SCRIPTS)
def test_key_file(finished, job, script):
    case = finished.case(script)
    keys = finished.keys(case)
    assert list(keys) == (["Network", "RankSize", "BatchSize", "DeviceType", "CaseName"]
                          + list(job.keys[script]) + ["E2ETrainingTime"])
    assert keys["Network"] == job.network
    assert keys["RankSize"] == "1"
    assert keys["BatchSize"] == str(job.reported_batch or job.batch_size)
    assert keys["DeviceType"] == platform.machine()
    assert keys["CaseName"] == case
    assert int(keys["E2ETrainingTime"]) >= 0
    for key, value in job.keys[script].items():
        found = keys[key] if isinstance(value, str) else float(keys[key])
        assert found == (value if isinstance(value, str) else pytest.approx(value, abs=1e-6)), key


def test_losses_and_log_are_kept(finished, job):
    losses = (finished.output() / f"train_{finished.case()}_loss.txt").read_text().split()
    assert [float(loss) for loss in losses] == job.losses
    kept = (finished.output() / "train_0.log").read_bytes()
    assert kept.decode() == job.lines
    assert not list(finished.output().glob("*.part"))


def test_standard_output_ends_with_the_results(finished, job):
    out = finished.runs[SCRIPTS[0]].out
    results = out[out.index("------------------ Final result ------------------"):].splitlines()
    assert [line for line in results[1:] if "Duration" not in line] == job.console


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_flags_only_the_necessary_is_passed_on(finished, job, script):
    program, *flags = finished.runs[script].arguments
    assert Path(program) == finished.model / job.program
    assert flags == [flag.format(data=finished.data, output=finished.output())
                     for flag in job.flags[script]]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_reaches_the_program(bench, script):
    flags = ["--output_path=/a b/c", "--resume=True", "--seed=5", "--precision_mode=force_fp32",
             "--over_dump=True", "--data_dump_flag=True", "--data_dump_step=0|5|8-10",
             "--profiling=True"]
    assert bench.train(script, *flags, *bench.job.passed_on).returncode == 0
    arguments = bench.arguments()
    for flag in flags[1:] + list(bench.job.passed_on.values()):
        assert arguments.count(flag) == 1, flag
    assert any("/a b/c" in argument for argument in arguments)


@pytest.mark.parametrize("where", ["/", "test", "elsewhere"])
def test_runs_from_any_directory(bench, where):
    (bench.folder / "elsewhere").mkdir()
    cwd = {"/": Path("/"), "test": bench.model / "test",
           "elsewhere": bench.folder / "elsewhere"}[where]
    assert bench.train(cwd=cwd).returncode == 0
    assert bench.keys()
    assert not list((bench.folder / "elsewhere").iterdir())


def test_relative_paths_work(bench):
    process = subprocess.run(
        ["bash", "test/train_full_1p.sh", "--data_path=../the data"], cwd=str(bench.model),
        env=bench.environment)
    assert process.returncode == 0
    assert bench.keys()


@pytest.mark.parametrize("script", SCRIPTS)
def test_device_defaults_to_0(finished, script):
    assert finished.runs[script].environment == ["0", "1", "0", "10087"]
    assert finished.keys(finished.case(script), device="0")


def test_device_from_the_environment_names_log_and_folder(bench):
    assert bench.train(ASCEND_DEVICE_ID="3", JOB_ID="99").returncode == 0
    assert (bench.folder / "environment").read_text().split() == ["3", "1", "0", "99"]
    assert bench.keys(device="3")
    assert (bench.output("3") / "train_3.log").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_crash_keeps_its_code_and_writes_no_results(bench, script):
    process = bench.train(script, mode="bad")
    assert process.returncode == 7
    assert sum(line.startswith("line ") for line in process.err.splitlines()) == 20
    assert "Final" not in process.out
    assert not files_with_results(bench.output())
    assert not list(bench.output().glob("*_loss.txt"))


def test_missing_interpreter_fails_without_results(bench):
    assert bench.train(PYTHON=str(bench.folder / "no such python")).returncode == 127
    assert not files_with_results(bench.output())


@pytest.mark.parametrize("lines", ["", "nothing of use\n"])
def test_log_without_results_is_a_failure(bench, lines):
    bench.log_is(lines)
    process = bench.train()
    assert process.returncode == 1
    assert "there are no results" in process.err
    assert not files_with_results(bench.output())
    assert not list(bench.output().glob("*_loss.txt"))


def test_results_of_an_earlier_run_do_not_pass_for_those_of_a_failed_one(bench):
    assert bench.train().returncode == 0
    (bench.output() / "notes.txt").write_text("mine")
    before = (bench.output() / (bench.case() + ".log")).read_text()
    assert bench.train(mode="bad").returncode == 7
    assert not files_with_results(bench.output())
    assert (bench.output() / (bench.case() + ".log.previous")).read_text() == before
    assert (bench.output() / "notes.txt").read_text() == "mine"


def test_results_of_the_other_script_survive(finished):
    assert files_with_results(finished.output()) == sorted(finished.case(script) + ".log"
                                                           for script in SCRIPTS)


@pytest.mark.parametrize("flags, name", [
    ([], "run_3"), (["--resume=False"], "run_3"), (["--resume"], "run_2"),
    (["--resume=True"], "run_2"), (["--resume=auto"], "run_2")])
def test_a_new_run_gets_its_own_folder_and_resume_the_newest(bench, flags, name):
    for folder in (bench.output(), bench.output() / "run_2"):
        marker = folder / bench.job.run_marker
        marker.parent.mkdir(parents=True)
        marker.write_text("{}")
    assert bench.train(SCRIPTS[0], *flags).returncode == 0
    assert any(str(bench.output() / name) in argument for argument in bench.arguments())


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


# ---------------------------------------------------------------- ModelArts


class Moxing:
    """moxing.file over a local folder in place of obs://bucket."""

    def __init__(self, bucket):
        self.bucket = bucket

    def _local(self, address):
        return Path(address.replace("obs://bucket", str(self.bucket)))

    def exists(self, address):
        return self._local(address).exists()

    def copy_parallel(self, source, target):
        source, target = self._local(source), self._local(target)
        for path in source.rglob("*"):
            if path.is_file():
                place = target / path.relative_to(source)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(path), str(place))


@pytest.fixture
def enter(bench, monkeypatch, capfd):
    """Function (entry, *flags, mode) -> (exit code, standard output and error) of a start file."""
    def run(entry, *flags, mode="good"):
        monkeypatch.syspath_prepend(str(HERE.parent))
        module = importlib.import_module(entry[:-3])
        monkeypatch.setattr(sys.modules["modelarts_entry_acc"], "HERE", str(bench.model))
        for name, value in dict(bench.environment, STUB_MODE=mode).items():
            monkeypatch.setenv(name, value)
        for name in ("ASCEND_DEVICE_ID", "RANK_SIZE", "RANK_ID", "JOB_ID"):
            monkeypatch.delenv(name, raising=False)
        code = module.npu_session.run_main(module.main, list(flags))
        return code, "".join(capfd.readouterr())

    plain = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    path = list(sys.path)
    yield run
    sys.path[:] = path
    for number, handler in plain.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("entry, script", list(zip(ENTRIES, SCRIPTS)))
def test_modelarts_entry_runs_its_script_on_its_folders(bench, enter, entry, script):
    results = bench.folder / "the results"
    code, printed = enter(entry, f"--data_url={bench.data}", f"--train_url={results}", "--seed=5",
                          "--num_gpus=1", "--no_such_flag=2")
    assert code == 0, printed
    for flag in ("--num_gpus=1", "--no_such_flag=2"):
        assert f"[CANN-Modelzoo] {flag} is not a flag of {script}: passed over" in printed
    arguments = bench.arguments()
    assert "--seed=5" in arguments and "--resume=auto" in arguments
    assert not any("num_gpus" in argument for argument in arguments)
    assert any(str(results) in argument for argument in arguments)
    assert any(str(bench.data) in argument for argument in arguments) == bench.job.needs_data
    key_file = results / "modelzoo" / (bench.case(script) + ".log")
    assert key_file.read_text() == (bench.output() / key_file.name).read_text()


def test_modelarts_entry_keeps_the_exit_code_and_the_log(bench, enter):
    results = bench.folder / "results"
    code, printed = enter(ENTRIES[0], f"--data_url={bench.data}", f"--train_url={results}",
                          mode="bad")
    assert code == 7 and "ended with exit code 7" in printed
    assert "line 30" in (results / "modelzoo" / "train_0.log").read_text()
    assert not files_with_results(results)


def test_modelarts_entry_copies_from_and_to_the_bucket(bench, enter, monkeypatch):
    (bench.folder / "bucket" / "data").mkdir(parents=True)
    (bench.folder / "bucket" / "data" / "one").write_text("1")
    addresses = ["--data_url=obs://bucket/data", "--train_url=obs://bucket/job"]
    monkeypatch.setitem(sys.modules, "moxing", None)  # not installed
    code, printed = enter(ENTRIES[0], *addresses)
    assert code == 2 and "needs the package moxing" in printed
    assert not (bench.folder / "arguments").exists()
    monkeypatch.setitem(sys.modules, "moxing",
                        types.SimpleNamespace(file=Moxing(bench.folder / "bucket")))
    assert enter(ENTRIES[0], *addresses)[0] == 0
    assert bench.arguments()
    assert (bench.folder / "bucket" / "job" / "modelzoo" / (bench.case() + ".log")).exists()
