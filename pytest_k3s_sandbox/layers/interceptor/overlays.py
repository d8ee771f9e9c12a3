"""Files that a program opens instead of the named one: rewritten mount tables, generated content."""

from __future__ import annotations

import os
from collections.abc import Mapping

from pytest_k3s_sandbox.layers.interceptor import messages, procfs
from pytest_k3s_sandbox.layers.interceptor.rules import MountRule, RedirectRule
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

    def mount_table(
        self, tid: int, path: bytes, rules: tuple[MountRule, ...]
    ) -> tuple[bytes, Mapping[str, int]] | None:
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
        real = path
        for own in _OWN:
            if path.startswith(own):
                real = b"/proc/%d/%s" % (tid, path[len(own) :])
        if real == path and not procfs.same_pid_namespace(tid):
            return None
        try:
            table = _read(real)
            text, counts = self._rewritten(real.rpartition(b"/")[2].decode(), rules, table)
            if not counts:
                return None
            return os.fsencode(self._scratch.file(text)), counts
        except OSError as error:
            messages.say("warning", f"mount table {os.fsdecode(path)} for {tid}: {error}")
            return None

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


def _read(path: bytes) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.readall()
