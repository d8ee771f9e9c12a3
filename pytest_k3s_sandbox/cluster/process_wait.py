"""Waiting on a cluster: one deadline, and an early end when a process has died."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Protocol

import tenacity

from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import WaitError
from pytest_k3s_sandbox.sandbox.base import Process

Condition = Callable[[], bool]
POLL_SECONDS = 0.1
TAIL = 15
TAIL_BYTES = 1 << 20
ERRORS = 3
LAST_CHARACTERS = 300
ERROR = re.compile(r"[EF]\d{4} |.*level=(error|fatal)")  # klog's header, and logfmt


def tail(process: Process) -> str:
    """Return the last error lines of a process' log; its last lines if no line is an error."""
    try:
        lines = process.log.tail(TAIL_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return ""
    errors = [line for line in lines if ERROR.match(line)]
    return "\n".join(errors[-ERRORS:] if errors else lines[-TAIL:])


def last_error(process: Process) -> str:
    """Return the last error line of a process' log, shortened; its last line if no line is an error."""
    return tail(process).rpartition("\n")[2].strip()[:LAST_CHARACTERS]


class Attendant(Protocol):
    """Starts programs again that end while others wait for them."""

    def attend(self) -> Mapping[str, Process]:
        """Start the programs that are due, and return the processes whose end is final."""

    def restarts(self, name: str) -> int:
        """Return how often a program was started again after an end of its own."""

    def trouble(self) -> str | None:
        """Return which programs ended lately and how often they were started again; None if none did."""


def ended_at_start(process: Process, how: str) -> str:
    """Return in words how a process ended during a start, with the last error line of its log.

    Args:
        process: The process.
        how: How it ended, like ``exit code 1``.
    """
    line = last_error(process)
    return f"{how} during the start{f': {line}' if line else ''}"


def lost_by(process: Process) -> str | None:
    """Return why a process ended with its sandbox, or None; processes of other kinds need not know."""
    why: str | None = getattr(process, "lost", None)
    return why


def ended(processes: Mapping[str, Process]) -> Process | None:
    """Return a process that has ended though it should run, or None."""
    return next((process for process in processes.values() if process.poll() is not None), None)


def after_restarts(number: int) -> str:
    """Return the end of a sentence about a program that was started again so often; empty for 0."""
    return f", after it was started again {times(number)}" if number else ""


def times(number: int) -> str:
    """Return a number of times in words."""
    return "once" if number == 1 else f"{number} times"


def until(
    condition: Condition,
    *,
    what: str,
    deadline: Deadline,
    alive: Mapping[str, Process] | Callable[[], Mapping[str, Process]],
    poll: float = POLL_SECONDS,
    restarts: Callable[[str], int] = lambda _name: 0,
    hint: Callable[[], str | None] = lambda: None,
) -> None:
    """Wait until a condition holds.

    Args:
        condition: Asked again and again; its exceptions are not caught.
        what: What is waited for, as in "timed out waiting for WHAT".
        deadline: When to give up.
        alive: The processes whose end ends the wait, or a function that returns them.
        poll: Seconds between two questions.
        restarts: Tells how often a process was started again, by its name.
        hint: Called at the deadline; returns the last known state.

    Raises:
        WaitError: A process ended, or the deadline passed.
    """

    def now() -> Mapping[str, Process]:
        return alive() if callable(alive) else alive

    def met() -> bool:
        dead = ended(now())
        if dead is not None:
            lost = lost_by(dead)
            if lost is not None:
                raise WaitError(
                    f"the sandbox of {dead.name} was lost while waiting for {what}", cause=lost, log=dead.log
                )
            raise WaitError(
                f"{dead.name} ended with exit code {dead.poll()} while waiting for {what}"
                + after_restarts(restarts(dead.name)),
                cause=tail(dead) or None,
                log=dead.log,
            )
        return condition()

    try:
        tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda result: not result),
            stop=lambda _state: deadline.expired,
            wait=tenacity.wait_fixed(poll),
        )(met)
    except tenacity.RetryError:
        logs = next((process.log.parent for process in now().values()), None)
        raise WaitError(f"timed out waiting for {what}", cause=hint(), log=logs) from None
