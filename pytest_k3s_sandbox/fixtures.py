"""The public fixtures, each a few lines around a context manager.

Each can be overridden by a fixture of the same name; all but ``k3s_namespace`` live as
long as ``--k3s-scope`` says.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_k3s_sandbox.errors import MissingCapability
from pytest_k3s_sandbox.keys import REPORTS, RUNNING, SETTINGS, WORKER_REPORTS

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_k3s_sandbox.bringup import Up, Wish
    from pytest_k3s_sandbox.cluster.cluster import Cluster, Node
    from pytest_k3s_sandbox.cluster.sampler import Sampler
    from pytest_k3s_sandbox.layers.base import Layer
    from pytest_k3s_sandbox.layers.stack import LayerStack
    from pytest_k3s_sandbox.report.records import RunWriter
    from pytest_k3s_sandbox.sandbox.started import StartedSandbox
    from pytest_k3s_sandbox.toolchain import Toolchain

Claim = Callable[..., None]
Value = float | str | None

__all__ = [
    "fake_cni",
    "fuse_cgroupfs",
    "k3s",
    "k3s_claim",
    "k3s_namespace",
    "k3s_node",
    "k3s_run",
    "k3s_toolchain",
    "k3s_up",
    "k3s_wish",
    "layers",
    "ptrace_interceptor",
    "readiness",
    "sandbox",
    "workarounds",
]


def _scope(fixture_name: str, config: pytest.Config) -> Any:  # noqa: ANN401, ARG001 - pytest's signature for dynamic scopes
    return config.stash[SETTINGS].scope


@pytest.fixture(scope="session")
def k3s_toolchain() -> Toolchain:
    """Where the programs under test come from; what is missing is provisioned on first use."""
    from pytest_k3s_sandbox.capabilities import missing  # noqa: PLC0415 - the plugin imports little
    from pytest_k3s_sandbox.toolchain import Toolchain  # noqa: PLC0415 - likewise

    lack = missing("root")
    if lack is not None:
        raise lack  # now, not after the programs of a node that cannot start were built
    toolchain = Toolchain()
    toolchain.provision()
    return toolchain


@pytest.fixture(scope=_scope)
def k3s_wish(request: pytest.FixtureRequest) -> Wish:
    """What the options ask for: the sandbox's kind, the layers, the API server's port."""
    from pytest_k3s_sandbox.bringup import Wish  # noqa: PLC0415 - the plugin imports little

    settings = request.config.stash[SETTINGS]
    return Wish(settings.sandbox, settings.layers, settings.api_port)


@contextlib.contextmanager
def _recorded(request: pytest.FixtureRequest, wish: Wish, *words: str) -> Iterator[RunWriter]:
    from pytest_k3s_sandbox.bringup import run_folder  # noqa: PLC0415 - the plugin imports little
    from pytest_k3s_sandbox.report.finish import finish  # noqa: PLC0415 - likewise
    from pytest_k3s_sandbox.report.page import render  # noqa: PLC0415 - likewise
    from pytest_k3s_sandbox.report.records import RunWriter  # noqa: PLC0415 - likewise

    config, session = request.config, request.session
    settings = config.stash[SETTINGS]
    worker = getattr(config, "workerinput", {}).get("workerid")
    words = (experiment_of(request), wish.sandbox, *words, *([worker] if worker else ()))
    folder = run_folder(settings.report, *words)
    failed_before = session.testsfailed
    writer = RunWriter(folder)
    why: str | None = None
    try:
        yield writer
    except MissingCapability:
        raise  # nothing was run, nothing is to be kept
    except BaseException as error:
        why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise
    finally:
        why = why or _interruption(session)
        writer.close(why)
        failed = why is not None or session.testsfailed > failed_before
        if failed and settings.keep != "never":
            page: Path | None = render([folder], folder)  # also of a node that never came up
        else:
            page = finish(folder, keep=settings.keep, failed=failed)
        if page is not None:
            config.stash[REPORTS].append(page)
            if worker is not None:
                config.workeroutput.setdefault(WORKER_REPORTS, []).append(str(page))  # type: ignore[attr-defined] # pytest-xdist's


def _interruption(session: pytest.Session) -> str | None:
    """Return why pytest ends before its tests have all been run; None when it does not."""
    stopped = session.shouldfail or session.shouldstop
    if stopped:
        return str(stopped)
    if session.exitstatus in (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR):
        return f"pytest: {pytest.ExitCode(session.exitstatus).name.lower().replace('_', ' ')}"
    return None


@pytest.fixture(scope=_scope)
def k3s_run(
    request: pytest.FixtureRequest,
    k3s_wish: Wish,
    k3s_toolchain: Toolchain,  # noqa: ARG001 - a run's time begins when the programs are there
) -> Iterator[RunWriter]:
    """The records of this run, in a folder of its own; its page is rendered at the end."""
    with _recorded(request, k3s_wish) as writer:
        yield writer


@pytest.fixture(scope=_scope)
def sandbox(k3s_wish: Wish, k3s_toolchain: Toolchain, k3s_run: RunWriter) -> Iterator[StartedSandbox]:
    """A started sandbox of the kind that ``--k3s-sandbox`` names."""
    from pytest_k3s_sandbox.bringup import start_sandbox  # noqa: PLC0415 - the plugin imports little

    with k3s_run.phase("sandbox"):
        started = start_sandbox(k3s_wish, k3s_toolchain)
    with started:
        yield started


def _layer(name: str, sandbox: StartedSandbox, run: RunWriter) -> contextlib.AbstractContextManager[Layer]:
    from pytest_k3s_sandbox.bringup import explained  # noqa: PLC0415 - the plugin imports little
    from pytest_k3s_sandbox.layers.stack import LAYERS  # noqa: PLC0415 - likewise

    @contextlib.contextmanager
    def up() -> Iterator[Layer]:
        with contextlib.ExitStack() as stack:
            with explained(sandbox, run.path.parent), run.phase(f"layer {name}"):
                layer = stack.enter_context(LAYERS[name](sandbox))
            yield layer

    return up()


@pytest.fixture(scope=_scope)
def workarounds(sandbox: StartedSandbox, k3s_run: RunWriter) -> Iterator[Layer]:
    """The layer of the older workarounds, up in the sandbox: kmsg, kernel tunables, OCI spec."""
    with _layer("workarounds", sandbox, k3s_run) as layer:
        yield layer


@pytest.fixture(scope=_scope)
def fuse_cgroupfs(sandbox: StartedSandbox, k3s_run: RunWriter) -> Iterator[Layer]:
    """The layer of the FUSE cgroup v1 filesystem, up in the sandbox."""
    with _layer("fuse_cgroupfs", sandbox, k3s_run) as layer:
        yield layer


@pytest.fixture(scope=_scope)
def ptrace_interceptor(sandbox: StartedSandbox, k3s_run: RunWriter) -> Iterator[Layer]:
    """The layer of the ptrace interceptor, proven in the sandbox."""
    with _layer("ptrace_interceptor", sandbox, k3s_run) as layer:
        yield layer


@pytest.fixture(scope=_scope)
def fake_cni(sandbox: StartedSandbox, k3s_run: RunWriter) -> Iterator[Layer]:
    """The layer of the fake CNI plugin, installed in the sandbox."""
    with _layer("fake_cni", sandbox, k3s_run) as layer:
        yield layer


@pytest.fixture(scope=_scope)
def layers(request: pytest.FixtureRequest) -> Iterator[LayerStack]:
    """The ordered stack of layers.

    Without a parameter it is made of the layers' own fixtures. Parametrized indirectly
    with names (a comma-separated text or a sequence), which is what the marker ``layers``
    does, it is that stack in a fresh sandbox
    of its own, so that nothing of another stack is left in it.
    """
    from pytest_k3s_sandbox.bringup import (  # noqa: PLC0415 - the plugin imports little
        RecordedStack,
        control_plane,
        default_layers,
        explained,
        start_sandbox,
    )
    from pytest_k3s_sandbox.layers.stack import bring_up, parse  # noqa: PLC0415 - likewise

    wish: Wish = request.getfixturevalue("k3s_wish")
    toolchain: Toolchain = request.getfixturevalue("k3s_toolchain")
    with contextlib.ExitStack() as stack:

        def begin(where: StartedSandbox, run: RunWriter) -> Cluster | None:
            """Let the control plane come up beside the layers, if a test wants a cluster."""
            if "k3s_up" not in request.fixturenames:
                return None
            return stack.enter_context(control_plane(where, wish, toolchain, run))

        if not hasattr(request, "param"):
            run: RunWriter = request.getfixturevalue("k3s_run")
            shared: StartedSandbox = request.getfixturevalue("sandbox")
            names = wish.layers if wish.layers is not None else default_layers(shared)
            with explained(shared, run.path.parent):
                cluster = begin(shared, run)
            each = tuple(request.getfixturevalue(name) for name in names)
            yield RecordedStack(shared, each, run, cluster)
            return
        names = parse(request.param)
        run = stack.enter_context(_recorded(request, wish, "+".join(names) or "none"))
        with run.phase("sandbox"):
            own = stack.enter_context(start_sandbox(wish, toolchain))
        with explained(own, run.path.parent):
            cluster = begin(own, run)
            up = stack.enter_context(bring_up(own, names, run.phase))
        yield RecordedStack(own, up.layers, run, cluster)


@pytest.fixture(scope=_scope)
def k3s_up(
    request: pytest.FixtureRequest, layers: LayerStack, k3s_wish: Wish, k3s_toolchain: Toolchain
) -> Iterator[Up]:
    """Everything that is up: the stack, the cluster, the records and the sampler."""
    from pytest_k3s_sandbox.bringup import RecordedStack, cluster_up  # noqa: PLC0415 - the plugin imports little

    # A user's own `layers` need not record, nor start a control plane.
    if isinstance(layers, RecordedStack):
        run, cluster = layers.run, layers.cluster
    else:
        run, cluster = request.getfixturevalue("k3s_run"), None
    name = experiment_of(request)
    with cluster_up(layers, k3s_wish, k3s_toolchain, run, experiment=name, cluster=cluster) as up:
        yield up


@pytest.fixture(scope=_scope)
def k3s(k3s_up: Up) -> Cluster:
    """A cluster on the stack that the test asked for: ``kubeconfig``, ``client``, ``kubectl``, ``logs``."""
    return k3s_up.cluster


@pytest.fixture(scope=_scope)
def readiness(k3s_up: Up) -> Sampler:
    """The sampler that has run since the bring-up began: ``samples`` and ``errors(kind)``."""
    return k3s_up.readiness


@pytest.fixture(scope=_scope)
def k3s_node(k3s: Cluster) -> Node:
    """The worker node, Ready."""
    k3s.node.wait_ready()
    return k3s.node


@pytest.fixture(scope=_scope)
def k3s_claim(k3s_up: Up) -> Claim:
    """Record whether a claim held, then assert it: every assertion becomes a line of the report."""

    def claim(
        name: str, text: str, held: bool, measured: Value = None, limit: Value = None, unit: str = ""
    ) -> None:
        from pytest_k3s_sandbox.report.records import Verdict  # noqa: PLC0415 - the plugin imports little

        k3s_up.writer.append(
            Verdict(name=name, text=text, held=held, measured=measured, limit=limit, unit=unit)
        )
        assert held, f"{text}: measured {measured} {unit}, the limit is {limit} {unit}"  # noqa: S101 - for tests

    return claim


@pytest.fixture
def k3s_namespace(k3s: Cluster, k3s_node: Node) -> Iterator[str]:  # noqa: ARG001 - a namespace is of use on a Ready node
    """A namespace of the test's own, deleted afterwards with all that is in it."""
    with k3s.namespace(f"test-{secrets.token_hex(4)}") as name:
        yield name


def experiment_of(request: pytest.FixtureRequest) -> str:
    """Return the experiment that the test which starts this run belongs to; ``test`` for a user's own."""
    item = request.config.stash.get(RUNNING, None)
    for mark in item.iter_markers() if item is not None else ():
        if mark.name.startswith("exp") and mark.name[3:].isdigit():
            return mark.name
    return "test"
