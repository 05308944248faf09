"""launch.py with small programs: what its processes are told, how they end, and what is refused."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parent / "launch.py"
TELLS = """
import os, sys
names = ("RANK_ID", "RANK_SIZE", "ASCEND_DEVICE_ID", "JOB_ID", "WORKER_HOSTS")
print(" ".join([os.environ[name] for name in names] + sys.argv[1:]))
"""
# Writes its number into the folder it is given, then ends as its flags say.
WAITS = """
import os, signal, sys, time
folder, kind, failing = sys.argv[1:4]
number = os.environ["RANK_ID"]
def stop(*_):
    open(os.path.join(folder, "signalled" + number), "w").close()
    time.sleep(0.5)
    sys.exit(143)
signal.signal(signal.SIGTERM, signal.SIG_IGN if kind == "deaf" else stop)
open(os.path.join(folder, number), "w").close()
if number == failing:
    while len([name for name in os.listdir(folder) if name.isdigit()]) < 3:
        time.sleep(0.05)
    sys.exit(7)
time.sleep(100)
"""


def command(program, *flags):
    return [sys.executable, str(LAUNCH)] + [str(flag) for flag in flags] + [str(program)]


@pytest.fixture
def program(tmp_path):
    def write(text):
        path = tmp_path / "program.py"
        path.write_text(text)
        return path
    return write


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "seen"
    made.mkdir()
    return made


def wait_for(folder, names):
    end = time.time() + 30
    while not set(names) <= set(os.listdir(str(folder))):
        assert time.time() < end
        time.sleep(0.05)


def run(*words, **environment):
    return subprocess.run(list(words), capture_output=True, text=True, timeout=60,
                          env=dict(os.environ, **environment))


def test_every_process_is_told_who_it_is(program, tmp_path):
    path = program(TELLS)
    done = run(*command(path, "--processes=3", f"--log_folder={tmp_path}"), "--flag=1", "--help")
    assert done.returncode == 0 and done.stderr == ""
    lines = [done.stdout] + [(tmp_path / f"train_{number}.log").read_text() for number in (1, 2)]
    hosts = {line.split()[4] for line in lines}
    assert len(hosts) == 1 and len(set(hosts.pop().split(","))) == 3
    for number, line in enumerate(lines):
        assert line.split()[:4] == [str(number), "3", str(number), "10087"]
        assert line.split()[5:] == ["--flag=1", "--help"]


def test_a_host_starts_its_part_of_a_job(program, tmp_path):
    done = run(*command(program(TELLS), "--processes=4", "--first=2", "--local=2",
                        f"--log_folder={tmp_path}"), WORKER_HOSTS="a:1,a:2,b:1,b:2", JOB_ID="5")
    assert done.returncode == 0 and done.stdout == ""
    assert sorted(path.name for path in tmp_path.glob("*.log")) == ["train_2.log", "train_3.log"]
    assert (tmp_path / "train_3.log").read_text().split() == ["3", "4", "1", "5", "a:1,a:2,b:1,b:2"]


@pytest.mark.parametrize("kind", ["hearing", "deaf"])
def test_one_that_fails_ends_the_job_with_its_code(kind, program, folder):
    done = run(*command(program(WAITS), "--processes=3", "--patience=1"), str(folder), kind, "1")
    assert done.returncode == 7
    signalled = {name for name in os.listdir(str(folder)) if name.startswith("signalled")}
    assert signalled == (set() if kind == "deaf" else {"signalled0", "signalled2"})


def test_the_end_of_a_failed_process_s_log_is_shown(program, tmp_path):
    path = program("import os, sys\nnumber = os.environ['RANK_ID']\n"
                   "sys.exit(f'error: no data on host {number}' if number == '1' else 0)\n")
    done = run(*command(path, "--processes=3", f"--log_folder={tmp_path}"))
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["process 1 of 3 ended with exit code 1:",
                                        "error: no data on host 1"]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells processes of this")
def test_a_launcher_that_is_killed_leaves_nobody(program, folder):
    job = subprocess.Popen(command(program(WAITS), "--processes=3") + [str(folder), "hearing", "-"])
    wait_for(folder, "012")
    job.kill()
    wait_for(folder, ["signalled0", "signalled1", "signalled2"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_reach_all_and_nobody_is_left(number, program, folder):
    text = WAITS.replace("signal.signal(signal.SIGTERM", f"signal.signal({int(number)}")
    job = subprocess.Popen(command(program(text), "--processes=3") + [str(folder), "hearing", "-"])
    wait_for(folder, "012")
    job.send_signal(number)
    assert job.wait(30) == 143
    wait_for(folder, ["signalled0", "signalled1", "signalled2"])


@pytest.mark.parametrize("flags, text", [
    (["--processes=0"], "has to run at least one"),
    (["--processes=2", "--first=2"], "at least one"),
    (["--processes=2", "--local=3"], "at least one"), ([], "--processes"),
    (["--processes=2", "--local=1"], "needs WORKER_HOSTS")])
def test_wrong_flags_are_refused(flags, text, program):
    environment = {"WORKER_HOSTS": "", "RANK_TABLE_FILE": ""}
    done = run(*command(program(TELLS), *flags), **environment)
    assert done.returncode == 2 and text in done.stderr
