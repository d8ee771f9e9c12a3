"""Waiting on a cluster: one deadline, and an early end when a process has died."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import tenacity

from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import WaitError
from pytest_k3s_sandbox.sandbox.base import Process

Condition = Callable[[], bool]
POLL_SECONDS = 0.1
TAIL = 15
TAIL_BYTES = 1 << 20
ERRORS = 3
ERROR = re.compile(r"[EF]\d{4} |.*level=(error|fatal)")  # klog's header, and logfmt


def tail(process: Process) -> str:
    """Return what a process' log says last: its last error lines if it has any, else its last lines."""
    try:
        lines = process.log.tail(TAIL_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return ""
    errors = [line for line in lines if ERROR.match(line)]
    return "\n".join(errors[-ERRORS:] if errors else lines[-TAIL:])


def ended(processes: Mapping[str, Process]) -> Process | None:
    """Return a process that has ended though it should run, or None."""
    return next((process for process in processes.values() if process.poll() is not None), None)


def until(
    condition: Condition,
    *,
    what: str,
    deadline: Deadline,
    alive: Mapping[str, Process] | Callable[[], Mapping[str, Process]],
    poll: float = POLL_SECONDS,
    hint: Callable[[], str | None] = lambda: None,
) -> None:
    """Wait until a condition holds.

    Args:
        condition: Asked again and again; its exceptions are not caught.
        what: What is waited for, as in "timed out waiting for WHAT".
        deadline: When to give up.
        alive: Processes whose end ends the wait, or what tells them again and again.
        poll: Seconds between two questions.
        hint: Asked at the deadline for what was last seen.

    Raises:
        WaitError: A process ended, or the deadline passed.
    """

    def now() -> Mapping[str, Process]:
        return alive() if callable(alive) else alive

    def met() -> bool:
        dead = ended(now())
        if dead is not None:
            lost: str | None = getattr(dead, "lost", None)  # processes of other kinds need not have it
            if lost is not None:
                raise WaitError(
                    f"the sandbox of {dead.name} was lost while waiting for {what}", cause=lost, log=dead.log
                )
            raise WaitError(
                f"{dead.name} ended with exit code {dead.poll()} while waiting for {what}",
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
