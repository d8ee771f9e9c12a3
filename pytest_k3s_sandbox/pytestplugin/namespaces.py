"""The namespaces of the fixtures ``k3s_namespace`` and ``k3s_namespaces``."""

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
"""The part of the collection that ends a namespace, for each scope."""


@contextlib.contextmanager
def own(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Namespace]:
    """Create a namespace for one test, and delete it at the end.

    Args:
        request: The request of a function-scoped fixture.
        cluster: The cluster.
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
    """List a namespace in the stash while it exists, for the reports of failed tests."""
    listed = config.stash.setdefault(NAMESPACES, [])
    listed.append((node, made))
    try:
        yield
    finally:
        listed.remove((node, made))


class Namespaces:
    """Makes namespaces for several tests: the value of the fixture ``k3s_namespaces``.

    Args:
        request: The request of the fixture.
        cluster: The cluster.
    """

    def __init__(self, request: pytest.FixtureRequest, cluster: Cluster) -> None:
        """Start without a namespace."""
        self._config = request.config
        self._session = request.session
        self._cluster = cluster
        self._last = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Return the object itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Delete the remaining namespaces, the newest first."""
        self._last.__exit__(kind, error, trace)

    def __call__(self, name: str | None = None, *, scope: str | None = None) -> Namespace:
        """Return a new namespace.

        Args:
            name: The name, which must be free; None for a new name.
            scope: The scope of the running test whose end deletes the namespace: ``session``, ``package``,
                ``module``, ``class`` or ``function``. None for the end of the cluster, which is also the
                latest time.

        Raises:
            ConfigError: The scope is unknown, or the running test is not in such a scope.
            ClusterError: The namespace did not become usable.
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
            node.addfinalizer(stack.close)  # the second close has no effect
        return made

    def _node(self, scope: str, running: pytest.Item | None) -> pytest.Item | pytest.Collector:
        """Return the part of the collection whose end deletes a namespace."""
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
                cause="no running test is in such a scope",
                remedy="leave the scope out: the namespace ends with the cluster",
            )
        return found
