"""Parses, renders and rewrites the mount tables of /proc/PID: mountinfo, mounts and mountstats.

Formats: proc_pid_mountinfo(5), proc_pid_mounts(5), fstab(5), proc_pid_mountstats(5). Text is
decoded with ``surrogateescape``, so that any bytes survive.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final, NamedTuple, TypeVar

from pytest_k3s_sandbox.layers.interceptor.matching import below
from pytest_k3s_sandbox.layers.interceptor.rules import MountRule
from pytest_k3s_sandbox.support.mountinfo import unescape

_TO_ESCAPE: Final = re.compile(r"[ \t\n\\#]")
_MOUNTINFO_HEAD: Final = 6
_MOUNTINFO_TAIL: Final = 3
_MOUNTS_FIELDS: Final = 6
_MOUNTSTATS: Final = re.compile(r"device (\S+) mounted on (\S+) with fstype (\S+)(.*)")


class MountInfo(NamedTuple):
    """One line of mountinfo; names as in proc_pid_mountinfo(5).

    Attributes:
        mount_id: Unique id of the mount.
        parent_id: Id of the mount it is mounted on.
        device: ``major:minor`` of files in it.
        root: The path within the file system that is the mount's root.
        mount_point: Relative to the process's root.
        mount_options: Options of this mount.
        optional: ``tag[:value]`` fields.
        type: The file system type.
        source: The mount source.
        super_options: Options of the file system.
    """

    mount_id: int
    parent_id: int
    device: str
    root: str
    mount_point: str
    mount_options: str
    optional: tuple[str, ...]
    type: str
    source: str
    super_options: str


class Mount(NamedTuple):
    """One line of mounts; names as in fstab(5).

    Attributes:
        source: ``fs_spec``.
        mount_point: ``fs_file``.
        type: ``fs_vfstype``.
        options: ``fs_mntops``, of mount and file system together.
        freq: ``fs_freq``.
        passno: ``fs_passno``.
    """

    source: str
    mount_point: str
    type: str
    options: str
    freq: str = "0"
    passno: str = "0"


def escape(field: str) -> str:
    """Return a field with space, tab, newline, backslash and # as octal escapes, as the kernel writes it."""
    return _TO_ESCAPE.sub(lambda match: f"\\{ord(match[0]):03o}", field)


def parse_mountinfo(line: str) -> MountInfo:
    """Return the fields of one line.

    Raises:
        ValueError: The line has not the form of mountinfo.
    """
    fields = line.rstrip("\n").split(" ")
    separator = fields.index("-", _MOUNTINFO_HEAD)
    tail = [unescape(field) for field in fields[separator + 1 :]]
    if len(tail) != _MOUNTINFO_TAIL:
        raise ValueError(f"{len(tail)} fields after the separator in mountinfo line {line!r}")
    device, root, mount_point, options = (unescape(field) for field in fields[2:_MOUNTINFO_HEAD])
    optional = tuple(unescape(field) for field in fields[_MOUNTINFO_HEAD:separator])
    return MountInfo(int(fields[0]), int(fields[1]), device, root, mount_point, options, optional, *tail)


def render_mountinfo(mount: MountInfo) -> str:
    """Return the line, without a newline."""
    head = (mount.device, mount.root, mount.mount_point, mount.mount_options, *mount.optional)
    tail = (mount.type, mount.source, mount.super_options)
    return " ".join(
        (
            f"{mount.mount_id} {mount.parent_id}",
            *(escape(field) for field in head),
            "-",
            *(escape(field) for field in tail),
        )
    )


def parse_mounts(line: str) -> Mount:
    """Return the fields of one line.

    Raises:
        ValueError: The line has not the form of mounts.
    """
    fields = line.rstrip("\n").split(" ")
    if len(fields) != _MOUNTS_FIELDS:
        raise ValueError(f"{len(fields)} fields in mounts line {line!r}")
    return Mount(*(unescape(field) for field in fields))


def render_mounts(mount: Mount) -> str:
    """Return the line, without a newline."""
    fields = (mount.source, mount.mount_point, mount.type, mount.options, mount.freq, mount.passno)
    return " ".join(escape(field) for field in fields)


def rewrite_mountinfo(text: str, rules: Sequence[MountRule]) -> tuple[str, Counter[str]]:
    """Rewrite a whole mountinfo.

    If a rule gives several mounts on one mountpoint the same type, only the topmost stays, which is the last
    in the file. Mounts below the others get the parents of these. Lines without a matching rule and malformed
    lines stay byte for byte.

    Returns:
        The text, and how many lines each rule changed, by the rule's label.
    """
    lines = text.split("\n")
    before = [_parsed(parse_mountinfo, line) for line in lines]
    after, counts = _apply(before, rules, _changed_mountinfo)
    dropped = _covered(before, after)
    parents = {mount.mount_id: mount.parent_id for i in dropped if (mount := after[i]) is not None}
    out = []
    for index, line in enumerate(lines):
        mount = after[index]
        if index in dropped:
            continue
        if mount is not None and mount.parent_id in parents:
            mount = mount._replace(parent_id=_survivor(mount.parent_id, parents))
        out.append(line if mount is None or mount == before[index] else render_mountinfo(mount))
    return "\n".join(out), counts


