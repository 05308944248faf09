"""Puts the model's folder first on sys.path; fixtures that several test files share."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import subprocess
import sys

import pytest

MODEL = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, MODEL)
pytest.register_assert_rewrite("shell_contract")


@pytest.fixture(scope="session")
def faces(tmp_path_factory):
    """Folder (str) of stand-in faces in CelebA's layout, 24 + 8 in data10w, 6 for testing; do not
    change it."""
    from make_standin_data import make_standin_data
    folder = str(tmp_path_factory.mktemp("faces"))
    make_standin_data(folder, 24, 8, 6, seed=7, workers=1)
    return folder


@pytest.fixture(scope="session")
def run_program():
    """Function (script, *flags, env=None, timeout=120, cwd=None) -> CompletedProcess.

    Runs <script> of the model's folder with this Python; env is added to the environment.
    """
    def run(script, *flags, env=None, timeout=120, cwd=None):
        command = [sys.executable, os.path.join(MODEL, script)] + [str(flag) for flag in flags]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=cwd,
                              env=dict(os.environ, **(env or {})), check=False)
    return run


@pytest.fixture(scope="session")
def run_other():
    """Function (*command) that runs the interpreter with the other TensorFlow -> what it printed.

    It is $OTHER_PYTHON, or the repository's other environment; without either the test is skipped.
    """
    folders = [os.path.join(os.path.dirname(MODEL), name) for name in (".venv", ".venv-tf115")]
    paths = [os.environ.get("OTHER_PYTHON", "")] + [
        os.path.join(folder, "bin", "python") for folder in folders
        if os.path.realpath(folder) != os.path.realpath(sys.prefix)]
    found = [path for path in paths if os.path.isfile(path)]
    if not found:
        pytest.skip("no second TensorFlow: neither OTHER_PYTHON nor both of .venv and .venv-tf115 "
                    "in the repository")

    def run(*command):
        environment = dict(os.environ, PYTHONDONTWRITEBYTECODE="1", PYTHONPATH=os.pathsep.join(
            [MODEL, os.path.dirname(os.path.abspath(__file__))]))
        done = subprocess.run([found[0]] + list(command), capture_output=True, text=True,
                              timeout=300, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout
    return run
