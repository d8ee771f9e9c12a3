"""The code that comes into Go programs, executed in this process with stand-ins for the kernel."""

from __future__ import annotations

import ctypes
import mmap
import platform
import struct
from collections.abc import Sequence
from typing import NamedTuple

import pytest

from pytest_k3s_sandbox.layers.interceptor import repeating
from pytest_k3s_sandbox.layers.interceptor.memory import PATH_MAX
from pytest_k3s_sandbox.layers.interceptor.repeating import FUNCTION, PAGE
from pytest_k3s_sandbox.layers.interceptor.requests import SYSCALL
from pytest_k3s_sandbox.layers.interceptor.syscalls import PATH_CALLS

processor = pytest.mark.skipif(platform.machine() != "x86_64", reason="its instructions are x86-64's")

RAX, RCX, RDX, RBX, RBP, RSI, RDI, R8, R9, R10, R14, R15 = 0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 14, 15
"""Numbers of registers: Intel's manual, volume 2, 2.1.5."""
GO = (RAX, RBX, RCX, RDI, RSI, R8, R9)
"""The registers of the number and the arguments, as Go's internal ABI has them."""
KERNEL = (RAX, RDI, RSI, RDX, R10, R8, R9)
KEPT = (RBP, R14, R15)
"""The registers besides rsp that callers of the function want back."""

MADE, SKIPPED, NEXT, ANSWERS, GIVEN, SEEN, LEFT = 0, 1, 2, 3, 8, 16, 24
"""Words of the data: the counts of both calls, of answers, the answers, and registers."""
SENTINEL = 0x5EED_0000_0000_0000

_FUNCTION_AT, _ENTRY_AT, _STAND_INS_AT, _DATA_AT = PAGE, PAGE + 256, PAGE + 1024, PAGE + 3072
_PATHS_AT = 2 * PAGE
_PATHS = 3 * PAGE


class Done(NamedTuple):
    """What a call of the function did.

    Attributes:
        result: The result.
        made: How often the call was made in the place where it may stop.
        skipped: How often it was made in the other place.
    """

    result: int
    made: int
    skipped: int


def _move(opcode: int, register: int, word: int) -> bytes:
    """Return a move between a register and a word of the data, whose address is in r13."""
    rex = 0x49 | (register >> 3) << 2
    return bytes((rex, opcode, 0x85 | (register & 7) << 3)) + struct.pack("<i", 8 * word)


def _load(register: int, word: int) -> bytes:
    return _move(0x8B, register, word)


def _store(register: int, word: int) -> bytes:
    return _move(0x89, register, word)


