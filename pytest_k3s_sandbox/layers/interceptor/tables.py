"""Rewritten mount tables of tracees, as files to open instead."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_k3s_sandbox.layers.interceptor import mounttable, procfs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_k3s_sandbox.layers.interceptor.rules import MountRule
    from pytest_k3s_sandbox.layers.interceptor.scratch import Scratch

log = logging.getLogger("k3s_sandbox.interceptor")

_OWN: Final = re.compile(rb"/proc/(?:self|thread-self)(?=/)")
_REMEMBERED: Final = 32


class MountTables:
    """Makes the files, and remembers what it made of which table."""

    def __init__(self, rules: tuple[MountRule, ...], scratch: Scratch) -> None:
        """Take the rules and the place for the files."""
        self._rules = rules
        self._scratch = scratch
        self._known: dict[tuple[bool, bytes], tuple[bytes, Mapping[str, int]]] = {}

    def stand_in(self, tid: int, path: bytes) -> tuple[bytes, Mapping[str, int]] | None:
        """Return the file to open for a mount table that a tracee opens.

        Args:
            tid: The tracee, whose mount namespace and root count.
            path: The table's normal path under /proc.

        Returns:
            The file's path and how many lines each rule changed, by the rule's label;
            None: the real table will do.
        """
        if path == b"/proc/mounts":
            path = b"/proc/self/mounts"
        real, substituted = _OWN.subn(b"/proc/%d" % tid, path)
        if not substituted and not procfs.same_pid_namespace(tid):
            return None
        try:
            table = Path(os.fsdecode(real)).read_bytes()
            with_ids = real.endswith(b"/mountinfo")
            text, counts = self._rewritten(with_ids, table)
            if not counts:
                return None
            return os.fsencode(self._scratch.file(text)), counts
        except OSError as error:
            log.warning("mount table %s for %d: %s", os.fsdecode(path), tid, error)
            return None

    def _rewritten(self, with_ids: bool, table: bytes) -> tuple[bytes, Mapping[str, int]]:
        key = (with_ids, table)
        known = self._known.get(key)
        if known is None:
            rewrite = mounttable.rewrite_mountinfo if with_ids else mounttable.rewrite_mounts
            text, counts = rewrite(table.decode("utf-8", "surrogateescape"), self._rules)
            known = text.encode("utf-8", "surrogateescape"), dict(counts)
            while len(self._known) >= _REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[key] = known
        return known
