"""Bring up a node from a specification, for fixtures, commands and experiments.

:func:`open_session` does all steps. Fixtures and commands also call the steps one by one:
:func:`open_sandbox`, :func:`open_control_plane`, :func:`open_stack`, :func:`open_node`.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from pytest_k3s_sandbox.cluster.cluster import Cluster
from pytest_k3s_sandbox.cluster.components import ClusterSettings
from pytest_k3s_sandbox.cluster.embedded import Embedded
from pytest_k3s_sandbox.cluster.namespace import Namespace
from pytest_k3s_sandbox.cluster.process_wait import ended_at_start, lost_by
from pytest_k3s_sandbox.cluster.runner import ClusterRunner
from pytest_k3s_sandbox.cluster.sampler import Sampler
from pytest_k3s_sandbox.cluster.supervisor import Supervisor
from pytest_k3s_sandbox.errors import SandboxError, owners_only
from pytest_k3s_sandbox.layers.base import Health, Layer
from pytest_k3s_sandbox.layers.stack import LayerStack, bring_up
from pytest_k3s_sandbox.node.diagnostics import diagnose, explained
from pytest_k3s_sandbox.node.fingerprint import fingerprint
from pytest_k3s_sandbox.node.runtime import has_dns, provision, runtime_of
from pytest_k3s_sandbox.node.seed import seed
from pytest_k3s_sandbox.node.spec import FORMS, NodeSpec, kubernetes_version
from pytest_k3s_sandbox.node.start import default_layers, start_sandbox
from pytest_k3s_sandbox.report.records import Event, EventKind, LayerState, RunWriter
from pytest_k3s_sandbox.sandbox.base import Sandbox, described
from pytest_k3s_sandbox.sandbox.started import StartedSandbox
from pytest_k3s_sandbox.support import clock, forks
from pytest_k3s_sandbox.toolchain import Toolchain

READY_SECONDS = 90.0
"""The time limit for a new node to be Ready."""


@dataclass(frozen=True)
class RecordedStack(LayerStack):
    """A stack of layers with the records of its bring-up.

    Attributes:
        run: The records.
        runner: The runner whose control plane started in parallel to the layers; None without one.
    """

    run: RunWriter
    runner: ClusterRunner | None = None

    def check(self) -> dict[str, Health]:
        """Probe every layer, and record the results."""
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
        cluster: The Kubernetes cluster in the sandbox.
        writer: The run's records.
        readiness: The sampler.
        folder: The run's folder.
        own: Starts and ends the cluster's programs; None if another process owns them.
    """

    stack: LayerStack
    cluster: Cluster
    writer: RunWriter
    readiness: Sampler
    folder: Path
    own: ClusterRunner | None = None

    @property
    def runner(self) -> ClusterRunner:
        """The object that starts and ends the cluster's programs.

        Raises:
            ConfigError: Another process owns them.
        """
        if self.own is None:
            raise owners_only("starting and ending programs of a shared cluster")
        return self.own

    @contextlib.contextmanager
    def namespace(self, name: str | None = None) -> Iterator[Namespace]:
        """Wait until the node is Ready, create a namespace, and delete it at the end.

        See :meth:`.Cluster.namespace`, which does not wait for the node.

        Args:
            name: The namespace's name, which must be free; None for a new name.

        Raises:
            ClusterError: The node did not become Ready in time, the namespace did not become usable, or its
                pods did not end.
        """
        self.cluster.node.wait_ready(READY_SECONDS)
        with self.cluster.namespace(name) as made:
            yield made


@contextlib.contextmanager
def open_sandbox(
    spec: NodeSpec, toolchain: Toolchain, writer: RunWriter, layers: Sequence[str] | None = None
) -> Iterator[StartedSandbox]:
    """Start the sandbox of a specification; at the end, stop it and its processes.

    Args:
        spec: The specification.
        toolchain: The source of the programs.
        writer: The run's records.
        layers: The words of the layers that the sandbox gets; None for the specification's.

    Raises:
        SandboxError: A program is not available, or the sandbox does not start; nothing is left.
    """
    with writer.phase("sandbox"):
        sandbox = start_sandbox(spec, toolchain, layers)
    with sandbox:
        yield sandbox


def open_control_plane(
    sandbox: Sandbox, spec: NodeSpec, toolchain: Toolchain, writer: RunWriter
) -> ClusterRunner:
    """Return a runner; entering it starts the control plane and does not wait for the layers.

    Args:
        sandbox: The sandbox.
        spec: The specification.
        toolchain: The source of the programs.
        writer: The run's records.
    """
    embedded, runtime = spec.distribution == "embedded", runtime_of(spec, toolchain)
    return ClusterRunner(
        sandbox,
        Embedded(seed(toolchain)) if embedded else FORMS[spec.distribution](),
        ClusterSettings(
            node=spec.node,
            address=sandbox.address,
            api_port=spec.api_port,
            kubernetes=kubernetes_version(spec, toolchain),
            runtime=runtime.name,
            runtimes=runtime.paths,
            sandboxer=runtime.sandboxer,
            dns=has_dns(spec, toolchain),
            pod_groups=spec.makes_pod_groups,
        ),
        kubectl=toolchain.get("kubectl").path,
        phase=writer.phase,
        records=writer.path.parent,
    )


