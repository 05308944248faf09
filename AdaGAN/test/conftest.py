"""Puts AdaGAN/ first on sys.path; fixtures that several test files share."""
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

    Runs AdaGAN/<script> with this Python; env is added to the environment. Text streams.
    """
    def run(script, *flags, env=None, timeout=120, cwd=None):
        command = [sys.executable, os.path.join(SOURCE, script)] + [str(flag) for flag in flags]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=cwd,
                              env=dict(os.environ, **(env or {})), check=False)
    return run
