"""Puts the model's folder first on sys.path; fixtures that several test files share."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import subprocess
import sys

import pytest

SOURCE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, SOURCE)
pytest.register_assert_rewrite("shell_contract")


@pytest.fixture(scope="session")
def run_program():
    """Function (script, *flags, env=None, timeout=120, cwd=None) -> CompletedProcess.

    Runs <script> of the model's folder with this Python; env is added to the environment.
    """
    def run(script, *flags, env=None, timeout=120, cwd=None):
        command = [sys.executable, os.path.join(SOURCE, script)] + [str(flag) for flag in flags]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=cwd,
                              env=dict(os.environ, **(env or {})), check=False)
    return run


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
    """Folder (str) with small.mat, see training_runs; do not change it."""
    import training_runs
    return training_runs.write_mat(tmp_path_factory.mktemp("small_data"),
                                   training_runs.small_content())


@pytest.fixture(scope="session")
def pretrained(small_data, tmp_path_factory):
    """(output folder, printed text) of an uninterrupted stage 1 on small_data; do not change it."""
    import training_runs
    output = str(tmp_path_factory.mktemp("pretrained"))
    return output, training_runs.succeeded(training_runs.pretrain(small_data, output))


@pytest.fixture(scope="session")
def clustered(small_data, pretrained, tmp_path_factory):
    """(output folder, printed text) of stages 2 and 3 after `pretrained`; do not change it."""
    import shutil

    import training_runs
    output = str(tmp_path_factory.mktemp("clustered") / "run")
    shutil.copytree(pretrained[0], output)
    return output, training_runs.succeeded(training_runs.cluster(
        small_data, output, pictures=True))
