"""A process in a sandbox that does what a test tells it."""

from __future__ import annotations

from pathlib import Path

from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.sandbox.inside import InsidePath


class FakeProcess:
    """A process of a layer that has written its log.

    Attributes:
        name: Its name.
        log: Its log.
        code: Its exit code; None while it runs.
        stops: How often it was stopped.
    """

    pid = 7

    def __init__(self, folder: Path, name: str, text: str, code: int | None = None) -> None:
        """Write the log."""
        self.name = name
        self.log = InsidePath(folder / f"{name}.log")
        (folder / f"{name}.log").write_text(text)
        self.code = code
        self.stops = 0

    def poll(self) -> int | None:
        """Return the exit code."""
        return self.code

    def wait(self, deadline: Deadline) -> int | None:
        """Return the exit code at once."""
        del deadline
        return self.code

    def signal(self, number: int) -> None:
        """Fail: no layer sends one."""
        raise AssertionError(number)

    def stop(self, grace: float = 5.0) -> int:
        """End it."""
        del grace
        self.stops += 1
        self.code = 0
        return 0
