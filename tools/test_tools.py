"""The tools themselves: sync finds every deviation, the commands say what they do, and every model
directory stands alone. Works on copies; nothing here makes an environment.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import contextlib
import importlib.machinery
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODELS = sorted(path.parent.name for path in ROOT.glob("*/requirements.txt"))
NOT_SOURCE = shutil.ignore_patterns("__pycache__", "*.pyc", "output", "results", ".venv*", ".git",
                                    ".ruff_cache", ".pytest_cache")
NOT_FOR_TOOLS = shutil.ignore_patterns("golden", "docs", "*.md", "test_*.py")  # slow to copy


def run(*command, cwd=None, **environment):
    """The finished process, with its output as text."""
    return subprocess.run(
        [str(part) for part in command], cwd=str(cwd or ROOT), env=dict(os.environ, **environment),
        capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A copy in sync of tools/ and of what it needs of the models; only to be copied itself."""
    root = tmp_path_factory.mktemp("original")
    for name in ["tools", ".ci"] + MODELS:
        shutil.copytree(str(ROOT / name), str(root / name), ignore=lambda *found: (
            NOT_SOURCE(*found) | NOT_FOR_TOOLS(*found)))
    assert sync(root, "--write").returncode == 0
    return root


@pytest.fixture
def copy(original, tmp_path):
    """A copy of `original` to work on."""
    return Path(shutil.copytree(str(original), str(tmp_path / "the copy")))


def run_sync(root, *flags):
    """The finished process of a copy's tools/sync."""
    return run(sys.executable, root / "tools" / "sync", *flags, cwd="/")


