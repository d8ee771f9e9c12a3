"""Put the code of :mod:`.repeating` into a Go program, between its exec and its first instruction.

The program is made to map a page that it can write, and the tracer fills it. Then the program is made to give
up writing for executing, and only then is its function changed. The page is never writable while the program
runs. A step that fails leads to the last one: the page is taken away, and the program runs as it is.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Collection
from typing import Final

from pytest_k3s_sandbox.layers.interceptor import repeating, requests
from pytest_k3s_sandbox.layers.interceptor.calls import Call
from pytest_k3s_sandbox.layers.interceptor.inject import Injector
from pytest_k3s_sandbox.layers.interceptor.memory import Memory
from pytest_k3s_sandbox.layers.interceptor.requests import RAX, PtraceError, Registers
from pytest_k3s_sandbox.layers.interceptor.syscalls import MMAP, MPROTECT, MUNMAP

_WORD: Final = 8


class Installation:
    """The steps for one program. Each returns the call that is awaited next, if there is one."""

    def __init__(
        self,
        injector: Injector,
        registers: Registers,
        memory: Memory,
        function: int,
        numbers: Collection[int],
        after: Callable[[int, Call], Call | None],
    ) -> None:
        """Prepare.

        Args:
            injector: What turns the program to a call.
            registers: The buffer of registers.
            memory: The program's memory.
            function: The address of its Syscall6.
            numbers: The calls that are made again.
            after: What comes when this is done; the program's own registers are in the buffer then.
        """
        self._injector = injector
        self._registers = registers
        self._memory = memory
        self._function = function
        self._numbers = numbers
        self._after = after

    def begin(self, tid: int, call: Call) -> Call | None:
        """At the exit stop of execve: have the program map the page, if the function is there."""
        there = self._memory.read(tid, self._function, len(repeating.FUNCTION))
        if there != repeating.FUNCTION:  # the file was changed since it was read
            return self._after(tid, call)
        return self._make(tid, call, MMAP, repeating.MAP_ARGUMENTS, self._mapped)

    def _make(
        self,
        tid: int,
        call: Call,
        number: int,
        arguments: tuple[int, ...],
        finish: Callable[[int, Call], Call | None],
    ) -> Call | None:
        """Have the program make a call; its own registers are in the buffer."""
        saved = self._injector.call(tid, number, arguments)
        if saved is None:
            return self._done(tid, call)
        made = Call(finish, number, at_entry=True)
        made.saved = saved
        return made

    def _mapped(self, tid: int, call: Call) -> Call | None:
        """Fill the page."""
        address = self._registers.words[RAX]
        self._registers.recall(call.saved)
        if requests.failed(address):
            return self._done(tid, call)
        if address == repeating.ADDRESS and self._memory.write(
            tid, address, repeating.page(self._function, self._numbers)
        ):
            return self._make(tid, call, MPROTECT, repeating.PROTECT_ARGUMENTS, self._executable)
        return self._make(tid, call, MUNMAP, (address, repeating.PAGE), self._unmapped)

    def _executable(self, tid: int, call: Call) -> Call | None:
        """Let the program's function jump to the page."""
        result = self._registers.words[RAX]
        self._registers.recall(call.saved)
        if result == 0 and self._changed(tid):
            return self._done(tid, call)
        return self._make(tid, call, MUNMAP, (repeating.ADDRESS, repeating.PAGE), self._unmapped)

    def _unmapped(self, tid: int, call: Call) -> Call | None:
        self._registers.recall(call.saved)
        return self._done(tid, call)

    def _done(self, tid: int, call: Call) -> Call | None:
        self._registers.store(tid)
        return self._after(tid, call)

    def _changed(self, tid: int) -> bool:
        """Change the function, all of it or nothing; tell whether it was done."""
        old = self._memory.read(tid, self._function, 2 * _WORD)
        if len(old) < 2 * _WORD:
            return False
        new = repeating.jump(repeating.ADDRESS) + old[len(repeating.FUNCTION) :]
        try:
            self._poke(tid, new)
        except PtraceError as error:
            if error.errno == errno.ESRCH:
                raise
        else:
            return True
        try:
            self._poke(tid, old)
        except PtraceError:
            os.kill(tid, signal.SIGKILL)  # half a jump must never run
            raise
        return False

    def _poke(self, tid: int, text: bytes) -> None:
        for at in (0, _WORD):
            requests.poke(tid, self._function + at, text[at : at + _WORD])
