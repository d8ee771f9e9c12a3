"""Values in words."""

from __future__ import annotations

from pytest_k3s_sandbox.report.records import Tested

_FILE_SYSTEMS = {
    0x01021997: "9p",
    0x01021994: "tmpfs",
    0x794C7630: "overlayfs",
    0x65735546: "FUSE",
    0xEF53: "ext",
    0x58465342: "XFS",
    0x9123683E: "Btrfs",
}
_MINUTE = 60
_HOUR_MINUTES = 60


def root_name(magic: int | None) -> str:
    """Return the type of a root's file system, like ``9p (0x01021997)``; statfs(2) lists the numbers."""
    if magic is None:
        return "not read"
    return f"{_FILE_SYSTEMS.get(magic, 'unknown')} (0x{magic:08x})"


def seconds_text(seconds: float) -> str:
    """Return a duration: ``8.4 s``, ``2 min 03 s``, ``1 h 02 min``."""
    if round(seconds, 1) < _MINUTE:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), _MINUTE)
    if minutes < _HOUR_MINUTES:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, _HOUR_MINUTES)
    return f"{hours} h {minutes:02d} min"


def value_text(value: float | str | None, unit: str = "") -> str:
    """Return a value: numbers without needless digits and with their unit, an empty text for None."""
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:.10g} {unit}".rstrip()


def count_text(number: int, noun: str) -> str:
    """Return a number with its noun, like ``1 test`` or ``2 tests``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def short_id(test: Tested) -> str:
    """Return the id of a test without its file."""
    return test.nodeid.partition("::")[2] or test.nodeid


def first_line(message: str | None) -> str:
    """Return the first line of a message after a colon, to continue a sentence; empty if there is none."""
    line = (message or "").strip().partition("\n")[0].rstrip(".")
    return f": {line}" if line else ""
