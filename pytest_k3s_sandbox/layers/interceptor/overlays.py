"""Files that a program opens instead of the named one: rewritten mount tables, generated content."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from pytest_k3s_sandbox.layers.interceptor import cgrouptable, messages, procfs
from pytest_k3s_sandbox.layers.interceptor.matching import Decision
from pytest_k3s_sandbox.layers.interceptor.rules import MountRule, RedirectRule, Rules, SubstituteRule
from pytest_k3s_sandbox.layers.interceptor.scratch import Scratch

_OWN = (b"/proc/self/", b"/proc/thread-self/")
_REMEMBERED = 32


class Overlays:
    """Writes the files, and caches rewritten tables."""

    def __init__(self, scratch: Scratch) -> None:
        """Keep the folder for the files."""
        self._scratch = scratch
        self._known: dict[tuple[str, tuple[MountRule, ...], bytes], tuple[bytes, Mapping[str, int]]] = {}

    def content(self, tid: int, rule: RedirectRule, path: bytes) -> bytes:
        """Return the file with a rule's content."""
        content = rule.content or ""
        text = content if isinstance(content, str) else content(tid, os.fsdecode(path))
        return os.fsencode(self._scratch.file(text.encode("utf-8", "surrogateescape")))

    def rewritten(
        self, tid: int, path: bytes, decision: Decision, rules: Rules
    ) -> tuple[bytes, Mapping[str, int]] | None:
        """Return the file to open for one whose text a rule changes; as :meth:`mount_table`."""
        if decision.mount_table:
            return self.mount_table(tid, path, rules)
        if decision.substitute is None:
            return self.cgroup_table(tid, path, rules)
        return self._substituted(tid, path, decision.substitute)

    def _substituted(
        self, tid: int, path: bytes, rule: SubstituteRule
    ) -> tuple[bytes, Mapping[str, int]] | None:
        try:
            real = b"/proc/%d/root%s" % (tid, path)
            text, mode = _read(real), os.stat(real).st_mode & 0o444
        except OSError:
            return None  # the program gets the same error
        find = re.compile(os.fsencode(rule.find))
        text, count = find.subn(os.fsencode(rule.replacement), text, count=1)
        return (os.fsencode(self._scratch.file(text, mode)), {rule.label: 1}) if count else None

    def mount_table(self, tid: int, path: bytes, rules: Rules) -> tuple[bytes, Mapping[str, int]] | None:
        """Return the file to open for a mount table that a tracee opens.

        Args:
            tid: The tracee; its mount namespace and root apply.
            path: The table's path under /proc, normal.
            rules: What to change.

        Returns:
            The file's path and how many lines each rule changed, by the rule's label;
            None if the real table needs no change.
        """
        if path == b"/proc/mounts":
            path = b"/proc/self/mounts"
        real = _real(tid, path)
        if real is None:
            return None
        try:
            table = _read(real)
            text, counts = self._rewritten(real.rpartition(b"/")[2].decode(), rules.mounts, table)
            if not counts:
                return None
            return os.fsencode(self._scratch.file(text)), counts
        except OSError as error:
            messages.say("warning", f"mount table {os.fsdecode(path)} for {tid}: {error}")
            return None

    def cgroup_table(self, tid: int, path: bytes, rules: Rules) -> tuple[bytes, Mapping[str, int]] | None:
        """Return the file to open for a cgroup table that a tracee opens; as :meth:`mount_table`."""
        real = path if path == b"/proc/cgroups" else _real(tid, path)
        if real is None:
            return None
        process = tid if path == b"/proc/cgroups" else int(real.split(b"/")[-2])
        try:
            table = _read(real)
            counts: dict[str, int] = {}
            for rule in rules.cgroups:
                served = _read(os.fsencode(f"{rule.served}/pid.{process}"))
                table, added = cgrouptable.completed(table, served, whole=path == b"/proc/cgroups")
                counts |= {rule.label: added} if added else {}
        except OSError as error:  # the process has ended, or the file system
            messages.say("debug", f"cgroup table {os.fsdecode(path)} for {tid}: {error}")
            return None
        return (os.fsencode(self._scratch.file(table)), counts) if counts else None

    def _rewritten(
        self, name: str, rules: tuple[MountRule, ...], table: bytes
    ) -> tuple[bytes, Mapping[str, int]]:
        key = (name, rules, table)
        known = self._known.get(key)
        if known is None:
            from pytest_k3s_sandbox.layers.interceptor import mounttable

            text, counts = mounttable.REWRITE[name](table.decode("utf-8", "surrogateescape"), rules)
            known = text.encode("utf-8", "surrogateescape"), dict(counts)
            while len(self._known) >= _REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[key] = known
        return known


def _real(tid: int, path: bytes) -> bytes | None:
    """Return the path of a tracee's own file under /proc; None if another process' id means nothing here."""
    for own in _OWN:
        if path.startswith(own):
            return b"/proc/%d/%s" % (tid, path[len(own) :])
    return path if procfs.same_pid_namespace(tid) else None


def _read(path: bytes) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.readall()
