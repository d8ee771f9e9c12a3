"""Which answers are changed: a typed rule set, and what has to be trapped for it."""

from __future__ import annotations

import os
import posixpath
import re
from dataclasses import dataclass, replace
from typing import Final

from pytest_k3s_sandbox.layers.interceptor.syscalls import STATFS_CALLS, Group, names

TREE: Final = "{tree}"
"""In a redirect's target: the root folder given at run time."""

REDIRECTABLE: Final = (Group.OPEN, Group.STAT, Group.ACCESS, Group.READLINK)


@dataclass(frozen=True, slots=True)
class StatfsRule:
    """Changes ``f_type`` in the answers of statfs and fstatfs.

    Attributes:
        original: The f_type the kernel answers.
        replacement: The f_type the program sees.
        under: Only for paths at or below this one; None: everywhere.
    """

    original: int
    replacement: int
    under: str | None = None

    @property
    def label(self) -> str:
        """The rule's name in statistics."""
        return f"statfs {self.original:#x} -> {self.replacement:#x}"


@dataclass(frozen=True, slots=True)
class RedirectRule:
    """Leads calls on a path to another one, if that exists.

    Attributes:
        path: The path, or with ``prefix`` the folder.
        target: The other path or folder; may start with ``{tree}``.
        prefix: Whether everything below ``path`` is meant, by the same relative path.
        groups: The calls that are led there.
    """

    path: str
    target: str
    prefix: bool = False
    groups: tuple[Group, ...] = (Group.OPEN,)

    @property
    def label(self) -> str:
        """The rule's name in statistics."""
        return f"redirect {self.path}{'/**' if self.prefix else ''}"


@dataclass(frozen=True, slots=True)
class MountRule:
    """Changes lines of mount tables; what is None stays as the kernel says it.

    Attributes:
        type: The file system type, as a pattern of shell wildcards.
        under: The mountpoint, or a folder above it.
        new_type: The type that programs see.
        source: The mount source.
        device: ``major:minor``, in mountinfo only.
        options: The super options; ``{controller}`` is the mountpoint's last component.
        root: The path within the file system, in mountinfo only.
    """

    type: str
    under: str = "/"
    new_type: str | None = None
    source: str | None = None
    device: str | None = None
    options: str | None = None
    root: str | None = None

    @property
    def label(self) -> str:
        """The rule's name in statistics."""
        return f"mount {self.type} under {self.under}"


@dataclass(frozen=True, slots=True)
class MaskRule:
    """Blocks signals during calls that open or change paths at or below one.

    Attributes:
        under: The folder.
    """

    under: str

    @property
    def label(self) -> str:
        """The rule's name in statistics."""
        return f"mask {self.under}"


@dataclass(frozen=True, slots=True)
class Rules:
    """A rule set; in each list the first rule that fits is the one that counts."""

    statfs: tuple[StatfsRule, ...] = ()
    redirects: tuple[RedirectRule, ...] = ()
    mounts: tuple[MountRule, ...] = ()
    masks: tuple[MaskRule, ...] = ()

    def with_tree(self, tree: str | None) -> Rules:
        """Return the rules with ``{tree}`` filled in; without a tree such redirects are left out."""
        if tree is None:
            kept = tuple(rule for rule in self.redirects if TREE not in rule.target)
        else:
            kept = tuple(replace(rule, target=rule.target.replace(TREE, tree)) for rule in self.redirects)
        return replace(self, redirects=kept)


def trapped_calls(rules: Rules) -> frozenset[str]:
    """Return the names of the calls that have to stop for these rules, and no others."""
    calls: set[str] = set()
    if rules.statfs:
        calls |= set(STATFS_CALLS.values())
    for redirect in rules.redirects:
        calls |= names(*redirect.groups)
    if rules.mounts:
        calls |= names(Group.OPEN)
    if rules.masks:
        calls |= names(Group.OPEN, Group.CHANGE)
    return frozenset(calls)


@dataclass(frozen=True, slots=True)
class Decision:
    """What a path has to do with the rules.

    Attributes:
        redirect: The rule that leads it elsewhere, and where to.
        mount_table: Whether it is a mount table to be rewritten.
        mask: The rule that blocks signals during the call.
    """

    redirect: tuple[RedirectRule, bytes] | None = None
    mount_table: bool = False
    mask: MaskRule | None = None


_NOTHING: Final = Decision()
_MOUNT_TABLE: Final = re.compile(
    rb"/proc/(?:mounts|(?:self|thread-self|[0-9]+)(?:/task/[0-9]+)?/(?:mounts|mountinfo))"
)


def below(path: str | bytes, folder: str | bytes) -> bool:
    """Tell whether a normal path is ``folder`` or lies below it (both of one type)."""
    if isinstance(path, str):
        path = os.fsencode(path)
    if isinstance(folder, str):
        folder = os.fsencode(folder)
    return path == folder or path.startswith(folder if folder.endswith(b"/") else folder + b"/")


class PathRules:
    """The rules that concern paths, prepared for the one test most calls need.

    Attributes:
        roots: Prefixes; an absolute, normal path that starts with none of them
            concerns no rule.
    """

    __slots__ = ("_masks", "_mounts", "_redirects", "roots")

    def __init__(self, rules: Rules) -> None:
        """Prepare; ``rules`` must have its tree filled in."""
        self._redirects = tuple(
            (rule, os.fsencode(rule.path), os.fsencode(rule.target)) for rule in rules.redirects
        )
        self._masks = tuple((rule, os.fsencode(rule.under)) for rule in rules.masks)
        self._mounts = bool(rules.mounts)
        wanted = {path for _, path, _ in self._redirects} | {path for _, path in self._masks}
        if self._mounts:
            wanted.add(b"/proc/")
        # startswith() takes a tuple; one prefix that covers another makes it shorter.
        self.roots = tuple(
            sorted(path for path in wanted if not any(path != o and path.startswith(o) for o in wanted))
        )

    def may_concern(self, path: bytes) -> bool:
        """Tell whether a rule could fit a path as a program wrote it: the cheap test."""
        return path.startswith(self.roots) or path[:1] != b"/" or b"//" in path or b"/." in path

    def decide(self, path: bytes, group: Group) -> Decision:
        """Return what the rules say of an absolute path in a call of ``group``.

        ``.``, ``..`` and repeated slashes are resolved as text; symbolic links are not followed.
        """
        path = normal(path)
        if not path.startswith(self.roots):
            return _NOTHING
        mask = None
        if group is Group.OPEN or group is Group.CHANGE:
            mask = next((rule for rule, folder in self._masks if below(path, folder)), None)
        if self._mounts and group is Group.OPEN and _MOUNT_TABLE.fullmatch(path):
            return Decision(mount_table=True, mask=mask)
        for rule, source, target in self._redirects:
            if group not in rule.groups:
                continue
            if path == source:
                return Decision(redirect=(rule, target), mask=mask)
            if rule.prefix and below(path, source):
                return Decision(redirect=(rule, target + path[len(source) :]), mask=mask)
        return Decision(mask=mask) if mask is not None else _NOTHING


def normal(path: bytes) -> bytes:
    """Return an absolute path without ``.``, ``..``, repeated and trailing slashes."""
    if b"//" in path or b"/." in path or path.endswith(b"/"):
        path = posixpath.normpath(path)
        if path.startswith(b"//"):  # two leading slashes survive normpath, by POSIX
            path = path[1:]
    return path
