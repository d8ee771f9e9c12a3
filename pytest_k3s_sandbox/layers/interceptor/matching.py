"""Matches one path with the rules, without I/O."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Collection
from typing import Final, NamedTuple

from pytest_k3s_sandbox.layers.interceptor.rules import (
    EXACT,
    PATH,
    PATTERN,
    PREFIX,
    FaultRule,
    MaskRule,
    RedirectRule,
    RetryRule,
    RuleKind,
    Rules,
    SubstituteRule,
)
from pytest_k3s_sandbox.layers.interceptor.syscalls import Group, PathCall


class Decision(NamedTuple):
    """The rules that match a path.

    Attributes:
        redirect: The redirect rule and its target, which is empty for generated content.
        mount_table: Whether the path is a mount table to rewrite.
        cgroup_table: Whether the path is a cgroup table to complete.
        substitute: The rule that changes the file's text.
        mask: The rule that blocks signals during the call.
        fault: The rule that makes the call fail.
    """

    redirect: tuple[RedirectRule, bytes] | None = None
    mount_table: bool = False
    mask: MaskRule | None = None
    fault: FaultRule | None = None
    cgroup_table: bool = False
    substitute: SubstituteRule | None = None

    @property
    def rewrites(self) -> bool:
        """Whether the call opens a file with another text."""
        return self.mount_table or self.cgroup_table or self.substitute is not None


NOTHING: Final = Decision()
_MOUNT_TABLE: Final = Decision(mount_table=True)
_CGROUP_TABLE: Final = Decision(cgroup_table=True)
_TABLES: Final = (b"mountinfo", b"mounts", b"mountstats")
_CGROUP: Final = (b"cgroup",)


def below(path: str | bytes, folder: str | bytes) -> bool:
    """Return whether a normal path is ``folder`` or lies below it."""
    if isinstance(path, str):
        path = os.fsencode(path)
    if isinstance(folder, str):
        folder = os.fsencode(folder)
    return path == folder or path.startswith(folder if folder.endswith(b"/") else folder + b"/")


def normal(path: bytes) -> bytes:
    """Return an absolute path without ``.``, ``..``, repeated and trailing slashes."""
    if b"//" in path or b"/." in path or path.endswith(b"/"):
        path = posixpath.normpath(path)
        if path.startswith(b"//"):  # normpath keeps two leading slashes, as POSIX says
            path = path[1:]
    return path


def outermost(prefixes: Collection[bytes]) -> tuple[bytes, ...]:
    """Return the prefixes that start with no other one, for startswith()."""
    return tuple(
        sorted(
            prefix
            for prefix in prefixes
            if not any(prefix != other and prefix.startswith(other) for other in prefixes)
        )
    )


def names_a_folder(path: bytes) -> bool:
    """Return whether a path must name a directory: path_resolution(7), "Final slash"."""
    return path.endswith((b"/", b"/.", b"/.."))


def is_mount_table(path: bytes) -> bool:
    """Return whether a normal path is one of the kernel's mount tables, such as proc_pid_mountinfo(5)."""
    return path == b"/proc/mounts" or _of_a_process(path, _TABLES)


def is_cgroup_table(path: bytes) -> bool:
    """Return whether a normal path is one of the kernel's cgroup tables; cgroups(7), "/proc files"."""
    return path == b"/proc/cgroups" or _of_a_process(path, _CGROUP)


def _of_a_process(path: bytes, tables: tuple[bytes, ...]) -> bool:
    """Return whether a normal path is a file of these names in a folder of proc_pid(5)."""
    if not path.startswith(b"/proc/"):
        return False
    match path.split(b"/")[2:]:
        case [process, table] if table in tables:
            return process in {b"self", b"thread-self"} or process.isdigit()
        case [process, b"task", thread, table] if table in tables:  # thread-self has no folder of tasks
            return thread.isdigit() and (process == b"self" or process.isdigit())
        case _:
            return False


