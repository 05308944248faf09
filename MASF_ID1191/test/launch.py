#!/usr/bin/env python3
"""Runs a program as the processes of one job, and ends them all when one fails.

Every process gets RANK_ID, RANK_SIZE and ASCEND_DEVICE_ID. Signals are passed on to all; the exit
code is that of the first process that failed. Off the NPU the processes meet at WORKER_HOSTS
("host:port,host:port,..", one per process; default: free ports of this machine). On several hosts
run this on each with the same WORKER_HOSTS (on Ascend: RANK_TABLE_FILE), and --first and --local.
The master is tools/launch.py; tools/sync copies it byte for byte into the test/ folders of models
that train in several processes.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import argparse
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time

SET_PARENT_DEATH_SIGNAL = 1  # of prctl(2)
PEER_LOST = 75  # npu_session's exit code of a process that ends because another one has


def parse_args(argv=None):
    """Flags, up to the program's name; the rest is the program's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--processes", type=int, required=True, help="of the whole job")
    parser.add_argument("--first", type=int, default=0, help="number of this host's first process")
    parser.add_argument("--local", type=int,
                        help="processes on this host; default: all from --first on")
    parser.add_argument("--log_folder", metavar="FOLDER",
                        help="receives train_<number>.log of all but the job's first process, "
                             "whose output goes where this one's goes; default: it is dropped")
    parser.add_argument("--patience", type=float, default=5, metavar="SECONDS",
                        help="time for the others to notice that one has failed, and then to end")
    parser.add_argument("program", help="Python file")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="of the program")
    args = parser.parse_args(argv)
    args.local = args.processes - args.first if args.local is None else args.local
    if args.first < 0 or not 1 <= args.local <= args.processes - args.first:
        parser.error(f"--processes={args.processes} --first={args.first} --local={args.local}: "
                     "this host has to run at least one of the job's processes")
    if args.local < args.processes and not (
            os.environ.get("WORKER_HOSTS") or os.environ.get("RANK_TABLE_FILE")):
        parser.error("a job on several hosts needs WORKER_HOSTS, or on Ascend RANK_TABLE_FILE")
    return args


def free_hosts(count):
    """'127.0.0.1:port' of so many ports that nobody uses at the moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(contextlib.closing(socket.socket())) for _ in range(count)]
        for trial in sockets:
            trial.bind(("127.0.0.1", 0))
        return ",".join(f"127.0.0.1:{trial.getsockname()[1]}" for trial in sockets)


class Job:
    """The processes of a job on this host. `with Job(args) as job:` leaves none behind."""

    def __init__(self, args):
        self._args, self._processes, self._signalled = args, [], False
        self._environment = dict(os.environ, RANK_SIZE=str(args.processes))
        self._environment.setdefault("JOB_ID", "10087")
        self._environment.setdefault("WORKER_HOSTS", free_hosts(args.processes))

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._forward)
        return self

    def __exit__(self, *_):
        self._send(signal.SIGKILL)

    def _forward(self, number, _):
        self._signalled = True  # they save and end in their own time
        self._send(number)

    def _send(self, number):
        for process in self._running():
            process.send_signal(number)

    def start(self):
        """Starts all processes."""
        for number in range(self._args.first, self._args.first + self._args.local):
            self._processes.append(self._start(number))

    def _start(self, number):
        """One process, in a session of its own, so that a terminal's Ctrl-C reaches only us."""
        args = self._args
        environment = dict(self._environment, RANK_ID=str(number),
                           ASCEND_DEVICE_ID=str(number - args.first))
        with contextlib.ExitStack() as stack:
            output = None
            if number:
                output = stack.enter_context(
                    open(self._log(number) if args.log_folder else os.devnull, "w"))
            return subprocess.Popen([sys.executable, args.program] + args.flags, env=environment,
                                    stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                    start_new_session=True, preexec_fn=_end_with_launcher)

    def wait(self):
        """Waits for all; returns the exit code of the first that failed, else 0."""
        failed, patience_ends, harder = 0, None, [signal.SIGKILL, signal.SIGTERM]
        while self._running():
            failed = failed or self._first_failure()
            if failed and patience_ends is None:
                patience_ends = time.time() + self._args.patience
            if failed and not self._signalled and harder and time.time() > patience_ends:
                self._send(harder.pop())
                patience_ends = time.time() + self._args.patience
            time.sleep(0.1)
        failed = failed or self._first_failure()
        if failed and not self._signalled:
            self._show_failed(failed)
        return failed

    def _show_failed(self, code):
        """The end of the log of the process that failed, unless it is the output seen anyway."""
        number = next(number for number, process in enumerate(self._processes, self._args.first)
                      if _exit_code(process) == code)
        if number and self._args.log_folder:
            with open(self._log(number), errors="replace") as file:
                lines = file.readlines()[-10:]
            print(f"process {number} of {self._args.processes} ended with exit code {code}:\n"
                  + "".join(lines), end="", file=sys.stderr)

    def _log(self, number):
        return os.path.join(self._args.log_folder, f"train_{number}.log")

    def _running(self):
        return [process for process in self._processes if process.poll() is None]

    def _first_failure(self):
        codes = [code for code in map(_exit_code, self._processes) if code]
        causes = [code for code in codes if code != PEER_LOST]
        return (causes or codes or [0])[0]


def _end_with_launcher():
    """In a process about to become the program: SIGTERM when the launcher is killed (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _exit_code(process):
    """Exit code as a shell gives it; None while the process runs."""
    code = process.returncode
    return 128 - code if code and code < 0 else code


def main(argv=None):
    """Starts the processes and waits for them; returns the exit code."""
    with Job(parse_args(argv)) as job:
        job.start()
        return job.wait()


if __name__ == "__main__":
    sys.exit(main())
