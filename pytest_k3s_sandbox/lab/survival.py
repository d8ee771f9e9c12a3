"""How far a worker node gets with certain layers, and how long it stays Ready: recorded, whatever it is."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_k3s_sandbox.lab.observe import Limits, Observation, Watch
from pytest_k3s_sandbox.lab.trials import trial_pod
from pytest_k3s_sandbox.report.records import Ablation, Measurement, Sample, read_run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_k3s_sandbox.node.session import NodeSession

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Survival:
    """The fate of a node.

    Attributes:
        seen: How far it got, and the error that stopped it.
        ready_seconds: From the first sample in which it was Ready to the last one; 0 if it never was.
        losses: How often it was Ready no more.
    """

    seen: Observation
    ready_seconds: float
    losses: int

    def sentence(self) -> str:
        """Return it in words, for a report."""
        if self.seen.error is None:
            stopped = "nothing stopped it"
        else:
            stopped = f"stopped by {self.seen.error.component}: {self.seen.error.text}"
        ended = "" if self.seen.exit_code is None else f"; the kubelet ended with {self.seen.exit_code}"
        return f"{self.seen.reached}, Ready for {self.ready_seconds:.0f} s; {stopped}{ended}"


def readiness(samples: Sequence[Sample]) -> tuple[float, int]:
    """Return for how long a node was Ready, from the first such sample to the last, and how often not."""
    ready = [sample.t for sample in samples if sample.node_ready]
    if not ready:
        return 0.0, 0
    states = [bool(sample.node_ready) for sample in samples if sample.t >= ready[0]]
    losses = sum(before and not after for before, after in itertools.pairwise(states))
    return ready[-1] - ready[0], losses


def follow(session: NodeSession, hold: float, timeout_scale: float = 1.0) -> Survival:
    """Follow a node that was just started; its end is a finding, and so is a pod that does not run.

    Args:
        session: The node; the findings go into its records.
        hold: For how many seconds a node that is Ready is watched.
        timeout_scale: How much slower than usual the machine is.
    """
    seen = Watch(session.cluster, trial_pod(session.cluster), Limits().stretched(timeout_scale)).follow()
    until = time.monotonic() + hold
    while seen.ready and time.monotonic() < until and session.cluster.processes["kubelet"].poll() is None:
        time.sleep(POLL_SECONDS)
    seconds, losses = readiness(session.readiness.samples)
    ready = next((sample.t for sample in session.readiness.samples if sample.node_ready), None)
    began = read_run(session.folder).metrics.began  # the sandbox may be older than the bring-up
    session.writer.append(
        Ablation(
            layers=session.stack.names,
            version=session.cluster.settings.kubernetes,
            reached=seen.reached,
            seconds_to_ready=None if ready is None else ready - began,
            error=seen.error,
        )
    )
    session.writer.append(Measurement.of("seconds-ready", [seconds], "s"))
    return Survival(seen, seconds, losses)
