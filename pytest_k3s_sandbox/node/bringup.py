"""From a spec to a running node: what the fixtures and the command line both do."""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_k3s_sandbox import __version__
from pytest_k3s_sandbox.cluster.cluster import Cluster
from pytest_k3s_sandbox.cluster.components import Settings
from pytest_k3s_sandbox.cluster.embedded import Embedded
from pytest_k3s_sandbox.cluster.sampler import Sampler
from pytest_k3s_sandbox.cluster.supervisor import Supervisor
from pytest_k3s_sandbox.cluster.wait import ended_at_start, lost_by
from pytest_k3s_sandbox.errors import SandboxError
from pytest_k3s_sandbox.layers.base import Health
from pytest_k3s_sandbox.layers.stack import FULL, NATIVE, LayerStack, bring_up
from pytest_k3s_sandbox.node.diagnostics import diagnose, explained
from pytest_k3s_sandbox.node.seed import seed
from pytest_k3s_sandbox.node.spec import FORMS, NodeSpec, kubernetes_version, programs_of
from pytest_k3s_sandbox.report.records import (
    Environment,
    Event,
    EventKind,
    LayerState,
    Machine,
    ProgramRecord,
    RunWriter,
)
from pytest_k3s_sandbox.sandbox import gateway
from pytest_k3s_sandbox.sandbox.base import V9FS_MAGIC, Sandbox, described
from pytest_k3s_sandbox.sandbox.groups import NAMES
from pytest_k3s_sandbox.sandbox.limits import Limits
from pytest_k3s_sandbox.sandbox.started import StartedSandbox
from pytest_k3s_sandbox.settings import variables
from pytest_k3s_sandbox.support import clock, forks
from pytest_k3s_sandbox.toolchain import Toolchain


def start_sandbox(spec: NodeSpec, toolchain: Toolchain) -> StartedSandbox:
    """Start the sandbox of a spec, with the programs of a node in it.

    Raises:
        SandboxError: A program cannot be had, or the sandbox does not start; nothing is left.
    """
    found = {name: toolchain.get(name).path for name in FORMS[spec.distribution]().programs}
    wanted = spec.limits
    with tempfile.TemporaryDirectory() as folder:
        # Inside, a program has the name that it is called by, whatever the user's own file is called.
        programs = [Path(folder, name) for name in found]
        for program, path in zip(programs, found.values(), strict=True):
            program.symlink_to(path.resolve())
        if spec.sandbox == "host":
            from pytest_k3s_sandbox.sandbox.host import HostSandbox

            return HostSandbox(programs=programs, opened=spec.open_ports, limits=wanted)
        from pytest_k3s_sandbox.sandbox.gvisor import GvisorSandbox

        runsc = toolchain.get("runsc").path
        return GvisorSandbox(
            runsc, programs=programs, one_root=spec.one_root, opened=spec.open_ports, limits=wanted
        )


def default_layers(sandbox: StartedSandbox) -> tuple[str, ...]:
    """Return the layers that a node needs there: all on a 9p root, few on plain Linux."""
    return FULL if sandbox.root_magic() == V9FS_MAGIC else NATIVE


@dataclass(frozen=True)
class RecordedStack(LayerStack):
    """A stack of layers whose coming up was recorded.

    Attributes:
        run: The records.
        cluster: The cluster whose control plane was started with the layers; None if there is none.
    """

    run: RunWriter
    cluster: Cluster | None = None

    def check(self) -> dict[str, Health]:
        """Probe every layer now, and record what was found."""
        found = super().check()
        for name, health in found.items():
            state = LayerState(t=self.run.now(), name=name, ok=health.ok, details=dict(health.details))
            self.run.append(state)
        return found


@dataclass
class NodeSession:
    """A node and everything around it.

    Attributes:
        stack: The sandbox and its layers.
        cluster: Kubernetes in it.
        writer: The run's records.
        readiness: The sampler.
        folder: The run's folder.
    """

    stack: LayerStack
    cluster: Cluster
    writer: RunWriter
    readiness: Sampler
    folder: Path


def control_plane(sandbox: Sandbox, spec: NodeSpec, toolchain: Toolchain, writer: RunWriter) -> Cluster:
    """Return a cluster whose control plane starts on entering, without waiting for the layers.

    Args:
        sandbox: Where.
        spec: What was asked for.
        toolchain: Where the programs come from.
        writer: The run's records.
    """
    embedded = spec.distribution == "embedded"
    return Cluster(
        sandbox,
        Embedded(seed(toolchain)) if embedded else FORMS[spec.distribution](),
        Settings(
            node=spec.node,
            address=sandbox.address,
            api_port=spec.api_port,
            kubernetes=kubernetes_version(spec, toolchain),
        ),
        kubectl=toolchain.get("kubectl").path,
        phase=writer.phase,
        records=writer.path.parent,
    )


