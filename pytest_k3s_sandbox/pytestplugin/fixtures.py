"""The public fixtures, each a few lines around a context manager.

A project can override each of them by a fixture of the same name. ``--k3s-scope`` sets their scope, except
for ``k3s_toolchain`` (session) and ``k3s_namespace`` (function).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import pytest

from pytest_k3s_sandbox.layers.folders import FOLDERS, Fixture
from pytest_k3s_sandbox.pytestplugin import options
from pytest_k3s_sandbox.pytestplugin.activation import activate
from pytest_k3s_sandbox.pytestplugin.stash import LINES, SHARE, SPEC

if TYPE_CHECKING:
    from pytest_k3s_sandbox.cluster.cluster import Cluster, Node
    from pytest_k3s_sandbox.cluster.namespace import Namespace
    from pytest_k3s_sandbox.cluster.sampler import Sampler
    from pytest_k3s_sandbox.layers.base import Layer
    from pytest_k3s_sandbox.layers.stack import LayerStack
    from pytest_k3s_sandbox.node.session import NodeSession
    from pytest_k3s_sandbox.node.spec import NodeSpec
    from pytest_k3s_sandbox.pytestplugin.namespaces import Namespaces
    from pytest_k3s_sandbox.pytestplugin.recording import Claim
    from pytest_k3s_sandbox.report.records import RunWriter
    from pytest_k3s_sandbox.sandbox.started import StartedSandbox
    from pytest_k3s_sandbox.toolchain import Toolchain

__all__ = [
    "k3s",
    "k3s_claim",
    "k3s_layers",
    "k3s_namespace",
    "k3s_namespaces",
    "k3s_node",
    "k3s_readiness",
    "k3s_run",
    "k3s_sandbox",
    "k3s_session",
    "k3s_spec",
    "k3s_toolchain",
    "k3s_up",
    "k3s_wish",
]
__all__ += [fixture.name for fixture in FOLDERS.values()]


def _scope(fixture_name: str, config: pytest.Config) -> Any:  # noqa: ANN401, ARG001 - pytest's signature
    return options.scope(config)


@pytest.fixture(scope="session")
def k3s_toolchain(request: pytest.FixtureRequest) -> Toolchain:
    """The source of the programs under test; the first use provisions missing programs."""
    from pytest_k3s_sandbox.node.runtime import provision
    from pytest_k3s_sandbox.node.seed import seed
    from pytest_k3s_sandbox.toolchain import Toolchain
    from pytest_k3s_sandbox.toolchain.capabilities import missing

    lack = missing("root")
    if lack is not None:
        raise lack  # before the long build of programs that could not start
    settings = activate(request.config)
    toolchain = Toolchain(kubernetes=settings.version)
    spec = spec_of_options(request.config)
    for line in provision(spec, toolchain):
        _note(request.config, f"k3s-sandbox: {line}")
    if settings.distribution == "embedded":
        seed(toolchain)
    return toolchain


def spec_of_options(config: pytest.Config) -> NodeSpec:
    """Return the specification that the options give: the same object for the whole run."""
    from pytest_k3s_sandbox.node.spec import NodeSpec

    settings = activate(config)
    if SPEC not in config.stash:
        config.stash[SPEC] = NodeSpec.of(settings, supervised=True)
    return config.stash[SPEC]


def _note(config: pytest.Config, line: str) -> None:
    """Add a line to pytest's output, once."""
    lines = config.stash[LINES]
    if line not in lines:
        lines.append(line)


@pytest.fixture(scope=_scope)
def k3s_wish(request: pytest.FixtureRequest) -> NodeSpec:
    """The former name of ``k3s_spec``; a project's own ``k3s_wish`` still takes effect."""
    return spec_of_options(request.config)


@pytest.fixture(scope=_scope)
def k3s_spec(request: pytest.FixtureRequest, k3s_wish: NodeSpec) -> NodeSpec:
    """The specification that the options give: kind of sandbox, layers, distribution, API server's port."""
    if k3s_wish is not spec_of_options(request.config):
        _note(request.config, "k3s-sandbox: the fixture k3s_wish is now k3s_spec")
    return k3s_wish


@pytest.fixture(scope=_scope)
def k3s_run(
    request: pytest.FixtureRequest,
    k3s_spec: NodeSpec,
    k3s_toolchain: Toolchain,  # provisioning does not count as time of the run
) -> Iterator[RunWriter]:
    """The records of this run, in a folder of its own; the teardown renders its page."""
    from pytest_k3s_sandbox.pytestplugin.recording import recorded

    activate(request.config)
    if SHARE in request.config.stash:
        yield request.config.stash[SHARE].up(k3s_spec, k3s_toolchain).writer
        return
    with recorded(request, k3s_spec) as writer:
        yield writer


