"""The time, also in a test that has replaced Python's clocks.

freezegun and time-machine replace ``time.monotonic``, ``time.time`` and ``datetime.now``, in every module.
Under a clock that stands still no deadline passes, and a certificate may begin next year. Neither of them
replaces the calls here: clock_gettime(2) of CLOCK_MONOTONIC and of CLOCK_REALTIME_COARSE.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datetime as dt

REALTIME_COARSE = 5
"""CLOCK_REALTIME_COARSE of linux/time.h: the wall clock of the kernel's last tick, at most 10 ms ago."""


def monotonic() -> float:
    """Return the seconds of CLOCK_MONOTONIC, as ``time.monotonic`` does where it was not replaced."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def wall() -> float:
    """Return the seconds since 1970, as ``time.time`` does where it was not replaced."""
    return time.clock_gettime(REALTIME_COARSE)


def now() -> dt.datetime:
    """Return the date and time in UTC."""
    import datetime as dt

    return dt.datetime.fromtimestamp(wall(), dt.UTC)
