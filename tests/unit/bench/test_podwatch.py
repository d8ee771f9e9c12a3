"""What a watch of pods makes of the API server's answers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from urllib3.exceptions import ProtocolError

from pytest_k3s_sandbox.bench.podwatch import OutdatedError, PodWatch, Sightings, events


def pod(name: str, phase: str = "Pending", *, ready: bool = False, version: str = "1") -> dict[str, Any]:
    status: dict[str, Any] = {"phase": phase}
    if phase != "Pending":
        status["conditions"] = [
            {"type": "Initialized", "status": "True"},
            {"type": "Ready", "status": str(ready)},
        ]
    return {"metadata": {"name": name, "resourceVersion": version}, "status": status}


def event(kind: str, what: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "object": what}


def test_the_first_sighting_counts() -> None:
    seen = Sightings()
    for now, kind, what in (
        (1.0, "ADDED", pod("a")),
        (2.0, "MODIFIED", pod("a", "Running")),
        (3.0, "MODIFIED", pod("a", "Running", ready=True)),
        (4.0, "MODIFIED", pod("a", "Running", ready=True)),
        (5.0, "BOOKMARK", {"metadata": {"resourceVersion": "8"}}),
        (6.0, "DELETED", pod("a", "Running", version="9")),
    ):
        seen.told(event(kind, what), now)
    assert (seen.running, seen.ready, seen.gone, seen.version) == ({"a": 2.0}, {"a": 3.0}, {"a": 6.0}, "9")


def test_what_is_missing_in_a_list_is_gone() -> None:
    seen = Sightings()
    seen.listed({"metadata": {"resourceVersion": "5"}, "items": [pod("a"), pod("b", "Running")]}, 1.0)
    seen.listed({"metadata": {"resourceVersion": "7"}, "items": [pod("b", "Running", ready=True)]}, 2.0)
    assert (seen.running, seen.ready, seen.gone, seen.version) == ({"b": 1.0}, {"b": 2.0}, {"a": 2.0}, "7")
    seen.listed({"metadata": {"resourceVersion": "8"}, "items": None}, 3.0)
    assert seen.gone == {"a": 2.0, "b": 3.0}


def test_an_error_in_a_watch_asks_for_a_list() -> None:
    with pytest.raises(OutdatedError, match="too old"):
        Sightings().told(event("ERROR", {"code": 410, "message": "too old resource version"}), 1.0)


@given(st.lists(st.dictionaries(st.text(), st.integers() | st.text())), st.integers(1, 9))
def test_events_are_put_together_from_any_pieces(objects: list[dict[str, Any]], size: int) -> None:
    stream = b"".join(json.dumps(each).encode() + b"\n" for each in objects)
    assert list(events(stream[at : at + size] for at in range(0, len(stream), size))) == objects


def test_a_stream_that_ends_within_an_event_is_an_error() -> None:
    found = events([b'{"a": 1}\n', b'{"b"'])
    assert next(found) == {"a": 1}
    with pytest.raises(ValueError, match="Expecting"):
        next(found)


class Api:
    """An API server with a list and, for each watch, the pieces that it sends before it ends."""

    def __init__(self, *watches: list[dict[str, Any]] | Exception) -> None:
        """Keep what is sent."""
        self.watches = iter(watches)
        self.items = [pod("a")]
        self.versions: list[str] = []

    def list_namespaced_pod(
        self, _namespace: str, *, watch: bool = False, resource_version: str = "", **_: object
    ) -> SimpleNamespace:
        """Answer a list, or a watch."""
        if not watch:
            answer = {"metadata": {"resourceVersion": "1"}, "items": self.items}
            return SimpleNamespace(data=json.dumps(answer).encode())
        self.versions.append(resource_version)
        told = next(self.watches, [])
        if isinstance(told, Exception):
            raise told
        return SimpleNamespace(stream=lambda **_: self.pieces(told), release_conn=lambda: None)

    def pieces(self, told: list[dict[str, Any]]) -> Iterator[bytes]:
        """Send events."""
        for each in told:
            yield json.dumps(each).encode() + b"\n"
        if not told:
            time.sleep(0.01)


def test_a_watch_goes_on_where_the_one_before_ended_and_lists_after_an_error() -> None:
    api = Api(
        [event("MODIFIED", pod("a", "Running", version="3"))],
        [event("MODIFIED", pod("a", "Running", ready=True, version="4"))],
        ProtocolError("reset"),
        [event("ERROR", {"code": 410})],
    )
    with PodWatch(api, "default") as watch:
        until = time.monotonic() + 10
        while "a" not in watch.seen.ready:
            assert time.monotonic() < until
            time.sleep(0.01)
        api.items = []
        while "a" not in watch.seen.gone:
            assert time.monotonic() < until
            time.sleep(0.01)
    assert api.versions[:3] == ["1", "3", "4"]
