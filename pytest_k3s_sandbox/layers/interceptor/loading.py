"""Loads rule sets from TOML and YAML; errors name the file, the line if known, and the field."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn, TypeVar

from pytest_k3s_sandbox.layers.interceptor.checks import problems
from pytest_k3s_sandbox.layers.interceptor.rules import (
    EXACT,
    KINDS,
    CgroupsRule,
    FaultRule,
    MaskRule,
    MountRule,
    RedirectRule,
    RefuseRule,
    RetryRule,
    Rule,
    RuleKind,
    Rules,
    StatfsRule,
    StatxRule,
    SubstituteRule,
)
from pytest_k3s_sandbox.layers.interceptor.syscalls import Group

_PRESETS: Final = os.path.join(os.path.dirname(__file__), "presets")
_T = TypeVar("_T")
_R = TypeVar("_R", bound=Rule)


def preset_names() -> tuple[str, ...]:
    """Return the names of the package's rule sets."""
    return tuple(sorted(name[: -len(".toml")] for name in os.listdir(_PRESETS) if name.endswith(".toml")))


def load_preset(name: str) -> Rules:
    """Return one of the package's rule sets.

    Raises:
        ConfigError: The name is unknown.
    """
    if name not in preset_names():
        _fail(f"preset {name!r}", "unknown", f"use one of {', '.join(preset_names())}")
    return load_rules(os.path.join(_PRESETS, f"{name}.toml"))


