"""Puts MASF_ID1191 first on sys.path; fixtures that several test files share."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import subprocess
import sys

import pytest

SOURCE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, SOURCE)
pytest.register_assert_rewrite("shell_contract")


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


@pytest.fixture(scope="session")
def run_program():
    """Function (script, *flags, env=None, timeout=900, cwd=None) -> CompletedProcess.

    Runs MASF_ID1191/<script> with this Python; env is added to the environment. Text streams.
    """
    def run(script, *flags, env=None, timeout=900, cwd=None):
        command = [sys.executable, os.path.join(SOURCE, script)] + [str(flag) for flag in flags]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=cwd,
                              env=dict(os.environ, **(env or {})), check=False)
    return run
