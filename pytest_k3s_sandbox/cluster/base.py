"""The contracts of a distribution, which brings Kubernetes up, and of a cluster under supervision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from pytest_k3s_sandbox.cluster.components import ClusterSettings
from pytest_k3s_sandbox.cluster.process_wait import Attendant
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.layers.base import Layer, NodeOverrides
from pytest_k3s_sandbox.sandbox.base import Process, Reachable, Sandbox

Phase = Callable[[str], AbstractContextManager[None]]
"""Called with the name of a step; the context lasts as long as the step."""


class ImageLoader(Protocol):
    """A way to put container images into a node's containerd."""

    def load_image(self, sandbox: Reachable, tar: str, deadline: Deadline) -> None:
        """Import an image into the node's containerd.

        Args:
            sandbox: Where the node runs.
            tar: A docker-archive or OCI layout, a path inside.
            deadline: When to give up.

        Raises:
            StartError: containerd refused it.
        """

    def images(self, sandbox: Reachable, deadline: Deadline) -> frozenset[str]:
        """Return the full names of the images that the node's containerd has.

        Args:
            sandbox: Where the node runs.
            deadline: When to give up.

        Raises:
            StartError: containerd refused it.
        """


class Parts(Protocol):
    """The running programs of Kubernetes, as questions about a cluster need them."""

    @property
    def processes(self) -> Mapping[str, Process]:
        """The processes, by name, in the order in which they need each other."""

    @property
    def unsupervised(self) -> Mapping[str, Process]:
        """The processes whose end is final: no supervisor starts them again."""

    def restarts(self, name: str) -> int:
        """Return how often a program was started again after an end of its own."""

    def trouble(self) -> str | None:
        """Return which programs ended lately and how often they were started again; None if none did."""


class Distribution(ImageLoader, Protocol):
    """A way to run Kubernetes' parts in a sandbox."""

    @property
    def name(self) -> str:
        """``embedded`` or ``k3s``; reports name it."""

    @property
    def programs(self) -> tuple[str, ...]:
        """The programs that must appear in the sandbox, as the toolchain names them."""

    @property
    def kubelet_process(self) -> str:
        """The name of the process that the kubelet is in."""

    @property
    def processes(self) -> dict[str, Process]:
        """Its processes, by name, in the order in which the parts need each other."""

    attendant: Attendant | None
    """Starts programs again that end during a start; without one, each end is final."""

    @property
    def traced(self) -> set[str]:
        """The names of those whose process is a layer's, and whose program is that one's child."""

    def start_control_plane(self, sandbox: Sandbox, settings: ClusterSettings, phase: Phase) -> None:
        """Start the processes that need no layer, and return at once: they come up while the layers do.

        Raises:
            ClusterError: A port that it needs is occupied.
        """

    def start_node(
        self,
        sandbox: Sandbox,
        settings: ClusterSettings,
        overrides: NodeOverrides,
        deadline: Deadline,
        phase: Phase,
    ) -> None:
        """Start the worker node with the overrides of the layers.

        Returns when the API server answers and the kubelet runs. Can be called again after
        :meth:`stop_node`.

        Raises:
            ClusterError: A part ended or the deadline passed; the message names its log.
        """

    def stop_node(self) -> None:
        """End the node's part; the control plane goes on."""

    def restart(
        self,
        sandbox: Sandbox,
        settings: ClusterSettings,
        name: str,
        deadline: Deadline,
        *,
        leave: bool = False,
        wait: bool = True,
    ) -> None:
        """Start a program again as it was started before; its log goes on. If it still runs, it is ended.

        Args:
            sandbox: Where it runs.
            settings: The node's name, ports and so on.
            name: The program.
            deadline: When to give up.
            leave: Do not end a process that still runs by that name: a tracer that goes on with the
                descendants of a program that has ended, as containerd's does with the shims of pods.
            wait: Return only when it does its work, where that can be told.

        Raises:
            SandboxError: It could not be started, or does not do its work; it does not run then.
        """

    def stop(self) -> None:
        """End all processes; the node's part first."""


class Supervised(Protocol):
    """The part of a cluster that the supervisor uses."""

    @property
    def distribution(self) -> Distribution:
        """The distribution that runs Kubernetes' parts."""

    @property
    def processes(self) -> Mapping[str, Process]:
        """The processes of the distribution, by name."""

    @property
    def layers(self) -> Sequence[Layer]:
        """The layers around the node, in the order of the stack."""

    @property
    def sandbox(self) -> Sandbox:
        """Where the cluster runs."""

    @property
    def settings(self) -> ClusterSettings:
        """The node's name, ports and so on."""

    @property
    def changing(self) -> AbstractContextManager[object]:
        """The lock that is held while programs are started and ended."""
