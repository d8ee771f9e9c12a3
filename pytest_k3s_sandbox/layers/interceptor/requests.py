"""The requests of ptrace(2) that the interceptor uses, for x86-64 only.

python-ptrace 0.9.9 is for debuggers: it lacks PTRACE_SEIZE, seccomp events and signal masks, and stops at
every call. The import of its binding, which starts a program to find libc, takes an eighth of a tracer's
start in gVisor (docs/interceptor.md). A test compares these declarations with those of python-ptrace.
Numbers: linux/ptrace.h and asm/ptrace.h (uapi).
"""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

_POKEDATA: Final = 5
_CONT: Final = 7
_GETREGS: Final = 12
_SETREGS: Final = 13
_SYSCALL: Final = 24
_GETEVENTMSG: Final = 0x4201
_GETSIGINFO: Final = 0x4202
_SEIZE: Final = 0x4206
_LISTEN: Final = 0x4208
_GETSIGMASK: Final = 0x420A
_SETSIGMASK: Final = 0x420B

_EVENT_FORK: Final = 1
_EVENT_VFORK: Final = 2
_EVENT_CLONE: Final = 3
_EVENT_EXEC: Final = 4
_EVENT_SECCOMP: Final = 7
_EVENT_STOP: Final = 128

_SYSGOOD: Final = 1
EXITKILL: Final = 1 << 20
"""PTRACE_O_EXITKILL: the kernel kills the tracees when their tracer ends."""

WALL: Final = 0x4000_0000
"""__WALL of waitpid(2): wait for threads, too."""

OPTIONS: Final = _SYSGOOD | sum(
    1 << event for event in (_EVENT_FORK, _EVENT_VFORK, _EVENT_CLONE, _EVENT_EXEC, _EVENT_SECCOMP)
)

