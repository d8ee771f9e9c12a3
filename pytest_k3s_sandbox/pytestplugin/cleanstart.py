"""The automatic claim of every experiment with a node: no program of the node ends during its start.

In other tests a supervisor restarts a kubelet that ends during a start. An experiment has no supervisor,
because it observes the node's own behaviour. Therefore its result must record that a program ended.
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
"""The time limit of the start, before ``--k3s-timeout-scale`` stretches it."""

POLL_SECONDS = 0.05


def announce(claims: Claims) -> OpenClaim:
    """Announce the claim; it counts as not reached if the bring-up fails before the node's start."""
    return claims.of(NAME, TEXT, limit=0)


@contextlib.contextmanager
def judged(claim: OpenClaim, writer: RunWriter) -> Iterator[Callable[[NodeSession, float], None]]:
    """Judge the claim for the start in the enclosed block.

    Args:
        claim: The claim.
        writer: The records, with an event for each program that ended.

    Yields:
        A function that waits until the start is over. Its arguments are the node and the timeout scale.

    Raises:
        ClusterError: The block raised no exception, but a program ended.
        BaseException: The block raised it. The claim is judged only if a program ended.
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
    """Wait until the node was Ready, a program ended, the sampler failed or the time limit passed."""
    from pytest_k3s_sandbox.node.session import note_ends

    deadline = Deadline.after(READY_SECONDS * timeout_scale)
    while not note_ends(session.cluster, session.writer):
        over = session.readiness.seen_ready or session.readiness.failure is not None
        if over or deadline.expired:
            return
        time.sleep(POLL_SECONDS)


def ends(writer: RunWriter) -> list[Event]:
    """Return the events of programs that ended before the node was Ready for the first time."""
    from pytest_k3s_sandbox.report.records import read_run

    return list(read_run(writer.path).metrics.start_faults)


def said(events: list[Event]) -> str:
    """Return the number of events and their texts, for a message."""
    return f"{len(events)}: " + "; ".join(f"{event.component} {event.what}" for event in events)
