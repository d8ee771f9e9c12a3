"""How a tracer waits for the next stop: by asking again and again as long as that pays, else asleep.

A processor that sleeps takes tens of microseconds to wake, more so a virtual one, and each stop wakes two:
the tracer's, and the tracee's when it goes on. A tracer that stays awake between stops that follow each other
closely takes about half of the time for them (see "What it costs" in docs/interceptor.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from time import perf_counter
from typing import Final

from pytest_k3s_sandbox.layers.interceptor import requests

__all__ = ["SPIN_SECONDS", "Waiter"]

SPIN_SECONDS: Final = 100e-6
"""How long to ask before going to sleep; about what sleeping and waking costs."""

_MOST: Final = 16
"""The credit that can be saved up, so that after a busy time few vain attempts are made."""

_PRICE: Final = 4
"""What a vain attempt costs; at worst, with short and long waits in turn, every other wait is one."""


class Waiter:
    """Waits for changes of any tracee.

    Waits that were short earn credit; where there is credit, the next wait begins with asking.
    """

    def __init__(
        self,
        *,
        wait: Callable[[int, int], tuple[int, int]] = os.waitpid,
        clock: Callable[[], float] = perf_counter,
        give_way: Callable[[], None] = os.sched_yield,
    ) -> None:
        """Start asleep.

        Args:
            wait: waitpid(2), for tests.
            clock: Seconds, for tests.
            give_way: sched_yield(2), for tests.
        """
        self._wait, self._clock, self._give_way = wait, clock, give_way
        self._credit = 0

    def next(self) -> tuple[int, int]:
        """Return the thread that changed, and its wait status as of waitpid(2).

        Raises:
            ChildProcessError: There is no tracee.
        """
        wait, clock = self._wait, self._clock
        began = clock()
        end = began + SPIN_SECONDS
        if self._credit > 0:
            while True:
                found = wait(-1, requests.WALL | os.WNOHANG)
                if found[0]:
                    self._credit = min(self._credit + 1, _MOST)
                    return found
                if clock() >= end:
                    break
                # The tracee may be waiting for this very processor.
                self._give_way()
            self._credit = max(self._credit - _PRICE, 0)
            return wait(-1, requests.WALL)
        found = wait(-1, requests.WALL)
        if clock() < end:
            self._credit = 1
        return found
