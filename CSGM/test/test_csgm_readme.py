"""The two READMEs say the same, list every flag that exists, and their commands run."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import contextlib
import gc
import importlib
import io
import os
import re
import shutil
import subprocess
import sys

import pytest

import npu_session

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
READMES = ("README.md", "README.en.md")
PROGRAMS = ("main.py", "compressed_sensing.py", "reproduce.py", "train_e2e.py", "export.py",
            "bench.py", "make_standin_data.py")
# Flags that make a README's command small; the last of two equal flags counts.
SMALL = {
    "main.py": "--num_samples=200 --epochs=1 --log_every=1",
    "compressed_sensing.py": "--max-update-iter=5 --num-random-restarts=2",
    "reproduce.py": "--data_dir=./MNISTS-data --epochs=1 --num_input_images=2 --batch_size=2 "
                    "--max_update_iter=5 --num_random_restarts=1 --measurements 10 50",
    "train_e2e.py": "--max_steps=20 --save_every=20",
    "export.py": "", "make_standin_data.py": "--train_count=600 --test_count=100 --workers=1",
    "bench.py": "--repeats=1 --steps=5 --updates=2 --batch_size=20",
    "train_performance_1p.sh": "--train_steps=4", "train_full_8p.sh": "--train_steps=4",
    "launch.py": "--max_steps=4 --batch_size=20 --output_dir=results/launched",
}
DEVICES = {"RANK_SIZE": "2"}  # in place of eight


def read(name):
    with open(os.path.join(ROOT, name), encoding="utf-8") as file:
        return file.read()


def commands(name):
    """Lines of the README's bash blocks, in order."""
    blocks = re.findall(r"```bash\n(.*?)```", read(name), re.S)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def flag_tables(name):
    """{program or 'common': flags of its table} under the README's headings `src/<program>`."""
    tables = {}
    for title, body in re.findall(r"\*\*`([\w./]+)`\*\*[^\n]*\n\n(.*?)(?=\n\*\*`|\n#)", read(name),
                                  re.S):
        tables[title] = re.findall(r"^\| `(--\w+)` \|", body, re.M)
    return tables


def numbers(name):
    """All decimal fractions in a README's tables, sorted: its measured values and defaults."""
    rows = re.findall(r"^\|.*\|$", read(name), re.M)
    return sorted(number for row in rows for number in re.findall(r"\.\d{2,}", row))


def help_of(program):
    """What a program's --help prints, on wide lines."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(program[:-3]).parse_args(["--help"])
        assert ended.value.code == 0
    return out.getvalue()


@pytest.fixture(scope="module")
def helps():
    """{program: flags of its --help}."""
    return {program: set(re.findall(r"^  (--\w+)", help_of(program), re.M))
            for program in PROGRAMS}


@pytest.mark.parametrize("name", READMES)
def test_readme_lists_every_flag_once(name, helps):
    tables = flag_tables(name)
    common = set(tables.pop("npu_session.py"))
    assert sorted(tables) == sorted("src/" + program for program in PROGRAMS)
    for program, flags in helps.items():
        own = tables["src/" + program]
        assert len(own) == len(set(own))
        assert set(own) == flags - (common - set(own)), program
    trained = helps["main.py"]
    assert common == trained & helps["train_e2e.py"] & helps["reproduce.py"] - set(
        tables["src/main.py"])


def test_readmes_agree():
    assert commands("README.md") and sorted(commands("README.md")) == sorted(
        commands("README.en.md"))
    assert flag_tables("README.md") == flag_tables("README.en.md")
    assert numbers("README.md") == numbers("README.en.md")
    assert "{{" not in read("README.md") + read("README.en.md")


def test_pictures_exist():
    for name in READMES:
        for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", read(name)):
            assert os.path.getsize(os.path.join(ROOT, path)) < 300e3


def test_modelzoo_headings_are_there():
    for heading in ("基本信息", "概述", "训练环境准备", "快速上手", "迁移学习指导", "高级参考"):
        assert f"\n## {heading}\n" in read("README.md")


def run_command(line, work):
    """Runs a README's command, shrunk, in the folder `work`; returns its exit code.

    The programs of src/ run in this process: starting TensorFlow takes longer than they do.
    """
    words = line.split()
    folder, program = os.path.split(words[1])
    flags = words[2:] + SMALL[program].split()
    if folder != "src":
        interpreter = sys.executable if words[0] == "python3" else words[0]
        devices = DEVICES if "8p" in program else {}
        return subprocess.run([interpreter, words[1]] + flags, cwd=work, timeout=300, check=False,
                              env=dict(os.environ, PYTHON=sys.executable, **devices)).returncode
    gc.collect()  # an earlier run's lock goes with its RunFolder
    return npu_session.run_main(importlib.import_module(program[:-3]).main, flags)


def test_commands_run(small_data, tmp_path, monkeypatch):
    """Every command of the README, shrunk, in its order, in a copy of this folder."""
    work = str(tmp_path / "CSGM")
    shutil.copytree(ROOT, work, ignore=shutil.ignore_patterns(
        "golden", "__pycache__", "models", "samples", "output", "docs", "results", "runs"))
    shutil.copytree(small_data, os.path.join(work, "MNISTS-data"))
    monkeypatch.chdir(work)
    todo = [line for line in commands("README.en.md")
            if line.split()[0] != "pip" and "pytest" not in line]
    for line in todo:
        assert run_command(line, work) == 0, line
    assert len(todo) >= 12
