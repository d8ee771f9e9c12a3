"""The messages of process 1 of a sandbox, which are not trusted.

A program inside with the rights of root can take process 1 over (ptrace(2), pidfd_getfd(2)) and say
what it likes. So every line has a limit, and every message is one of few forms with values in their ranges.
A malformed message raises :class:`ProtocolError`, which ends the sandbox; see docs/security.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from pytest_k3s_sandbox.sandbox.agent import ERROR_CHARACTERS, LINE_BYTES, USAGE_ROWS
from pytest_k3s_sandbox.sandbox.base import Usage

MOST_PIDS = 1 << 22
"""No process has a higher number: PID_MAX_LIMIT, proc_sys_kernel(5)."""
NAME_CHARACTERS = 64
"""A name in /proc/PID/stat has 15 bytes, in gVisor as well; some room for kernel threads."""
MOST_SECONDS = 1e10
MOST_BYTES = 1 << 50
MOST_SIGNAL, MOST_CODE = 64, 255
QUOTED = 100


class ProtocolError(Exception):
    """A line from process 1 is not a message."""


@dataclass(frozen=True)
class Ready:
    """The agent listens."""


@dataclass(frozen=True)
class Spawned:
    """A process was started: the request's number and the process' id inside."""

    number: int
    pid: int


@dataclass(frozen=True)
class Refused:
    """A process could not be started: the request's number and the cause."""

    number: int
    cause: str


@dataclass(frozen=True)
class Used:
    """The usage of processes: the request's number and a row for each."""

    number: int
    rows: tuple[Usage, ...]


@dataclass(frozen=True)
class Exit:
    """A process has ended: its id inside, and its exit code, or minus the signal that ended it."""

    pid: int
    status: int


Message = Ready | Spawned | Refused | Used | Exit


class Lines:
    """Puts lines together from pieces, and never keeps more than the longest line."""

    def __init__(self) -> None:
        """Begin without a piece."""
        self._rest = bytearray()

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the lines that a piece completes, without their ends.

        Raises:
            ProtocolError: A line is too long.
        """
        *ends, rest = piece.split(b"\n")
        lines = []
        for end in ends:
            self._keep(end)
            lines.append(bytes(self._rest))
            self._rest.clear()
        self._keep(rest)
        return lines

    def _keep(self, part: bytes) -> None:
        self._rest += part
        if len(self._rest) > LINE_BYTES:
            raise ProtocolError(f"a line is longer than {LINE_BYTES} bytes")


def parse(line: bytes) -> Message:
    """Return the message that a line holds.

    Raises:
        ProtocolError: The line is malformed.
    """
    try:
        raw = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise ProtocolError(f"a line is not JSON: {quoted(line)}") from None
    reader = READERS.get(frozenset(raw)) if isinstance(raw, dict) else None
    if reader is None:
        raise ProtocolError(f"a line is not a message: {quoted(line)}")
    try:
        return reader(raw)
    except ValueError as error:
        raise ProtocolError(f"{error} in the message {quoted(line)}") from None


def quoted(line: bytes) -> str:
    """Return the beginning of a line as ASCII, without control characters."""
    return repr(line[:QUOTED])[1:]


def plain(text: str, most: int) -> str:
    """Return a text of limited length in which every character can be printed; others become U+FFFD."""
    return "".join(each if each.isprintable() or each == "\n" else "\ufffd" for each in text[:most])


def _no_constant(name: str) -> None:
    """Refuse NaN and infinity, which JSON does not have."""
    raise ValueError(name)


def _whole(value: object, least: int, most: int, what: str) -> int:
    if type(value) is not int or not least <= value <= most:  # a bool is an int, too
        raise ValueError(f"{what} is not a number from {least} to {most}")
    return value


def _pid(value: object) -> int:
    return _whole(value, 1, MOST_PIDS, "a process id")


def _number(value: object) -> int:
    return _whole(value, 1, 1 << 53, "a request's number")


def _text(value: object, most: int, what: str) -> str:
    if not isinstance(value, str) or len(value) > most:
        raise ValueError(f"{what} is not a text of at most {most} characters")
    return plain(value, most)


def _row(row: object) -> Usage:
    if not isinstance(row, list) or len(row) != len(fields(Usage)):
        raise ValueError("a row of the usage has other fields")
    pid, parent, name, cpu, rss, waited = row
    for time in (cpu, waited):
        if type(time) not in {int, float} or not 0 <= time <= MOST_SECONDS or not math.isfinite(time):
            raise ValueError("a processor time is not a number of seconds")
    return Usage(
        _pid(pid),
        _whole(parent, 0, MOST_PIDS, "a parent's process id"),
        _text(name, NAME_CHARACTERS, "a process' name"),
        float(cpu),
        _whole(rss, 0, MOST_BYTES, "a size"),
        float(waited),
    )


def _used(raw: dict[str, Any]) -> Used:
    rows = raw["usage"]
    if not isinstance(rows, list) or len(rows) > USAGE_ROWS:
        raise ValueError(f"the usage is not a list of at most {USAGE_ROWS} rows")
    return Used(_number(raw["id"]), tuple(map(_row, rows)))


def _ready(raw: dict[str, Any]) -> Ready:
    _pid(raw["ready"])
    return Ready()


READERS: dict[frozenset[str], Callable[[dict[str, Any]], Message]] = {
    frozenset({"ready"}): _ready,
    frozenset({"id", "pid"}): lambda raw: Spawned(_number(raw["id"]), _pid(raw["pid"])),
    frozenset({"id", "error"}): lambda raw: Refused(
        _number(raw["id"]), _text(raw["error"], ERROR_CHARACTERS, "a cause")
    ),
    frozenset({"id", "usage"}): _used,
    frozenset({"exit", "status"}): lambda raw: Exit(
        _pid(raw["exit"]), _whole(raw["status"], -MOST_SIGNAL, MOST_CODE, "an exit code")
    ),
}
"""The reader of each message, by its exact keys."""