def sync(root, *flags):
    """The same in this process, which is faster: its exit code and output."""
    loader = importlib.machinery.SourceFileLoader("sync", str(root / "tools" / "sync"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("sync", loader))
    loader.exec_module(module)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = module.main(list(flags))
    return types.SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def session_copies(root):
    return sorted(path for path in root.glob("*/**/npu_session.py") if path.parent.name != "tools")


def test_the_copies_here_are_in_sync():
    process = run_sync(ROOT)
    assert process.returncode == 0, process.stdout


def test_every_model_has_a_copy_of_the_session_file(copy):
    assert sorted({path.relative_to(copy).parts[0] for path in session_copies(copy)}) == MODELS


def test_sync_shows_a_changed_byte_and_repairs_it(copy):
    session = session_copies(copy)[0]
    good = session.read_bytes()
    session.write_bytes(good.replace(b"session", b"sessioN", 1))
    process = run_sync(copy)
    assert process.returncode == 1
    assert f"differs: {session.relative_to(copy).as_posix()}" in process.stdout
    assert "sessioN" in process.stdout
    assert "\n+++ tools/npu_session.py\n" in process.stdout
    assert session.read_bytes() != good, "the check must not write"
    assert run_sync(copy, "--write").returncode == 0
    assert session.read_bytes() == good
    assert sync(copy).returncode == 0


@pytest.mark.parametrize("ending", [b"\r\n", b"\xff\n", b"\n\n"])
def test_sync_sees_bytes_that_hardly_show(copy, ending):
    session = session_copies(copy)[0]
    session.write_bytes(session.read_bytes()[:-1] + ending)
    process = sync(copy)
    assert process.returncode == 1
    assert "\n-" in process.stdout


def test_sync_names_a_missing_file_and_restores_it(copy):
    session = session_copies(copy)[0]
    session.unlink()
    process = sync(copy)
    assert process.returncode == 1
    assert f"missing: {session.relative_to(copy).as_posix()}" in process.stdout
    assert sync(copy, "--write").returncode == 0
    assert session.read_bytes() == (copy / "tools" / "npu_session.py").read_bytes()


@pytest.mark.parametrize("model", MODELS)
def test_sync_names_a_surplus_file_and_removes_it(copy, model):
    surplus = copy / model / "test" / "fake_npu_bridge" / "more" / "extra.py"
    surplus.parent.mkdir(parents=True)
    surplus.write_text("X = 1\n")
    process = sync(copy)
    assert process.returncode == 1
    assert f"surplus: {surplus.relative_to(copy).as_posix()}" in process.stdout
    assert sync(copy, "--write").returncode == 0
    assert not surplus.exists()


def test_sync_ignores_caches(copy):
    cache = copy / MODELS[0] / "test" / "fake_npu_bridge" / "__pycache__"
    cache.mkdir()
    (cache / "npu_init.cpython-37.pyc").write_bytes(b"\0")
    assert sync(copy).returncode == 0


def test_sync_says_a_link_is_no_copy(copy):
    session = session_copies(copy)[0]
    session.unlink()
    session.symlink_to(copy / "tools" / "npu_session.py")
    process = sync(copy)
    assert process.returncode == 1
    assert "link: " in process.stdout
    assert sync(copy, "--write").returncode == 0
    assert not session.is_symlink()


def test_sync_without_its_master_says_so(copy):
    (copy / "tools" / "npu_session.py").unlink()
    process = run_sync(copy, "--write")
    assert process.returncode == 2
    assert "tools/npu_session.py" in process.stderr


@pytest.mark.parametrize("tool", ["run.sh", "test.sh"])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_exits_0_and_names_the_models(copy, tool, flag):
    process = run(copy / "tools" / tool, flag, cwd="/")
    assert process.returncode == 0, process.stderr
    assert all(model in process.stdout for model in MODELS)
    assert not list(copy.glob(".venv*"))


def test_help_of_sync():
    process = run_sync(ROOT, "--help")
    assert process.returncode == 0
    assert "--write" in process.stdout


@pytest.mark.parametrize("tool", ["run.sh", "test.sh"])
def test_unknown_model_is_refused_and_the_models_are_named(copy, tool):
    process = run(copy / "tools" / tool, "NoSuchModel", cwd="/")
    assert process.returncode == 2
    assert "NoSuchModel" in process.stderr
    assert all(model in process.stderr for model in MODELS)
    assert not list(copy.glob(".venv*"))


def test_unknown_flag_of_test_sh_is_refused(copy):
    process = run(copy / "tools" / "test.sh", "--colour", cwd="/")
    assert process.returncode == 2
    assert "--colour" in process.stderr


STUB_PYTHON = """#!/bin/bash
case "$*" in
  *"-m pip --version"*) exit 0 ;;
  *-VV*) echo "Python 3.11.0 (stub)" ;;
  *"-m pip install"*) printf 'install\\n' >>"$STUB_LOG" ;;
  *version_info*) echo 3.11 ;;
  *) printf '%s\\n' "$@" >"$STUB_LOG.arguments"; exit 5 ;;
esac
"""


@pytest.fixture
def ready(copy):
    """The copy, with a stub for .venv's Python that records how it is called."""
    stub = copy / ".venv" / "bin" / "python"
    stub.parent.mkdir(parents=True)
    stub.write_text(STUB_PYTHON)
    stub.chmod(0o755)
    return copy


def run_job(root, *arguments):
    """run.sh's process and the arguments that it gave to the program."""
    log = root / "stub.log"
    process = run(root / "tools" / "run.sh", *arguments, cwd="/", STUB_LOG=str(log), PYTHON="")
    return process, (root / "stub.log.arguments").read_text().splitlines()


@pytest.mark.parametrize("name", [[], ["CSGM"], ["csgm"], ["CSGM/"], ["Csgm_ID2109"]])
def test_run_hands_flags_and_exit_code_through(ready, name):
    process, arguments = run_job(ready, *(name + ["--seed=3", "--note=a b"]))
    assert process.returncode == 5
    assert arguments == [str(ready / "CSGM/src/reproduce.py"), "--output_dir",
                         str(ready / "results/CSGM"), "--seed=3", "--note=a b"]


def test_run_installs_once_and_again_when_the_requirements_change(ready):
    log = ready / "stub.log"
    run_job(ready)
    installs = log.read_text()
    run_job(ready)
    assert log.read_text() == installs
    with open(str(ready / "CSGM/requirements.txt"), "a") as file:
        file.write("# changed\n")
    run_job(ready)
    assert log.read_text() == installs * 2


def test_ci_run_calls_test_sh_with_ci_set(copy):
    (copy / "tools" / "test.sh").write_text('echo "CI is $CI, arguments: $*"\nexit 4\n')
    process = run("bash", ".ci/run", "CSGM", cwd=copy, CI="")
    assert process.returncode == 4
    assert process.stdout == "CI is true, arguments: CSGM\n"


@pytest.mark.parametrize("name", ["tools/run.sh", "tools/test.sh", "tools/sync",
                                  "tools/check_submission", ".ci/run"])
def test_commands_are_executable(name):
    assert os.access(str(ROOT / name), os.X_OK)


@pytest.mark.parametrize("model", MODELS)
def test_directory_has_its_papers(model):
    text = (ROOT / model / "LICENSE").read_text()
    assert (ROOT / "LICENSE").read_text().strip() in text
    assert "Attribution" in text
    for line in (ROOT / model / "modelzoo_level.txt").read_text().splitlines():
        key, value = line.split(":")
        assert key.isalpha()
        assert value in ("OK", "POK", "NOK", "PERFECT")


@pytest.mark.parametrize("model", MODELS)
def test_directory_lifted_out_alone_collects_and_passes_its_golden_tests(tmp_path, model):
    lifted = tmp_path / "lifted out" / model
    shutil.copytree(str(ROOT / model), str(lifted), ignore=NOT_SOURCE)
    # -k takes its choice after all files were imported: one that cannot be is an error.
    golden = run(sys.executable, "-m", "pytest", "-q", "-k", "golden", "-p", "no:cacheprovider",
                 "test", cwd=lifted, PYTHONPATH="")
    assert golden.returncode == 0, golden.stdout
    assert re.search(r"\d+ passed, (\d+ skipped, )?\d+ deselected", golden.stdout), golden.stdout
