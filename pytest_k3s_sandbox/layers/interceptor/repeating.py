"""Code inside Go programs that repeats interrupted calls, without a stop for the tracer.

gVisor interrupts a request to a FUSE server for any signal. If another thread takes a signal to the process,
the call fails with EINTR, but the interrupted thread has no signal-delivery-stop at which the tracer can
repeat the call. A stop at the exit of every such call costs as much as the call itself.

All calls of Go's packages os, syscall and unix go through one function, ``Syscall6``
(``internal/runtime/syscall/asm_linux_amd64.s``). The tracer patches that function in the program's memory,
after execve and before the first instruction; see :mod:`.installing`. The function then jumps to a page that
the program has mapped at a fixed address. The code there makes the call, and repeats it while its result is
EINTR and its number is in the page's bitmap. Then it jumps back behind the function's ``syscall``. The
seccomp filter passes these calls from that page; see :mod:`.filter`. The tracer does not change programs
without the function, such as those in C.

The code has two ``syscall`` instructions. It makes a call with one of them if the call's path tells that no
rule can concern the call; see :mod:`.skipping`. The filter passes every call from there that has such a test.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from pytest_k3s_sandbox.layers.interceptor import elf, procfs, skipping
from pytest_k3s_sandbox.layers.interceptor.assembling import Label, To, assembled
from pytest_k3s_sandbox.layers.interceptor.requests import SYSCALL

PAGE: Final = 4096
ADDRESS: Final = 0x4000_0000_0000
"""The page's address, far from programs, libraries and Go's heap (``runtime/malloc.go``)."""
_FIXED_NOREPLACE: Final = 0x10_0000
"""MAP_FIXED_NOREPLACE of mmap(2). A kernel without the flag takes the address as a hint."""
MAP_ARGUMENTS: Final = (ADDRESS, PAGE, 0x3, 0x22 | _FIXED_NOREPLACE, (1 << 64) - 1, 0)
"""addr, length, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, fd, offset: mmap(2)."""
PROTECT_ARGUMENTS: Final = (ADDRESS, PAGE, 0x5)
"""addr, length, PROT_READ|PROT_EXEC: mprotect(2)."""

_ARGUMENTS: Final = bytes.fromhex("4989f2 4889fa 4889ce 4889df")
"""mov r10, rsi; mov rdx, rdi; mov rsi, rcx; mov rdi, rbx: from Go's registers to the kernel's."""
FUNCTION: Final = _ARGUMENTS + SYSCALL
"""The beginning of Syscall6: the moves and ``syscall``. It is as long as a jump to any address."""
_BEHIND_AT: Final = 512
"""The offset of the address behind the function's ``syscall``; the code comes before it."""
_WANTED_AT: Final = _BEHIND_AT + 8
"""The offset of the bitmap of calls to repeat: one bit for each number."""
_TABLE_AT: Final = _WANTED_AT + skipping.NUMBERS // 8
"""The offset of the prefixes of paths; see :mod:`.skipping`."""

_CODE, _LABELS = assembled(
    (
        # The code changes only registers that callers of the function do not preserve (Go's internal ABI):
        # rsp, rbp, r14, r15 and X15 stay. r12 keeps the call's number, because the result overwrites rax.
        _ARGUMENTS,
        b"\x49\x89\xc4",  # mov r12, rax
        Label("test"),
        *skipping.CODE,
        Label("skip"),
        b"\x4c\x89\xe0",  # mov rax, r12
        SYSCALL,
        Label("skipped"),
        To(b"\xe9", "answered"),  # jmp answered
        Label("call"),
        b"\x4c\x89\xe0",  # mov rax, r12
        SYSCALL,
        Label("answered"),
        b"\x48\x83\xf8" + struct.pack("<b", -errno.EINTR),  # cmp rax, -EINTR
        To(b"\x0f\x84", "interrupted"),  # je interrupted
        Label("back"),
        To(b"\xff\x25", "behind"),  # jmp [behind]
        Label("interrupted"),
        b"\x49\x81\xfc" + struct.pack("<I", skipping.NUMBERS - 1),  # cmp r12, 511
        To(b"\x0f\x87", "back"),  # ja back
        To(b"\x4c\x0f\xa3\x25", "wanted"),  # bt [wanted], r12
        To(b"\x0f\x83", "back"),  # jnc back
        To(b"\xe9", "test"),  # jmp test
    ),
    {"page": 0, "behind": _BEHIND_AT, "wanted": _WANTED_AT, "table": _TABLE_AT},
)
SKIPPED: Final = ADDRESS + _LABELS["skipped"]
"""The address behind the ``syscall`` of calls that no rule can concern: their instruction pointer."""
_SEARCHED: Final = 4 << 20
"""How much of a program is searched. The linker puts the function into the first 64 KiB of a program."""

