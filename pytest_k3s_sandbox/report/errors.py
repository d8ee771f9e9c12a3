"""The error lines of a run in groups, with links into the log."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_k3s_sandbox.report.records import ErrorLine

MAX_TEXT = 600
"""The most characters of a line in a table."""

_KLOG_HEADER = re.compile(r"^[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ ")
_KLOG_TIME = re.compile(r"^[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+")
_LOGFMT_TIME = re.compile(r'^time="[^"]+"')
_VARYING = re.compile(r"0x[0-9a-f]+|[0-9a-f]{8}-[0-9a-f-]{27}|\b[0-9a-f]{12,}\b|\d+")


@dataclass(frozen=True)
class ErrorGroup:
    """Error lines that differ in numbers only.

    Attributes:
        component: The log's name.
        kind: See :mod:`~pytest_k3s_sandbox.report.log_classifier`.
        errno: The error's name when the lines have one.
        text: The first of them, without its header.
        count: The number of lines.
        first: The first one's time in seconds since the run's zero.
        last: The last one's.
        members: The lines.
    """

    component: str
    kind: str
    errno: str | None
    text: str
    count: int
    first: float
    last: float
    members: tuple[ErrorLine, ...] = field(repr=False, compare=False)


def alike(line: ErrorLine) -> tuple[str, str, str]:
    """Return a key that is equal for lines that differ in numbers only."""
    return line.component, line.kind, _VARYING.sub("#", _KLOG_HEADER.sub("", line.text.strip()))


def _counted(lines: Sequence[ErrorLine]) -> str:
    """Return a note for the text where some of the lines were counted and not recorded."""
    each = sum(line.count == 1 for line in lines)
    return "" if each == len(lines) else f" [{each} of these lines are recorded, the others were counted]"


def group_errors(lines: Sequence[ErrorLine]) -> tuple[ErrorGroup, ...]:
    """Group error lines, the most frequent first.

    Args:
        lines: The lines by their time.
    """
    groups: dict[tuple[str, str, str], list[ErrorLine]] = {}
    for line in lines:
        groups.setdefault(alike(line), []).append(line)
    found = [
        ErrorGroup(
            component=component,
            kind=kind,
            errno=members[0].errno,
            text=shorten(_KLOG_HEADER.sub("", members[0].text.strip())) + _counted(members),
            count=sum(line.count for line in members),
            first=members[0].t,
            last=members[-1].t,
            members=tuple(members),
        )
        for (component, kind, _), members in groups.items()
    ]
    return tuple(sorted(found, key=lambda group: (-group.count, group.first)))


def shorten(text: str, most: int = MAX_TEXT) -> str:
    """Return a text, cut with an ellipsis after ``most`` characters."""
    return text if len(text) <= most else f"{text[:most]}\u2026"


def fragment(text: str) -> str:
    """Return the part of a link that leads to a line within a log, by the time at its beginning.

    Browsers that support text fragments (wicg.github.io/scroll-to-text-fragment) scroll to it. These need
    ``-`` and ``,`` encoded. Other browsers show the log from its start.
    """
    head = _KLOG_TIME.match(text) or _LOGFMT_TIME.match(text)
    return "" if head is None else "#:~:text=" + quote(head[0], safe="").replace("-", "%2D")
