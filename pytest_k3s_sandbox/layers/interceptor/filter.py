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
import itertools
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
_OPENS: Final = {"open": 1, "openat": 2}
"""The argument with the flags of a call that opens; openat2 has them in memory."""
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
    CONCERNED = auto()
    """Stop no call that the page of :mod:`.repeating` makes because no rule can concern its path."""


class Instruction(NamedTuple):
    """One struct sock_filter."""

    code: int
    jump_true: int
    jump_false: int
    value: int


class _Jump(NamedTuple):
    """An instruction of the tail: it goes on at a part, or at the next instruction (None)."""

    code: int
    if_true: str | None
    if_false: str | None
    value: int


_Step = Instruction | _Jump


def _skipped(otherwise: str) -> tuple[_Step, ...]:
    """Return the part that passes calls that no rule can concern; others go on."""
    return (
        Instruction(_LOAD, 0, 0, _POINTER + 4),
        _Jump(_IF_EQUAL, None, otherwise, repeating.SKIPPED >> 32),
        Instruction(_LOAD, 0, 0, _POINTER),
        _Jump(_IF_EQUAL, "allow", otherwise, repeating.SKIPPED & 0xFFFF_FFFF),
    )


def _from_page(passed: str) -> tuple[_Step, ...]:
    """Return the part for calls from the page, which go on; others stop."""
    low, high = repeating.ADDRESS & 0xFFFF_FFFF, repeating.ADDRESS >> 32
    return (
        Instruction(_LOAD, 0, 0, _POINTER + 4),
        _Jump(_IF_EQUAL, None, "trace", high),
        Instruction(_LOAD, 0, 0, _POINTER),
        _Jump(_IF_AT_LEAST, "trace", None, low + repeating.PAGE),
        _Jump(_IF_AT_LEAST, passed, "trace", low),
    )


def _parts() -> dict[str, tuple[_Step, ...]]:
    """Return the parts of the tail, by name; a jump goes to a later part.

    The first part is for calls whose number did not match.
    """
    parts: dict[str, tuple[_Step, ...]] = {
        "none": (Instruction(_RETURN, 0, 0, RET_ALLOW),),
        "skipped trace": _skipped("trace"),
        "page": _from_page("allow"),
    }
    for name, argument in _OPENS.items():
        parts[f"skipped page flags {name}"] = _skipped(f"page flags {name}")
        parts[f"page flags {name}"] = _from_page(f"flags {name}")
        parts[f"skipped flags {name}"] = _skipped(f"flags {name}")
        parts[f"flags {name}"] = (
            Instruction(_LOAD, 0, 0, _ARGUMENTS[argument]),
            _Jump(_IF_BITS, "allow", "trace", _NOT_TO_READ),
        )
    parts["probe"] = (
        Instruction(_LOAD, 0, 0, _ARGUMENTS[0]),
        _Jump(_IF_EQUAL, "trace", "allow", NO_PROCESS),
    )
    parts["allow"] = (Instruction(_RETURN, 0, 0, RET_ALLOW),)
    parts["trace"] = (Instruction(_RETURN, 0, 0, RET_TRACE),)
    parts["refuse"] = (Instruction(_RETURN, 0, 0, RET_ERRNO | errno.ENOSYS),)
    return parts


def _joined(parts: Mapping[str, tuple[_Step, ...]]) -> tuple[tuple[Instruction, ...], dict[str, int]]:
    """Return the tail, and the offset of each part."""
    offsets, length = {}, 0
    for name, part in parts.items():
        offsets[name] = length
        length += len(part)
    tail: list[Instruction] = []
    for step in itertools.chain.from_iterable(parts.values()):
        if isinstance(step, _Jump):
            here = len(tail) + 1
            true, false = (
                0 if name is None else offsets[name] - here for name in (step.if_true, step.if_false)
            )
            tail.append(Instruction(step.code, true, false, step.value))
        else:
            tail.append(step)
    return tuple(tail), offsets


_TAIL, _OFFSETS = _joined(_parts())


def _matched(name: str, stops: Stops) -> int:
    """Return the offset in the tail for a call."""
    return _OFFSETS[_part(name, stops)]


def _part(name: str, stops: Stops) -> str:
    """Return the part of the tail for a call."""
    skipped = "skipped " if Stops.CONCERNED in stops else ""
    if Stops.ALWAYS in stops or (Stops.READING in stops and name not in _OPENS):
        return f"{skipped}trace"
    if Stops.READING in stops:
        return f"{skipped}{'page ' if Stops.RETURNING in stops else ''}flags {name}"
    if Stops.RETURNING in stops:
        return "page"
    return "refuse" if Stops.REFUSED in stops else "allow"


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
        numbers[PROBING] = _OFFSETS["probe"]
    if not numbers:
        return (Instruction(_RETURN, 0, 0, RET_ALLOW),)
    head = (
        Instruction(_LOAD, 0, 0, _ARCH),
        Instruction(_IF_EQUAL, 1, 0, AUDIT_ARCH_X86_64),
        Instruction(_RETURN, 0, 0, RET_ALLOW),
        Instruction(_LOAD, 0, 0, _NUMBER),
    )
    return (*head, *_halved(sorted(numbers.items()), 2 * len(numbers) - 1), *_TAIL)


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