def wildcard(pattern: str) -> Callable[[bytes], bool]:
    """Return the test of a pattern: ``*``, ``?`` and ``[...]`` stop at a slash, ``**`` does not.

    Raises:
        ValueError: A range in brackets runs backwards.
    """
    import re

    out, index = "", 0
    while index < len(pattern):
        char = pattern[index]
        index += 1
        if char == "*":
            if pattern.startswith("*", index):
                index += 1
                out += ".*"
            else:
                out += "[^/]*"
        elif char == "?":
            out += "[^/]"
        elif (
            char == "["
            and (end := pattern.find("]", index + 1 + (pattern[index : index + 1] in {"!", "^"}))) > 0
        ):
            negated = pattern[index] in "!^"
            inner = _members(pattern[index + negated : end])
            out += f"(?!/)[{'^' if negated else ''}{inner}]"
            index = end + 1
        else:
            out += re.escape(char)
    try:
        match = re.compile(os.fsencode(out), re.DOTALL).fullmatch
    except re.error as error:
        raise ValueError(f"{pattern!r}: {error.msg}") from None
    return lambda path: match(path) is not None


def _members(text: str) -> str:
    """Return the inside of a bracket expression for :mod:`re`: only the dash of a range is special."""
    import re

    out, index = "", 0
    while index < len(text):
        if text[index + 1 : index + 2] == "-" and index + 2 < len(text):
            out += f"{re.escape(text[index])}-{re.escape(text[index + 2])}"
            index += 3
        else:
            out += re.escape(text[index])
            index += 1
    return out


def literal(pattern: str) -> str:
    """Return the common prefix of all matches of a pattern."""
    return pattern[: min((pattern.find(char) for char in "*?[" if char in pattern), default=len(pattern))]


def program_test(programs: tuple[str, ...]) -> Callable[[tuple[bytes, ...]], bool]:
    """Return a test that matches a program's paths with ``programs``."""
    tests = [("/" in name, wildcard(name)) for name in programs]
    return lambda paths: any(
        test(path if whole else path.rpartition(b"/")[2]) for path in paths for whole, test in tests
    )


class _Place(NamedTuple):
    """A rule's path, compiled."""

    path: bytes
    kind: RuleKind
    test: Callable[[bytes], bool] | None

    @property
    def root(self) -> bytes:
        return os.fsencode(literal(os.fsdecode(self.path))) if self.kind is PATTERN else self.path

    def fits(self, path: bytes) -> bool:
        if self.kind is EXACT:
            return path == self.path
        return self.test(path) if self.test is not None else below(path, self.path)


def _place(path: str, kind: RuleKind) -> _Place:
    return _Place(os.fsencode(path), kind, wildcard(path) if kind is PATTERN else None)


