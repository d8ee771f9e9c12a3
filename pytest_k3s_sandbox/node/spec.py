"""The specification of a node, and the programs that it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pytest_k3s_sandbox.cluster.base import Distribution
from pytest_k3s_sandbox.cluster.embedded import Embedded
from pytest_k3s_sandbox.cluster.k3s import K3s
from pytest_k3s_sandbox.errors import ConfigError
from pytest_k3s_sandbox.layers.stack import split
from pytest_k3s_sandbox.sandbox.limits import DISK, MEMORY, PROCESSES, Wanted
from pytest_k3s_sandbox.settings import DISTRIBUTIONS, FORMER_KINDS, KINDS, LAST_PORT, RUNTIMES, Settings
from pytest_k3s_sandbox.toolchain import Toolchain
from pytest_k3s_sandbox.toolchain.pins import minor_of

FORMS: dict[str, Callable[[], Distribution]] = {"embedded": Embedded, "k3s": K3s}
"""The distributions of Kubernetes by name."""


@dataclass(frozen=True)
class NodeSpec:
    """The specification of a node. A field with an option has the option's name.

    Attributes:
        sandbox: The sandbox's kind, one of :data:`~pytest_k3s_sandbox.settings.KINDS`.
        layers: The layers' words in the order of a stack; None for the kind's default.
        api_port: The API server's TCP port.
        node: The node's name.
        distribution: The form in which Kubernetes comes, one of
            :data:`~pytest_k3s_sandbox.settings.DISTRIBUTIONS`.
        runtime: The OCI runtime that starts containers, one of
            :data:`~pytest_k3s_sandbox.settings.RUNTIMES`; ``default`` is crun in the embedded form, where
            there is one and the layers let it work, else runc.
        sandboxer: Whether one process holds the namespaces of all pods and runs their containers, with crun
            in the embedded form, in place of a shim and a pause container for each pod.
        pod_groups: Whether the kubelet makes a cgroup for each pod, where the layers provide cgroups; see
            :attr:`makes_pod_groups`.
        one_root: Whether a gvisor sandbox has a single 9p mount; see
            :class:`~pytest_k3s_sandbox.sandbox.gvisor.GvisorSandbox`.
        supervised: Whether a supervisor restarts programs that end by themselves, the kubelet or k3s also
            during the start; see :mod:`~pytest_k3s_sandbox.cluster.supervisor`.
        open_ports: TCP ports of the machine that programs inside may reach.
        memory: The memory that the sandbox may take, like ``2Gi``, ``75%`` or ``none``.
        disk: The disk that the sandbox may take, likewise.
        processes: How many processes and threads the sandbox may have, or ``none``.
        version: The pinned version of Kubernetes, like ``1.36``; None for the default.
    """

    sandbox: str = "gvisor"
    layers: tuple[str, ...] | None = None
    api_port: int = 6443
    node: str = "k3s-sandbox"
    distribution: str = "embedded"
    runtime: str = "default"
    sandboxer: bool = True
    pod_groups: bool = False
    one_root: bool = False
    supervised: bool = False
    open_ports: tuple[int, ...] = ()
    memory: str = MEMORY
    disk: str = DISK
    processes: str = PROCESSES
    version: str | None = None

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            ConfigError: The kind or the distribution is unknown, a port or a limit is invalid, or a layer
                does not work with the distribution.
        """
        object.__setattr__(self, "sandbox", FORMER_KINDS.get(self.sandbox, self.sandbox))
        for name, given, known in (
            ("sandbox", self.sandbox, KINDS),
            ("distribution", self.distribution, DISTRIBUTIONS),
            ("runtime", self.runtime, ("default", *RUNTIMES)),
        ):
            if given not in known:
                raise ConfigError(f"unknown {name} {given!r}", cause=f"known are {', '.join(known)}")
        for name, number in (
            ("API port", self.api_port),
            *(("opened port", port) for port in self.open_ports),
        ):
            if not 0 < number <= LAST_PORT:
                raise ConfigError(f"{name} {number}", cause=f"a TCP port is between 1 and {LAST_PORT}")
        if self.distribution != "embedded" and self._names("services"):
            raise ConfigError(
                f"layer 'services' with the distribution {self.distribution!r}",
                cause="it has no client certificate for the API server there",
                remedy="use the embedded distribution, or leave the layer out",
            )
        _ = self.limits  # raises ConfigError for an invalid limit

    @property
    def limits(self) -> Wanted:
        """The limits of the sandbox on the machine."""
        return Wanted(self.memory, self.disk, self.processes)

    @property
    def of_experiment(self) -> NodeSpec:
        """The specification of an experiment's node: runc, as in the research, unless a runtime is named."""
        return replace(self, runtime="runc") if self.runtime == "default" else self

    @property
    def makes_pod_groups(self) -> bool:
        """Whether the kubelet makes a cgroup for each pod: in gVisor only in the FUSE cgroup filesystem.

        Without these groups a kubelet from 1.34 on ends when a pod is resized in place: it reads the limits
        of the pod's group without a look whether there is one (``doPodResizeAction``).
        """
        return self.pod_groups and (self.sandbox != "gvisor" or self.has_layer("fuse_cgroupfs"))

    def has_layer(self, name: str) -> bool:
        """Return whether a gVisor sandbox gets a layer, in any variant; by default it gets every layer."""
        return self.layers is None or self._names(name)

    @property
    def wants_dns(self) -> bool:
        """Whether the cluster is to have a DNS: where pods reach services."""
        return self._names("services")

    def _names(self, layer: str) -> bool:
        """Return whether the specification names a layer, in any variant."""
        return layer in {split(word)[0] for word in self.layers or ()}

    @classmethod
    def of(cls, settings: Settings, *, supervised: bool = False) -> NodeSpec:
        """Return the specification for the settings of a run."""
        return cls(
            sandbox=settings.sandbox,
            layers=settings.layers,
            api_port=settings.api_port,
            distribution=settings.distribution,
            runtime=settings.runtime,
            open_ports=settings.open_ports,
            memory=settings.memory,
            disk=settings.disk,
            processes=settings.processes,
            version=settings.version,
            supervised=supervised,
        )


def programs_of(distribution: str) -> tuple[str, ...]:
    """Return the programs that a distribution needs in a sandbox and on the machine."""
    return tuple(dict.fromkeys((*FORMS[distribution]().programs, "kubectl", "runsc")))


def kubernetes_version(spec: NodeSpec, toolchain: Toolchain) -> str:
    """Return the version of Kubernetes that the node's program reports.

    Raises:
        ConfigError: It is not the version that the toolchain requests.
    """
    name = "k3s" if spec.distribution == "k3s" else "kubelet"
    program = toolchain.get(name)
    if program.version == "unknown":
        return toolchain.pins.kubernetes
    asked = toolchain.kubernetes
    if asked and minor_of(asked) != minor_of(program.version):
        raise ConfigError(
            f"Kubernetes version {asked}",
            cause=f"{program.path} ({program.origin}) is version {program.version}",
            remedy=f"name another one by {toolchain.pins.programs[name].variable}, or ask for no version",
        )
    return program.version