def rewrite_mounts(text: str, rules: Sequence[MountRule]) -> tuple[str, Counter[str]]:
    """Rewrite a whole mounts file; as :func:`rewrite_mountinfo`."""
    lines = text.split("\n")
    before = [_parsed(parse_mounts, line) for line in lines]
    after, counts = _apply(before, rules, _changed_mount)
    dropped = _covered(before, after)
    out = []
    for index, line in enumerate(lines):
        mount = after[index]
        if index not in dropped:
            out.append(line if mount is None or mount == before[index] else render_mounts(mount))
    return "\n".join(out), counts


def rewrite_mountstats(text: str, rules: Sequence[MountRule]) -> tuple[str, Counter[str]]:
    """Rewrite a whole mountstats, of which rules can change type and source; as :func:`rewrite_mountinfo`."""
    before: list[Mount | None] = []
    lines = text.split("\n")
    for line in lines:
        match = _MOUNTSTATS.fullmatch(line)
        before.append(_mount_of(match) if match else None)
    after, counts = _apply(before, rules, _changed_mount)
    dropped = _covered(before, after)
    out = []
    for index, line in enumerate(lines):
        mount, match = after[index], _MOUNTSTATS.fullmatch(line)
        if mount is None or match is None or mount == before[index]:
            if index not in dropped:
                out.append(line)
        elif index not in dropped:
            source, point = escape(mount.source), escape(mount.mount_point)
            out.append(f"device {source} mounted on {point} with fstype {escape(mount.type)}{match[4]}")
    return "\n".join(out), counts


def _mount_of(match: re.Match[str]) -> Mount:
    return Mount(unescape(match[1]), unescape(match[2]), unescape(match[3]), options="")


REWRITE: Final = {
    "mountinfo": rewrite_mountinfo,
    "mounts": rewrite_mounts,
    "mountstats": rewrite_mountstats,
}
"""The function that rewrites a table, by the name of its file."""

_Line = TypeVar("_Line", Mount, MountInfo)


def _parsed(parse: Callable[[str], _Line], line: str) -> _Line | None:
    try:
        return parse(line)
    except ValueError:
        return None


def _apply(
    mounts: Sequence[_Line | None],
    rules: Sequence[MountRule],
    change: Callable[[_Line, MountRule, str | None], _Line],
) -> tuple[list[_Line | None], Counter[str]]:
    counts: Counter[str] = Counter()
    out: list[_Line | None] = []
    for mount in mounts:
        changed = mount
        for rule in rules:
            if (
                mount is not None
                and fnmatchcase(mount.type, rule.type)
                and below(mount.mount_point, rule.under)
            ):
                options = rule.options
                if options is not None:
                    options = options.replace("{controller}", posixpath.basename(mount.mount_point))
                changed = change(mount, rule, options)
                counts[rule.label] += 1
                break
        out.append(changed)
    return out, counts


def _changed_mountinfo(mount: MountInfo, rule: MountRule, options: str | None) -> MountInfo:
    return mount._replace(
        type=mount.type if rule.new_type is None else rule.new_type,
        source=mount.source if rule.source is None else rule.source,
        device=mount.device if rule.device is None else rule.device,
        root=mount.root if rule.root is None else rule.root,
        super_options=mount.super_options if options is None else options,
    )


def _changed_mount(mount: Mount, rule: MountRule, options: str | None) -> Mount:
    return mount._replace(
        type=mount.type if rule.new_type is None else rule.new_type,
        source=mount.source if rule.source is None else rule.source,
        options=mount.options if options is None else options,
    )


def _covered(before: Sequence[_Line | None], after: Sequence[_Line | None]) -> set[int]:
    """Return the lines to leave out: below a line of equal mountpoint and type, one of them rewritten."""
    top: dict[str, int] = {}
    covered = set()
    for index in range(len(after) - 1, -1, -1):
        mount = after[index]
        if mount is None:
            continue
        above = top.setdefault(mount.mount_point, index)
        over = after[above]
        rewritten = mount != before[index] or over != before[above]
        if above != index and rewritten and over is not None and over.type == mount.type:
            covered.add(index)
    return covered


def _survivor(mount_id: int, parents: Mapping[int, int]) -> int:
    seen = set()
    while mount_id in parents and mount_id not in seen:  # a root mount may be its own parent
        seen.add(mount_id)
        mount_id = parents[mount_id]
    return mount_id
