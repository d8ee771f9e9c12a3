"""The cluster's last events, for the report of a failed test."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from pytest_k3s_sandbox.pytestplugin.stash import NAMESPACES

if TYPE_CHECKING:
    from pytest_k3s_sandbox.cluster.cluster import Cluster
    from pytest_k3s_sandbox.cluster.events import Event

TITLE = "k3s-sandbox: the cluster's last events"
ANSWER_SECONDS = 2.0
"""The timeout of each step of the request: an unreachable API server must not hold up the report."""

EVENTS = 500
SHOWN = 15
"""The most events that are shown of a namespace."""

SHOWN_WARNINGS = 10
"""The most warnings that are shown of the rest of the cluster."""


def sections(item: pytest.Item) -> list[tuple[str, str]]:
    """Return the section with the cluster's last events; an empty list for a test without a cluster.

    It raises no exception. It returns an empty list when the cluster has ended.

    Args:
        item: The test that failed.
    """
    try:
        return _sections(item)
    except Exception:  # noqa: BLE001 - the report must show the test's own failure
        return []


def _sections(item: pytest.Item) -> list[tuple[str, str]]:
    chain = item.listchain()
    listed = item.config.stash.get(NAMESPACES, [])
    shared = "k3s_namespaces" in getattr(item, "fixturenames", ())
    own = [made for node, made in listed if (shared if node is None else node in chain)]
    cluster = own[-1].cluster if own else _cluster(getattr(item, "funcargs", {}).values())
    if cluster is None or cluster.lost is not None:
        return []
    from pytest_k3s_sandbox.cluster.events import events_of

    found = events_of((cluster.reader(ANSWER_SECONDS).read(f"/api/v1/events?limit={EVENTS}") or {})["items"])
    text = "\n".join(told(found, [str(name) for name in own]))
    return [(TITLE, text)] if text else []


def _cluster(values: Iterable[Any]) -> Cluster | None:
    """Return the first fixture value that is a cluster, or the cluster of one that has a cluster."""
    from pytest_k3s_sandbox.cluster.cluster import Cluster

    found = [each if isinstance(each, Cluster) else getattr(each, "cluster", None) for each in values]
    return next((each for each in found if isinstance(each, Cluster)), None)


def told(events: Sequence[Event], own: Sequence[str]) -> list[str]:
    """Return the last events of a test's namespaces, and the last warnings outside test namespaces.

    Every line has a bounded length and is escaped.

    Args:
        events: All events, the oldest first.
        own: The test's namespaces.
    """
    lines = []
    for name in own:
        here = [event for event in events if event.namespace == name]
        lines += [f"namespace {name}:", *(f"  {event}" for event in here[-SHOWN:])] if here else []
    rest = [event for event in events if event.warning and not event.namespace.startswith("test-")]
    rest = [event for event in rest if event.namespace not in own]
    lines += ["warnings of the rest of the cluster:"] if rest else []
    return [*lines, *(f"  {event}" for event in rest[-SHOWN_WARNINGS:])]