class Page:
    """The page, a function that it belongs to, and a place for paths that ends where memory ends."""

    def __init__(self, same: bytes) -> None:
        """Fill the page; ``same`` is its content for all programs."""
        size = _PATHS_AT + _PATHS + PAGE
        self._memory = mmap.mmap(-1, size, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        libc = ctypes.CDLL(None)
        assert libc.mprotect(ctypes.c_void_p(self._start + size - PAGE), PAGE, 0) == 0  # PROT_NONE
        content = repeating.page(same, self._start + _FUNCTION_AT)
        assert len(content) <= PAGE
        self._put(0, content)
        for index, label in enumerate(("call", "skip")):
            self._replace(index, repeating._LABELS[label] + 3)
        # Behind the function's `syscall`: ret.
        self._put(_FUNCTION_AT, FUNCTION + b"\xc3")
        data = b"\x49\xbd" + struct.pack("<Q", self._start + _DATA_AT)  # mov r13, data
        self._put(
            _ENTRY_AT,
            b"\x53\x55\x41\x54\x41\x55\x41\x56\x41\x57"  # push rbx, rbp, r12, r13, r14, r15
            + data
            + b"".join(_load(register, GIVEN + index) for index, register in enumerate(GO))
            + b"".join(_load(register, LEFT + index) for index, register in enumerate(KEPT))
            + b"\x49\xbb"
            + struct.pack("<Q", self._start)  # mov r11, page
            + b"\x41\xff\xd3"  # call r11
            + data
            + b"".join(_store(register, LEFT + index) for index, register in enumerate(KEPT))
            + b"\x41\x5f\x41\x5e\x41\x5d\x41\x5c\x5d\x5b\xc3",  # pop, ret
        )
        self._enter = ctypes.CFUNCTYPE(ctypes.c_long)(self._start + _ENTRY_AT)

    def _put(self, at: int, text: bytes) -> None:
        self._memory[at : at + len(text)] = text

    def _replace(self, index: int, call: int) -> None:
        """Replace a ``syscall`` with a jump to a stand-in."""
        assert self._memory[call : call + 2] == SYSCALL
        # A short jump has the room of `syscall`. It reaches the free room behind the code.
        trampoline, at = len(repeating._CODE) + 5 * index, _STAND_INS_AT + 512 * index
        self._put(call, b"\xeb" + struct.pack("<b", trampoline - call - 2))
        self._put(trampoline, b"\xe9" + struct.pack("<i", at - trampoline - 5))
        stand_in = (
            b"\x49\xbd"
            + struct.pack("<Q", self._start + _DATA_AT)  # mov r13, data
            + b"".join(_store(register, SEEN + number) for number, register in enumerate(KERNEL))
            + b"\x49\xff\x45"
            + bytes((8 * index,))  # inc qword [r13 + 8 * index]
            + _load(RCX, NEXT)
            + b"\x49\xff\x45"
            + bytes((8 * NEXT,))  # inc qword [r13 + 8 * NEXT]
            + b"\x49\x8b\x44\xcd"
            + bytes((8 * ANSWERS,))  # mov rax, [r13 + 8 * rcx + 8 * ANSWERS]
            + b"\x49\x89\xcb"  # mov r11, rcx: the kernel overwrites it, too
        )
        back = call + 2 - (at + len(stand_in) + 5)
        self._put(at, stand_in + b"\xe9" + struct.pack("<i", back))

    def path(self, text: bytes) -> int:
        """Put a text, which has its own end, where the memory ends, and return its address."""
        assert len(text) <= _PATHS
        at = _PATHS_AT + _PATHS - len(text)
        self._put(at, text)
        return self._start + at

    def call(self, number: int, *arguments: int, answers: Sequence[int] = (0,)) -> Done:
        """Call the function.

        Args:
            number: The call's number, as Go gives it in rax.
            arguments: The call's arguments.
            answers: What the kernel answers, one after the other; at most five.
        """
        given = [value % (1 << 64) for value in (number, *arguments)]
        given += [0x1111 * index for index in range(len(given), len(GO))]
        words = [0] * 32
        words[ANSWERS : ANSWERS + len(answers)] = [answer % (1 << 64) for answer in answers]
        words[GIVEN : GIVEN + len(GO)] = given
        kept = [SENTINEL + index for index in range(len(KEPT))]
        words[LEFT : LEFT + len(KEPT)] = kept
        self._put(_DATA_AT, struct.pack("<32Q", *words))
        result = int(self._enter())
        after = struct.unpack_from("<32Q", self._memory, _DATA_AT)
        assert list(after[SEEN : SEEN + len(KERNEL)]) == given
        assert list(after[LEFT : LEFT + len(KEPT)]) == kept
        return Done(result, after[MADE], after[SKIPPED])


def skips(page: Page, number: int, path: bytes) -> bool:
    """Return whether a call on a path is made where it does not stop."""
    at = page.path(path + b"\0")
    arguments = (0x77, at) if PATH_CALLS[number].path else (at, 0x77)
    done = page.call(number, *arguments)
    assert done in {Done(0, 1, 0), Done(0, 0, 1)}
    return done == Done(0, 0, 1)


def is_far(path: bytes, roots: tuple[bytes, ...]) -> bool:
    """Return what the code is to find of a path up to its end."""
    plain = path[:1] == b"/" and b"//" not in path and b"/." not in path and len(path) < PATH_MAX
    return plain and not path.startswith(roots)
