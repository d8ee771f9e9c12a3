"""What the tracer says on standard error, by level: one line a message, as ``logging`` would write it.

A tracer is a process of its own that says little; importing ``logging`` would be a tenth of its start.
"""

from __future__ import annotations

import os
from typing import Final

LEVELS: Final = ("debug", "info", "warning", "error")

_threshold: list[int] = [LEVELS.index("warning")]


def set_level(level: str) -> None:
    """Say nothing below this level; it is one of LEVELS."""
    _threshold[0] = LEVELS.index(level)


def debugging() -> bool:
    """Tell whether debug messages are said: what goes into them may cost something."""
    return _threshold[0] == 0


def say(level: str, text: str) -> None:
    """Say something, if the level is high enough."""
    if LEVELS.index(level) >= _threshold[0]:
        os.write(2, f"interceptor: {level.upper()}: {text}\n".encode(errors="surrogateescape"))