_ET_EXEC_OR_DYN: Final = (2, 3)
_REMEMBERED: Final = 256
"""The size of the cache by file. A program that starts from a copy in memory has a new file each time."""


class GoProgram(NamedTuple):
    """Addresses in a program's file: elf(5).

    Attributes:
        function: The address of Syscall6.
        entry: The address of the first instruction.
    """

    function: int
    entry: int


def program_of(head: bytes, text: bytes, address: int) -> GoProgram | None:
    """Return the addresses of a program; None if it does not have the function.

    Args:
        head: The beginning of an ELF file.
        text: The beginning of its code.
        address: The code's address.
    """
    offset = text.find(FUNCTION)
    if offset < 0 or len(head) < elf.HEADER:
        return None
    return GoProgram(address + offset, struct.unpack_from("<Q", head, 24)[0])


def code_of(head: bytes) -> tuple[int, int, int] | None:
    """Return offset, length and address of an ELF file's code; None if there is none, or not 64-bit."""
    if len(head) < elf.HEADER or head[:5] != b"\x7fELF\x02":
        return None
    if struct.unpack_from("<H", head, 16)[0] not in _ET_EXEC_OR_DYN:
        return None
    for segment in elf.segments(head):
        # A segment without content can have any offset; files are not as large.
        if segment.kind == elf.PT_LOAD and segment.flags & elf.PF_X and segment.offset < 1 << 63:
            return segment.offset, segment.length, segment.address
    return None


def loaded_at(program: GoProgram, auxiliary: bytes) -> int | None:
    """Return the function's address in a process, from the auxiliary vector."""
    entry = elf.auxiliary_value(auxiliary, elf.AT_ENTRY)
    return None if entry is None else (program.function + entry - program.entry) % (1 << 64)


class GoPrograms:
    """Finds the function in programs, with a cache by file."""

    def __init__(self) -> None:
        """Start with an empty cache."""
        self._known: dict[tuple[int, int, int, int], GoProgram | None] = {}

    def function(self, tid: int) -> int | None:
        """Return the address of Syscall6 in a process; None if it has none or is ending."""
        try:
            fd = os.open(f"/proc/{tid}/exe", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            file = os.fstat(fd)
            key = file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns
            if key not in self._known:
                if len(self._known) == _REMEMBERED:
                    self._known.clear()
                self._known[key] = _read(fd)
            program = self._known[key]
        except OSError:
            return None
        finally:
            os.close(fd)
        return None if program is None else loaded_at(program, procfs.auxiliary(tid))


def _read(fd: int) -> GoProgram | None:
    head = os.pread(fd, PAGE, 0)
    code = code_of(head)
    if code is None:
        return None
    offset, length, address = code
    return program_of(head, os.pread(fd, min(length, _SEARCHED), offset), address)


def jump(address: int) -> bytes:
    """Return the instruction that jumps to an address: jmp [rip + 0], and the address behind it."""
    return b"\xff\x25\x00\x00\x00\x00" + struct.pack("<Q", address)


def content(numbers: Iterable[int], tests: Mapping[int, tuple[bytes, ...]]) -> bytes:
    """Return the page's content for all programs with the same rules; see :func:`page`.

    The kernel repeats some interrupted calls itself, by going back over ``syscall`` (ERESTARTSYS).

    Args:
        numbers: The calls to repeat.
        tests: The prefixes of paths of each call that has a test, by its number.
    """
    wanted = bytearray(skipping.NUMBERS // 8)
    for number in numbers:
        wanted[number // 8] |= 1 << number % 8
    table = skipping.table(tests, _TABLE_AT, PAGE - _TABLE_AT)
    return _CODE.ljust(_WANTED_AT, b"\xcc") + wanted + table


def page(same: bytes, function: int) -> bytes:
    """Return the page's content for a program.

    Args:
        same: What :func:`content` returns.
        function: The address of Syscall6.
    """
    return same[:_BEHIND_AT] + struct.pack("<Q", function + len(FUNCTION)) + same[_WANTED_AT:]


def inside(pointer: int) -> bool:
    """Return whether an instruction pointer is in the page."""
    return ADDRESS <= pointer < ADDRESS + PAGE


def after_fault(pointer: int) -> int | None:
    """Return where a program goes on whose code could not read a path: at the call.

    Args:
        pointer: The instruction pointer at the fault.

    Returns:
        The address; None if the fault is not in the code that reads paths.
    """
    if ADDRESS + _LABELS["test"] <= pointer < ADDRESS + _LABELS["skip"]:
        return ADDRESS + _LABELS["call"]
    return None


def is_ours(text: bytes) -> bool:
    """Return whether the page's content is ours, of whatever rules."""
    return text.startswith(_CODE)
