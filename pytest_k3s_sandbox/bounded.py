"""Running a program for a limited time, whatever a test has done to Python's clocks."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import Any


def run(
    argv: Sequence[str], seconds: float, *, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end, or kill it: as ``subprocess.run``, whose time limit takes Python's clocks.

    Args:
        argv: The program and its arguments; its input is empty.
        seconds: How long it may take.
        env: Its environment; this process' own if None.

    Raises:
        TimeoutExpired: It was killed.
    """
    pipe: Any = subprocess.PIPE
    late = threading.Event()
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=env) as process:

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            out, err = process.communicate()
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()
    if late.is_set():
        raise subprocess.TimeoutExpired(argv, seconds, out, err)
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


def wait(process: subprocess.Popen[bytes], seconds: float) -> int:
    """Wait for the end of a process, and kill it when that takes too long; return the exit code.

    Args:
        process: The process.
        seconds: How long its own end may take.
    """
    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    try:
        return process.wait()
    finally:
        timer.cancel()
