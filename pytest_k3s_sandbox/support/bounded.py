"""Running a program for a limited time, whatever a test has done to Python's clocks."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import IO

from pytest_k3s_sandbox.deadline import Deadline

LAST_SECONDS = 2.0
"""How long output may take to arrive after the end of its program."""


def run(
    argv: Sequence[str], seconds: float, *, env: Mapping[str, str] | None = None, text: str | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end, or kill it: as ``subprocess.run``, whose time limit takes Python's clocks.

    A process that the program leaves behind may hold its output open. The end of the output is waited for
    within the limit only.

    Args:
        argv: The program and its arguments.
        seconds: How long it may take.
        env: Its environment; this process' own if None.
        text: Its input, which is empty if None; it need not read it.

    Raises:
        TimeoutExpired: It was killed, or its output did not end.
    """
    deadline = Deadline.after(seconds)
    pipe = subprocess.PIPE
    stdin = subprocess.DEVNULL if text is None else pipe
    process = subprocess.Popen(argv, bufsize=0, stdin=stdin, stdout=pipe, stderr=pipe, env=env)
    if process.stdin is not None and text is not None:
        threading.Thread(target=_write, args=(process.stdin, text), name="input", daemon=True).start()
    readers = [_Reader(stream) for stream in (process.stdout, process.stderr) if stream is not None]
    try:
        for reader in readers:
            reader.thread.join(deadline.remaining())
        late = any(reader.thread.is_alive() for reader in readers)
        # A program that has closed its output may go on.
        code = wait(process, 0 if late else deadline.remaining())
    except BaseException:
        process.kill()
        process.wait()
        raise
    if late or (code < 0 and deadline.expired):
        last = Deadline.after(LAST_SECONDS)
        for reader in readers:
            reader.thread.join(last.remaining())
        raise subprocess.TimeoutExpired(argv, seconds, *(reader.data for reader in readers))
    return subprocess.CompletedProcess(argv, code, *(reader.data for reader in readers))


class _Reader:
    """Reads a stream to its end in a thread, which then closes it; other threads see the data so far."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._pieces: list[bytes] = []
        self.thread = threading.Thread(target=self._read, name="output", daemon=True)
        self.thread.start()

    @property
    def data(self) -> bytes:
        return b"".join(self._pieces)

    def _read(self) -> None:
        with self._stream as stream, contextlib.suppress(OSError):
            while piece := stream.read(65536):  # without a buffer: the available bytes
                self._pieces.append(piece)


def _write(stream: IO[bytes], text: str) -> None:
    """Write a text to a pipe and close it; a program that ends before it has read all breaks the pipe."""
    with contextlib.suppress(OSError), stream:
        data = memoryview(text.encode())
        while data:
            data = data[stream.write(data) :]  # without a buffer: a part may be written


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
