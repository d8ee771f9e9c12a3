"""Forwards signals from the tracer to the program, each once."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Final, NoReturn

FORWARDED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR2)

_GRACE: Final = 0.05
"""Seconds within which a signal to the process group must stop the program itself."""


class ProgramEnded(Exception):
    """A signal arrived after the program's end."""


class Forwarder:
    """Forwards signals to one process until it ends.

    The kernel delivers a signal to the process group (from a terminal or a service manager) to the program as
    well. The tracer sees that as a signal-delivery-stop, and must not send a second signal: a second SIGTERM
    aborts a kubelet's shutdown. Therefore the tracer forwards a signal only if no such stop follows within a
    short time.

    After the program's end a signal ends the tracer, which still traces the program's descendants.
    """

    def __init__(self, root: int) -> None:
        """Keep the program's process id; no handler is installed yet."""
        self.root = root
        self._ended = False
        self._waiting: dict[int, float] = {}
        self._seen: dict[int, float] = {}

    def install(self) -> None:
        """Install the handlers, except for signals that are ignored (nohup)."""
        for number in FORWARDED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._received)
        signal.signal(signal.SIGALRM, self._late)

    def delivered(self, signum: int) -> None:
        """Note that the kernel delivers a signal to the program."""
        self._seen[signum] = time.monotonic()
        self._waiting.pop(signum, None)

    def ended(self) -> None:
        """Note that the program has ended; its process id may be reused from now on."""
        self._ended = True

    def _end(self) -> NoReturn:
        self.remove()
        raise ProgramEnded

    def remove(self) -> None:
        """Ignore signals from now on: the tracer is ending."""
        for number in (*FORWARDED, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)

    def _received(self, signum: int, _frame: FrameType | None) -> None:
        if self._ended:
            self._end()
        now = time.monotonic()
        if now - self._seen.get(signum, -1.0) > _GRACE:
            self._waiting[signum] = now
            signal.setitimer(signal.ITIMER_REAL, _GRACE)

    def _late(self, _signum: int, _frame: FrameType | None) -> None:
        if self._ended and self._waiting:  # the program ended before it got the signal
            self._end()
        for number in list(self._waiting):
            del self._waiting[number]
            try:
                os.kill(self.root, number)
            except ProcessLookupError:
                self._waiting.clear()
