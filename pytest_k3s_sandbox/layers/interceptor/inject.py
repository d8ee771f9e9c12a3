"""Load a filter into a program that has just been executed, before its first instruction.

Filters are permanent and inherited; never load one into a program without rules.
Therefore the tracer makes a program with rules call seccomp(2) itself. At the exit stop of execve(2) the new
program has not run yet. The tracer writes the filter below the program's stack pointer, where the kernel has
mapped unused memory. It sets the instruction pointer to a ``syscall`` instruction in the vDSO (vdso(7)), and
restores every register after the call.
"""

from __future__ import annotations

import ctypes
from typing import Final

from pytest_k3s_sandbox.layers.interceptor import elf, procfs, requests
from pytest_k3s_sandbox.layers.interceptor import filter as seccomp
from pytest_k3s_sandbox.layers.interceptor.memory import Memory
from pytest_k3s_sandbox.layers.interceptor.requests import ARGUMENTS, CS, ORIG_RAX, RAX, RIP, RSP, Registers
from pytest_k3s_sandbox.layers.interceptor.syscalls import SECCOMP

_PAGE: Final = 4096
_MODE_FILTER: Final = 1
_RED_ZONE: Final = 128
"""The size of the red zone below the stack pointer: x86-64 psABI, 3.2.2."""


def vdso_address(auxiliary: bytes) -> int | None:
    """Return the vDSO's address from an auxiliary vector."""
    return elf.auxiliary_value(auxiliary, elf.AT_SYSINFO_EHDR)


def _own_vdso() -> bytes:
    """Return the content of the vDSO, which is the same in every process."""
    address = vdso_address(procfs.auxiliary("self"))
    if address is None:
        return b""
    # gVisor's vDSO is not mapped at the address it is linked to, but offsets in its file are right.
    loaded = (each for each in elf.segments(ctypes.string_at(address, _PAGE)) if each.kind == elf.PT_LOAD)
    return ctypes.string_at(address, max((each.offset + each.length for each in loaded), default=0))


class Injector:
    """Makes programs load filters."""

    def __init__(self, registers: Registers, memory: Memory) -> None:
        """Find the ``syscall`` instruction in the vDSO."""
        self._registers = registers
        self._memory = memory
        self._offset = _own_vdso().find(requests.SYSCALL)
        self._flags = list(seccomp.FLAGS)

    def begin(self, tid: int, program: bytes) -> bytes | None:
        """Make a program at the exit stop of its execve call seccomp(2).

        Args:
            tid: The program's thread, whose registers are in the buffer.
            program: The filter.

        Returns:
            The registers to restore after the call; None if the program cannot make it and is unchanged.
        """
        where = (self._registers.words[RSP] - _RED_ZONE - len(program) - 16) & ~15
        if not self._memory.write(tid, where, seccomp.with_header(program, where)):
            return None
        return self.call(tid, SECCOMP, (_MODE_FILTER, self._flags[0], where))

    def call(self, tid: int, number: int, arguments: tuple[int, ...]) -> bytes | None:
        """Make such a program call ``number``; arguments and result as for :meth:`begin`."""
        words = self._registers.words
        address = vdso_address(procfs.auxiliary(tid)) if self._offset >= 0 else None
        if address is None or words[CS] != requests.CODE_64:
            return None
        saved = self._registers.save()
        words[RIP] = address + self._offset
        words[RAX] = number
        words[ORIG_RAX] = (1 << 64) - 1  # not in a call, so that the kernel restarts none
        for index, value in zip(ARGUMENTS, arguments, strict=False):
            words[index] = value
        self._registers.store(tid)
        return saved

    def end(self, tid: int, saved: bytes, program: bytes) -> bytes | int:
        """Restore the registers at the exit stop of the call.

        Returns:
            0 or the errno; bytes as from :meth:`begin` if the program makes the call once more.
        """
        result = requests.signed(self._registers.words[RAX])
        self._registers.recall(saved)
        if result < 0 and len(self._flags) > 1:  # the kernel does not know the flags
            del self._flags[0]
            again = self.begin(tid, program)
            if again is not None:
                return again
        self._registers.store(tid)
        return -result
