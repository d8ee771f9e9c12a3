"""The claim that every experiment with a node makes by itself: no program of it ends during its start.

Elsewhere a kubelet that ends during a start is started again. An experiment's node never is, because what it
does by itself is the result; so its end has to be in the result, whatever the experiment asks.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import ClusterError
from pytest_k3s_sandbox.pytestplugin.claims import NotHeld, OpenClaim

if TYPE_CHECKING:
    from pytest_k3s_sandbox.node.session import NodeSession
    from pytest_k3s_sandbox.pytestplugin.claims import Claims
    from pytest_k3s_sandbox.report.records import Event, RunWriter

NAME = "clean-start"
TEXT = "No program of the node ends by itself during its start"
READY_SECONDS = 60.0
"""For how long a node that is not Ready is watched, on a machine that is not noisy."""

POLL_SECONDS = 0.05


def announce(claims: Claims) -> OpenClaim:
    """Announce the claim: it counts as not reached if the start never comes that far."""
    return claims.of(NAME, TEXT, limit=0)


@contextlib.contextmanager
def judged(claim: OpenClaim, writer: RunWriter) -> Iterator[Callable[[NodeSession, float], None]]:
    """Judge the claim by a start in the enclosed block.

    Args:
        claim: The claim.
        writer: The records, which have an event for each program that ended.

    Yields:
        What waits until the start is over, called with the node and the factor of its time limits.

    Raises:
        ClusterError: A program has ended, though the block came to its end.
        BaseException: Whatever else ended the block; the claim is judged only if a program has ended.
    """
    claim.begin()
    try:
        yield _wait
    except BaseException as error:
        found = ends(writer)
        if found:
            _record(claim, found)
        else:
            claim.give_up(error)
        raise
    found = ends(writer)
    _record(claim, found)
    if found:
        raise ClusterError("the start of the node was not clean", cause=said(found), log=writer.path.parent)


def _record(claim: OpenClaim, found: list[Event]) -> None:
    with contextlib.suppress(NotHeld):  # the error that ends the test names the log, too
        claim.judge(not found, said(found) if found else 0)


def _wait(session: NodeSession, timeout_scale: float) -> None:
    """Return when a start is over: the node was Ready, a program has ended, or it takes too long."""
    from pytest_k3s_sandbox.node.session import note_ends

    deadline = Deadline.after(READY_SECONDS * timeout_scale)
    while not note_ends(session.cluster, session.writer):
        over = session.readiness.seen_ready or session.readiness.failure is not None
        if over or deadline.expired:
            return
        time.sleep(POLL_SECONDS)


def ends(writer: RunWriter) -> list[Event]:
    """Return the events of a run that tell of programs that ended before its node was Ready first."""
    from pytest_k3s_sandbox.report.records import read_run

    return list(read_run(writer.path).metrics.start_faults)


def said(events: list[Event]) -> str:
    """Return ends of programs in words."""
    return f"{len(events)}: " + "; ".join(f"{event.component} {event.what}" for event in events)
