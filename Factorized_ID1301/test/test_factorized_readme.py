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

import make_standin_data
import model_def
import npu_session
import reproduce
from training_runs import narrow_network

SOURCE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
READMES = ("README.md", "README.en.md")
PROGRAMS = ("VDSR.py", "evaluate.py", "reproduce.py", "export.py", "make_standin_data.py",
            "bench.py")
COUNTS = "--count=6 --regressor_count=4 --test_count=3"
TRAINING = "--batch_size=2 --max_steps=2 --threads=1"
# Flags that make a README's command small; the last of two equal flags counts.
SMALL = {
    "VDSR.py": TRAINING, "train.py": TRAINING, "test.py": TRAINING,
    "evaluate.py": "--threads=1", "export.py": "--threads=1 --batch_size=2",
    "reproduce.py": f"{COUNTS} {TRAINING} --log_every=2 --save_every=2",
    "make_standin_data.py": f"{COUNTS} --workers=1",
    "bench.py": "--repeats=1 --batch_size=1 --images=2 --threads=1",
    "train_performance_1p.sh": "--train_steps=1 --batch_size=1",
    "train_full_8p.sh": "--train_steps=1 --batch_size=2",
    "launch.py": f"{TRAINING} --batch_size=2 --output_dir=results/launched",
}
DEVICES = {"RANK_SIZE": "2"}  # in place of eight


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


def flags_of(program):
    """{flag: default, "" for none} of a program's --help."""
    found = {}
    for entry in re.split(r"\n  (?=--\w)", help_of(program))[1:]:
        if not re.match(r"--\w+ acts on", entry):  # a group's sentence
            default = re.search(r"\(default: ([^)]*)\)\s*(?:$|\n\S|\n\n)", entry)
            found[re.match(r"--\w+", entry).group()] = default.group(1) if default else ""
    return found


@pytest.mark.parametrize("name", READMES)
def test_readme_lists_every_flag_once_with_its_default(name):
    tables = flag_rows(name)
    common = dict(tables.pop("npu_session.py"))
    assert sorted(tables) == sorted(PROGRAMS)
    for program, rows in tables.items():
        flags, own = flags_of(program), dict(rows)
        assert len(own) == len(rows), program
        listed = dict({flag: common[flag] for flag in common if flag in flags}, **own)
        assert listed == flags, program


def test_readmes_agree():
    assert commands("README.md") and sorted(commands("README.md")) == sorted(
        commands("README.en.md"))
    assert flag_rows("README.md") == flag_rows("README.en.md")
    assert numbers("README.md") == numbers("README.en.md")


@pytest.mark.parametrize("name", READMES)
def test_what_the_readme_says_of_the_code(name):
    """Names of the log and of metrics.jsonl, the recipe and its sizes."""
    text, full = read(name), reproduce.PRESETS["full"]
    assert all(f"`{term}`" in text for term in model_def.LOSS_TERMS + ("images_per_second",))
    assert f"{full.max_steps} " in text and f"{reproduce.RATE}".lstrip("0") in text
    assert f"{full.count} + {full.regressor_count}" in text and f"{full.test_count} " in text


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
    if words[0] == "bash" or program == "launch.py":
        words[0] = words[0].replace("python3", sys.executable)
        devices = DEVICES if "8p" in program else {}
        return subprocess.run(words[:2] + flags, cwd=work, timeout=300, check=False,
                              env=dict(os.environ, PYTHON=sys.executable, **devices)).returncode
    assert words[0] == "python3" and os.path.isfile(os.path.join(SOURCE, words[1]))
    gc.collect()  # an earlier run's lock goes with its RunFolder
    module = importlib.import_module(program[:-3])
    return npu_session.run_main(module.main, flags)


def test_commands_run(tmp_path, monkeypatch):
    """Every command of the README, shrunk, in its order, in a copy of this folder."""
    work = tmp_path / "Factorized_ID1301"
    shutil.copytree(SOURCE, str(work), ignore=shutil.ignore_patterns(
        "golden", "__pycache__", ".*", "output", "docs", "results*", "runs", "standin_faces"))
    monkeypatch.chdir(str(work))
    make_standin_data.make_standin_data("CelebA", 6, 4, 3, workers=1)
    if sys.version_info < (3, 8):  # TensorFlow 1.15 has no such convolutions
        monkeypatch.setitem(SMALL, "reproduce.py", SMALL["reproduce.py"] + " --conv_dtype=float32")
    todo = [line for line in commands("README.en.md")
            if line.split()[0] != "pip" and "pytest" not in line]
    with narrow_network():
        for line in todo:
            assert run_command(line, str(work)) == 0, line
    assert len(todo) >= 12
    for made in ("results/quick/result.json", "results/quick/test/contact_sheet.jpg",
                 "output/evaluation/errors.png", "output/contact_sheet.jpg", "output/landmarks.pb",
                 "results/inputs/batch_000000.bin", "results/bent/result.json",
                 "results/pictures/images/000011-outputs.jpg", "runs/standin_k8/result.json",
                 "runs/faces_k10/evaluation/equivariance.jpg",
                 "test/output/0/Factorized_ID1301_for_TensorFlow_bs1_1p_perf.log"):
        assert os.path.getsize(str(work / made)), made