# What waitpid reports as ``status >> 8`` of a stop.
STOP_SYSCALL: Final = signal.SIGTRAP | 0x80
STOP_SECCOMP: Final = signal.SIGTRAP | _EVENT_SECCOMP << 8
STOP_EXEC: Final = signal.SIGTRAP | _EVENT_EXEC << 8
STOPS_NEW_TASK: Final = frozenset(
    signal.SIGTRAP | event << 8 for event in (_EVENT_FORK, _EVENT_VFORK, _EVENT_CLONE)
)
STOPS_NEW_PROCESS: Final = STOPS_NEW_TASK - {signal.SIGTRAP | _EVENT_CLONE << 8}
"""The events of new processes; PTRACE_EVENT_CLONE is for threads and for processes without SIGCHLD."""
GROUP_STOPS: Final = frozenset(
    number | _EVENT_STOP << 8 for number in (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
)

REGISTERS: Final = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
    *("orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
)
"""struct user_regs_struct, asm/user_64.h: unsigned words of 64 bits."""
ORIG_RAX: Final = REGISTERS.index("orig_rax")
RAX: Final = REGISTERS.index("rax")
RIP: Final = REGISTERS.index("rip")
RSP: Final = REGISTERS.index("rsp")
CS: Final = REGISTERS.index("cs")
ARGUMENTS: Final = tuple(REGISTERS.index(name) for name in ("rdi", "rsi", "rdx", "r10", "r8", "r9"))
"""The registers of a system call's arguments on x86-64, as indices: syscall(2)."""

CODE_64: Final = 0x33
"""The code segment of 64-bit programs (__USER_CS, asm/segment.h)."""
SYSCALL: Final = b"\x0f\x05"
"""The x86-64 instruction ``syscall``."""
SYSCALL_LENGTH: Final = len(SYSCALL)

_LAST_ERRNO: Final = 4095
_SIGSET_BYTES: Final = 8
ALL_SIGNALS: Final = 0xFFFF_FFFF_FFFF_FFFF

_libc: Final = ctypes.CDLL(None, use_errno=True)
_ptrace: Final = _libc.ptrace
_ptrace.argtypes = (ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_ptrace.restype = ctypes.c_long
_word: Final = ctypes.c_ulong()
_word_at: Final = ctypes.addressof(_word)
_siginfo: Final = (ctypes.c_int * 32)()
"""siginfo_t, asm-generic/siginfo.h (uapi): si_signo, si_errno, si_code, and more."""
_siginfo_at: Final = ctypes.addressof(_siginfo)
_SI_CODE: Final = 2


class PtraceError(OSError):
    """A request failed; ESRCH means that the tracee has ended or is not stopped."""


def _fail(request: int, tid: int) -> None:
    number = ctypes.get_errno()
    raise PtraceError(number, f"ptrace request {request:#x} on {tid}: {os.strerror(number)}")


class Registers:
    """A buffer for the registers of one tracee at a time.

    Attributes:
        words: The registers by index, as unsigned 64-bit numbers.
    """

    __slots__ = ("_address", "words")

    def __init__(self) -> None:
        """Allocate the buffer."""
        self.words = (ctypes.c_ulong * len(REGISTERS))()
        self._address = ctypes.addressof(self.words)

    def load(self, tid: int) -> None:
        """Read the registers of a stopped tracee; raises PtraceError."""
        if _ptrace(_GETREGS, tid, 0, self._address):
            _fail(_GETREGS, tid)

    def store(self, tid: int) -> None:
        """Write the registers of a stopped tracee; raises PtraceError."""
        if _ptrace(_SETREGS, tid, 0, self._address):
            _fail(_SETREGS, tid)

    def save(self) -> bytes:
        """Return a copy of the buffer."""
        return bytes(self.words)

    def recall(self, saved: bytes) -> None:
        """Fill the buffer from a copy."""
        ctypes.memmove(self._address, saved, len(saved))


def signed(value: int) -> int:
    """Return a register's 64 bits as a signed number."""
    return value - (1 << 64) if value >> 63 else value


def failed(value: int) -> bool:
    """Return whether a call's result is a negative errno: syscall(2)."""
    return -_LAST_ERRNO <= signed(value) < 0


def seize(tid: int, options: int) -> None:
    """Begin to trace a process without stopping it; raises PtraceError."""
    if _ptrace(_SEIZE, tid, 0, options):
        _fail(_SEIZE, tid)


def resume(tid: int, signum: int = 0) -> None:
    """Let a tracee run to its next event; raises PtraceError."""
    if _ptrace(_CONT, tid, 0, signum):
        _fail(_CONT, tid)


def resume_to_syscall_stop(tid: int, signum: int = 0) -> None:
    """Let a tracee run to the next entry or exit of a system call; raises PtraceError."""
    if _ptrace(_SYSCALL, tid, 0, signum):
        _fail(_SYSCALL, tid)


def listen(tid: int) -> None:
    """Leave a tracee in its group-stop (PTRACE_LISTEN); raises PtraceError."""
    if _ptrace(_LISTEN, tid, 0, 0):
        _fail(_LISTEN, tid)


def poke(tid: int, address: int, word: bytes) -> None:
    """Write 8 bytes to a stopped tracee's memory or code (copy on write); raises PtraceError."""
    if _ptrace(_POKEDATA, tid, address, int.from_bytes(word, "little")):
        _fail(_POKEDATA, tid)


def event_message(tid: int) -> int:
    """Return the message of a tracee's event; raises PtraceError."""
    if _ptrace(_GETEVENTMSG, tid, 0, _word_at):
        _fail(_GETEVENTMSG, tid)
    return _word.value


def is_fault(tid: int) -> bool:
    """Return whether the signal of a signal-delivery-stop is from the kernel; raises PtraceError.

    The kernel's si_code is positive, and that of kill(2) and similar calls is not: sigaction(2).
    """
    if _ptrace(_GETSIGINFO, tid, 0, _siginfo_at):
        _fail(_GETSIGINFO, tid)
    return _siginfo[_SI_CODE] > 0


def signal_mask(tid: int) -> int:
    """Return the set of signals that a stopped tracee blocks; raises PtraceError."""
    if _ptrace(_GETSIGMASK, tid, _SIGSET_BYTES, _word_at):
        _fail(_GETSIGMASK, tid)
    return _word.value


def set_signal_mask(tid: int, mask: int) -> None:
    """Replace the set of signals that a stopped tracee blocks; raises PtraceError."""
    _word.value = mask
    if _ptrace(_SETSIGMASK, tid, _SIGSET_BYTES, _word_at):
        _fail(_SETSIGMASK, tid)
