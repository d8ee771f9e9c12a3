"""Waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable

from pytest_k3s_sandbox.deadline import Deadline


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until a condition is true; fail when it takes too long.

    Args:
        condition: Asked every hundredth of a second.
        seconds: How long to wait.
    """
    deadline = Deadline.after(seconds)
    while not condition():
        assert not deadline.expired
        time.sleep(0.01)
