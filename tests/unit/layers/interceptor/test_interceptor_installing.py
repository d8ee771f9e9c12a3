"""The steps by which code comes into a program, with a stand-in for the program and the kernel."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from typing import cast

import pytest

from pytest_k3s_sandbox.layers.interceptor import repeating, requests
from pytest_k3s_sandbox.layers.interceptor.calls import Call
from pytest_k3s_sandbox.layers.interceptor.inject import Injector
from pytest_k3s_sandbox.layers.interceptor.installing import Installation
from pytest_k3s_sandbox.layers.interceptor.memory import Memory
from pytest_k3s_sandbox.layers.interceptor.repeating import ADDRESS, FUNCTION, PAGE
from pytest_k3s_sandbox.layers.interceptor.requests import RAX, PtraceError, Registers
from pytest_k3s_sandbox.layers.interceptor.syscalls import MMAP, MPROTECT, MUNMAP

TID = 4242
AT = 0x401000
OLD = FUNCTION + b"\x48\x3d"
NEW = repeating.jump(ADDRESS) + b"\x48\x3d"
CONTENT = repeating.content({2}, {2: (b"/proc/",)})
OWN = 77
"""What the program has in rax."""
MAPPED, PROTECTED = (MMAP, repeating.MAP_ARGUMENTS), (MPROTECT, repeating.PROTECT_ARGUMENTS)
TAKEN_AWAY = (MUNMAP, (ADDRESS, PAGE))


class Machine:
    """A program that is made to make calls, its memory and its registers."""

    def __init__(self, answers: dict[int, int], *, writable: bool = True, code: bytes = OLD) -> None:
        """Have these answers of the kernel's by the number of the call; 0 to others."""
        self.answers = answers
        self.writable = writable
        self.memory = {AT + index: byte for index, byte in enumerate(code)}
        self.made: list[tuple[int, tuple[int, ...]]] = []
        self.words = [0] * len(requests.REGISTERS)
        self.words[RAX] = OWN
        self.stored: list[int] = []
        self.after = 0
        self.page = b""

    def call(self, tid: int, number: int, arguments: tuple[int, ...]) -> bytes:
        """Stand in for the injector."""
        assert tid == TID
        assert self.words[RAX] == OWN
        self.made.append((number, arguments))
        return b"saved"

    def recall(self, saved: bytes) -> None:
        """Stand in for the buffer of registers."""
        assert saved == b"saved"
        self.words[RAX] = OWN

    def store(self, _tid: int) -> None:
        """Stand in for the buffer of registers."""
        self.stored.append(self.words[RAX])

    def read(self, _tid: int, address: int, length: int) -> bytes:
        """Stand in for the memory."""
        return bytes(self.memory[at] for at in range(address, address + length) if at in self.memory)

    def write(self, _tid: int, address: int, data: bytes) -> bool:
        """Stand in for the memory."""
        assert address == ADDRESS
        self.page = data
        return self.writable

    def poke(self, _tid: int, address: int, word: bytes) -> None:
        """Stand in for the request to the kernel."""
        self.memory.update(zip(range(address, address + 8), word, strict=True))

    def done(self, _tid: int, _call: Call) -> None:
        """Note what comes after the last step."""
        self.after += 1

    def run(self) -> bytes:
        """Go through all steps; return the function as it is then."""
        steps = Installation(
            cast("Injector", self), cast("Registers", self), cast("Memory", self), AT, CONTENT, self.done
        )
        call = Call(steps.begin, MMAP, at_entry=False)
        while True:
            following = call.finish(TID, call)
            if following is None:
                break
            assert self.after == 0
            self.words[RAX] = self.answers.get(following.number, 0) % (1 << 64)
            call = following
        assert self.after == 1
        assert self.words[RAX] == OWN
        assert set(self.stored) <= {OWN}
        return self.read(TID, AT, len(OLD))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    def make(answers: dict[int, int], *, writable: bool = True, code: bytes = OLD) -> Machine:
        made = Machine(answers, writable=writable, code=code)
        monkeypatch.setattr(requests, "poke", made.poke)
        return made

    return make


def test_the_function_jumps_to_a_page_that_is_no_longer_writable(machine: Callable[..., Machine]) -> None:
    program = machine({MMAP: ADDRESS})
    assert program.run() == NEW
    assert program.made == [MAPPED, PROTECTED]
    assert repeating.MAP_ARGUMENTS[2] == 1 | 2  # PROT_READ|PROT_WRITE
    assert repeating.PROTECT_ARGUMENTS[2] == 1 | 4  # PROT_READ|PROT_EXEC
    assert program.page == repeating.page(CONTENT, AT)


def test_nothing_is_mapped_where_the_function_is_another(machine: Callable[..., Machine]) -> None:
    program = machine({}, code=OLD[1:] + b"\x90")
    assert program.run() == OLD[1:] + b"\x90"
    assert program.made == []


def test_a_program_that_cannot_map_the_page_runs_as_it_is(machine: Callable[..., Machine]) -> None:
    program = machine({MMAP: -errno.EEXIST})
    assert program.run() == OLD
    assert program.made == [MAPPED]


def test_a_page_elsewhere_is_taken_away(machine: Callable[..., Machine]) -> None:
    program = machine({MMAP: 0x7F00_0000_0000})
    assert program.run() == OLD
    assert program.made == [MAPPED, (MUNMAP, (0x7F00_0000_0000, PAGE))]


def test_a_page_that_cannot_be_filled_or_executed_is_taken_away(machine: Callable[..., Machine]) -> None:
    program = machine({MMAP: ADDRESS}, writable=False)
    assert program.run() == OLD
    assert program.made == [MAPPED, TAKEN_AWAY]
    program = machine({MMAP: ADDRESS, MPROTECT: -errno.EACCES})
    assert program.run() == OLD
    assert program.made == [MAPPED, PROTECTED, TAKEN_AWAY]


def failing(monkeypatch: pytest.MonkeyPatch, program: Machine, number: int, *numbers: int) -> None:
    """Let pokes fail, by their place in the order of all."""
    count = 0

    def poke(tid: int, address: int, word: bytes) -> None:
        nonlocal count
        count += 1
        if count in numbers:
            raise PtraceError(number, "no")
        program.poke(tid, address, word)

    monkeypatch.setattr(requests, "poke", poke)


@pytest.mark.parametrize("which", [1, 2])
def test_a_function_that_cannot_be_changed_is_as_it_was(
    which: int, machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = machine({MMAP: ADDRESS})
    failing(monkeypatch, program, errno.EIO, which)
    assert program.run() == OLD
    assert program.made == [MAPPED, PROTECTED, TAKEN_AWAY]


def test_half_a_change_never_runs(machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, signum: killed.append((pid, signum)))
    program = machine({MMAP: ADDRESS})
    failing(monkeypatch, program, errno.EIO, 2, 3)
    with pytest.raises(PtraceError):
        program.run()
    assert killed == [(TID, signal.SIGKILL)]


def test_a_program_that_was_killed_meanwhile_is_left(
    machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = machine({MMAP: ADDRESS})
    failing(monkeypatch, program, errno.ESRCH, 2)
    with pytest.raises(PtraceError):
        program.run()
    assert program.made == [MAPPED, PROTECTED]