class PathRules:
    """The rules for paths, with a cheap test that most calls fail.

    Attributes:
        roots: Prefixes. No rule matches an absolute, normal path that starts with none of them.
    """

    __slots__ = (
        "_cgroups",
        "_faults",
        "_masks",
        "_mounts",
        "_redirects",
        "_retries",
        "_substitutes",
        "_watched",
        "roots",
    )

    def __init__(self, rules: Rules) -> None:
        """Prepare; ``rules`` must have its tree filled in."""
        self._redirects = tuple((rule, _place(rule.path, rule.kind)) for rule in rules.redirects)
        self._faults = tuple((rule, _place(rule.path, rule.kind)) for rule in rules.faults)
        self._substitutes = tuple(
            (rule, _place(rule.path, rule.kind)) for rule in rules.substitutes if rule.calls
        )
        self._masks = tuple((rule, os.fsencode(rule.under)) for rule in rules.masks)
        self._retries = tuple((rule, os.fsencode(rule.under)) for rule in rules.retries)
        self._watched = tuple(folder for rule, folder in self._retries if rule.exits)
        self._mounts = frozenset[str]().union(*(rule.calls for rule in rules.mounts))
        self._cgroups = frozenset[str]().union(*(rule.calls for rule in rules.cgroups))
        wanted = {os.fsencode(rule.under) for rule in rules.masks}
        for rows in (self._redirects, self._faults, self._substitutes):
            wanted.update(place.root for _, place in rows)
        if self._mounts or self._cgroups:
            wanted.add(b"/proc/")
        self.roots = outermost(wanted)

    def may_concern(self, path: bytes) -> bool:
        """Return whether a rule may match a path as a program wrote it: the cheap test."""
        return path.startswith(self.roots) or path[:1] != b"/" or b"//" in path or b"/." in path

    def roots_of(self, call: PathCall) -> tuple[bytes, ...]:
        """Return the roots for one call: decide() returns NOTHING for paths that start with none of them."""
        group = call.group
        wanted = {folder for rule, folder in self._masks if _masks(rule, group)}
        wanted.update(place.root for failing, place in self._faults if group in failing.groups)
        wanted.update(place.root for substitute, place in self._substitutes if call.name in substitute.calls)
        wanted.update(place.root for redirect, place in self._redirects if group in redirect.groups)
        if call.name in self._mounts or call.name in self._cgroups:
            wanted.add(b"/proc/")
        return outermost(wanted)

    def decide(self, path: bytes, call: PathCall) -> Decision:
        """Return the rules that match an absolute path in a call.

        ``.``, ``..`` and repeated slashes are resolved as text; symbolic links are not followed.
        """
        path = normal(path)
        if not path.startswith(self.roots):
            return NOTHING
        mask = fault = None
        group = call.group
        for rule, folder in self._masks:
            if _masks(rule, group) and below(path, folder):
                mask = rule
                break
        for failing, place in self._faults:
            if group in failing.groups and place.fits(path):
                fault = failing
                break
        target = self._other_file(path, call)
        if mask is None and fault is None:
            return target
        return target._replace(mask=mask, fault=fault)

    def _other_file(self, path: bytes, call: PathCall) -> Decision:
        """Return the decision that leads a call to another file, if any."""
        if call.name in self._mounts and is_mount_table(path):
            return _MOUNT_TABLE
        if call.name in self._cgroups and is_cgroup_table(path):
            return _CGROUP_TABLE
        for substitute, place in self._substitutes:
            if call.name in substitute.calls and place.fits(path):
                return Decision(substitute=substitute)
        for redirect, place in self._redirects:
            if call.group in redirect.groups and place.fits(path):
                return Decision((redirect, _target(redirect, place, path)))
        return NOTHING

    def retries(self, path: bytes, group: Group, *, exit_of: str = "") -> RetryRule | None:
        """Return the retry rule for an interrupted call on an absolute path.

        Args:
            path: The path.
            group: The group of the call.
            exit_of: The call's name, to match only rules that watch its return.
        """
        # Most opens are elsewhere, so this test comes first.
        if exit_of and not (path.startswith(self._watched) or b"//" in path or b"/." in path):
            return None
        path = normal(path)
        for rule, folder in self._retries:
            if group in rule.groups and below(path, folder) and (not exit_of or exit_of in rule.exits):
                return rule
        return None

    def original(self, target: bytes) -> bytes | None:
        """Return the path that a redirect with readlink leads to ``target``."""
        for rule, place in self._redirects:
            if rule.target is None or Group.READLINK not in rule.groups:
                continue
            led = os.fsencode(rule.target)
            if rule.kind is EXACT and target == led:
                return place.path
            if rule.kind is PREFIX and below(target, led):
                return place.path + target[len(led) :]
        return None

    def explain(self, path: bytes, group: Group) -> str:
        """Return the reason why no rule matches a path, for the debug message."""
        path = normal(path)
        rules: list[tuple[RedirectRule | FaultRule, _Place]] = [*self._redirects, *self._faults]
        for rule, place in rules:
            if place.fits(path):
                groups = ", ".join(one.value for one in rule.groups)
                if group not in rule.groups:
                    return f"{rule.label} is for {groups}, and this is {group.value}"
            elif rule.kind is EXACT and below(path, place.path):
                return f"{rule.label} is for that path alone, not for what is below"
        return "no rule's path fits"


def _masks(rule: MaskRule, group: Group) -> bool:
    """Return whether a rule masks signals during calls of a group."""
    return group in rule.groups or (group is Group.OPEN and Group.CLOSE in rule.groups)


def _target(rule: RedirectRule, place: _Place, path: bytes) -> bytes:
    if rule.target is None:
        return b""
    target = os.fsencode(rule.target)
    if rule.kind is PREFIX:
        return target + path[len(place.path) :]
    return target.replace(PATH.encode(), path) if rule.kind is PATTERN else target
