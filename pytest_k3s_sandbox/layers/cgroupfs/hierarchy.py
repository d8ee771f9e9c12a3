"""A model of cgroup v1 hierarchies: groups, files and tasks, without FUSE or I/O.

The model follows ``kernel/cgroup/cgroup-v1.c`` and
``Documentation/admin-guide/cgroup-v1/cgroups.rst``. Refusals are :class:`OSError`
with the kernel's errno.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Generic, TypeVar

from pytest_k3s_sandbox.layers.cgroupfs.backing import Backing
from pytest_k3s_sandbox.layers.cgroupfs.core import core_files
from pytest_k3s_sandbox.layers.cgroupfs.group import Controller, File, Group
from pytest_k3s_sandbox.layers.cgroupfs.sample import Accounting, Change, Sample
from pytest_k3s_sandbox.layers.cgroupfs.values import fail

S = TypeVar("S")


class Hierarchy(Generic[S]):
    """One hierarchy: the groups of one controller, and which process is in which.

    Args:
        controller: The controller.
        accounting: Finds processes.
    """

    def __init__(self, controller: Controller[S], accounting: Accounting) -> None:
        """Make the hierarchy with its root group."""
        self.controller = controller
        self.accounting = accounting
        self.files: dict[str, File[S]] = {**core_files(), **controller.files}
        self.root = Group(self, "", None, controller.root(), mode=0o555)
        self.members: dict[int, Group[S]] = {}
        self.release_agent = ""
        self.writer = 0
        self.last = Sample({}, {}, {})
        self.announce: Callable[[Sample], None] = lambda new: self.advance(Change.between(self.last, new))
        """Called with each new sample; a tree replaces it to pass the sample to all hierarchies."""
        self.backing: Backing | None = None
        """The kernel's own hierarchy of the same controller, if any; set before the first group."""
        self.stand_in = ""
        """The kernel's controller that has the same groups and processes under another name."""
        self.version = 0
        """Changes whenever a process or a group comes, goes or moves."""
        self._left: set[Group[S]] = set()

    def mkdir(self, parent: Group[S], name: str) -> Group[S]:
        """Make a group.

        Raises:
            OSError: EEXIST for a group or file of that name, EINVAL for a newline in it.
        """
        if name in parent.children or parent.file(name) is not None:
            fail(errno.EEXIST)
        if "\n" in name:
            fail(errno.EINVAL)
        state = self.controller.child(parent)
        group = Group(self, name, parent, state)
        group.clone_children = parent.clone_children
        group.notify_on_release = parent.notify_on_release
        parent.children[name] = group
        self.version += 1
        if self.backing is not None:
            self.backing.make(group.path)
        return group

    def rmdir(self, group: Group[S]) -> None:
        """Remove a group.

        Raises:
            OSError: EBUSY while it has groups or processes, and for the root.
        """
        if group.parent is None or group.children:
            fail(errno.EBUSY)
        self.census(group)
        if group.pids or (self.backing is not None and not self.backing.remove(group.path)):
            fail(errno.EBUSY)
        self.controller.removed(group)
        del group.parent.children[group.name]
        self.version += 1
        self._release(group.parent)

    def rename(self, group: Group[S], parent: Group[S], name: str) -> None:
        """Give a group another name (``cgroup1_rename``).

        Args:
            group: The group.
            parent: The new parent; only the current one is allowed.
            name: Its new name.

        Raises:
            OSError: EBUSY for the root, EINVAL for a newline, EIO for another parent,
                EEXIST for a name in use.
        """
        if group.parent is None:
            fail(errno.EBUSY)
        if parent is group.parent and name == group.name:
            return
        if "\n" in name:
            fail(errno.EINVAL)
        if parent is not group.parent:
            fail(errno.EIO)
        if name in parent.children or parent.file(name) is not None:
            fail(errno.EEXIST)
        del parent.children[group.name]
        if self.backing is not None:
            self.backing.rename(group.path, f"{parent.path.rstrip('/')}/{name}")
        group.name = name
        parent.children[name] = group

    def census(self, group: Group[S]) -> None:
        """Bring the set of processes up to date, and the numbers of the group's own."""
        if self.listed(group, "cgroup.procs") is not None:  # the kernel knows who is in it
            self.announce(self.accounting.census(tuple(group.pids), started=False))
            return
        ended = group.parent is None or bool(group.children)
        self.announce(self.accounting.census(tuple(group.pids), ended=ended))

    def listed(self, group: Group[S], name: str) -> list[int] | None:
        """Return a list of the kernel's own group, and update the model from it.

        Args:
            group: The group.
            name: ``cgroup.procs`` or ``tasks``.

        Returns:
            The sorted numbers; None without such a hierarchy.
        """
        found = None if self.backing is None else self.backing.numbers(group.path, name)
        if found is None:
            return None
        pids = {pid for pid in found if pid not in self.last.apart} if name == "cgroup.procs" else set()
        self.announce(self.accounting.census(pids - self.last.processes.keys(), started=False))
        for pid in pids & self.last.processes.keys():
            if self.members.get(pid, self.root) is not group:
                self._place(pid, group)
        if name == "cgroup.procs":
            for pid in group.pids - pids - self.last.apart:
                self._place(pid, self.root)
        return sorted(found)

    def close(self) -> None:
        """Remove all groups and processes from the kernel's own hierarchy."""
        if self.backing is None:
            return
        for group in reversed(list(self.root.subtree())):
            for pid in self.backing.numbers(group.path, "cgroup.procs") or [] if group.parent else []:
                self.backing.write("/", "cgroup.procs", str(pid))
            if group.parent is not None:
                self.backing.remove(group.path)
        self.backing.close()
        self.backing = None

    def refresh(self) -> None:
        """Bring all numbers up to date, within the age that the accounting allows."""
        self.announce(self.accounting.sample())

    def attach(self, group: Group[S], tid: int, *, whole: bool) -> None:
        """Move a process, or one thread of it, into a group.

        Args:
            group: Where to.
            tid: The thread; 0 stands for the writer.
            whole: Whether all threads of its process go with it.

        Raises:
            OSError: ESRCH without such a thread, EINVAL for a kernel thread, EACCES without permission to
                move it, or the controller's errno.
        """
        tid = tid or self.writer
        leader = self.accounting.thread_group(tid)
        if leader is None:
            fail(errno.ESRCH)
        if not whole:
            threads = self.accounting.threads(leader)
            if len(threads) > 1:
                self.accounting.set_apart([t for t in threads if t != leader] if tid == leader else [tid])
        # Its time so far belongs to the group that it leaves.
        self.announce(self.accounting.census((leader,)))
        processes = self.last.processes
        moving = [tid]
        if whole:
            moving = [leader, *(t for t in self.last.apart if processes[t].leader == leader)]
        self._check(moving[0], tid)
        for one in moving:
            if self.members.get(one, self.root) is not group:
                self.controller.attach(group, processes[one])
                self._place(one, group)
        if self.backing is not None:
            self.backing.write(group.path, "cgroup.procs" if whole else "tasks", str(moving[0]))
        self._announce_empty()

    def _check(self, moving: int, tid: int) -> None:
        """Refuse to move an ended process, a kernel thread, and one that the writer has no permission for."""
        process = self.last.processes.get(moving)
        if process is None:
            fail(errno.ESRCH)
        if process.kernel:
            fail(errno.EINVAL)
        if self.writer and not self.accounting.may_move(self.writer, tid):
            fail(errno.EACCES)

    def advance(self, change: Change) -> None:
        """Apply a sample: remove the dead, place children in their parents' groups, account all."""
        self.last = change.new
        if self.members:
            for pid in change.gone:
                self._place(pid, self.root)
            for process in change.fresh:
                # A child of a dead parent is init's; its session still leads to its group.
                origin = process.leader or (process.session if process.parent == 1 else process.parent)
                group = self.members.get(origin)
                if group is not None and process.pid != origin:
                    self._place(process.pid, group)
        self.controller.sampled(self, change)
        if self._left:
            self._announce_empty()

    def _place(self, pid: int, group: Group[S]) -> None:
        self.version += 1
        before = self.members.pop(pid, None)
        if before is not None:
            before.pids.discard(pid)
            if before.notify_on_release:
                self._left.add(before)
        if group.parent is not None:
            self.members[pid] = group
            group.pids.add(pid)

    def _announce_empty(self) -> None:
        left, self._left = self._left, set()
        for group in left:
            self._release(group)

    def _release(self, group: Group[S]) -> None:
        """Run the release agent for an empty group (``cgroup1_check_for_release``)."""
        empty = not group.pids and not group.children and group.parent is not None
        if empty and group.notify_on_release and self.release_agent:
            self.accounting.release(self.release_agent, group.path)