@contextlib.contextmanager
def open_stack(
    sandbox: Sandbox,
    layers: Sequence[str] | Callable[[], Sequence[Layer]],
    writer: RunWriter,
    runner: AbstractContextManager[ClusterRunner] | None = None,
) -> Iterator[RecordedStack]:
    """Bring up layers, and in parallel the control plane, which needs no layers.

    Args:
        sandbox: The sandbox.
        layers: The layers' words in the order of a stack, or a function that brings them up.
        writer: The run's records.
        runner: The runner of the control plane, entered first; None for layers alone.

    Raises:
        SandboxError: A layer or the control plane did not come up; the message names the folder with the
            diagnostics.
    """
    with contextlib.ExitStack() as stack:
        with explained(sandbox, writer.path.parent):
            own = None if runner is None else stack.enter_context(runner)
            if callable(layers):
                up = tuple(layers())
            else:
                up = stack.enter_context(bring_up(sandbox, layers, writer.phase)).layers
        yield RecordedStack(sandbox, up, writer, own)


@contextlib.contextmanager
def open_node(
    stack: LayerStack,
    spec: NodeSpec,
    toolchain: Toolchain,
    writer: RunWriter,
    *,
    experiment: str,
    runner: ClusterRunner | None = None,
    interval: float = 1.0,
) -> Iterator[NodeSession]:
    """Bring up a node on a stack, and sample it from the start; copy the logs at the end.

    Args:
        stack: The sandbox with its layers, already up.
        spec: The specification.
        toolchain: The source of the programs.
        writer: The run's records.
        experiment: The experiment's name, for the records.
        runner: The runner of a started control plane; None to start one now.
        interval: Seconds between two samples.

    Raises:
        ClusterError: The node did not come up; the message names the folder with the diagnostics.
    """
    owner = forks.Owner()
    folder = writer.path.parent
    writer.append(fingerprint(stack, spec, toolchain, experiment))
    with contextlib.ExitStack() as ending, explained(stack.sandbox, folder):
        if runner is None:
            runner = ending.enter_context(open_control_plane(stack.sandbox, spec, toolchain, writer))
        sampler = ending.enter_context(Sampler(runner, writer, interval=interval))
        try:
            with contextlib.ExitStack() as supervised:
                if spec.supervised:
                    runner.supervisor = supervised.enter_context(
                        Supervisor(runner, writer, lambda: sampler.seen_ready)
                    )
                try:
                    runner.start_node(stack.layers)
                except SandboxError:
                    if not spec.supervised:
                        note_ends(runner.cluster, writer)
                    raise
                yield NodeSession(stack, runner.cluster, writer, sampler, folder, runner)
        finally:
            if owner.mine:
                sampler.stop()
                diagnose(runner.cluster, folder)
                runner.stop_node()


@contextlib.contextmanager
def open_session(
    spec: NodeSpec | None = None,
    *,
    toolchain: Toolchain | None = None,
    folder: Path | None = None,
    experiment: str = "session",
) -> Iterator[NodeSession]:
    """Start a sandbox, its layers and a cluster; stop all of them at the end.

    Args:
        spec: The specification; None for the defaults.
        toolchain: The source of the programs; None for the machine's cache, where missing programs are
            provisioned first.
        folder: The run's folder, which must not contain a run; None for a new folder below ``reports``.
        experiment: The experiment's name, for the records.

    Raises:
        SandboxError: A part did not come up. The message has the cause and the folder with the diagnostics.
            Nothing else is left.
    """
    spec = NodeSpec() if spec is None else spec
    if toolchain is None:
        toolchain = Toolchain(kubernetes=spec.version)
        provision(spec, toolchain)
    if spec.distribution == "embedded":
        seed(toolchain)  # before the records, with which a run's time begins
    if folder is None:
        folder = run_folder(Path("reports").absolute(), experiment, spec.sandbox)
    with (
        RunWriter(folder) as writer,
        open_sandbox(spec, toolchain, writer) as sandbox,
        open_stack(
            sandbox,
            default_layers(sandbox) if spec.layers is None else spec.layers,
            writer,
            open_control_plane(sandbox, spec, toolchain, writer),
        ) as stack,
        open_node(stack, spec, toolchain, writer, experiment=experiment, runner=stack.runner) as session,
    ):
        yield session


def note_ends(cluster: Cluster, writer: RunWriter) -> bool:
    """Record the programs of a cluster that ended by themselves, and return whether there is one.

    Use it without a supervisor; a supervisor records such ends itself.

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


def run_folder(base: Path, *words: str) -> Path:
    """Create a folder for a run below ``base``, named by the time in UTC and the words.

    If the name exists, the new folder gets a number. If the folder cannot be created, the function still
    returns its path; then writing the first record fails with the cause.
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
