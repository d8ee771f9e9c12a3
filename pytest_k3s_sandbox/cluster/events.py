"""The events of a cluster's objects."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from pytest_k3s_sandbox.cluster.access import short

_TIMES = ("lastTimestamp", "eventTime", "firstTimestamp")

EARLIEST = datetime.min.replace(tzinfo=UTC)
"""Where events stand that have no time."""


@dataclass(frozen=True)
class Event:
    """Something that happened to an object (``v1.Event``); its texts are as the cluster wrote them.

    Attributes:
        time: When it happened last; None if the cluster does not say.
        type: ``Normal`` or ``Warning``.
        reason: One word for it, as ``FailedMount``.
        about: The object, as ``pod/greeter``.
        message: The event in words.
        count: How often.
        namespace: The namespace of the object.
    """

    time: datetime | None
    type: str
    reason: str
    about: str
    message: str
    count: int = 1
    namespace: str = ""

    @classmethod
    def of(cls, raw: dict[str, Any]) -> Self:
        """Return an event from its JSON."""
        about = raw.get("involvedObject") or {}
        series = raw.get("series") or {}
        seen = [series.get("lastObservedTime"), *(raw.get(name) for name in _TIMES)]
        time = next((each for each in seen if each), (raw.get("metadata") or {}).get("creationTimestamp"))
        return cls(
            _time(time),
            str(raw.get("type") or ""),
            str(raw.get("reason") or ""),
            f"{str(about.get('kind') or '').lower()}/{about.get('name') or ''}",
            str(raw.get("message") or "").strip(),
            int(series.get("count") or raw.get("count") or 1),
            str(about.get("namespace") or ""),
        )

    @property
    def warning(self) -> bool:
        """Whether it is a warning."""
        return self.type == "Warning"

    def __str__(self) -> str:
        """Return it in one line that does no harm to a terminal."""
        time = self.time.strftime("%H:%M:%S") if self.time is not None else "--:--:--"
        often = f" ({self.count} times)" if self.count > 1 else ""
        head = f"{time} {short(self.type, 20)} {short(self.reason, 60)} {short(self.about, 120)}"
        return f"{head}: {short(self.message)}{often}"


def _time(text: object) -> datetime | None:
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def events_of(raw: Iterable[dict[str, Any]]) -> list[Event]:
    """Return events from their JSON, the last one last.

    Args:
        raw: The items of an ``EventList``.
    """
    found = [Event.of(each) for each in raw]
    return sorted(found, key=lambda event: event.time or EARLIEST)