@pytest.fixture(scope=_scope)
def k3s_sandbox(
    request: pytest.FixtureRequest, k3s_spec: NodeSpec, k3s_toolchain: Toolchain, k3s_run: RunWriter
) -> Iterator[StartedSandbox]:
    """A started sandbox of the kind that ``--k3s-sandbox`` names."""
    from pytest_k3s_sandbox.node.session import open_sandbox

    if SHARE in request.config.stash:
        # It has all methods that a test uses, except those for the owner of the sandbox.
        yield cast("StartedSandbox", request.config.stash[SHARE].up(k3s_spec, k3s_toolchain).stack.sandbox)
        return
    with open_sandbox(k3s_spec, k3s_toolchain, k3s_run) as started:
        yield started


def _layer_fixture(folder: str, fixture: Fixture) -> object:
    """Return a fixture that brings up the layer of a folder."""

    def layer(k3s_sandbox: StartedSandbox, k3s_run: RunWriter, k3s_spec: NodeSpec) -> Iterator[Layer]:
        from pytest_k3s_sandbox.daemon.attached import AttachedSandbox, refuse
        from pytest_k3s_sandbox.layers.registry import declared
        from pytest_k3s_sandbox.layers.stack import entered, make, split
        from pytest_k3s_sandbox.node.diagnostics import explained

        if isinstance(k3s_sandbox, AttachedSandbox):
            refuse(f"the fixture {fixture.name}")
        name = declared(folder).name
        word = next(
            (word for word in k3s_spec.layers or () if split(word)[0] == name), name
        )  # with its variant
        with contextlib.ExitStack() as stack:
            with explained(k3s_sandbox, k3s_run.path.parent), k3s_run.phase(f"layer {word}"):
                up = stack.enter_context(entered(make(word, k3s_sandbox), k3s_sandbox))
            yield up

    layer.__doc__ = fixture.text
    return pytest.fixture(scope=_scope, name=fixture.name)(layer)


for _folder, _fixture in FOLDERS.items():
    globals()[_fixture.name] = _layer_fixture(_folder, _fixture)


@pytest.fixture(scope=_scope)
def k3s_layers(request: pytest.FixtureRequest) -> Iterator[LayerStack]:
    """The ordered stack of layers.

    Without a parameter, the layers' own fixtures make the stack. The marker ``k3s_layers`` parametrizes this
    fixture indirectly with names: a comma-separated text or a sequence. Then the stack has a fresh sandbox
    of its own, without leftovers of another stack.
    """
    from pytest_k3s_sandbox.layers.registry import FIXTURES
    from pytest_k3s_sandbox.layers.stack import parse, split
    from pytest_k3s_sandbox.node.session import open_control_plane, open_sandbox, open_stack
    from pytest_k3s_sandbox.node.start import default_layers
    from pytest_k3s_sandbox.pytestplugin.recording import recorded

    activate(request.config)
    spec: NodeSpec = request.getfixturevalue("k3s_spec")
    toolchain: Toolchain = request.getfixturevalue("k3s_toolchain")
    own = hasattr(request, "param")
    if SHARE in request.config.stash and not own:
        yield request.config.stash[SHARE].up(spec, toolchain).stack
        return
    with contextlib.ExitStack() as stack:
        layers: Sequence[str] | Callable[[], Sequence[Layer]]
        if own:
            layers = words = parse(request.param)
            run = stack.enter_context(recorded(request, spec, "+".join(words) or "none"))
            sandbox = stack.enter_context(open_sandbox(spec, toolchain, run, words))
        else:
            run, sandbox = request.getfixturevalue("k3s_run"), request.getfixturevalue("k3s_sandbox")
            words = default_layers(sandbox) if spec.layers is None else spec.layers

            def layers() -> Sequence[Layer]:
                return [request.getfixturevalue(FIXTURES[split(word)[0]]) for word in words]

        # If a test uses a cluster, the control plane starts in parallel to the layers.
        wanted = "k3s_session" in request.fixturenames
        runner = open_control_plane(sandbox, spec, toolchain, run) if wanted else None
        yield stack.enter_context(open_stack(sandbox, layers, run, runner))


