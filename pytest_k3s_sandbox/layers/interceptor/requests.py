"""ptrace as the interceptor needs it: python-ptrace's binding, and what that lacks.

python-ptrace 0.9.9 has no PTRACE_SEIZE, no seccomp events and no signal masks. They
are here, beside its own functions, and nowhere else. Numbers: linux/ptrace.h (uapi); meanings: ptrace(2).
"""

from __future__ import annotations

import ctypes
import signal
from typing import Final

from ptrace import PtraceError
from ptrace.binding.func import (
    PTRACE_CONT,
    PTRACE_EVENT_CLONE,
    PTRACE_EVENT_EXEC,
    PTRACE_EVENT_FORK,
    PTRACE_EVENT_VFORK,
    PTRACE_GETEVENTMSG,
    PTRACE_GETREGS,
    PTRACE_O_TRACECLONE,
    PTRACE_O_TRACEEXEC,
    PTRACE_O_TRACEFORK,
    PTRACE_O_TRACESYSGOOD,
    PTRACE_O_TRACEVFORK,
    PTRACE_SETREGS,
    PTRACE_SYSCALL,
    ptrace,
)
from ptrace.binding.linux_struct import user_regs_struct

PTRACE_SEIZE: Final = 0x4206
PTRACE_LISTEN: Final = 0x4208
PTRACE_GETSIGMASK: Final = 0x420A
PTRACE_SETSIGMASK: Final = 0x420B
PTRACE_EVENT_SECCOMP: Final = 7
PTRACE_EVENT_STOP: Final = 128
PTRACE_O_TRACESECCOMP: Final = 1 << PTRACE_EVENT_SECCOMP
PTRACE_O_EXITKILL: Final = 1 << 20

WALL: Final = 0x40000000
"""__WALL of waitpid(2): threads and processes alike."""

OPTIONS: Final = (
    PTRACE_O_TRACESYSGOOD
    | PTRACE_O_TRACEFORK
    | PTRACE_O_TRACEVFORK
    | PTRACE_O_TRACECLONE
    | PTRACE_O_TRACEEXEC
    | PTRACE_O_TRACESECCOMP
    | PTRACE_O_EXITKILL
)

# What waitpid reports as ``status >> 8`` of a stop.
STOP_SYSCALL: Final = signal.SIGTRAP | 0x80
STOP_SECCOMP: Final = signal.SIGTRAP | PTRACE_EVENT_SECCOMP << 8
STOP_EXEC: Final = signal.SIGTRAP | PTRACE_EVENT_EXEC << 8
STOPS_NEW_TASK: Final = frozenset(
    signal.SIGTRAP | event << 8 for event in (PTRACE_EVENT_FORK, PTRACE_EVENT_VFORK, PTRACE_EVENT_CLONE)
)

_NAMES: Final = [name for name, _ in user_regs_struct._fields_]
ORIG_RAX: Final = _NAMES.index("orig_rax")
RAX: Final = _NAMES.index("rax")
RIP: Final = _NAMES.index("rip")
ARGUMENTS: Final = tuple(_NAMES.index(name) for name in ("rdi", "rsi", "rdx", "r10", "r8", "r9"))
"""The registers of a system call's arguments on x86-64, as indices: syscall(2)."""

SYSCALL_LENGTH: Final = 2
"""Bytes of the x86-64 instruction ``syscall`` (0f 05)."""

_SIGSET_BYTES: Final = 8
ALL_SIGNALS: Final = 0xFFFF_FFFF_FFFF_FFFF

__all__ = ["PtraceError"]


class Registers:
    """One buffer for the registers of whichever tracee is being looked at.

    Attributes:
        words: The registers by index, as unsigned 64-bit numbers.
    """

    __slots__ = ("_address", "_struct", "words")

    def __init__(self) -> None:
        """Allocate the buffer."""
        self._struct = user_regs_struct()
        self._address = ctypes.addressof(self._struct)
        self.words = (ctypes.c_ulong * len(_NAMES)).from_buffer(self._struct)

    def load(self, tid: int) -> None:
        """Read the registers of a stopped tracee; raises PtraceError."""
        ptrace(PTRACE_GETREGS, tid, 0, self._address)

    def store(self, tid: int) -> None:
        """Write them to a stopped tracee; raises PtraceError."""
        ptrace(PTRACE_SETREGS, tid, 0, self._address)

    def save(self) -> bytes:
        """Return a copy of the buffer."""
        return bytes(self._struct)

    def recall(self, saved: bytes) -> None:
        """Fill the buffer from such a copy."""
        ctypes.memmove(self._address, saved, len(saved))


def signed(value: int) -> int:
    """Return a register's 64 bits as a signed number."""
    return value - (1 << 64) if value >> 63 else value


def seize(tid: int) -> None:
    """Begin to trace a process without stopping it; raises PtraceError."""
    ptrace(PTRACE_SEIZE, tid, 0, OPTIONS)


def resume(tid: int, signum: int = 0) -> None:
    """Let a tracee run to its next event; raises PtraceError."""
    ptrace(PTRACE_CONT, tid, 0, signum)


def resume_to_syscall_stop(tid: int, signum: int = 0) -> None:
    """Let a tracee run to the next entry or exit of a system call; raises PtraceError."""
    ptrace(PTRACE_SYSCALL, tid, 0, signum)


def listen(tid: int) -> None:
    """Leave a tracee in its group-stop, as if it were not traced; raises PtraceError."""
    ptrace(PTRACE_LISTEN, tid)


def event_message(tid: int) -> int:
    """Return the number that belongs to the event a tracee reported; raises PtraceError."""
    message = ctypes.c_ulong()
    ptrace(PTRACE_GETEVENTMSG, tid, 0, ctypes.addressof(message))
    return message.value


def signal_mask(tid: int) -> int:
    """Return the set of signals that a stopped tracee blocks; raises PtraceError."""
    mask = ctypes.c_uint64()
    ptrace(PTRACE_GETSIGMASK, tid, _SIGSET_BYTES, ctypes.addressof(mask))
    return mask.value


def set_signal_mask(tid: int, mask: int) -> None:
    """Replace the set of signals that a stopped tracee blocks; raises PtraceError."""
    value = ctypes.c_uint64(mask)
    ptrace(PTRACE_SETSIGMASK, tid, _SIGSET_BYTES, ctypes.addressof(value))
