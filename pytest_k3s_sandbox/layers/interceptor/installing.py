"""Install the code of :mod:`.repeating` in a Go program, between its execve and its first instruction.

The tracer makes the program map a writable page, and fills it. Then it makes the program change the page's
protection from writable to executable, and only then patches the function. The page is never writable while
the program runs. If a step fails, the program unmaps the page and runs unchanged.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from typing import Final

from pytest_k3s_sandbox.layers.interceptor import repeating, requests
from pytest_k3s_sandbox.layers.interceptor.calls import Call
from pytest_k3s_sandbox.layers.interceptor.inject import Injector
from pytest_k3s_sandbox.layers.interceptor.memory import Memory
from pytest_k3s_sandbox.layers.interceptor.requests import RAX, PtraceError, Registers
from pytest_k3s_sandbox.layers.interceptor.syscalls import MMAP, MPROTECT, MUNMAP

_WORD: Final = 8


class Installation:
    """The steps for one program. Each returns the next call to wait for, or None."""

    def __init__(
        self,
        injector: Injector,
        registers: Registers,
        memory: Memory,
        function: int,
        page: bytes,
        after: Callable[[int, Call], Call | None],
    ) -> None:
        """Prepare.

        Args:
            injector: Makes the program call the kernel.
            registers: The buffer of registers.
            memory: The program's memory.
            function: The address of its Syscall6.
            page: The page's content; see :func:`.repeating.content`.
            after: Called at the end, with the program's own registers in the buffer.
        """
        self._injector = injector
        self._registers = registers
        self._memory = memory
        self._function = function
        self._page = page
        self._after = after

    def begin(self, tid: int, call: Call) -> Call | None:
        """Make the program map the page at the exit stop of execve, if it has the function."""
        there = self._memory.read(tid, self._function, len(repeating.FUNCTION))
        if there != repeating.FUNCTION:  # the file has changed since it was read
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
        """Make the program call the kernel; its own registers are in the buffer."""
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
            tid, address, repeating.page(self._page, self._function)
        ):
            return self._make(tid, call, MPROTECT, repeating.PROTECT_ARGUMENTS, self._executable)
        return self._make(tid, call, MUNMAP, (address, repeating.PAGE), self._unmapped)

    def _executable(self, tid: int, call: Call) -> Call | None:
        """Patch the program's function with a jump to the page."""
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
        """Patch the function as a whole or not at all; return whether it is patched."""
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
            os.kill(tid, signal.SIGKILL)  # the program must never run half a jump
            raise
        return False

    def _poke(self, tid: int, text: bytes) -> None:
        for at in (0, _WORD):
            requests.poke(tid, self._function + at, text[at : at + _WORD])
