"""What to bring up: a spec, and what it needs of the toolchain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass

from pytest_k3s_sandbox.cluster.base import Distribution
from pytest_k3s_sandbox.cluster.embedded import Embedded
from pytest_k3s_sandbox.cluster.k3s import K3s
from pytest_k3s_sandbox.errors import ConfigError
from pytest_k3s_sandbox.sandbox.limits import Wanted
from pytest_k3s_sandbox.toolchain import Toolchain
from pytest_k3s_sandbox.toolchain.pins import minor_of

KINDS = ("gvisor", "host")


DISTRIBUTIONS: dict[str, Callable[[], Distribution]] = {"embedded": Embedded, "k3s": K3s}


@dataclass(frozen=True)
class NodeSpec:
    """What to bring up.

    Attributes:
        sandbox: The sandbox's kind, one of ``KINDS``.
        layers: The layers' names in the order of a stack; None for the kind's own default.
        api_port: The API server's TCP port.
        open_ports: TCP ports of the machine that programs inside may reach.
        node: The node's name.
        distribution: What Kubernetes comes as, one of ``DISTRIBUTIONS``.
        one_root: Whether a gvisor sandbox has a single 9p mount; see
            :class:`~pytest_k3s_sandbox.sandbox.gvisor.GvisorSandbox`.
        supervised: Whether what ends by itself is started again, the kubelet or k3s also during a start; see
            :mod:`~pytest_k3s_sandbox.cluster.supervisor`.
        limits: What it may take of the machine: the fields of a
            :class:`~pytest_k3s_sandbox.sandbox.limits.Wanted`.
    """

    sandbox: str = "gvisor"
    layers: tuple[str, ...] | None = None
    api_port: int = 6443
    node: str = "k3s-sandbox"
    distribution: str = "embedded"
    one_root: bool = False
    supervised: bool = False
    open_ports: tuple[int, ...] = ()
    limits: tuple[str, str, str] = astuple(Wanted())

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: The kind or the distribution is unknown, the port is no TCP port, or a limit says
                nothing.
        """
        Wanted(*self.limits)
        for what, given, known in (
            ("sandbox", self.sandbox, KINDS),
            ("distribution", self.distribution, DISTRIBUTIONS),
        ):
            if given not in known:
                raise ConfigError(f"unknown {what} {given!r}", cause=f"known are {', '.join(known)}")
        for what, number in (
            ("API port", self.api_port),
            *(("opened port", port) for port in self.open_ports),
        ):
            if not 0 < number < 65536:  # noqa: PLR2004 - the range of TCP ports
                raise ConfigError(f"{what} {number}", cause="a TCP port is between 1 and 65535")


def programs_of(distribution: str) -> tuple[str, ...]:
    """Return the programs that a distribution needs, in a sandbox and on the machine."""
    return tuple(dict.fromkeys((*DISTRIBUTIONS[distribution]().programs, "kubectl", "runsc")))


def kubernetes_version(spec: NodeSpec, toolchain: Toolchain) -> str:
    """Return the version of Kubernetes that a node gets, as its program says.

    Raises:
        ConfigError: It is not the version that the toolchain was asked for.
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
