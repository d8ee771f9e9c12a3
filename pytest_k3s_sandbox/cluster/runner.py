"""A cluster's process side: its control plane and node are started, changed and ended here."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self

from pytest_k3s_sandbox.cluster.base import Distribution, Phase
from pytest_k3s_sandbox.cluster.cluster import Cluster
from pytest_k3s_sandbox.cluster.components import ClusterSettings
from pytest_k3s_sandbox.cluster.overrides import merge
from pytest_k3s_sandbox.cluster.supervisor import Supervisor
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.layers.base import Layer
from pytest_k3s_sandbox.sandbox.base import Process, Sandbox
from pytest_k3s_sandbox.support import forks

START_SECONDS = 60.0


def no_phase(_name: str) -> AbstractContextManager[None]:
    """Record nothing: the phase of a bring-up without records."""
    return contextlib.nullcontext()


class ClusterRunner:
    """The programs of Kubernetes in a sandbox, with a stack of layers around the node's.

    A context manager: entering it starts the control plane, :meth:`start_node` the node,
    leaving it ends both. The sandbox and the layers stay their owners'.

    Attributes:
        sandbox: The sandbox that the programs run in.
        distribution: Starts and ends them.
        settings: The node's name, ports and so on; a change counts at the next start.
        layers: The layers around the node, in the order of the stack.
        supervisor: Starts programs again that have ended; None for a cluster without supervision.
        changing: Held while programs are started and ended, on purpose or by the supervisor.
        cluster: The cluster, as its users see it.

    Args:
        sandbox: The sandbox.
        distribution: Brings Kubernetes up.
        settings: The node's name, ports and so on.
        kubectl: The kubectl program on the machine.
        phase: Called for every step of the bring-up.
        records: The run's folder, which gets copies of the logs when a wait fails.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        distribution: Distribution,
        settings: ClusterSettings,
        *,
        kubectl: Path,
        phase: Phase = no_phase,
        records: Path | None = None,
    ) -> None:
        """Keep the parts; nothing starts yet."""
        self.sandbox = sandbox
        self.distribution = distribution
        self.settings = settings
        self.layers: tuple[Layer, ...] = ()
        self.supervisor: Supervisor | None = None
        self.changing = threading.RLock()
        self.cluster = Cluster(self, sandbox, settings, lambda: self.distribution, kubectl, records)
        self._phase = phase
        self._owner = forks.Owner()
        forks.watch(self)

    def forked(self) -> None:
        """Give a forked process a lock of its own."""
        self.changing = threading.RLock()

    def __enter__(self) -> Self:
        """Start the control plane and return at once; it comes up meanwhile.

        Raises:
            ClusterError: A port that it needs is occupied.
        """
        try:
            self.distribution.start_control_plane(self.sandbox, self.settings, self._phase)
        except BaseException:
            self.distribution.stop()
            raise
        return self

    def start_node(self, layers: Sequence[Layer]) -> None:
        """Start the node in a stack of layers: returns when the API server answers and the kubelet runs.

        Args:
            layers: The layers in the order of the stack, which are up.

        Raises:
            ClusterError: A part of Kubernetes did not start.
        """
        with self.changing:
            self.layers = tuple(layers)
            overrides = merge(layer.overrides for layer in layers)
            deadline = Deadline.after(START_SECONDS)
            self.distribution.start_node(self.sandbox, self.settings, overrides, deadline, self._phase)

    def stop_node(self) -> None:
        """End the node; the control plane goes on, and the node can be started again.

        In a process that was forked from its owner it does nothing.
        """
        if not self._owner.mine:
            return
        with self.changing:
            self.distribution.stop_node()
            self.layers = ()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take it down; in a process that was forked from its owner it does nothing."""
        if not self._owner.mine:
            return
        with self.changing:
            self.distribution.stop()

    @property
    def processes(self) -> dict[str, Process]:
        """The processes of the distribution, by name."""
        return self.distribution.processes

    @property
    def unsupervised(self) -> Mapping[str, Process]:
        """The processes whose end is final: no supervisor starts them again."""
        return self.processes if self.supervisor is None else self.supervisor.unsupervised

    def restarts(self, name: str) -> int:
        """Return how often a program was started again after an end of its own."""
        return 0 if self.supervisor is None else self.supervisor.restarts(name)

    def trouble(self) -> str | None:
        """Return which programs ended lately and how often they were started again; None if none did."""
        return None if self.supervisor is None else self.supervisor.trouble()
