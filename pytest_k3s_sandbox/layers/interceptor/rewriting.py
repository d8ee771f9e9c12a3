"""Change a call at its entry, and preserve the program's registers and memory.

A new path must not overwrite the program's own string, which may be read-only, shared or used by another
thread. It must not be below the stack pointer either, where a goroutine's stack may end. Therefore the tracer
makes the tracee map scratch memory. At the entry stop it turns the call into ``mmap``. At the exit stop it
takes the address, restores the registers and sets ``rip`` back by the length of ``syscall``, so that the
tracee makes the original call. A process keeps the mapping, divided into slots: threads in calls at the same
time use different ones. At the exit stop the argument's register gets its old value back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pytest_k3s_sandbox.layers.interceptor import requests
from pytest_k3s_sandbox.layers.interceptor.calls import Call, Space
from pytest_k3s_sandbox.layers.interceptor.memory import PATH_MAX, Memory
from pytest_k3s_sandbox.layers.interceptor.requests import ARGUMENTS, ORIG_RAX, RAX, RIP, Registers
from pytest_k3s_sandbox.layers.interceptor.syscalls import MMAP, OPENAT2

_MMAP_ARGUMENTS: Final = (0, 16 * 2 * PATH_MAX, 0x3, 0x22, (1 << 64) - 1, 0)
"""addr, length, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, fd, offset: mmap(2)."""
_SLOT: Final = 2 * PATH_MAX
_OPEN_HOW: Final = 24
"""Bytes of struct open_how (flags, mode, resolve: 8 each), linux/openat2.h."""
_RESOLVE_AT: Final = 16


class Rewriter:
    """Changes calls: their registers, and their paths in memory that the tracee maps."""

    def __init__(self, registers: Registers, memory: Memory, process_of: Callable[[int], int]) -> None:
        """Prepare; ``process_of`` finds the process of a thread."""
        self._registers = registers
        self._memory = memory
        self._process_of = process_of
        self._spaces: dict[int, Space] = {}

    def forget(self, tid: int, call: Call | None) -> None:
        """Note that a thread in ``call`` has ended, or executes another program."""
        if call is not None:
            self._give_back(call)
        self._spaces.pop(tid, None)

    def instead(self, tid: int, call: Call, number: int, arguments: tuple[int, ...] = ()) -> Call:
        """Replace the call that a tracee is about to make, and keep its registers in ``call``."""
        registers = self._registers
        call.saved = registers.save()
        registers.words[ORIG_RAX] = number
        for index, value in zip(ARGUMENTS, arguments, strict=False):
            registers.words[index] = value
        registers.store(tid)
        return call

    def run_again(self, tid: int, call: Call) -> None:
        """Set a tracee at an exit stop back to its ``syscall`` instruction."""
        self._registers.words[RIP] -= requests.SYSCALL_LENGTH
        self._registers.words[RAX] = call.number
        self._registers.store(tid)

    def prepare(self, tid: int, number: int, *, entry_first: bool) -> Call | None:
        """Make the tracee map memory if it has no free slot; it repeats the call after that."""
        space = self._spaces.setdefault(self._process_of(tid), Space())
        if space.free or not space.usable:
            return None
        return self.instead(tid, Call(self._mapped, number, entry_first), MMAP, _MMAP_ARGUMENTS)

    def _mapped(self, tid: int, call: Call) -> None:
        address = self._registers.words[RAX]
        space = self._spaces.setdefault(self._process_of(tid), Space())
        if requests.failed(address):
            space.usable = False
        else:
            space.free.extend(range(address, address + _MMAP_ARGUMENTS[1], _SLOT))
        self._registers.recall(call.saved)
        self.run_again(tid, call)

    def replace(self, tid: int, call: Call, target: bytes) -> bool:
        """Replace a call's path with ``target``; return whether that succeeded."""
        space = self._spaces[self._process_of(tid)]
        if not space.free:
            return False
        words = self._registers.words
        address = space.free.pop()
        call.slot = (space, address)
        replacements = {ARGUMENTS[call.of.path]: address}
        written = self._memory.write(tid, address, target + b"\0")
        if call.number == OPENAT2:
            # RESOLVE_BENEATH and similar flags apply to the path that the program named.
            how = self._memory.read(tid, words[ARGUMENTS[2]], _OPEN_HOW)
            if len(how) == _OPEN_HOW:
                how = how[:_RESOLVE_AT] + bytes(_OPEN_HOW - _RESOLVE_AT)
                written = written and self._memory.write(tid, address + PATH_MAX, how)
                if words[ARGUMENTS[3]] == _OPEN_HOW:
                    replacements[ARGUMENTS[2]] = address + PATH_MAX
        if not written:
            self._give_back(call)
            return False
        call.restore = tuple((index, words[index]) for index in replacements)
        for index, value in replacements.items():
            words[index] = value
        self._registers.store(tid)
        return True

    def restore(self, call: Call) -> None:
        """Put the arguments' old values into the buffer of registers, at the exit stop."""
        for index, value in call.restore:
            self._registers.words[index] = value
        self._give_back(call)

    def _give_back(self, call: Call) -> None:
        if call.slot is not None:
            call.slot[0].free.append(call.slot[1])
            call.slot = None
