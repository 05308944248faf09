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

import adagan_gmm
import npu_session
import reproduce
from conftest import SOURCE

READMES = ("README.md", "README.en.md")
PROGRAMS = ("adagan_gmm.py", "sample.py", "reproduce.py", "export.py", "bench.py")
# Flags that make a README's command small; the last of two equal flags counts.
SMALL = {
    "adagan_gmm.py": "--toy_dataset_size=640 --epochs=1 --steps=2 --samples_per_component=200 "
                     "--eval_points_num=100 --plot_every=0 --mixture_c_epoch_num=1 --threads=1",
    "reproduce.py": "--toy_dataset_size=640 --epochs=1 --steps=2 --seeds=1 --modes 3 --threads=1 "
                    "--workers=2",
    "sample.py": "", "export.py": "--threads=1",
    "bench.py": "--toy_dataset_size=640 --repeats=1 --threads=1",
    "train_performance_1p.sh": "--epochs=1 --steps=1", "train_full_1p.sh": "--epochs=1 --steps=1",
}


def read(name):
    with open(os.path.join(SOURCE, name), encoding="utf-8") as file:
        return file.read()


def commands(name):
    """Lines of the README's bash blocks, in order."""
    blocks = re.findall(r"```bash\n(.*?)```", read(name), re.S)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def flag_rows(name):
    """{program: [(flag, default)] of its table} under the README's lines **`program`**."""
    tables = {}
    for title, body in re.findall(r"\*\*`([\w./]+)`\*\*[^\n]*\n\n(.*?)(?=\n\*\*`|\n#)", read(name),
                                  re.S):
        tables[title] = re.findall(r"^\| `(--\w+)` \| ([^|]*) \|", body, re.M)
    return tables


def numbers(name):
    """All decimal fractions in a README's tables, sorted: its measured values and defaults."""
    rows = re.findall(r"^\|.*\|$", read(name), re.M)
    return sorted(number for row in rows for number in re.findall(r"\.\d{2,}", row))


def help_of(program):
    """What a program's --help prints, on wide lines."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setenv("COLUMNS", "300")
        with pytest.raises(SystemExit):
            importlib.import_module(program[:-3]).parse_args(["--help"])
    return out.getvalue()


@pytest.fixture(scope="module")
def helps():
    """{program: {flag: default, "" for none}} of its --help."""
    found = {}
    for program in PROGRAMS:
        found[program] = {}
        for entry in re.split(r"\n  (?=--\w)", help_of(program))[1:]:
            if not re.match(r"--\w+ acts on", entry):  # a group's sentence
                default = re.search(r"\(default: ([^)]*)\)\s*(?:$|\n\S|\n\n)", entry)
                found[program][re.match(r"--\w+", entry).group()] = (
                    default.group(1) if default else "")
    return found


@pytest.mark.parametrize("name", READMES)
def test_readme_lists_every_flag_once_with_its_default(name, helps):
    tables = flag_rows(name)
    common = dict(tables.pop("npu_session.py"))
    assert sorted(tables) == sorted(PROGRAMS)
    for program, flags in helps.items():
        own = dict(tables[program])
        assert len(own) == len(tables[program])
        assert set(own) == set(flags) - (set(common) - set(own)), program
        for flag, default in own.items():
            assert default == flags[flag] or not flags[flag], (program, flag)
    shared = set(helps["adagan_gmm.py"]) & set(helps["reproduce.py"])
    assert set(common) == shared - set(dict(tables["adagan_gmm.py"]))
    assert common == {flag: helps["adagan_gmm.py"][flag] for flag in common}


def test_readmes_agree():
    assert commands("README.md") and sorted(commands("README.md")) == sorted(
        commands("README.en.md"))
    assert flag_rows("README.md") == flag_rows("README.en.md")
    assert numbers("README.md") == numbers("README.en.md")
    assert "{{" not in read("README.md") + read("README.en.md")


@pytest.mark.parametrize("name", READMES)
def test_what_the_readme_says_of_the_code(name):
    """The preset's flags, the experiments, the names of the log and of metrics.jsonl."""
    text = read(name)
    plain, sharp = (vars(adagan_gmm.parse_args(words)) for words in ([], ["--preset=sharp"]))
    given = re.search(r"^\| `--preset` .*?`(--optimizer[^`]*)`", text, re.M).group(1)
    assert vars(adagan_gmm.parse_args(given.split())) == dict(sharp, preset=plain["preset"])
    assert all(f"\n| `{experiment}` | " in text for experiment in reproduce.EXPERIMENTS)
    assert all(f"`{metric}`" in text for metric in reproduce.METRICS)
    assert re.search(r"Evaluating: log_p=-?\d+\.\d{3}, C=\d\.\d{3}\n", text)


def test_pictures_and_links_exist():
    for name in READMES:
        for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", read(name)):
            assert os.path.getsize(os.path.join(SOURCE, path)) < 300e3
        for path in re.findall(r"(?<!!)\[[^\]]*\]\(([^)#]+)\)", read(name)):
            assert os.path.exists(os.path.join(SOURCE, path))


def test_modelzoo_headings_are_there():
    for heading in ("基本信息", "概述", "训练环境准备", "快速上手", "迁移学习指导", "高级参考"):
        assert f"\n## {heading}\n" in read("README.md")


def run_command(line, work):
    """Runs a README's command, shrunk, in the folder `work`; returns its exit code.

    Python programs run in this process: starting TensorFlow takes longer than they do.
    """
    words = line.split()
    program = os.path.basename(words[1])
    flags = words[2:] + SMALL[program].split()
    if words[0] == "bash":
        return subprocess.run(words[:2] + flags, cwd=work, timeout=300, check=False,
                              env=dict(os.environ, PYTHON=sys.executable)).returncode
    assert words[0] == "python3" and os.path.isfile(os.path.join(SOURCE, words[1]))
    gc.collect()  # an earlier run's lock goes with its RunFolder
    return npu_session.run_main(importlib.import_module(program[:-3]).main, flags)


def test_commands_run(tmp_path, monkeypatch):
    """Every command of the README, shrunk, in its order, in a copy of this folder."""
    work = tmp_path / "AdaGAN"
    shutil.copytree(SOURCE, str(work), ignore=shutil.ignore_patterns(
        "golden", "__pycache__", ".*", "output", "docs", "results*", "runs"))
    monkeypatch.chdir(str(work))
    todo = [line for line in commands("README.en.md")
            if line.split()[0] != "pip" and "pytest" not in line]
    for line in todo:
        assert run_command(line, str(work)) == 0, line
    assert len(todo) >= 12
    for made in ("results/result.json", "results/quick/figures/quick_table.png",
                 "results/sharp/export/generator_01.pb", "results/samples.csv",
                 "results/ckpt/component-00.index", "runs/table1.csv", "runs/beyond_steps.csv",
                 "runs/figures/default_steps_3_modes.png",
                 "test/output/0/ADAGAN_ID2115_for_TensorFlow_bs64_1p_acc.log"):
        assert os.path.getsize(str(work / made)), made
