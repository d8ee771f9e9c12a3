"""How the tracer waits: asking while that pays, asleep otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.layers.interceptor.waiting import SPIN_SECONDS, Waiter

ASKING = 1e-6


class _Kernel:
    """A tracee whose stops come after given times, and what the tracer's waiting has cost."""

    def __init__(self, gaps: list[float]) -> None:
        self.gaps = gaps
        self.now = self.asked = self.asleep = 0.0
        self.next_stop = self.gaps.pop(0)
        self.yields = 0

    def clock(self) -> float:
        return self.now

    def give_way(self) -> None:
        self.yields += 1

    def wait(self, pid: int, options: int) -> tuple[int, int]:
        assert pid == -1
        if options & os.WNOHANG:
            self.now += ASKING
            self.asked += ASKING
            if self.now < self.next_stop:
                return 0, 0
        else:
            self.asleep += 1
            self.now = max(self.now, self.next_stop)
        if not self.gaps:
            raise ChildProcessError
        self.next_stop = self.now + self.gaps.pop(0)
        return 7, 0x57F

    def waiter(self) -> Waiter:
        return Waiter(wait=self.wait, clock=self.clock, give_way=self.give_way)


def drain(kernel: _Kernel) -> int:
    waiter, count = kernel.waiter(), 0
    while True:
        try:
            assert waiter.next() == (7, 0x57F)
        except ChildProcessError:
            return count
        count += 1


def test_stops_that_follow_closely_are_met_awake() -> None:
    kernel = _Kernel([SPIN_SECONDS / 4] * 200)
    assert drain(kernel) == 199
    assert kernel.asleep == 1, "only the first one is slept for"
    assert kernel.yields > 200, "a tracee on the same processor gets its turn"


def test_a_tracer_with_little_to_do_sleeps() -> None:
    kernel = _Kernel([0.01] * 200)
    assert drain(kernel) == 199
    assert kernel.asked == 0


def test_after_a_busy_time_it_soon_sleeps() -> None:
    kernel = _Kernel([SPIN_SECONDS / 4] * 100 + [1.0] * 100)
    drain(kernel)
    assert kernel.asked < 100 * SPIN_SECONDS / 4 + 6 * SPIN_SECONDS


@given(st.lists(st.floats(1e-7, 5e-4), min_size=2, max_size=300))
def test_every_stop_is_met_and_vain_asking_is_bounded(gaps: list[float]) -> None:
    short = sum(gap <= 2 * SPIN_SECONDS for gap in gaps)
    kernel = _Kernel(list(gaps))
    assert drain(kernel) == len(gaps) - 1
    assert kernel.asked <= (short + 1) * 2 * (SPIN_SECONDS + 2 * ASKING)


def test_a_missing_tracee_is_reported_asleep_and_awake() -> None:
    kernel = _Kernel([SPIN_SECONDS / 4] * 2)
    waiter = kernel.waiter()
    waiter.next()
    for _ in range(2):
        with pytest.raises(ChildProcessError):
            waiter.next()


def test_the_kernels_own_waitpid_is_asked() -> None:
    """In a process of its own: this one may have children, and their statuses are not ours to take."""
    program = f"from {Waiter.__module__} import Waiter; Waiter().next()"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "ChildProcessError" in ended.stderr
