"""What a forked process lets go of."""

from __future__ import annotations

import os

import pytest

from pytest_k3s_sandbox.support import forks


class Thing:
    """Fails to let go, after it has said so."""

    def __init__(self, report: int) -> None:
        """Take the descriptor to write to."""
        self.report = report

    def forked(self) -> None:
        """Write, and fail."""
        os.write(self.report, b"x")
        raise OSError("a clean-up fails")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_each_clean_up_runs_though_others_fail() -> None:
    read, write = os.pipe()
    things = [Thing(write) for _ in range(3)]
    for thing in things:
        forks.watch(thing)
    try:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
    finally:
        for thing in things:
            forks.forget(thing)
        os.close(write)
    with os.fdopen(read, "rb") as report:
        assert report.read() == b"xxx"
