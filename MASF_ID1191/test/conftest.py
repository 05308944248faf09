"""Puts MASF_ID1191 first on sys.path; fixtures that several test files share."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import runpy
import sys

import pytest

SOURCE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, SOURCE)
pytest.register_assert_rewrite("shell_contract", "processes_contract")


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
    """Folder (str) with stand-in pictures in kfold/ and their lists in filelist/; do not change it.

    About six training pictures per class and domain; the smallest training list has 28.
    """
    from make_standin_data import make_standin_data
    folder = str(tmp_path_factory.mktemp("small_data"))
    make_standin_data(os.path.join(folder, "kfold"), os.path.join(folder, "filelist"), images=6,
                      seed=7, workers=1)
    return folder


@pytest.fixture
def run_program(monkeypatch, capfd):
    """Function (script, *flags, cwd=None) -> (exit code, standard output, standard error).

    Runs MASF_ID1191/<script> as a program, but in this process: starting TensorFlow takes longer
    than these programs do.
    """
    def run(script, *flags, cwd=None):
        path = os.path.join(SOURCE, script)
        capfd.readouterr()
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as leaving:
            patch.setattr(sys, "argv", [path] + [str(flag) for flag in flags])
            patch.chdir(cwd or os.getcwd())
            runpy.run_path(path, run_name="__main__")
        return (leaving.value.code, *capfd.readouterr())
    return run
