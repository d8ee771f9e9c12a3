"""Checks of rules, from files and from Python alike."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator

from pytest_k3s_sandbox.layers.interceptor.matching import wildcard
from pytest_k3s_sandbox.layers.interceptor.rules import (
    FAILABLE,
    MASKABLE,
    PATH,
    PATTERN,
    REDIRECTABLE,
    RETRIABLE,
    TREE,
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
from pytest_k3s_sandbox.layers.interceptor.syscalls import NUMBERS, STATFS_CALLS, Group, names, returning

Problem = tuple[str, str]
"""The name of a field, as rule files spell it, and the error in its value."""

_U32 = 0xFFFF_FFFF
_RETURNS = returning(*RETRIABLE)


def problems(rule: Rule) -> Iterator[Problem]:
    """Yield the errors in a rule."""
    for name in rule.programs:
        if not name or "\0" in name:
            yield "programs", f"{name!r} is not a program's name"
    if isinstance(rule, StatfsRule):
        yield from _statfs(rule)
    elif isinstance(rule, RedirectRule):
        yield from _redirect(rule)
    elif isinstance(rule, MountRule):
        yield from _mount(rule)
    elif isinstance(rule, FaultRule):
        yield from _fault(rule)
    elif isinstance(rule, CgroupsRule | SubstituteRule):
        yield from _text(rule)
    elif isinstance(rule, RefuseRule):
        yield from _only(rule.refused, NUMBERS, "calls")
        if not rule.refused:
            yield "calls", "is empty"
    else:
        yield from _under(rule)


def _under(rule: StatxRule | MaskRule | RetryRule) -> Iterator[Problem]:
    yield from _path("under", rule.under)
    if isinstance(rule, MaskRule):
        yield from _groups(rule.groups, MASKABLE)
    elif isinstance(rule, RetryRule):
        yield from _groups(rule.groups, RETRIABLE)
        yield from _only(rule.exits, _RETURNS, "exits")


def checked(rules: Rules) -> Rules:
    """Check a rule set that was made in Python, and return it.

    Raises:
        ConfigError: A rule has a wrong value.
    """
    for rule in rules.every():
        for field, cause in problems(rule):
            from pytest_k3s_sandbox.errors import ConfigError

            raise ConfigError(f"rule {rule.label!r}, field {field!r}", cause=cause)
    return rules


def _path(field: str, value: str) -> Iterator[Problem]:
    if not value.startswith("/") or "\0" in value or ".." in value.split("/") or "//" in value:
        yield field, f"{value!r} is not an absolute path without '..' and '//'"


def _place(path: str, kind: RuleKind) -> Iterator[Problem]:
    yield from _path(kind.name, path)
    if kind is PATTERN:
        try:
            wildcard(path)
        except ValueError as error:
            yield kind.name, str(error)


def _groups(groups: tuple[Group, ...], known: tuple[Group, ...]) -> Iterator[Problem]:
    if not groups:
        yield "calls", "is empty"
    for group in groups:
        if group not in known:
            names = ", ".join(one.value for one in known)
            yield "calls", f"unknown group of calls {group.value!r}; known: {names}"


def _only(only: tuple[str, ...], known: Iterable[str], field: str = "only") -> Iterator[Problem]:
    for name in only:
        if name not in known:
            yield field, f"unknown call {name!r}; known: {', '.join(sorted(known))}"


def _statfs(rule: StatfsRule) -> Iterator[Problem]:
    if rule.original is None and rule.under is None:
        yield "original", "'original' or 'under' is needed, or both"
    for field, value in (("original", rule.original), ("replacement", rule.replacement)):
        if value is not None and not 0 <= value <= _U32:
            yield field, f"{value:#x} is not an f_type: 0 to 0xffffffff"
    if rule.under is not None:
        yield from _path("under", rule.under)
    yield from _only(rule.only, STATFS_CALLS.values())


def _redirect(rule: RedirectRule) -> Iterator[Problem]:
    yield from _place(rule.path, rule.kind)
    yield from _groups(rule.groups, REDIRECTABLE)
    if (rule.target is None) == (rule.content is None):
        yield "target", "exactly one of 'target' and 'content' is needed"
    if rule.target is not None:
        bare = rule.target.removeprefix(TREE)
        if rule.kind is PATTERN:
            bare = bare.replace(PATH, "/path", 1) if bare.startswith(PATH) else bare.replace(PATH, "")
        yield from _path("target", bare or "/")


def _mount(rule: MountRule) -> Iterator[Problem]:
    yield from _path("under", rule.under)
    yield from _only(rule.only, names(Group.OPEN))
    if rule.root is not None:
        yield from _path("root", rule.root)
    if rule.device is not None:
        major, _, minor = rule.device.partition(":")
        if not (major.isdecimal() and minor.isdecimal()):
            yield "device", f"{rule.device!r} is not major:minor"


def _text(rule: CgroupsRule | SubstituteRule) -> Iterator[Problem]:
    import re

    yield from _only(rule.only, names(Group.OPEN))
    if isinstance(rule, CgroupsRule):
        yield from _path("served", rule.served)
        return
    if rule.folder_option is None:
        yield from _place(rule.path, rule.kind)
    elif "/" in rule.path or rule.path in {"", ".", ".."}:
        yield "path", f"{rule.path!r} is not the name of a file"
    try:
        pattern = re.compile(rule.find)
    except re.error as error:
        yield "find", f"{rule.find!r} is not a regular expression: {error.msg}"
        return
    try:
        re.sub(f"{rule.find}|", rule.replacement, "")
    except (re.error, IndexError) as error:
        yield "replacement", f"{rule.replacement!r} does not fit {pattern.pattern!r}: {error}"


def _fault(rule: FaultRule) -> Iterator[Problem]:
    yield from _place(rule.path, rule.kind)
    yield from _groups(rule.groups, FAILABLE)
    if rule.errno not in errno.errorcode:
        yield "errno", f"{rule.errno} is not an errno"
    if rule.skip < 0:
        yield "skip", f"{rule.skip} is negative"
    if rule.times is not None and rule.times < 1:
        yield "times", f"{rule.times} is less than 1"
