"""Waiting with one deadline, and ending early when a process has died."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pytest_k3s_sandbox.cluster import process_wait
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import ClusterError, WaitError
from pytest_k3s_sandbox.sandbox.inside import InsidePath


class Part:
    """A process with a log; ends after some polls."""

    def __init__(self, folder: Path, name: str, *, polls: int = 1_000_000, code: int = 0) -> None:
        """Write the log."""
        self.name = name
        self.pid = 2
        self.log = InsidePath(folder / f"{name}.log")
        Path(self.log).write_text("".join(f"line {number}\n" for number in range(100)))
        self._polls = polls
        self._code = code

    def poll(self) -> int | None:
        """Return the code after the last poll that it lives through."""
        self._polls -= 1
        return None if self._polls >= 0 else self._code

    def wait(self, deadline: Deadline) -> int | None:
        """Return what poll returns."""
        assert deadline
        return self.poll()

    def signal(self, number: int) -> None:
        """Do nothing."""

    def stop(self, grace: float = 5.0) -> int:
        """Return the code."""
        assert grace
        return self._code


class LostPart(Part):
    """A process that ended with its sandbox, as an AgentProcess says it."""

    lost = "its first process has ended"


def test_it_returns_as_soon_as_the_condition_holds() -> None:
    answers = iter([False, False, True])
    began = time.monotonic()
    process_wait.until(lambda: next(answers), what="x", deadline=Deadline.after(10), alive={}, poll=0.01)
    assert 0.02 <= time.monotonic() - began < 1
    assert list(answers) == []


def test_a_condition_is_asked_once_even_after_the_deadline() -> None:
    process_wait.until(lambda: True, what="x", deadline=Deadline.after(-1), alive={})


def test_the_deadline_is_an_error_with_what_was_waited_for_the_hint_and_the_logs(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(ClusterError) as caught:
        process_wait.until(
            lambda: False,
            what="node n to become Ready",
            deadline=Deadline.after(0.2),
            alive={"kubelet": Part(tmp_path, "kubelet")},
            poll=0.05,
            hint=lambda: "KubeletNotReady: cni",
        )
    assert 0.2 <= time.monotonic() - began < 1
    assert str(caught.value) == (
        f"timed out waiting for node n to become Ready: KubeletNotReady: cni\nDetails: {tmp_path}"
    )


def test_a_process_that_ended_is_named_with_its_code_and_the_end_of_its_log(tmp_path: Path) -> None:
    parts = {
        "kine": Part(tmp_path, "kine"),
        "kubelet": Part(tmp_path, "kubelet", polls=2, code=1),
    }
    asked: list[int] = []

    def never() -> bool:
        asked.append(1)
        return False

    with pytest.raises(ClusterError) as caught:
        process_wait.until(never, what="the node", deadline=Deadline.after(30), alive=parts, poll=0.01)
    assert caught.value.what == "kubelet ended with exit code 1 while waiting for the node"
    assert caught.value.cause == "\n".join(f"line {number}" for number in range(85, 100))
    assert caught.value.log == tmp_path / "kubelet.log"
    assert len(asked) == 2


def test_a_dead_process_wins_over_a_condition_that_holds(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="kine ended with exit code -9"):
        process_wait.until(
            lambda: True,
            what="x",
            deadline=Deadline.after(1),
            alive={"kine": Part(tmp_path, "kine", polls=0, code=-9)},
        )


def test_the_conditions_own_errors_come_through() -> None:
    def broken() -> bool:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        process_wait.until(broken, what="x", deadline=Deadline.after(1), alive={})


def test_a_log_that_is_missing_has_no_tail(tmp_path: Path) -> None:
    part = Part(tmp_path, "kubelet")
    Path(part.log).write_bytes(b"\xff broken\nlast")
    assert process_wait.tail(part) == "\ufffd broken\nlast"
    part.log.unlink()
    assert process_wait.tail(part) == ""


def test_error_lines_are_told_rather_than_the_lines_after_them(tmp_path: Path) -> None:
    part = Part(tmp_path, "kubelet")
    errors = [f"E1123 15:00:00.00000{number}       1 a.go:1] failed" for number in range(5)]
    Path(part.log).write_text("\n".join([*errors, "I1123 15:00:00.000009       1 a.go:1] stopping", "exit"]))
    assert process_wait.tail(part) == "\n".join(errors[-3:])
    Path(part.log).write_text('time="x" level=info msg="starting"\ntime="x" level=fatal msg="no"\n')
    assert process_wait.tail(part) == 'time="x" level=fatal msg="no"'


def test_a_sandbox_that_is_lost_is_not_taken_for_the_end_of_a_process(tmp_path: Path) -> None:
    part = LostPart(tmp_path, "kubelet", polls=0, code=-9)
    words = "the sandbox of kubelet was lost while waiting for x: its first process has ended"
    with pytest.raises(ClusterError, match=words):
        process_wait.until(lambda: False, what="x", deadline=Deadline.after(10), alive={"kubelet": part})


def test_an_end_tells_how_often_it_was_started_again(tmp_path: Path) -> None:
    part = Part(tmp_path, "kubelet", polls=0, code=1)
    for number, words in (
        (1, "after it was started again once: "),
        (5, "after it was started again 5 times: "),
    ):
        with pytest.raises(WaitError, match=f"while waiting for x, {words}"):
            process_wait.until(
                lambda: False,
                what="x",
                deadline=Deadline.after(10),
                alive={"kubelet": part},
                restarts={"kubelet": number}.__getitem__,
            )
    with pytest.raises(WaitError, match="while waiting for x: "):
        process_wait.until(lambda: False, what="x", deadline=Deadline.after(10), alive={"kubelet": part})


def test_the_last_error_line_is_short_and_one_line(tmp_path: Path) -> None:
    part = Part(tmp_path, "kubelet")
    assert process_wait.last_error(part) == "line 99"
    Path(part.log).write_text("E1126 a.go:1] first\nE1126 a.go:2] " + "x" * 1000 + "\nI1126 a.go:3] bye\n")
    assert process_wait.last_error(part) == ("E1126 a.go:2] " + "x" * 1000)[:300]
    part.log.unlink()
    assert process_wait.last_error(part) == ""
