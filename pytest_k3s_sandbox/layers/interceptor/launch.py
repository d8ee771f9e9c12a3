"""Start a program traced and filtered, and learn by experiment in which order its stops come."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from pytest_k3s_sandbox.errors import MissingCapability
from pytest_k3s_sandbox.layers.interceptor import requests

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyseccomp import SyscallFilter

_GETPGID: Final = 121
_NOBODY: Final = 0x7FFF_AB1E
"""A process id that cannot exist (pid_max is at most 4194304), so nobody else asks for it."""

_EXEC: Final = b"exec"
_FILTER: Final = b"filter"


@dataclass(frozen=True, slots=True)
class Launched:
    """A traced program, stopped nowhere, on its way to exec.

    Attributes:
        pid: Its process id.
        entry_first: Whether after a seccomp event the next stop is the call's entry
            (gVisor, Linux before 4.8) and not its exit.
        report: A pipe that tells why the program could not be executed, else ends.
    """

    pid: int
    entry_first: bool
    report: int


def build_filter(calls: frozenset[str]) -> SyscallFilter:
    """Return a seccomp filter that reports ``calls`` to the tracer and lets everything else pass.

    Calls of 32-bit and x32 programs pass, too: their numbers and structures differ.
    ``no_new_privs`` is left off for root, so that setuid programs work.

    Raises:
        MissingCapability: libseccomp is not installed.
    """
    try:
        import pyseccomp  # noqa: PLC0415 - it looks for libseccomp when imported, which is slow and can fail
    except RuntimeError as error:
        raise MissingCapability(
            "the seccomp filter", cause=str(error), remedy="apt-get install libseccomp2"
        ) from error
    result = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    result.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.ALLOW)
    result.set_attr(pyseccomp.Attr.CTL_NNP, int(os.geteuid() != 0))
    for name in sorted(calls):
        result.add_rule(pyseccomp.TRACE(0), name)
    result.add_rule(pyseccomp.TRACE(0), _GETPGID, pyseccomp.Arg(0, pyseccomp.EQ, _NOBODY))
    return result


def launch(command: Sequence[str], calls: frozenset[str]) -> Launched:
    """Start ``command`` traced, with a filter for ``calls``.

    Raises:
        MissingCapability: ptrace or seccomp is not permitted here.
    """
    seccomp = build_filter(calls)
    ready_read, ready_write = os.pipe()
    report_read, report_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(command, seccomp, ready_read, report_write)
    os.close(ready_read)
    os.close(report_write)
    try:
        requests.seize(pid)
    except requests.PtraceError as error:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready_write)
        os.close(report_read)
        raise MissingCapability(
            "ptrace", cause=str(error), remedy="run as root, or allow it: kernel.yama.ptrace_scope below 3"
        ) from error
    os.write(ready_write, b"1")
    os.close(ready_write)
    try:
        return Launched(pid, _entry_first(pid), report_read)
    except ChildProcessError:
        kind, _, number = os.read(report_read, 64).partition(b" ")
        os.close(report_read)
        raise MissingCapability(
            "the seccomp filter",
            cause=os.strerror(int(number)) if kind == _FILTER else "the process ended before it",
            remedy="run as root, in an environment that allows seccomp filters",
        ) from None


def failure(report: int) -> OSError | None:
    """Return why the program could not be executed; call it when the program has ended."""
    text = os.read(report, 64)
    os.close(report)
    kind, _, number = text.partition(b" ")
    return OSError(int(number), os.strerror(int(number))) if kind == _EXEC else None


def _child(command: Sequence[str], seccomp: SyscallFilter, ready: int, report: int) -> NoReturn:
    """Become the program; the child's side of :func:`launch`."""
    kind = _FILTER
    try:
        os.read(ready, 1)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # what Python ignores at its own start
            signal.signal(number, signal.SIG_DFL)
        seccomp.load()
        ctypes.CDLL(None).syscall(_GETPGID, _NOBODY)
        kind = _EXEC
        os.execvp(command[0], list(command))  # noqa: S606 - running the program without a shell is the purpose
    except OSError as error:
        os.write(report, b"%s %d" % (kind, error.errno or errno.EINVAL))
    finally:
        os._exit(127)


def _entry_first(pid: int) -> bool:
    """Follow the child to its probing call; tell whether an entry stop comes after the seccomp event.

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
            probing = registers.words[requests.ORIG_RAX] == _GETPGID
        elif code == requests.STOP_SYSCALL:
            registers.load(pid)
            entry = requests.signed(registers.words[requests.RAX]) == -errno.ENOSYS
            requests.resume(pid)
            return entry
        if probing:
            requests.resume_to_syscall_stop(pid)
        else:
            requests.resume(pid, code if code < signal.NSIG and code != signal.SIGSTOP else 0)
