"""The session of a node, without a node."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pytest_k3s_sandbox.cluster.namespace import Namespace
from pytest_k3s_sandbox.node.session import NodeSession


class Cluster:
    """A cluster that notes what it is asked for."""

    def __init__(self) -> None:
        """Have a node."""
        self.asked: list[str] = []
        self.node = SimpleNamespace(wait_ready=lambda _seconds: self.asked.append("ready"))

    @contextlib.contextmanager
    def namespace(self, name: str | None) -> Iterator[Namespace]:
        """Give a namespace."""
        cluster: Any = self
        self.asked.append(f"create {name}")
        yield Namespace("made" if name is None else name, cluster)
        self.asked.append("delete")


def test_a_sessions_namespace_is_made_on_a_ready_node_and_deleted_at_the_end() -> None:
    cluster: Any = Cluster()
    nothing: Any = None
    session = NodeSession(nothing, cluster, nothing, nothing, Path("/none"))
    with session.namespace() as made:
        assert isinstance(made, Namespace)
        assert (made, made.cluster) == ("made", cluster)
        assert cluster.asked == ["ready", "create None"]
    assert cluster.asked.pop() == "delete"
    with session.namespace("mine") as made:
        assert made == "mine"
