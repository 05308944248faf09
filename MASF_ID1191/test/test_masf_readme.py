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

import main
import npu_session
import reproduce
from conftest import SOURCE
from training_runs import narrow_network, undrawn

READMES = ("README.md", "README.en.md")
PROGRAMS = ("main.py", "reproduce.py", "make_standin_data.py", "make_filelist.py",
            "boot_modelarts.py", "export.py", "bench.py")
# Flags that make a README's command small; the last of two equal flags counts.
SMALL = {
    "main.py": "--train_iterations=2 --test_print_interval=1 --test_images=7 --threads=1",
    "reproduce.py": "--targets sketch --methods masf-EG --seeds 1 --warm_up 1 "
                    "--train_iterations=1 --meta_batch_size=3 --test_images=7 --threads=1",
    "make_standin_data.py": "--images=1 --workers=1", "make_filelist.py": "",
    "export.py": "--images=3 --threads=1",
    "bench.py": "--meta_batch_size=3 --repeats=1 --images=3 --test_batch_size=2 --side=ours "
                "--threads=1",
    "train_performance_1p.sh": "--train_iterations=1 --batch_size=3",
    "train_full_8p.sh": "--train_iterations=1 --batch_size=6",
    "launch.py": "--train_iterations=1 --meta_batch_size=6 --test_images=7 --threads=1 "
                 "--output_dir=results/launched",
}
DEVICES = {"RANK_SIZE": "2"}  # in place of eight
# A Python whose network is narrow, for the shell scripts and what they start.
NARROW_PYTHON = """#!{python}
import runpy, sys, types
sys.path[:0] = [{source!r}, {tests!r}]
import training_runs
training_runs.narrow_network(types.SimpleNamespace(setattr=setattr))
sys.executable = sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


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
            assert default.strip() == flags[flag], (program, flag)
    assert set(common) == set(helps["main.py"]) - set(dict(tables["main.py"]))
    assert {flag: default.strip() for flag, default in common.items()} == {
        flag: helps["main.py"][flag] for flag in common}


def test_readmes_agree():
    assert commands("README.md") and sorted(commands("README.md")) == sorted(
        commands("README.en.md"))
    assert flag_rows("README.md") == flag_rows("README.en.md")
    assert numbers("README.md") == numbers("README.en.md")
    assert "{{" not in read("README.md") + read("README.en.md")


@pytest.mark.parametrize("name", READMES)
def test_what_the_readme_says_of_the_code(name):
    """The presets' values, the methods, the name of the demo's run folder."""
    text = read(name)
    row = re.search(r"^\| `--preset` .*$", text, re.M).group().replace("、", ", ")
    for preset in main.PRESETS.values():
        values = ["all" if value is None else f"{value:g}" for value in preset[:-1]]
        assert ", ".join(values) in row.replace("全部", "all"), row
    assert all(f"`{method}`" in text for method in reproduce.METHODS)
    demo = main.parse_args(["--preset=demo"])
    main.check(demo)
    assert text.count(demo.run_dir) == 1 and f"/{main.experiment_name(demo)}/checkpoints" in text


def test_pictures_and_links_exist():
    for name in READMES:
        for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", read(name)):
            assert os.path.getsize(os.path.join(SOURCE, path)) < 300e3
        for path in re.findall(r"(?<!!)\[[^\]]*\]\(([^)#]+)\)", read(name)):
            assert os.path.exists(os.path.join(SOURCE, path))
        for anchor in re.findall(r"\]\(#([^)]+)\)", read(name)):
            headings = re.findall(r"^#+ (.*)$", read(name), re.M)
            assert anchor in [heading.lower().replace(" ", "-") for heading in headings]


def test_modelzoo_headings_are_there():
    for heading in ("基本信息", "概述", "训练环境准备", "快速上手", "迁移学习指导", "高级参考"):
        assert f"\n## {heading}\n" in read("README.md")


def run_command(line, work, python):
    """Runs a README's command, shrunk, in the folder `work`; returns its exit code.

    Python programs run in this process: starting TensorFlow takes longer than they do.
    """
    words = line.split()
    program = os.path.basename(words[1])
    flags = words[2:] + SMALL[program].split()
    if words[0] == "bash" or program == "launch.py":
        words[0] = words[0].replace("python3", python)
        devices = DEVICES if "8p" in program else {}
        return subprocess.run(words[:2] + flags, cwd=work, timeout=600, check=False,
                              env=dict(os.environ, PYTHON=python, **devices)).returncode
    assert words[0] == "python3" and os.path.isfile(os.path.join(SOURCE, words[1]))
    gc.collect()  # an earlier run's lock goes with its RunFolder
    with undrawn("comparison.png"):
        return npu_session.run_main(importlib.import_module(program[:-3]).main, flags)


def test_commands_run(small_data, tmp_path, monkeypatch):
    """Every command of the README, shrunk, in its order, in a copy of this folder with data."""
    narrow_network(monkeypatch)
    work = tmp_path / "MASF"
    shutil.copytree(SOURCE, str(work), ignore=shutil.ignore_patterns(
        "golden", "__pycache__", ".*", "output", "docs", "results*", "kfold", "filelist", "log"))
    for name in ("kfold", "filelist"):
        shutil.copytree(os.path.join(small_data, name), str(work / name))
    python = tmp_path / "narrow_python"
    python.write_text(NARROW_PYTHON.format(python=sys.executable, source=str(work),
                                           tests=str(work / "test")))
    python.chmod(0o755)
    monkeypatch.chdir(str(work))
    todo = [line for line in commands("README.en.md")
            if line.split()[0] != "pip" and "pytest" not in line]
    for line in todo:
        assert run_command(line, str(work), str(python)) == 0, line
    assert len(todo) >= 11
    demo = main.experiment_name(main.parse_args(["--preset=demo", "--method=masf",
                                                 "--episodic=True", "--global_alignment=True",
                                                 "--local_clustering=True"]))
    for made in (f"log/{demo}/result.json", f"log/{demo}/evaluation/evaluation.json",
                 f"log/{demo}/predictions.csv", f"log/{demo}/checkpoints/masf.pb",
                 "results/bins/inputs.csv", "results/lists/photo_crossval.txt",
                 "results/standin/comparison.png",
                 "test/output/0/MASF_ID1191_for_TensorFlow_bs3_1p_perf.log"):
        assert os.path.getsize(str(work / made)), made
