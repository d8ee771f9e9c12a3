"""Start a program traced and filtered, and probe the order of its stops."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from collections.abc import Sequence
from typing import Final, NamedTuple, NoReturn

from pytest_k3s_sandbox.layers.interceptor import filter as seccomp
from pytest_k3s_sandbox.layers.interceptor import requests

_EXEC: Final = b"exec"
_FILTER: Final = b"filter"


class Launched(NamedTuple):
    """A traced process that runs towards its execve.

    Attributes:
        pid: Its process id.
        entry_first: Whether the stop after a seccomp event is the call's entry (gVisor, Linux before 4.8) and
            not its exit.
        report: A pipe with the error of a failed execve; it is empty after a successful one.
    """

    pid: int
    entry_first: bool
    report: int


def launch(command: Sequence[str], program: bytes, *, outlive: bool = False) -> Launched:
    """Start ``command`` traced and filtered.

    Args:
        command: The program and its arguments.
        program: The filter, which must report the probing call. With an empty one the program runs
            unfiltered, and a short-lived process makes the probing call instead.
        outlive: Whether the program goes on after the tracer is killed.

    Raises:
        MissingCapability: The kernel refuses ptrace or seccomp.
    """
    if program:
        return _launch(command, program, outlive=outlive)
    scout = _launch((), seccomp.packed(seccomp.build({}, probing=True)), outlive=False)
    os.kill(scout.pid, signal.SIGKILL)  # also if a signal has just stopped it
    while os.WIFSTOPPED(os.waitpid(scout.pid, requests.WALL)[1]):
        pass
    os.close(scout.report)
    return _launch(command, b"", outlive=outlive)._replace(entry_first=scout.entry_first)


def _launch(command: Sequence[str], program: bytes, *, outlive: bool) -> Launched:
    ready_read, ready_write = os.pipe()
    report_read, report_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(command, program, ready_read, report_write)
    os.close(ready_read)
    os.close(report_write)
    try:
        requests.seize(pid, requests.OPTIONS | (0 if outlive else requests.EXITKILL))
    except requests.PtraceError as error:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready_write)
        os.close(report_read)
        _missing(
            "ptrace",
            os.strerror(error.errno or 0),
            "run as root, or allow it: kernel.yama.ptrace_scope below 3",
        )
    os.write(ready_write, b"1")
    os.close(ready_write)
    try:
        return Launched(pid, bool(program) and _entry_first(pid), report_read)
    except ChildProcessError:
        kind, _, number = os.read(report_read, 64).partition(b" ")
        os.close(report_read)
        _missing(
            "the seccomp filter",
            os.strerror(int(number)) if kind == _FILTER else "the process ended before it",
            "run as root, in an environment that allows seccomp filters",
        )


def failure(report: int) -> OSError | None:
    """Return the error of a failed execve, after the program's end."""
    text = os.read(report, 64)
    os.close(report)
    kind, _, number = text.partition(b" ")
    return OSError(int(number), os.strerror(int(number))) if kind == _EXEC else None


def _missing(what: str, cause: str, remedy: str) -> NoReturn:
    from pytest_k3s_sandbox.errors import MissingCapability

    raise MissingCapability(what, cause=cause, remedy=remedy)


def _child(command: Sequence[str], program: bytes, ready: int, report: int) -> NoReturn:
    """Become the program; the child's side of :func:`launch`."""
    kind = _FILTER
    try:
        os.read(ready, 1)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these at its start
            signal.signal(number, signal.SIG_DFL)
        if program:
            seccomp.load(program)
            ctypes.CDLL(None).syscall(seccomp.PROBING, seccomp.NO_PROCESS)
        if not command:
            os._exit(0)
        kind = _EXEC
        os.execvp(command[0], list(command))  # noqa: S606 - no shell must come between tracer and program
    except OSError as error:
        os.write(report, b"%s %d" % (kind, error.errno or errno.EINVAL))
    finally:
        os._exit(127)


def _entry_first(pid: int) -> bool:
    """Wait for the child's probing call; return whether an entry stop follows the seccomp event.

    Raises:
        ChildProcessError: It ended before that call.
    """
    registers = requests.Registers()
    probing = False
    while True:
        _, status = os.waitpid(pid, requests.WALL)
        if not os.WIFSTOPPED(status):
            raise ChildProcessError
        code = status >> 8
        if code == requests.STOP_SECCOMP:
            registers.load(pid)
            probing = registers.words[requests.ORIG_RAX] == seccomp.PROBING
        elif code == requests.STOP_SYSCALL:
            registers.load(pid)
            entry = requests.signed(registers.words[requests.RAX]) == -errno.ENOSYS
            requests.resume(pid)
            return entry
        if probing:
            requests.resume_to_syscall_stop(pid)
        else:
            requests.resume(pid, code if code < signal.NSIG and code != signal.SIGSTOP else 0)
