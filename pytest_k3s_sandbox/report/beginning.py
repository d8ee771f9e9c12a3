"""When a node's bring-up began: with its sandbox, or in one that others had used before; pure."""

from __future__ import annotations

from pytest_k3s_sandbox.report.records import Event, EventKind, Phase, Run, Sample

IDLE_SECONDS = 10.0
"""So long without any phase, a sandbox was not waiting for its node.

Between the phases of one bring-up lie some hundredths of a second, of a stalled machine seconds.
"""


def first_ready(run: Run) -> Sample | None:
    """Return the first sample that saw the node Ready."""
    return next((sample for sample in run.samples if sample.node_ready), None)


def start_faults(run: Run) -> tuple[Event, ...]:
    """Return the faults of a node's start: of programs that ended before the node was Ready first."""
    return _before_ready(run, EventKind.FAULT)


def start_restarts(run: Run) -> tuple[Event, ...]:
    """Return the restarts of a node's start: of programs that had ended before the node was Ready first."""
    return _before_ready(run, EventKind.RESTART)


def _before_ready(run: Run, kind: EventKind) -> tuple[Event, ...]:
    ready = first_ready(run)
    return tuple(event for event in run.events if event.kind == kind and (ready is None or event.t < ready.t))


def bring_up(run: Run) -> Phase | None:
    """Return the phase with which the bring-up of a node began in a sandbox that was in use before.

    Tests of a session share a sandbox. When the first of them wants no node, the sandbox, and its layers
    maybe, are old when the node's bring-up begins: after a time without any phase.

    Args:
        run: The run, which may go on still.

    Returns:
        None when the bring-up began with the run, at its zero, which is the sandbox's start.
    """
    ready = first_ready(run)
    found: Phase | None = None
    reached = 0.0
    for phase in run.phases:
        if ready is not None and phase.start > ready.t:
            break
        if phase.start - reached > IDLE_SECONDS:
            found = phase
        reached = max(reached, phase.start if phase.end is None else phase.end)
    return found
