"""Messages of the tracer on standard error, by level, in the format of ``logging``.

The tracer does not import ``logging``, which takes a tenth of its start.
"""

from __future__ import annotations

import os
from typing import Final

LEVELS: Final = ("debug", "info", "warning", "error")

_threshold: list[int] = [LEVELS.index("warning")]


def set_level(level: str) -> None:
    """Set the lowest level that is written, one of LEVELS."""
    _threshold[0] = LEVELS.index(level)


def debugging() -> bool:
    """Return whether debug messages are written, before computing their content."""
    return _threshold[0] == 0


def say(level: str, text: str) -> None:
    """Write a message if its level is high enough."""
    if LEVELS.index(level) >= _threshold[0]:
        os.write(2, f"interceptor: {level.upper()}: {text}\n".encode(errors="surrogateescape"))
