"""The namespaces that fixtures hand out, and when they end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import pytest

from pytest_k3s_sandbox.cluster.namespace import Namespace
from pytest_k3s_sandbox.errors import ConfigError, suggestion
from pytest_k3s_sandbox.pytestplugin.activation import activate
from pytest_k3s_sandbox.pytestplugin.stash import FAILED, NAMESPACES, RUNNING

if TYPE_CHECKING:
    from pytest_k3s_sandbox.cluster.cluster import Cluster

SCOPES: dict[str, type[pytest.Item | pytest.Collector]] = {
    "session": pytest.Session,
    "package": pytest.Package,
    "module": pytest.Module,
    "class": pytest.Class,
    "function": pytest.Item,
}
"""What a namespace can end with, by the name of the scope."""


@contextlib.contextmanager
def own(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Namespace]:
    """Give a test a namespace of its own.

    Args:
        request: The fixture's, whose scope is the test.
        cluster: Where.
    """

    def spare() -> bool:
        return activate(request.config).keep == "running" and FAILED in request.node.stash

    with (
        cluster.namespace(folders=[request.path.parent], spare=spare) as made,
        _listed(request.config, made, request.node),
    ):
        yield made


@contextlib.contextmanager
def _listed(
    config: pytest.Config, made: Namespace, node: pytest.Item | pytest.Collector | None
) -> Iterator[None]:
    """Let a failing test's report find a namespace for as long as it lives."""
    listed = config.stash.setdefault(NAMESPACES, [])
    listed.append((node, made))
    try:
        yield
    finally:
        listed.remove((node, made))


class Namespaces:
    """Makes namespaces that outlive a test; what the fixture ``k3s_namespaces`` gives.

    Args:
        request: The fixture's.
        cluster: Where.
    """

    def __init__(self, request: pytest.FixtureRequest, cluster: Cluster) -> None:
        """Keep the arguments."""
        self._config = request.config
        self._session = request.session
        self._cluster = cluster
        self._last = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Delete the namespaces that are left, the last one first."""
        self._last.__exit__(kind, error, trace)

    def __call__(self, name: str | None = None, *, scope: str | None = None) -> Namespace:
        """Return a new namespace.

        Args:
            name: Its name, which must be free; a new one if None.
            scope: What it ends with: ``session``, ``package``, ``module``, ``class`` or ``function`` of the
                test that runs. It ends with the cluster at the latest, as it does if this is None.

        Raises:
            ConfigError: There is no such scope, or the test is in none.
            ClusterError: It did not become usable.
        """
        running = self._config.stash.get(RUNNING, None)
        node = None if scope is None else self._node(scope, running)
        folder = self._config.rootpath if running is None else Path(running.path).parent
        failed_before = self._session.testsfailed

        def spare() -> bool:
            failed = self._session.testsfailed > failed_before
            return activate(self._config).keep == "running" and failed

        stack = contextlib.ExitStack()
        made = stack.enter_context(self._cluster.namespace(name, folders=[folder], spare=spare))
        stack.enter_context(_listed(self._config, made, node))
        self._last.push(stack)
        if node is not None:
            node.addfinalizer(stack.close)  # what is closed already is left alone by the other stack
        return made

    def _node(self, scope: str, running: pytest.Item | None) -> pytest.Item | pytest.Collector:
        """Return the part of the collection whose end is a namespace's."""
        if scope not in SCOPES:
            raise ConfigError(
                f"the scope {scope!r} of a namespace",
                cause=f"the scopes are {', '.join(SCOPES)}",
                remedy=suggestion(scope, SCOPES),
            )
        chain = [] if running is None else reversed(running.listchain())
        found = next((each for each in chain if isinstance(each, SCOPES[scope])), None)
        if not isinstance(found, (pytest.Item, pytest.Collector)):
            raise ConfigError(
                f"the scope {scope!r} of a namespace",
                cause="no test runs that is in one",
                remedy="leave the scope out: the namespace ends with the cluster",
            )
        return found
