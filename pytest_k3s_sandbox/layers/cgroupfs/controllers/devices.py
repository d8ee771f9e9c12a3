"""The devices controller: keeps access lists exactly as the kernel does, without enforcing them.

Sources: ``security/device_cgroup.c``, ``Documentation/admin-guide/cgroup-v1/devices.rst``.
runc reads ``devices.list`` back and compares it with its rules.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_k3s_sandbox.layers.cgroupfs.controllers.base import Passive
from pytest_k3s_sandbox.layers.cgroupfs.group import File, Group
from pytest_k3s_sandbox.layers.cgroupfs.values import fail, strip

_RULE = re.compile(
    r"([bc])\s(\*|[0-9]{1,11}):(\*|[0-9]{1,11})\s(?:([rwm]{3})|([rwm]{0,2})(?:\n.*|\Z))", re.DOTALL
)

Key = tuple[str, str, str]
"""Type ``b`` or ``c``, major and minor number, each a decimal number or ``*``."""


@dataclass
class DevicesState:
    """The state of a group.

    Attributes:
        allow: Whether accesses other than the exceptions are allowed, or denied.
        exceptions: Accesses (of r, w and m) by device, in the order of creation.
    """

    allow: bool = True
    exceptions: dict[Key, frozenset[str]] = field(default_factory=dict)

    def add(self, key: Key, access: frozenset[str]) -> None:
        """Add accesses to the exception for a device."""
        self.exceptions[key] = self.exceptions.get(key, frozenset()) | access

    def remove(self, key: Key, access: frozenset[str]) -> None:
        """Remove accesses from the exception for exactly that device."""
        if key in self.exceptions:
            left = self.exceptions[key] - access
            if left:
                self.exceptions[key] = left
            else:
                del self.exceptions[key]

    def covers(self, key: Key, access: frozenset[str]) -> bool:
        """Return whether one exception includes a whole rule (``match_exception``)."""
        return any(
            have[0] == key[0] and have[1] in {"*", key[1]} and have[2] in {"*", key[2]} and access <= granted
            for have, granted in self.exceptions.items()
        )

    def overlaps(self, key: Key, access: frozenset[str]) -> bool:
        """Return whether an exception includes a part of a rule (``match_exception_partial``)."""
        return any(
            have[0] == key[0]
            and ("*" in (have[1], key[1]) or have[1] == key[1])
            and ("*" in (have[2], key[2]) or have[2] == key[2])
            and bool(access & granted)
            for have, granted in self.exceptions.items()
        )


Node = Group[DevicesState]


_ANY = 2**32 - 1  # the kernel's own number for "all of them"


def _parse(text: str) -> tuple[Key, frozenset[str]]:
    found = _RULE.match(text)
    if found is None:
        fail(errno.EINVAL)
    numbers = []
    for part in (found[2], found[3]):
        if part != "*" and int(part) >= 2**32:
            fail(errno.EINVAL)
        numbers.append("*" if part == "*" or int(part) == _ANY else str(int(part)))
    return (found[1], numbers[0], numbers[1]), frozenset(found[4] or found[5] or "")


def _permitted(group: Node, key: Key, access: frozenset[str]) -> bool:
    """Return whether the parent permits a rule (``parent_has_perm``)."""
    if group.parent is None:
        return True
    above = group.parent.state
    if above.allow:
        return group.state.allow or not above.overlaps(key, access)
    return above.covers(key, access)


def _everything(group: Node, *, allow: bool) -> None:
    if group.children:
        fail(errno.EINVAL)
    state = group.state
    if allow and group.parent is not None and not group.parent.state.allow:
        fail(errno.EPERM)
    state.exceptions.clear()
    state.allow = allow
    if allow and group.parent is not None:
        state.exceptions.update(group.parent.state.exceptions)


def _allow(group: Node, text: str) -> None:
    text = strip(text)
    if text.startswith("a"):
        _everything(group, allow=True)
        return
    key, access = _parse(text)
    if group.state.allow:
        if group.parent is not None and group.parent.state.overlaps(key, access):
            fail(errno.EPERM)
        group.state.remove(key, access)
    else:
        if not _permitted(group, key, access):
            fail(errno.EPERM)
        group.state.add(key, access)


def _deny(group: Node, text: str) -> None:
    text = strip(text)
    if text.startswith("a"):
        _everything(group, allow=False)
        return
    key, access = _parse(text)
    if group.state.allow:
        group.state.add(key, access)
    else:
        group.state.remove(key, access)
    for below in group.subtree():
        if below is group:
            continue
        if group.state.allow and below.state.allow:
            below.state.add(key, access)
        else:
            below.state.remove(key, access)
        for have, granted in list(below.state.exceptions.items()):
            if not _permitted(below, have, granted):
                below.state.remove(have, granted)


def _list(group: Node) -> str:
    if group.state.allow:
        return "a *:* rwm\n"
    return "".join(
        f"{kind} {major}:{minor} {''.join(a for a in 'rwm' if a in access)}\n"
        for (kind, major, minor), access in group.state.exceptions.items()
    )


class Devices(Passive[DevicesState]):
    """The controller."""

    name = "devices"
    files: Mapping[str, File[DevicesState]] = {
        "devices.allow": File(None, _allow),
        "devices.deny": File(None, _deny),
        "devices.list": File(_list),
    }

    def root(self) -> DevicesState:
        """Return the root's state: everything is allowed."""
        return DevicesState()

    def child(self, parent: Node) -> DevicesState:
        """Return the state of a new group: a copy of its parent's."""
        return DevicesState(parent.state.allow, dict(parent.state.exceptions))
