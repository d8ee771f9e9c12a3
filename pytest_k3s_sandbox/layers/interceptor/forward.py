"""Signals sent to the tracer reach the program, once."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Final, NoReturn

FORWARDED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR2)

_GRACE: Final = 0.05
"""Seconds in which a signal to the whole process group must have shown up at the program itself."""


class ProgramEnded(Exception):
    """A signal came for a program that has ended."""


class Forwarder:
    """Passes signals on to one process, while there is one.

    A signal to the process group (a terminal's, a service manager's) reaches the
    program by itself. The tracer sees that as a signal-delivery-stop, and then must not
    send a second one: a second SIGTERM makes a kubelet give up its orderly end. So
    a signal is passed on only if it did not show up within a short time.

    After the program's end a signal is meant for the tracer, which stays with what descends from the program.
    """

    def __init__(self, root: int) -> None:
        """Take the process id of the program; nothing is installed yet."""
        self.root = root
        self._ended = False
        self._waiting: dict[int, float] = {}
        self._seen: dict[int, float] = {}

    def install(self) -> None:
        """Handle the signals from now on, but leave those alone that are ignored (nohup)."""
        for number in FORWARDED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._received)
        signal.signal(signal.SIGALRM, self._late)

    def delivered(self, signum: int) -> None:
        """Note that the program is being delivered a signal."""
        self._seen[signum] = time.monotonic()
        self._waiting.pop(signum, None)

    def ended(self) -> None:
        """Note that the program has ended; its process id may be another's from now on."""
        self._ended = True

    def _end(self) -> NoReturn:
        self.remove()
        raise ProgramEnded

    def remove(self) -> None:
        """Ignore what comes from now on: the tracer is ending."""
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
        if self._ended and self._waiting:  # it ended before it could get one
            self._end()
        for number in list(self._waiting):
            del self._waiting[number]
            try:
                os.kill(self.root, number)
            except ProcessLookupError:
                self._waiting.clear()
