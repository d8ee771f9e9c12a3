"""Change a call that a tracee is about to make, so that nothing of the program's own is lost.

How a path argument is replaced, and why that is safe. The new string may go neither
over the program's own one (it may be read-only, shared or in use by another
thread) nor below its stack pointer (a goroutine's stack ends there). So the tracee is made
to map memory of its own: at the stop the call is turned into ``mmap``, the result
is taken at the exit stop, and the original call is run again with its original registers
(``rip`` back by the length of ``syscall``). The mapping is kept for the process, in
slots, so that no two threads in a call share one. The argument's register gets
its old value back at the exit stop, so the program cannot tell.
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
    """Changes calls by their registers, and paths in memory that the tracee maps for it."""

    def __init__(self, registers: Registers, memory: Memory, process_of: Callable[[int], int]) -> None:
        """Prepare; ``process_of`` finds the process of a thread."""
        self._registers = registers
        self._memory = memory
        self._process_of = process_of
        self._spaces: dict[int, Space] = {}

    def forget(self, tid: int, call: Call | None) -> None:
        """Note that a thread, which was in ``call``, has ended or executes another program."""
        if call is not None:
            self._give_back(call)
        self._spaces.pop(tid, None)

    def instead(self, tid: int, call: Call, number: int, arguments: tuple[int, ...] = ()) -> Call:
        """Turn the call that a tracee is about to make to another one, and keep its registers in ``call``."""
        registers = self._registers
        call.saved = registers.save()
        registers.words[ORIG_RAX] = number
        for index, value in zip(ARGUMENTS, arguments, strict=False):
            registers.words[index] = value
        registers.store(tid)
        return call

    def run_again(self, tid: int, call: Call) -> None:
        """At an exit stop: let the tracee execute its system call instruction once more."""
        self._registers.words[RIP] -= requests.SYSCALL_LENGTH
        self._registers.words[RAX] = call.number
        self._registers.store(tid)

    def prepare(self, tid: int, number: int, *, entry_first: bool) -> Call | None:
        """Have the tracee map memory, if it has none to spare; the call is made again after that."""
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
        """Let a call's path be ``target``; tell whether that could be done."""
        space = self._spaces[self._process_of(tid)]
        if not space.free:
            return False
        words = self._registers.words
        address = space.free.pop()
        call.slot = (space, address)
        replacements = {ARGUMENTS[call.of.path]: address}
        written = self._memory.write(tid, address, target + b"\0")
        if call.number == OPENAT2:
            # RESOLVE_BENEATH and its like speak of the path that the program named.
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
        """At the exit stop: put the arguments' old values into the buffer of registers."""
        for index, value in call.restore:
            self._registers.words[index] = value
        self._give_back(call)

    def _give_back(self, call: Call) -> None:
        if call.slot is not None:
            call.slot[0].free.append(call.slot[1])
            call.slot = None