@contextlib.contextmanager
def cluster_up(
    stack: LayerStack,
    spec: NodeSpec,
    toolchain: Toolchain,
    writer: RunWriter,
    *,
    experiment: str,
    cluster: Cluster | None = None,
    interval: float = 1.0,
) -> Iterator[NodeSession]:
    """Bring a node up on a stack, sampled from the start; copies the logs at the end.

    Args:
        stack: The sandbox and the layers, which are up.
        spec: What was asked for.
        toolchain: Where the programs come from.
        writer: The run's records.
        experiment: The experiment's name, for the records.
        cluster: The cluster whose control plane was started before; None to start one here.
        interval: Seconds between two samples.

    Raises:
        ClusterError: It did not come up; its message names the folder with the diagnostics.
    """
    owner = forks.Owner()
    folder = writer.path.parent
    writer.append(fingerprint(stack, spec, toolchain, experiment))
    with contextlib.ExitStack() as ending, explained(stack.sandbox, folder):
        if cluster is None:
            cluster = ending.enter_context(control_plane(stack.sandbox, spec, toolchain, writer))
        sampler = ending.enter_context(Sampler(cluster, writer, interval=interval))
        try:
            with contextlib.ExitStack() as supervised:
                if spec.supervised:
                    cluster.supervisor = supervised.enter_context(
                        Supervisor(cluster, writer, lambda: sampler.seen_ready)
                    )
                try:
                    cluster.start_node(stack.layers)
                except SandboxError:
                    if not spec.supervised:
                        note_ends(cluster, writer)
                    raise
                yield NodeSession(stack, cluster, writer, sampler, folder)
        finally:
            if owner.mine:
                sampler.stop()
                diagnose(cluster, folder)
                cluster.stop_node()


def note_ends(cluster: Cluster, writer: RunWriter) -> bool:
    """Record which programs of a cluster have ended by themselves, and return whether one has.

    For a cluster without a supervisor, which would record it.

    Args:
        cluster: The cluster.
        writer: The run's records.
    """
    dead = {
        name: code
        for name, process in cluster.processes.items()
        if lost_by(process) is None and (code := process.poll()) is not None
    }
    for name, code in dead.items():
        what = ended_at_start(cluster.processes[name], described(code))
        writer.append(Event(t=writer.now(), kind=EventKind.FAULT, what=what, component=name))
    return bool(dead)


def fingerprint(stack: LayerStack, spec: NodeSpec, toolchain: Toolchain, experiment: str) -> Environment:
    """Return the record that says where a run takes place."""
    found = {name: toolchain.get(name) for name in programs_of(spec.distribution)}
    sandbox = stack.sandbox
    magic = sandbox.root_magic() if isinstance(sandbox, StartedSandbox) else None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Environment(
        experiment=experiment,
        sandbox=sandbox.kind,
        root_magic=magic,
        kernel=sandbox.run(["uname", "-r"]).stdout.strip(),
        programs={name: ProgramRecord(version=p.version, origin=p.origin) for name, p in found.items()},
        pins={pin.group: pin.version for pin in toolchain.pins.programs.values()},
        layers=stack.names,
        python=platform.python_version(),
        project_version=__version__,
        started=clock.now().isoformat(timespec="seconds"),
        argv=tuple(sys.argv),
        machine=Machine(cores=len(os.sched_getaffinity(0)), memory_bytes=memory),
        distribution=spec.distribution,
        kubernetes=kubernetes_version(spec, toolchain),
        variables=variables(os.environ),
        network=described_network(stack.sandbox, spec),
        limits=described_limits(stack.sandbox),
    )


def described_network(sandbox: Sandbox, spec: NodeSpec) -> str | None:
    """Return what programs inside can reach, in words; None where that is not known."""
    found = getattr(sandbox, "network", None)
    if found is None:
        return None
    opened = f"; opened: {', '.join(map(str, spec.open_ports))}" if spec.open_ports else ""
    return f"{found.isolation}: {gateway.MEANING[found.isolation]}{opened}"


def described_limits(sandbox: Sandbox) -> str | None:
    """Return what a sandbox may take of the machine, in words; None where that is not known."""
    limits: Limits | None = getattr(sandbox, "limits", None)
    if limits is None:
        return None
    lacking: dict[str, str] = getattr(sandbox, "unlimited", {})
    return "; ".join((str(limits), *(f"not limited: {NAMES[name]} ({why})" for name, why in lacking.items())))


def run_folder(base: Path, *words: str) -> Path:
    """Return a new, empty folder for a run below ``base``: the time in UTC and the words.

    Making it takes its name: of runs that begin in the same second, the later ones get a number.
    Where it cannot be made, the name is returned all the same; who records there says why.
    """
    stamp = clock.now().strftime("%Y%m%dT%H%M%S")
    name = "-".join((stamp, *words))
    folder = base / name
    for number in itertools.count(2):
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            folder = base / f"{name}-{number}"
        except OSError:
            break
        else:
            break
    return folder


@contextlib.contextmanager
def everything(
    spec: NodeSpec, toolchain: Toolchain, folder: Path, *, experiment: str
) -> Iterator[NodeSession]:
    """Start a sandbox, its layers and a cluster, and end them all: the whole for the command line."""
    if spec.distribution == "embedded":
        seed(toolchain)  # now, because a run's time begins with its records
    with contextlib.ExitStack() as stack:
        names: Sequence[str]
        writer = stack.enter_context(RunWriter(folder))
        with writer.phase("sandbox"):
            sandbox = stack.enter_context(start_sandbox(spec, toolchain))
        names = spec.layers if spec.layers is not None else default_layers(sandbox)
        with explained(sandbox, folder):
            cluster = stack.enter_context(control_plane(sandbox, spec, toolchain, writer))
            layers = stack.enter_context(bring_up(sandbox, names, writer.phase))
        yield stack.enter_context(
            cluster_up(layers, spec, toolchain, writer, experiment=experiment, cluster=cluster)
        )
