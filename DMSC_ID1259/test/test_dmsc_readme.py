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

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import affinity_fusion
import make_standin_data
import npu_session
import pretrain_affinity_fusion
import training_runs
from conftest import SOURCE

READMES = ("README.md", "README.en.md")
ENTRIES = ("pretrain_affinity_fusion.py", "affinity_fusion.py")
PROGRAMS = ENTRIES + ("cluster.py", "make_standin_data.py", "export.py", "bench.py")
SHORT = "--affinity_steps=2 --eval_from=2 --eval_every=2"
if tf.__version__.startswith("1."):
    SHORT += " --compute_dtype=float32"
# Flags that make a README's command small; the last of two equal flags counts.
SMALL = {
    "pretrain_affinity_fusion.py": "--max_train_steps=1 --threads=1 --subspace_dimension=6 "
                                   + SHORT,
    "affinity_fusion.py": f"--threads=1 {SHORT}",
    "cluster.py": "--subspace_dimension 6",
    "make_standin_data.py": "--images=7 --workers=1",
    "export.py": "--threads=1",
    "bench.py": "--subjects=3 --images=8 --repeats=1 --steps=1 --threads=1",
    "train_performance_1p.sh": "--max_train_steps=1",
    "train_full_1p.sh": "--max_train_steps=1 --mode=train",  # it hands on no flags of stage 2
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
        patch.setenv("COLUMNS", "400")
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
                    re.sub(r"[\[\],]", "", default.group(1)) if default else "")
    return found


@pytest.mark.parametrize("name", READMES)
def test_readme_lists_every_flag_once_with_its_default(name, helps):
    tables = flag_rows(name)
    session, shared = (dict(tables.pop(title)) for title in ("npu_session.py", "options.py"))
    assert sorted(tables) == sorted(PROGRAMS)
    assert all(len(dict(rows)) == len(rows) for rows in tables.values())
    for program, flags in helps.items():
        listed = dict(tables[program])
        if program in ENTRIES:
            listed.update(shared, **session)
            assert listed == flags, program
        else:  # of the session's flags some, and these with defaults of their own
            assert set(listed) == set(flags) - (set(session) - set(listed)), program
            assert listed == {flag: flags[flag] for flag in listed}, program


def test_readmes_agree():
    assert commands("README.md") and sorted(commands("README.md")) == sorted(
        commands("README.en.md"))
    assert flag_rows("README.md") == flag_rows("README.en.md")
    assert numbers("README.md") == numbers("README.en.md")
    assert "{{" not in read("README.md") + read("README.en.md")


@pytest.mark.parametrize("name", READMES)
def test_what_the_readme_says_of_the_code(name, pretrained, clustered):
    """What --demo stands for, and the names in the logs and records of a run."""
    text = read(name)
    plain, demo = (vars(pretrain_affinity_fusion.parse_args(words)) for words in ([], ["--demo"]))
    given = re.search(r"^\| `--demo` .*?`(--mat=[^`]*)`", text, re.M).group(1)
    named = pretrain_affinity_fusion.parse_args(given.split())
    assert vars(named) == dict(demo, demo=plain["demo"])
    names = {key for folder in (training_runs.pretrain_folder(pretrained[0]),
                                training_runs.affinity_folder(clustered[0]))
             for record in training_runs.records(folder) for key in record}
    missing = [key for key in names if f"`{re.sub(r'mse_[0-9]', 'mse_<m>', key)}`" not in text]
    assert sorted(missing) == ["epoch", "step"]  # the words in front of their log lines


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


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A copy of this folder (str), the working directory, with small files in place of data."""
    folder = str(tmp_path / "DMSC_ID1259")
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns(
        "golden", "__pycache__", ".*", "output", "docs", "logs", "models", "results", "runs",
        "*.mat"))
    monkeypatch.chdir(folder)
    random = np.random.RandomState(0)  # noise: drawing 10 faces would take longer than all else
    pixels = random.randint(0, 256, (2, 70, 32, 32)).astype(np.uint8)
    content = make_standin_data.mat_bytes(pixels, np.repeat(np.arange(1, 11), 7), 0)
    for path in ("Data/EYB_fc.mat", "Data/EYB_fc_rebuilt.mat",
                 f"results/Data/{affinity_fusion.DEMO_NAME}.mat"):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
    return folder


def test_commands_run(work, monkeypatch):
    """Every command of the README, shrunk, in its order; only the first draws its pictures."""
    plain, drawn = affinity_fusion.draw, []
    monkeypatch.setattr(affinity_fusion, "draw", lambda *arguments: drawn or drawn.append(
        plain(*arguments)))
    todo = [line for line in commands("README.en.md")
            if line.split()[0] != "pip" and "pytest" not in line]
    for line in todo:
        assert run_command(line, work) == 0, line
    assert len(todo) >= 12
    for made in ("results/results/mymodel/scores.png", "results/mymodel/result.json",
                 "runs/small/models/mymodel.pb", "runs/small/inputs/image_4.bin",
                 "runs/late/results/mymodel/results.mat", "runs/eyb10/results/mymodel/result.json",
                 "test/output/0/Deep-multimodal-subspace-clustering-networks_ID1259_for_TensorFlow"
                 "_bs256_1p_acc.log"):
        assert os.path.getsize(os.path.join(work, made)), made
