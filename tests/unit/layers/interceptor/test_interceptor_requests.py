"""Our ptrace numbers and layouts, beside python-ptrace's where it has them."""

from __future__ import annotations

import ctypes
import os

import pytest

from pytest_k3s_sandbox.layers.interceptor import inject, procfs, requests


def test_numbers_and_registers_are_python_ptraces() -> None:
    func = pytest.importorskip("ptrace.binding.func")
    for name in (
        "CONT",
        "GETREGS",
        "SETREGS",
        "SYSCALL",
        "GETEVENTMSG",
        "GETSIGINFO",
        *(f"EVENT_{e}" for e in ("FORK", "VFORK", "CLONE", "EXEC")),
    ):
        assert getattr(requests, f"_{name}") == getattr(func, f"PTRACE_{name}")
    options = ("SYSGOOD", "FORK", "VFORK", "CLONE", "EXEC")
    theirs = sum(getattr(func, f"PTRACE_O_TRACE{name}") for name in options)
    assert theirs | 1 << 7 == requests.OPTIONS
    layout = pytest.importorskip("ptrace.binding.linux_struct").user_regs_struct
    assert tuple(name for name, _ in layout._fields_) == requests.REGISTERS
    assert ctypes.sizeof(layout) == 8 * len(requests.REGISTERS)


def test_a_request_that_fails_says_why() -> None:
    with pytest.raises(requests.PtraceError, match=r"ptrace request 0x7 on \d+: No such process"):
        requests.resume(os.getpid())


def test_registers_are_saved_and_recalled() -> None:
    registers = requests.Registers()
    registers.words[requests.RIP] = 17
    saved = registers.save()
    registers.words[requests.RIP] = 18
    registers.recall(saved)
    assert registers.words[requests.RIP] == 17


@pytest.mark.parametrize(("value", "number"), [(0, 0), (5, 5), ((1 << 64) - 4, -4), (1 << 63, -(1 << 63))])
def test_signed(value: int, number: int) -> None:
    assert requests.signed(value) == number


def test_the_vdso_has_the_instruction() -> None:
    auxiliary = procfs.auxiliary("self")
    address = inject.vdso_address(auxiliary)
    assert address is not None
    text = inject._own_vdso()
    assert text[:4] == b"\x7fELF"
    assert text == ctypes.string_at(address, len(text))
    assert b"\x0f\x05" in text


def test_a_vector_without_a_vdso() -> None:
    assert inject.vdso_address(b"") is None
    assert inject.vdso_address(bytes(16)) is None
