"""tools/check_submission accepts every model directory and finds each fault put into a copy."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import importlib.machinery
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODELS = sorted(path.parent.name for path in ROOT.glob("*/requirements.txt"))
# What no fault is put into: neither copied nor read 25 times.
LEFT_OUT = shutil.ignore_patterns("__pycache__", "output", "results", "golden", "docs", ".*",
                                  "test_*.py", "fake_npu_bridge")


@pytest.fixture(scope="module")
def check():
    """The program as a module."""
    loader = importlib.machinery.SourceFileLoader("check_submission",
                                                  str(ROOT / "tools" / "check_submission"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


@pytest.fixture
def lifted(tmp_path):
    """A copy of a model directory, without most of its tests."""
    folder = tmp_path / "lifted out" / MODELS[0]
    shutil.copytree(str(ROOT / MODELS[0]), str(folder), ignore=LEFT_OUT)
    return folder


@pytest.mark.parametrize("model", MODELS)
def test_every_model_can_be_submitted(check, model, capsys):
    assert check.main([model]) == 0
    assert capsys.readouterr().out == f"{model}: complete\n"


def test_a_copy_without_fault_is_complete(check, lifted, capsys):
    assert check.main([str(lifted)]) == 0
    assert capsys.readouterr().out == f"{lifted.name}: complete\n"


def test_all_models_are_the_default(check, capsys, monkeypatch):
    monkeypatch.setattr(check, "problems_of", lambda _: [])  # the test above looks for them
    assert check.main([]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{model}: complete" for model in MODELS]


def test_unknown_directory(check, capsys):
    assert check.main(["NoSuchModel"]) == 2
    assert "NoSuchModel" in capsys.readouterr().err


def test_help(check, capsys):
    with pytest.raises(SystemExit) as ended:
        check.main(["--help"])
    assert ended.value.code == 0 and "MODEL" in capsys.readouterr().out


def test_a_closed_pipe_ends_it_quietly():
    """As in `tools/check_submission | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        process = subprocess.run([sys.executable, str(ROOT / "tools" / "check_submission"),
                                  MODELS[0]], stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert process.stderr == b""
    assert process.returncode == -signal.SIGPIPE


def replace(name, old, new):
    """A fault: the first `old` in a file becomes `new`."""
    def act(folder):
        content = (folder / name).read_bytes()
        assert old in content, f"{name} does not contain {old}"
        (folder / name).write_bytes(content.replace(old, new, 1))
    return act


def write(name, content):
    """A fault: a file is there that should not."""
    return lambda folder: (folder / name).write_bytes(content)


def link(folder):
    """A fault: a link in place of a file."""
    (folder / "LICENSE").unlink()
    (folder / "LICENSE").symlink_to(folder / "README.md")


FAULTS = [
    (lambda folder: (folder / "LICENSE").unlink(), "LICENSE is missing"),
    (lambda folder: (folder / "test/train_full_1p.sh").unlink(), "train_full_1p.sh is missing"),
    (replace("README.md", "## 快速上手".encode(), b"## Quick start"), "has the headings"),
    (replace("README.md", "### 训练过程".encode(), b"### Run"), "lacks the heading ### 训练"),
    (replace("README.md", "**处理器".encode(), b"**"), "lacks the line **处理器"),
    (replace("modelzoo_level.txt", b"FuncStatus:NOK", b"FuncStatus:GOOD"), "FuncStatus is GOOD"),
    (replace("modelzoo_level.txt", b"FuncStatus:NOK", b"FuncStatus: NOK"), "is not Key:Value"),
    (replace("modelzoo_level.txt", b"AutoTune:NOK\n", b""), "lacks AutoTune"),
    (replace("modelzoo_level.txt", b"AutoTune:NOK", b"Tune:NOK"), "unknown key Tune"),
    (replace("requirements.txt", b"tqdm", b"Python 3.7"), "pip cannot read"),
    (replace("requirements.txt", b"tqdm", b"scikit-image"), "scikit-image is not one of"),
    (replace("test/train_1p.sh", b"    --help | -h)", b"    --usage)"), "--help exits with 2"),
    (replace("test/train_1p.sh", b"--over_dump=True|False, ", b""), "does not know --over_dump"),
    (write("test/train_full_8p.sh", b"exit 3\n"), "train_full_8p.sh --help exits with 3"),
    (replace("test/job.sh", b"_for_TensorFlow", b""), "does not end in _for_TensorFlow"),
    (link, "LICENSE is a link"),
    (write("model.ckpt.index", b"0"), "model.ckpt.index does not belong"),
    (write("large.bin", bytes(3 * 10 ** 6)), "large.bin has 3.0 MB"),
    (write("notes.txt", b"a\r\nb\r\n"), "Windows line ends"),
    (write("notes.txt", b"\xff\xfe"), "notes.txt is not UTF-8"),
    (write("notes.txt", b"see " + b"/ho" + b"me/somebody/data"), "notes.txt:1 names a path"),
    (write("notes.txt", b"see http" + b"s://example.org/data.zip"), "notes.txt:1 names an address"),
    (write("more.py", b"X = 1\n"), "more.py has no licence line"),
    (write("more.py", b"# Apache License\nexit(1)\n"), "more.py:2 calls exit()"),
    (write("more.py", b"# Apache License\nif:\n"), "more.py is not Python"),
]


@pytest.mark.parametrize("fault, sentence", FAULTS, ids=[sentence for _, sentence in FAULTS])
def test_fault_is_found(check, lifted, fault, sentence, capsys):
    fault(lifted)
    assert check.main([str(lifted)]) == 1
    problems = capsys.readouterr().out.splitlines()
    assert all(problem.startswith(f"{lifted.name}: ") for problem in problems)
    assert any(sentence in problem for problem in problems), problems


def test_large_folders_are_found(check, lifted):
    for number in range(12):
        (lifted / f"part{number}.bin").write_bytes(bytes(19 * 10 ** 5))
    assert any(problem.startswith("all files: ") for problem in check.problems_of(lifted))
