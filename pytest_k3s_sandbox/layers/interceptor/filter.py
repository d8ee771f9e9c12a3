"""The seccomp filter that stops trapped calls, in classic BPF.

libseccomp builds the same filters, but finding and loading it takes more of a tracer's start in gVisor
than everything else together (docs/interceptor.md), and the tracer needs the bytes to load a filter
into a program that is already there. A test compares the two on every call.

Layouts: struct seccomp_data in linux/seccomp.h, struct sock_filter and sock_fprog in linux/filter.h,
instructions in linux/bpf_common.h (all uapi).
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Iterable, Mapping
from enum import Flag, auto
from typing import Final, NamedTuple

from pytest_k3s_sandbox.layers.interceptor import repeating
from pytest_k3s_sandbox.layers.interceptor.syscalls import NUMBERS, SECCOMP

PROBING: Final = 121
"""getpgid(2), which a launched process calls before execve, so that the tracer sees the order of stops."""
NO_PROCESS: Final = 0x7FFF_AB1E
"""The argument of the probing call: a process id above pid_max (at most 4194304)."""

RET_ALLOW: Final = 0x7FFF_0000
RET_TRACE: Final = 0x7FF0_0000
RET_ERRNO: Final = 0x0005_0000
"""SECCOMP_RET_ERRNO; the errno is in its lower half."""
AUDIT_ARCH_X86_64: Final = 0xC000_003E

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_IF_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K

_IF_BITS: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K

_NUMBER, _ARCH = 0, 4
_ARGUMENTS: Final = (16, 24, 32)
"""Offsets of the lower halves of the first arguments."""
_POINTER: Final = 8
"""Offset of the instruction pointer, its lower half first."""
_FLAGS: Final = {"open": 6, "openat": 13}
"""The part of the tail that tests the flags of a call that opens; openat2 has them in memory."""
_PAGE_AND_FLAGS: Final = {"open": 1, "openat": 8}
"""The part that tests the flags of calls from the page of :mod:`.repeating`, and stops all others."""
_PAGE: Final = 15
_PROBE: Final = 20
_ALLOW: Final = 22
_TRACE: Final = 23
_REFUSE: Final = 24
_NOT_TO_READ: Final = 0o200000 | 1
"""O_DIRECTORY and O_WRONLY, asm-generic/fcntl.h (uapi): a descriptor with either cannot read a file."""

_MODE_FILTER: Final = 1
_SPEC_ALLOW: Final = 4
"""SECCOMP_FILTER_FLAG_SPEC_ALLOW: before Linux 5.16 a filter without it slows down the whole program."""
_PR_SET_NO_NEW_PRIVS: Final = 38
FLAGS: Final = (_SPEC_ALLOW, 0)
"""Flags for seccomp(2), tried in this order: gVisor accepts none."""


class Stops(Flag):
    """The condition under which a call stops."""

    ALWAYS = auto()
    READING = auto()
    """Stop opens, except of a directory or for writing only."""
    RETURNING = auto()
    """Stop a call whose result is watched, except from the page of :mod:`.repeating`."""
    REFUSED = auto()
    """Answer ENOSYS without a stop, unless another condition stops the call."""


class Instruction(NamedTuple):
    """One struct sock_filter."""

    code: int
    jump_true: int
    jump_false: int
    value: int


def _matched(name: str, stops: Stops) -> int:
    """Return the part of the tail for a call."""
    if Stops.ALWAYS in stops or (Stops.READING in stops and name not in _FLAGS):
        return _TRACE
    if Stops.READING in stops:
        return (_PAGE_AND_FLAGS if Stops.RETURNING in stops else _FLAGS)[name]
    if Stops.RETURNING in stops:
        return _PAGE
    return _REFUSE if Stops.REFUSED in stops else _ALLOW


def _from_page(at: int, passed: int) -> tuple[Instruction, ...]:
    """Return the part of the tail at ``at``: calls from the page go on at ``passed``, others stop."""
    low, high = repeating.ADDRESS & 0xFFFF_FFFF, repeating.ADDRESS >> 32
    return (
        Instruction(_LOAD, 0, 0, _POINTER + 4),
        Instruction(_IF_EQUAL, 0, _TRACE - at - 2, high),
        Instruction(_LOAD, 0, 0, _POINTER),
        Instruction(_IF_AT_LEAST, _TRACE - at - 4, 0, low + repeating.PAGE),
        Instruction(_IF_AT_LEAST, passed - at - 5, _TRACE - at - 5, low),
    )


def build(calls: Mapping[str, Stops], *, probing: bool = False) -> tuple[Instruction, ...]:
    """Return a filter that reports ``calls`` to the tracer and lets everything else pass.

    Calls of 32-bit and x32 programs pass, too, because their structures differ. The filter searches the
    numbers by halving: a call that is not trapped costs about five comparisons.

    Args:
        calls: The condition of each call's stop, by the call's name.
        probing: Whether the filter reports the probing call of a launched process, too.
    """
    numbers = {NUMBERS[name]: _matched(name, stops) for name, stops in calls.items()}
    if probing:
        numbers[PROBING] = _PROBE
    if not numbers:
        return (Instruction(_RETURN, 0, 0, RET_ALLOW),)
    head = (
        Instruction(_LOAD, 0, 0, _ARCH),
        Instruction(_IF_EQUAL, 1, 0, AUDIT_ARCH_X86_64),
        Instruction(_RETURN, 0, 0, RET_ALLOW),
        Instruction(_LOAD, 0, 0, _NUMBER),
    )
    tail = (
        Instruction(_RETURN, 0, 0, RET_ALLOW),  # 0: no number matched
        *_from_page(1, 6),
        Instruction(_LOAD, 0, 0, _ARGUMENTS[1]),  # 6: flags of open
        Instruction(_IF_BITS, _ALLOW - 8, _TRACE - 8, _NOT_TO_READ),
        *_from_page(8, 13),
        Instruction(_LOAD, 0, 0, _ARGUMENTS[2]),  # 13: flags of openat
        Instruction(_IF_BITS, _ALLOW - 15, _TRACE - 15, _NOT_TO_READ),
        *_from_page(15, _ALLOW),
        Instruction(_LOAD, 0, 0, _ARGUMENTS[0]),  # 20: the probing call
        Instruction(_IF_EQUAL, 1, 0, NO_PROCESS),
        Instruction(_RETURN, 0, 0, RET_ALLOW),  # 22
        Instruction(_RETURN, 0, 0, RET_TRACE),  # 23
        Instruction(_RETURN, 0, 0, RET_ERRNO | errno.ENOSYS),  # 24
    )
    return (*head, *_halved(sorted(numbers.items()), 2 * len(numbers) - 1), *tail)


def _halved(numbers: list[tuple[int, int]], left: int) -> list[Instruction]:
    """Return the comparisons; ``left`` counts the instructions from here to the tail."""
    if len(numbers) == 1:
        number, matched = numbers[0]
        return [Instruction(_IF_EQUAL, left - 1 + matched, left - 1, number)]
    half = len(numbers) // 2
    lower = _halved(numbers[:half], left - 1)
    upper = _halved(numbers[half:], left - 1 - len(lower))
    return [Instruction(_IF_AT_LEAST, len(lower), 0, numbers[half][0]), *lower, *upper]


def packed(program: Iterable[Instruction]) -> bytes:
    """Return the instructions as the kernel reads them."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def with_header(program: bytes, address: int) -> bytes:
    """Return struct sock_fprog and the program behind it, for memory at ``address``."""
    header = struct.pack("=H6xQ", len(program) // 8, address + 16)
    return header + program


def load(program: bytes) -> None:
    """Load a filter into this process.

    A process without CAP_SYS_ADMIN must set no_new_privs first, which disables setuid programs. Therefore
    no_new_privs is set only if seccomp(2) refuses the filter without it.

    Raises:
        OSError: The kernel refuses the filter, or has no seccomp.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(16 + len(program))
    address = ctypes.addressof(buffer)
    ctypes.memmove(address, with_header(program, address), len(buffer))
    for flags in FLAGS:
        for _ in range(2):
            if libc.syscall(SECCOMP, _MODE_FILTER, flags, ctypes.c_void_p(address)) == 0:
                return
            if ctypes.get_errno() != errno.EACCES or libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
                break
    raise OSError(ctypes.get_errno(), "seccomp")
