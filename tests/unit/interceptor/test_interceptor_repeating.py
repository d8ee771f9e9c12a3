"""The code that makes an interrupted call again, executed on this machine's processor."""

from __future__ import annotations

import ctypes
import errno
import mmap
import platform
import struct

import pytest

from pytest_k3s_sandbox.layers.interceptor import repeating
from pytest_k3s_sandbox.layers.interceptor.requests import SYSCALL

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="its instructions are x86-64's")

NUMBER = 437


def enter(answer: int) -> int:
    """Jump to the code as a call returns to it, and tell where it went on.

    Args:
        answer: What is in rax then.

    Returns:
        1 if it went on behind the program's instruction; with the call's number in rax, that number.
    """
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    start = ctypes.addressof(ctypes.c_char.from_buffer(page))
    back = start + 256
    # In the place of the program's two-byte `syscall`: a `ret`, which gives out rax.
    # Behind it: mov eax, 1; ret.
    page[254:256] = b"\xc3\x90"
    page[256:262] = b"\xb8\x01\x00\x00\x00\xc3"
    page[0 : repeating.SIZE] = repeating.code(NUMBER, back)
    # mov rax, answer; mov rcx, entry; jmp rcx
    page[512:534] = (
        b"\x48\xb8"
        + struct.pack("<q", answer)
        + b"\x48\xb9"
        + struct.pack("<Q", start + repeating.ENTRY)
        + b"\xff\xe1"
    )
    return int(ctypes.CFUNCTYPE(ctypes.c_long)(start + 512)())


@pytest.mark.parametrize("answer", [0, 3, -errno.ENOENT, -errno.EBADF, -512, 2**40, -(2**40)])
def test_an_answer_goes_on_behind_the_call(answer: int) -> None:
    assert enter(answer) == 1


def test_an_interrupted_call_goes_back_to_its_instruction_with_its_number() -> None:
    assert enter(-errno.EINTR) == NUMBER


def test_the_code_begins_with_the_call_for_kernels_that_go_back_themselves() -> None:
    code = repeating.code(NUMBER, 0x1234)
    assert code.startswith(SYSCALL)
    assert len(SYSCALL) == repeating.ENTRY
    assert len(code) == repeating.SIZE


def test_a_page_holds_many_places_and_no_more() -> None:
    page = repeating.Page()
    assert not page.has(0)
    page.address = 0x7000
    for number in range(200):
        address = page.next()
        if address is None:
            break
        assert page.has(address + repeating.SIZE - 1)
        page.places[number, 0] = address + repeating.ENTRY
    assert len(page.places) == repeating.PAGE // repeating.SIZE
    assert len(set(page.places.values())) == len(page.places)
