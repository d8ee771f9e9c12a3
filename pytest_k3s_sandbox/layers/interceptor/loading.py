"""Rule sets from TOML files; errors name the file, the line where it is known, and the field."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from pytest_k3s_sandbox.errors import ConfigError
from pytest_k3s_sandbox.layers.interceptor.rules import (
    REDIRECTABLE,
    TREE,
    MaskRule,
    MountRule,
    RedirectRule,
    Rules,
    StatfsRule,
)
from pytest_k3s_sandbox.layers.interceptor.syscalls import Group

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_PRESETS: Final = Path(__file__).parent / "presets"
_U32: Final = 0xFFFF_FFFF
_DEVICE: Final = re.compile(r"[0-9]+:[0-9]+")
_T = TypeVar("_T")


def preset_names() -> tuple[str, ...]:
    """Return the names of the rule sets that come with the package."""
    return tuple(sorted(file.stem for file in _PRESETS.glob("*.toml")))


def load_preset(name: str) -> Rules:
    """Return a rule set that comes with the package.

    Raises:
        ConfigError: There is none of that name.
    """
    file = _PRESETS / f"{name}.toml"
    if "/" in name or not file.is_file():
        raise ConfigError(
            f"preset {name!r}", cause="unknown", remedy=f"use one of {', '.join(preset_names())}"
        )
    return parse_rules(file.read_text(), str(file))


def load_rules(path: Path) -> Rules:
    """Return the rule set in a TOML file.

    Raises:
        ConfigError: The file cannot be read, or is not a valid rule set.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        cause = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ConfigError(
            f"rule file {path}", cause=cause, remedy="name a readable TOML file, or use --preset"
        ) from error
    return parse_rules(text, str(path))


def parse_rules(text: str, origin: str) -> Rules:
    """Return the rule set that a TOML text describes.

    Args:
        text: The TOML.
        origin: What it came from, for error messages.

    Raises:
        ConfigError: It is not TOML, or a field is unknown, missing or has a wrong value.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"rule file {origin}", cause=str(error)) from error
    for key in document:
        if key not in {"description", *_TABLES}:
            _Table(text, origin, key, -1, {}).fail(key, f"unknown table; known: {', '.join(_TABLES)}")
    return Rules(
        statfs=_tables(document, text, origin, "statfs", _statfs),
        redirects=_tables(document, text, origin, "redirect", _redirect),
        mounts=_tables(document, text, origin, "mount", _mount),
        masks=_tables(document, text, origin, "mask", _mask),
    )


class _Table:
    """One table of the file, whose values are taken out field by field."""

    def __init__(self, text: str, origin: str, kind: str, index: int, values: Mapping[str, Any]) -> None:
        self._text = text
        self._origin = origin
        self._kind = kind
        self._index = index
        self._values = dict(values)

    def fail(self, field: str, cause: str) -> NoReturn:
        line = self._line(field)
        where = f"{self._origin}, line {line}" if line else self._origin
        name = (
            f"[[{self._kind}]] number {self._index + 1}, field {field!r}" if self._index >= 0 else repr(field)
        )
        raise ConfigError(f"rule file {where}: {name}", cause=cause)

    def _line(self, field: str) -> int | None:
        header = re.compile(rf"\s*\[\[?\s*{re.escape(self._kind)}\s*\]")
        seen = -1
        found = None
        for number, line in enumerate(self._text.splitlines(), 1):
            if header.match(line):
                seen += 1
                if seen == max(self._index, 0):
                    found = number
            elif re.match(r"\s*\[", line) and found is not None:
                break
            elif re.match(rf"\s*[\"']?{re.escape(field)}\b", line) and (found or self._index < 0):
                return number
        return found

    def take(self, field: str, kind: type[_T], default: _T | None = None) -> _T | None:
        value = self._values.pop(field, default)
        if value is not default and type(value) is not kind:
            self.fail(field, f"{value!r} is not of type {kind.__name__}")
        return value

    def need(self, field: str, kind: type[_T]) -> _T:
        value = self.take(field, kind)
        if value is None:
            self.fail(field, "missing")
        return value

    def path(self, field: str) -> str | None:
        value = self.take(field, str)
        if value is not None:
            self._check_path(field, value)
            value = value.rstrip("/") or "/"
        return value

    def _check_path(self, field: str, value: str) -> None:
        if not value.startswith("/") or "\0" in value or ".." in value.split("/") or "//" in value:
            self.fail(field, f"{value!r} is not an absolute path without '..' and '//'")

    def target(self, field: str) -> str:
        value = self.need(field, str)
        self._check_path(field, value.removeprefix(TREE) or "/")
        return value.rstrip("/") or "/"

    def magic(self, field: str) -> int:
        value = self.need(field, int)
        if not 0 <= value <= _U32:
            self.fail(field, f"{value:#x} is not an f_type: 0 to 0xffffffff")
        return value

    def end(self) -> None:
        for field in self._values:
            self.fail(field, "unknown field")


def _tables(
    document: Mapping[str, Any], text: str, origin: str, kind: str, build: Callable[[_Table], _T]
) -> tuple[_T, ...]:
    tables = document.get(kind, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        _Table(text, origin, kind, -1, {}).fail(kind, f"must be written as [[{kind}]]")
    out = []
    for index, values in enumerate(tables):
        table = _Table(text, origin, kind, index, values)
        out.append(build(table))
        table.end()
    return tuple(out)


def _statfs(table: _Table) -> StatfsRule:
    return StatfsRule(table.magic("original"), table.magic("replacement"), table.path("under"))


def _redirect(table: _Table) -> RedirectRule:
    path = table.path("path")
    folder = table.path("prefix")
    if (path is None) == (folder is None):
        table.fail("path", "exactly one of 'path' and 'prefix' is needed")
    groups = []
    for name in table.take("calls", list, ["open"]) or []:
        if name not in {group.value for group in REDIRECTABLE}:
            known = ", ".join(group.value for group in REDIRECTABLE)
            table.fail("calls", f"unknown group of calls {name!r}; known: {known}")
        groups.append(Group(name))
    if not groups:
        table.fail("calls", "is empty")
    return RedirectRule(path or folder or "/", table.target("target"), folder is not None, tuple(groups))


def _mount(table: _Table) -> MountRule:
    device = table.take("device", str)
    if device is not None and not _DEVICE.fullmatch(device):
        table.fail("device", f"{device!r} is not major:minor")
    return MountRule(
        type=table.need("type", str),
        under=table.path("under") or "/",
        new_type=table.take("new_type", str),
        source=table.take("source", str),
        device=device,
        options=table.take("options", str),
        root=table.path("root"),
    )


def _mask(table: _Table) -> MaskRule:
    under = table.path("under")
    if under is None:
        table.fail("under", "missing")
    return MaskRule(under)


_TABLES: Final = ("statfs", "redirect", "mount", "mask")
