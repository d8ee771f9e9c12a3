"""The fixtures that experiments share: a control plane, nodes that are tried on it, and a hold."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_k3s_sandbox.lab.nodes import NodeTrials
from pytest_k3s_sandbox.lab.places import need_9p
from pytest_k3s_sandbox.pytestplugin import experiment_markers
from pytest_k3s_sandbox.pytestplugin.activation import activate
from pytest_k3s_sandbox.pytestplugin.fixtures import spec_of_options
from pytest_k3s_sandbox.pytestplugin.recording import Claim, claims, experiment_of, recorded
from pytest_k3s_sandbox.pytestplugin.stash import RUNNING, SETTINGS, SPEC

if TYPE_CHECKING:
    from pytest_k3s_sandbox.node.session import NodeSession
    from pytest_k3s_sandbox.node.spec import NodeSpec
    from pytest_k3s_sandbox.pytestplugin.openruns import Uses
    from pytest_k3s_sandbox.toolchain import Toolchain

SHARED: pytest.StashKey[NodeTrials] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    """Register the experiments' markers."""
    experiment_markers.register(config)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give experiments their names, and leave nightly tests to the night."""
    activate(config)
    experiment_markers.apply(config, items, Path(__file__).parent)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Give a run of experiments alone the OCI runtime of the research.

    In a run that has other tests as well, all share one cluster, and its records name its runtime.
    """
    folder = Path(__file__).parent
    users = [item for item in session.items if "k3s_toolchain" in getattr(item, "fixturenames", ())]
    if users and all(folder in item.path.parents for item in users):
        session.config.stash[SPEC] = spec_of_options(session.config).of_experiment


@pytest.fixture(scope="session")
def trials_with(request: pytest.FixtureRequest, k3s_spec: NodeSpec) -> Callable[..., NodeTrials]:
    """Make trials of a toolchain's Kubernetes, in a sandbox whose root is a single 9p mount or not.

    Those that use the trials' run are told by a function; by default that is the running test alone.
    """
    if k3s_spec.distribution != "embedded":
        pytest.skip("not applicable: k3s' server and its node are one process, of which no part can be tried")

    def make(toolchain: Toolchain, one_root: bool, uses: Uses | None = None) -> NodeTrials:
        first = request.config.stash[RUNNING]
        spec = replace(k3s_spec.of_experiment, one_root=one_root)
        return NodeTrials(
            spec,
            toolchain,
            functools.partial(recorded, request, spec, uses=uses or (lambda item: item is first)),
            functools.partial(experiment_of, request),
            request.config.stash[SETTINGS].timeout_scale,
            need_9p,
        )

    return make


@pytest.fixture(scope="session")
def _shared(
    request: pytest.FixtureRequest, trials_with: Callable[..., NodeTrials], k3s_toolchain: Toolchain
) -> Iterator[NodeTrials]:
    shared = request.config.stash[SHARED] = trials_with(
        k3s_toolchain, True, lambda item: "_shared" in getattr(item, "fixturenames", ())
    )
    try:
        yield shared
    finally:
        shared.close()


@pytest.fixture
def trials(_shared: NodeTrials) -> NodeTrials:
    """Trials in a sandbox whose root is a single 9p mount, as the research's was, up and shared."""
    _shared.start()
    return _shared


@pytest.fixture
def claim(trials: NodeTrials) -> Claim:
    """Record whether a claim held, then assert it."""
    return claims(trials.writer)


@pytest.fixture(scope="session")
def one_root_spec(request: pytest.FixtureRequest) -> NodeSpec:
    """The node that the options ask for, in a sandbox whose root is a single 9p mount."""
    from pytest_k3s_sandbox.node.spec import NodeSpec

    spec = NodeSpec.of(request.config.stash[SETTINGS]).of_experiment
    return replace(spec, layers=None, distribution="embedded", one_root=spec.sandbox == "gvisor")


@pytest.fixture
def hold(request: pytest.FixtureRequest, k3s_session: NodeSession, k3s_claim: Claim) -> Callable[[], None]:
    """Claim that the node is Ready in every sample for as long as ``--k3s-duration`` says."""
    from pytest_k3s_sandbox.lab.survival import follow

    def judge() -> None:
        need_9p(k3s_session.stack.sandbox)  # on plain Linux the kubelet would set the machine's own tunables
        settings = request.config.stash[SETTINGS]
        text = f"The node is Ready in every sample of a hold of {settings.duration:g} s"
        with k3s_claim.of("stays-ready", text, limit=f"{settings.duration:g} s") as claim:
            fate = follow(k3s_session, settings.duration, settings.timeout_scale)
            claim.judge(fate.ready_seconds >= settings.duration and fate.losses == 0, fate.sentence())

    return judge


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End the shared control plane before a test that has no use for it, which may measure time."""
    shared = item.config.stash.get(SHARED, None)
    if shared is not None and "trials" not in getattr(nextitem, "fixturenames", ()):
        shared.close()
