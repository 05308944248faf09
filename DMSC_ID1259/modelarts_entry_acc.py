"""Start file of a ModelArts job: copies data in, runs a ModelZoo script, copies the results out.

It runs test/train_full_1p.sh, modelarts_entry_perf.py the short test/train_performance_1p.sh.
Flags that the script knows go to it; the platform adds others, which are named and passed over. The
master is in tools/; tools/sync copies it byte for byte into each model directory.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import re
import shutil
import signal
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "src")]

import npu_session  # noqa: E402 (where the model keeps it is known only now)

INPUTS = "/home/ma-user/modelarts/inputs/data_url_0"  # where the platform puts and collects files
OUTPUTS = "/home/ma-user/modelarts/outputs/train_url_0"


def say(text):
    """One line in the form of the ModelZoo's entries."""
    print(f"[CANN-Modelzoo] {text}", flush=True)


def existing(folder):
    """The folder, or None if there is no such."""
    return folder if os.path.isdir(folder) else None


def parse_args(argv=None):
    """(flags of this program, list of all others)."""
    parser = npu_session.argument_parser(
        __doc__.split("\n\n")[0], epilog="Further flags: those of the script, see its --help.")
    parser.add_argument("--data_url", default=existing(INPUTS),
                        help="data: obs://, s3:// or a local folder; default: the platform's")
    parser.add_argument("--train_url", default=existing(OUTPUTS),
                        help="run folder, obs://, s3:// or local; a run found in it goes on; "
                             "default: the platform's, else the script's")
    return parser.parse_known_args(argv)


def known_flags(script, flags):
    """Those of `flags` that the script's --help names; a line says which it does not."""
    shown = subprocess.run(["bash", script, "--help"], stdout=subprocess.PIPE, check=True,
                           text=True).stdout
    names = set(re.findall(r"--\w+", shown))
    known = [flag for flag in flags if flag.split("=")[0] in names]
    for flag in flags:
        if flag not in known:
            say(f"{flag} is not a flag of {os.path.basename(script)}: passed over")
    return known


def run_script(command):
    """Runs a command, which gets this process's SIGTERM and SIGINT; returns its exit code."""
    environment = dict(os.environ, PYTHON=os.environ.get("PYTHON", sys.executable))
    process = subprocess.Popen(command, cwd=HERE, env=environment, start_new_session=True)
    before = {number: signal.signal(number, lambda number, _: process.send_signal(number))
              for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def collect(output):
    """Copies the script's log and key files to <output>/modelzoo."""
    made = os.path.join(HERE, "test", "output", os.environ.get("ASCEND_DEVICE_ID", "0"))
    target = os.path.join(output, "modelzoo")
    os.makedirs(target, exist_ok=True)
    for name in os.listdir(made) if os.path.isdir(made) else ():
        if name.endswith((".log", ".txt")):
            shutil.copy(os.path.join(made, name), target)
    say(f"log and results are in {target}")


def main(argv=None, name="train_full_1p.sh"):
    """Runs the script of that name between the copies; returns its exit code."""
    args, others = parse_args(argv)
    script = os.path.join(HERE, "test", name)
    flags = known_flags(script, others)
    with npu_session.staged(args.data_url, args.train_url) as (data, output):
        folders = [f"--{name}={folder}" for name, folder in (
            ("data_path", data), ("output_path", output)) if folder]
        resume = [] if any(flag.startswith("--resume") for flag in flags) else ["--resume=auto"]
        command = ["bash", script] + folders + resume + flags
        say(" ".join(command))
        code = run_script(command)
        say(f"the training ended with exit code {code}")
        if output:
            collect(output)
    return code


if __name__ == "__main__":
    sys.exit(npu_session.run_main(main))
