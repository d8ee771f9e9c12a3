"""A machine whose processes a test makes, and a shell's view of a tree."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TypedDict, Unpack

import pytest

from pytest_k3s_sandbox.layers.cgroupfs.sample import Process, Sample
from pytest_k3s_sandbox.layers.cgroupfs.tree import Tree


class Fields(TypedDict, total=False):
    """The fields of a process that a test can set."""

    processor: int
    threads: int
    anonymous: int
    mapped: int
    faults: int
    major_faults: int
    kernel: bool


class Changes(Fields, total=False):
    """Those that it can change: another start is another process."""

    started: int


def refused(number: int) -> AbstractContextManager[pytest.ExceptionInfo[OSError]]:
    """Expect an error of the system with this number."""
    return pytest.raises(OSError, match=rf"^{re.escape(f'[Errno {number}]')}")


class FakeMachine:
    """Implements the accounting with processes that a test makes; nothing is ever stale."""

    def __init__(self, cpus: int = 4, mems: int = 2) -> None:
        """Make a machine with init alone."""
        self.cpus = frozenset(range(cpus))
        self.mems = frozenset(range(mems))
        self.table: dict[int, Process] = {1: Process(1, 0, 0)}
        self.cpu: dict[int, tuple[int, int]] = dict.fromkeys(self.cpus, (0, 0))
        self.memory = {"MemTotal": 1 << 30, "Cached": 300 << 20, "AnonPages": 200 << 20}
        self.stopped: set[int] = set()
        self.limits = (cpus, 64)
        self.huge_pages: tuple[int, ...] = (1 << 21,)
        self.settings = {"vm/swappiness": 60}
        self.disks = {"8:0"}
        self.released: list[tuple[str, str]] = []
        self.descriptors: dict[tuple[int, int], str] = {}
        self.signals: list[int] = []
        self.users: dict[int, int] = {}
        self._apart: dict[int, int] = {}
        self._clock = 0
        self._next = 100

    def fork(self, parent: int = 1, session: int | None = None, **changes: Unpack[Fields]) -> int:
        """Start a child of a process and return its id."""
        self._clock += 1
        self._next += 1
        session = self.table[parent].session if session is None else session
        self.table[self._next] = Process(self._next, self._clock, parent, session, **changes)
        return self._next

    def spend(self, pid: int, user: int = 0, system: int = 0) -> None:
        """Let a process run for some nanoseconds."""
        was = self.table[pid]
        self.table[pid] = was._replace(user=was.user + user, system=was.system + system)

    def change(self, pid: int, **changes: Unpack[Changes]) -> None:
        """Change what procfs says of a process."""
        self.table[pid] = self.table[pid]._replace(**changes)

    def exit(self, pid: int, *, waited: bool = True) -> None:
        """End a process; its parent may wait for it, its children become init's."""
        dead = self.table.pop(pid)
        self.stopped.discard(pid)
        for other in list(self.table.values()):
            if other.parent == pid:
                self.table[other.pid] = other._replace(parent=1)
        if waited and dead.parent in self.table:
            above = self.table[dead.parent]
            self.table[dead.parent] = above._replace(
                reaped_user=above.reaped_user + dead.user + dead.reaped_user,
                reaped_system=above.reaped_system + dead.system + dead.reaped_system,
            )

    def sample(self) -> Sample:
        """Return what is."""
        table = dict(self.table)
        for tid, pid in list(self._apart.items()):
            if pid in table and tid in self.threads(pid):
                whole = table[pid]
                table[tid] = Process(tid, whole.started, whole.parent, whole.session, leader=pid)
                table[pid] = whole._replace(threads=whole.threads - 1)
            else:
                del self._apart[tid]
        return Sample(table, dict(self.cpu), dict(self.memory), frozenset(self._apart))

    def census(self, refresh: Iterable[int] = (), *, ended: bool = False, started: bool = True) -> Sample:
        """Return what is."""
        del refresh, ended, started
        return self.sample()

    def thread_group(self, tid: int) -> int | None:
        """Return the process of a thread."""
        pid = tid // 1000 or tid
        return pid if pid in self.table and tid in self.threads(pid) else None

    def threads(self, pid: int) -> list[int]:
        """Make up ids for the further threads."""
        return [pid, *(pid * 1000 + n for n in range(1, self.table[pid].threads))]

    def set_apart(self, tids: Iterable[int]) -> None:
        """Make them entries of their own."""
        self._apart.update({tid: tid // 1000 for tid in tids})

    def may_move(self, writer: int, tid: int) -> bool:
        """Compare users, who are root unless a test says otherwise."""
        user = self.users.get(writer, 0)
        return user in {0, self.users.get(tid, 0)}

    def release(self, agent: str, path: str) -> None:
        """Note it."""
        self.released.append((agent, path))

    def setting(self, name: str) -> int | None:
        """Return what a test set."""
        return self.settings.get(name)

    def disk(self, device: str) -> bool:
        """Look it up."""
        return device in self.disks

    def interfaces(self) -> list[str]:
        """Have two."""
        return ["lo", "eth0"]

    def opened(self, writer: int, descriptor: int) -> str | None:
        """Look it up."""
        return self.descriptors.get((writer, descriptor))

    def signaller(self, writer: int, descriptor: int) -> Callable[[], None] | None:
        """Note the descriptor when it is signalled."""
        del writer
        return lambda: self.signals.append(descriptor)

    def freeze(self, pid: int, *, frozen: bool) -> None:
        """Note who is stopped."""
        (self.stopped.add if frozen else self.stopped.discard)(pid)
        self.table[pid] = self.table[pid]._replace(state="T" if frozen else "S")


class Files:
    """Reads and writes a tree by path, as a shell does."""

    def __init__(self, tree: Tree) -> None:
        """Remember the tree."""
        self.tree = tree

    def read(self, path: str) -> str:
        """Return what a file says."""
        entry = self.tree.find(path)
        assert entry.group is not None
        return entry.group.read(entry.name)

    def write(self, path: str, text: str, writer: int = 0) -> None:
        """Give a file what one system call writes."""
        entry = self.tree.find(path)
        assert entry.group is not None
        entry.group.write(entry.name, text.encode(), writer=writer)

    def error(self, path: str, text: str) -> int:
        """Return the errno of a write, 0 when it is taken."""
        try:
            self.write(path, text)
        except OSError as error:
            return error.errno or -1
        return 0