@pytest.fixture(scope=_scope)
def k3s_session(
    request: pytest.FixtureRequest, k3s_layers: LayerStack, k3s_spec: NodeSpec, k3s_toolchain: Toolchain
) -> Iterator[NodeSession]:
    """Everything that is up: the stack, the cluster, the records and the sampler."""
    from pytest_k3s_sandbox.node.session import RecordedStack, open_node
    from pytest_k3s_sandbox.pytestplugin import cleanstart
    from pytest_k3s_sandbox.pytestplugin.recording import (
        clean_start,
        experiment_of,
        judge_shared_start,
        keep_running,
    )
    from pytest_k3s_sandbox.report.headline import restarts_text
    from pytest_k3s_sandbox.report.records import read_run

    scale = activate(request.config).timeout_scale
    share = request.config.stash.get(SHARE, None)
    if share is not None and k3s_layers is (up := share.up(k3s_spec, k3s_toolchain)).stack:
        request.config.stash[LINES].append(f"k3s-sandbox: uses the shared cluster {share.name}")
        judge_shared_start(request, up.writer)
        yield up
        return
    # A project's own `k3s_layers` may have no records and no control plane.
    if isinstance(k3s_layers, RecordedStack):
        run, runner = k3s_layers.run, k3s_layers.runner
    else:
        run, runner = request.getfixturevalue("k3s_run"), None
    name, claim = experiment_of(request), clean_start(request, run)
    # An experiment observes the node's own behaviour: without a supervisor.
    spec = k3s_spec if claim is None else dataclasses.replace(k3s_spec, supervised=False)
    with contextlib.ExitStack() as ending:
        bring = open_node(k3s_layers, spec, k3s_toolchain, run, experiment=name, runner=runner)
        if claim is None:
            up = ending.enter_context(bring)
        else:
            with cleanstart.judged(claim, run) as start_is_over:
                up = ending.enter_context(bring)
                start_is_over(up, scale)
        # Earlier tests without a node may have used the sandbox: count from the start of the bring-up.
        seconds = run.now() - read_run(up.folder).metrics.began
        words = f"{k3s_layers.sandbox.kind}, {'+'.join(k3s_layers.names) or 'no layers'}"
        request.config.stash[LINES].append(
            f"k3s-sandbox: a cluster is up after {seconds:.1f} s ({words}); records: {up.folder}"
        )
        failed_before = request.session.testsfailed
        yield up
        supervisor = up.runner.supervisor
        # Records can be long: read them only if the supervisor has restarted the kubelet.
        mended = supervisor is not None and supervisor.restarts(up.runner.distribution.kubelet_process) > 0
        if mended and (restarts := restarts_text(read_run(up.folder))) is not None:
            request.config.stash[LINES].append(f"k3s-sandbox: {restarts}; records: {up.folder}")
        if request.session.testsfailed > failed_before:
            keep_running(request.config, up)


@pytest.fixture(scope=_scope)
def k3s_up(request: pytest.FixtureRequest, k3s_session: NodeSession) -> NodeSession:
    """The former name of ``k3s_session``."""
    _note(request.config, "k3s-sandbox: the fixture k3s_up is now k3s_session")
    return k3s_session


@pytest.fixture(scope=_scope)
def k3s(k3s_session: NodeSession) -> Cluster:
    """A cluster on the test's stack of layers: ``kubeconfig``, ``client``, ``kubectl``, ``logs``."""
    return k3s_session.cluster


@pytest.fixture(scope=_scope)
def k3s_readiness(k3s_session: NodeSession) -> Sampler:
    """The readiness sampler, started with the bring-up: ``samples`` and ``errors(kind)``."""
    return k3s_session.readiness


@pytest.fixture(scope=_scope)
def k3s_node(k3s: Cluster) -> Node:
    """The worker node, Ready."""
    k3s.node.wait_ready()
    return k3s.node


@pytest.fixture(scope=_scope)
def k3s_claim(k3s_session: NodeSession) -> Claim:
    """Record whether a claim holds, then assert it: the report has a line for each claim."""
    from pytest_k3s_sandbox.pytestplugin.recording import claims

    return claims(k3s_session.writer)


@pytest.fixture
def k3s_namespace(
    request: pytest.FixtureRequest,
    k3s: Cluster,
    k3s_node: Node,  # noqa: ARG001 - pods need a Ready node
) -> Iterator[Namespace]:
    """A namespace of the test's own: ``apply``, ``wait``, ``logs``, ``exec``, ``port_forward``, ``events``.

    It is a ``str``: the namespace's name. The teardown deletes the namespace and its objects. With
    ``--k3s-keep=running``, the namespace and the cluster stay after a failure.
    """
    from pytest_k3s_sandbox.pytestplugin.namespaces import own

    with own(request, k3s) as namespace:
        yield namespace


@pytest.fixture(scope=_scope)
def k3s_namespaces(
    request: pytest.FixtureRequest,
    k3s: Cluster,
    k3s_node: Node,  # noqa: ARG001 - as above
) -> Iterator[Namespaces]:
    """A function that makes namespaces for several tests.

    A namespace of ``k3s_namespaces()`` lives as long as the cluster. A namespace of
    ``k3s_namespaces(scope="module")`` is deleted after the last test of the module.
    """
    from pytest_k3s_sandbox.pytestplugin.namespaces import Namespaces

    with Namespaces(request, k3s) as namespaces:
        yield namespaces