def load_rules(path: str | os.PathLike[str]) -> Rules:
    """Return the rule set in a file: YAML if its name says so, else TOML.

    Raises:
        ConfigError: The file cannot be read, or is not a valid rule set.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        cause = (error.strerror if isinstance(error, OSError) else None) or str(error)
        _fail(f"rule file {os.fspath(path)}", cause, "name a readable TOML or YAML file, or use --preset")
    return parse_rules(text, os.fspath(path))


def parse_rules(text: str, origin: str) -> Rules:
    """Parse a rule set.

    Args:
        text: The TOML or YAML.
        origin: The text's file, for error messages; a name in .yaml or .yml means YAML.

    Raises:
        ConfigError: The text has a syntax error, or a field is unknown, missing or wrong.
    """
    document = _document(text, origin)
    for key in document:
        if key not in {"description", *_BUILDERS}:
            _Table(text, origin, key, -1, {}).fail(key, f"unknown table; known: {', '.join(_BUILDERS)}")
    return Rules(
        statfs=_tables(document, text, origin, "statfs", _statfs),
        redirects=_tables(document, text, origin, "redirect", _redirect),
        mounts=_tables(document, text, origin, "mount", _mount),
        masks=_tables(document, text, origin, "mask", _mask),
        faults=_tables(document, text, origin, "fault", _fault),
        retries=_tables(document, text, origin, "retry", _retry),
        statx=_tables(document, text, origin, "statx", _statx),
        cgroups=_tables(document, text, origin, "cgroups", _cgroups),
        substitutes=_tables(document, text, origin, "substitute", _substitute),
        refusals=_tables(document, text, origin, "refuse", _refuse),
    )


def _fail(what: str, cause: str, remedy: str | None = None) -> NoReturn:
    from pytest_k3s_sandbox.errors import ConfigError

    raise ConfigError(what, cause=cause, remedy=remedy)


def _is_yaml(origin: str) -> bool:
    return origin.endswith((".yaml", ".yml"))


def _document(text: str, origin: str) -> Mapping[str, Any]:
    if not _is_yaml(origin):
        import tomllib

        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            _fail(f"rule file {origin}", str(error))
    import yaml

    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        _fail(f"rule file {origin}", str(error))
    if document is None:
        return {}
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        _fail(f"rule file {origin}", f"is not a mapping of {', '.join(_BUILDERS)}")
    return document


class _Table:
    """One table of the file; each ``take`` removes a field and returns its value."""

    def __init__(self, text: str, origin: str, kind: str, index: int, values: Mapping[str, Any]) -> None:
        self._text = text
        self._origin = origin
        self._kind = kind
        self._index = index
        self._values = dict(values)

    def fail(self, field: str, cause: str) -> NoReturn:
        from pytest_k3s_sandbox.layers.interceptor.lines import toml_line, yaml_line

        find = yaml_line if _is_yaml(self._origin) else toml_line
        line = find(self._text, self._kind, self._index, field)
        where = f"{self._origin}, line {line}" if line else self._origin
        name = (
            f"[[{self._kind}]] number {self._index + 1}, field {field!r}" if self._index >= 0 else repr(field)
        )
        _fail(f"rule file {where}: {name}", cause)

    def take(self, field: str, kind: type[_T]) -> _T | None:
        value = self._values.pop(field, None)
        if value is not None and type(value) is not kind:
            self.fail(field, f"{value!r} is not of type {kind.__name__}")
        return value

    def need(self, field: str, kind: type[_T]) -> _T:
        value = self.take(field, kind)
        if value is None:
            self.fail(field, "missing")
        return value

    def path(self, field: str) -> str | None:
        value = self.take(field, str)
        return value if value is None else value.rstrip("/") or "/"

    def folder(self) -> str:
        value = self.path("under")
        if value is None:
            self.fail("under", "missing")
        return value

    def texts(self, field: str) -> tuple[str, ...] | None:
        value = self.take(field, list)
        if value is not None and not all(isinstance(one, str) for one in value):
            self.fail(field, f"{value!r} is not a list of texts")
        return None if value is None else tuple(value)

    def groups(self, default: tuple[Group, ...] = (Group.OPEN,)) -> tuple[Group, ...]:
        named = self.texts("calls")
        known = {group.value: group for group in Group}
        for name in named or ():
            if name not in known:
                self.fail("calls", f"unknown group of calls {name!r}; known: {', '.join(known)}")
        return default if named is None else tuple(known[name] for name in named)

    def place(self) -> tuple[str, RuleKind]:
        """Take the path of a rule, and its kind."""
        given = [(value, kind) for kind in KINDS.values() if (value := self.path(kind.name)) is not None]
        if len(given) != 1:
            self.fail("path", f"exactly one of {', '.join(KINDS)} is needed")
        return given[0]

    def programs(self) -> tuple[str, ...]:
        return self.texts("programs") or ()

    def end(self, rule: Rule) -> None:
        for field in self._values:
            self.fail(field, "unknown field")
        for field, cause in problems(rule):
            self.fail(field, cause)


def _tables(
    document: Mapping[str, Any], text: str, origin: str, kind: str, build: Callable[[_Table], _R]
) -> tuple[_R, ...]:
    tables = document.get(kind, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        form = f"a list of mappings under {kind}:" if _is_yaml(origin) else f"[[{kind}]]"
        _Table(text, origin, kind, -1, {}).fail(kind, f"must be written as {form}")
    out = []
    for index, values in enumerate(tables):
        table = _Table(text, origin, kind, index, values)
        rule = build(table)
        table.end(rule)
        out.append(rule)
    return tuple(out)


def _statfs(table: _Table) -> StatfsRule:
    return StatfsRule(
        table.take("original", int),
        table.need("replacement", int),
        table.path("under"),
        table.programs(),
        table.texts("only") or (),
    )


def _redirect(table: _Table) -> RedirectRule:
    path, kind = table.place()
    target = table.path("target")
    return RedirectRule(path, target, kind, table.groups(), table.take("content", str), table.programs())


def _mount(table: _Table) -> MountRule:
    return MountRule(
        type=table.need("type", str),
        under=table.path("under") or "/",
        new_type=table.take("new_type", str),
        source=table.take("source", str),
        device=table.take("device", str),
        options=table.take("options", str),
        root=table.path("root"),
        programs=table.programs(),
        only=table.texts("only") or (),
    )


def _cgroups(table: _Table) -> CgroupsRule:
    return CgroupsRule(table.need("served", str), table.programs(), table.texts("only") or ())


def _substitute(table: _Table) -> SubstituteRule:
    folder_option = table.take("folder_option", str)
    path, kind = table.place() if folder_option is None else (table.need("path", str), EXACT)
    find, replacement = table.need("find", str), table.need("replacement", str)
    only = table.texts("only") or ()
    return SubstituteRule(path, find, replacement, kind, table.programs(), only, folder_option)


def _refuse(table: _Table) -> RefuseRule:
    return RefuseRule(table.texts("calls") or (), table.programs())


def _mask(table: _Table) -> MaskRule:
    return MaskRule(table.folder(), table.groups((Group.OPEN, Group.CHANGE)), table.programs())


def _retry(table: _Table) -> RetryRule:
    return RetryRule(table.folder(), table.groups(), table.programs(), table.texts("exits") or ())


def _statx(table: _Table) -> StatxRule:
    return StatxRule(table.folder(), table.programs())


def _fault(table: _Table) -> FaultRule:
    import errno

    path, kind = table.place()
    name = table.need("errno", str)
    number = getattr(errno, name, None) if name.startswith("E") else None
    if number is None:
        table.fail("errno", f"{name!r} is not the name of an errno (EIO, ENOENT ...)")
    skip, times = table.take("skip", int), table.take("times", int)
    unmounted = table.take("unmounted", bool) or False
    return FaultRule(path, number, kind, table.groups(), skip or 0, times, table.programs(), unmounted)


_BUILDERS: Final = (
    "statfs",
    "redirect",
    "mount",
    "mask",
    "fault",
    "retry",
    "statx",
    "cgroups",
    "substitute",
    "refuse",
)
