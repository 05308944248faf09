"""Puts the model's folder first on sys.path; fixtures that several test files share."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import contextlib
import gc
import io
import os
import runpy
import subprocess
import sys

import pytest

MODEL = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, MODEL)
pytest.register_assert_rewrite("shell_contract", "processes_contract")


def pytest_collection_finish():
    """What was imported is never garbage: looking for it there took a fifth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100000)


@pytest.fixture(scope="session")
def faces(tmp_path_factory):
    """Folder (str) of stand-in faces in CelebA's layout, 24 + 8 in data10w, 6 for testing; do not
    change it."""
    from make_standin_data import make_standin_data
    folder = str(tmp_path_factory.mktemp("faces"))
    make_standin_data(folder, 24, 8, 6, seed=7, workers=1)
    return folder


@pytest.fixture(scope="session")
def whole_run(faces, tmp_path_factory):
    """(run folder, printed text) of training_runs' training on them; do not change it."""
    import training_runs
    output = str(tmp_path_factory.mktemp("whole"))
    code, out, err = training_runs.train(faces, output, is_drawn=True)
    assert code == 0, err
    return output, out


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Folder (str) with the checkpoint of the golden variables, K = 8."""
    import golden_checkpoint
    return golden_checkpoint.write(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def run_program():
    """Function (script, *flags) -> (exit code, standard output, standard error).

    Runs <script> of the model's folder as the main program, but in this process, where TensorFlow
    is loaded: that takes longer than most programs here.
    """
    def run(script, *flags):
        path, out, err = os.path.join(MODEL, script), io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), \
                contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            patch.setattr(sys, "argv", [path] + [str(flag) for flag in flags])
            runpy.run_path(path, run_name="__main__")
        return ended.value.code, out.getvalue(), err.getvalue()
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
