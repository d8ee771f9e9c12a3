"""Waits for the next stop: polls while that pays, else sleeps.

A sleeping processor takes tens of microseconds to wake, a virtual one longer. Each stop wakes two: the
tracer's, and then the tracee's. Polling halves the time of stops in quick succession (see "What it costs" in
docs/interceptor.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from time import perf_counter
from typing import Final

from pytest_k3s_sandbox.layers.interceptor import requests

__all__ = ["SPIN_SECONDS", "Waiter"]

SPIN_SECONDS: Final = 100e-6
"""Seconds to poll before sleeping; about the cost of sleeping and waking."""

_MOST: Final = 16
"""The largest credit, which limits vain polls after a busy time."""

_PRICE: Final = 4
"""The price of a vain poll; at worst, with short and long waits in turn, every other wait polls in vain."""


class Waiter:
    """Waits for changes of any tracee.

    Short waits earn credit. With credit, the next wait polls first.
    """

    def __init__(
        self,
        *,
        wait: Callable[[int, int], tuple[int, int]] = os.waitpid,
        clock: Callable[[], float] = perf_counter,
        give_way: Callable[[], None] = os.sched_yield,
    ) -> None:
        """Start without credit.

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
            ChildProcessError: No tracee is left.
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
                # The tracee may need this processor.
                self._give_way()
            self._credit = max(self._credit - _PRICE, 0)
            return wait(-1, requests.WALL)
        found = wait(-1, requests.WALL)
        if clock() < end:
            self._credit = 1
        return found
