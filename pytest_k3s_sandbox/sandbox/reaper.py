"""The end of a sandbox, and the removal of the remains of killed runs.

Nothing is touched that does not verify as ours: a process only in the boot and the pid namespace of the
record and when it is in the sandbox's network namespace, in its cgroups or its runsc; a namespace only by
its inode; a cgroup only when it is called as the sandbox; a mount only below the sandbox's folder; a folder
only with our mark. runsc itself is not asked to remove a container: it would signal the process ids in its
state file, which after a reboot or in another pid namespace are other processes'.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path

from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import SandboxError
from pytest_k3s_sandbox.sandbox import locks, machine, network, processes
from pytest_k3s_sandbox.sandbox.machine import Owner
from pytest_k3s_sandbox.support import clock, mountinfo

KILL_SECONDS = 5.0
"""How long to wait for processes that were killed."""

REAP_SECONDS = 5.0
"""How long a start waits until the remains of killed runs are gone; the next start removes the rest."""

MOST_GROUPS = 20_000
"""The most descendants of a cgroup that one round removes; the next round removes more."""

MOST_DEPTH = 64
"""The most levels of descendants of a cgroup; each level holds a descriptor open."""

TOMBSTONE_SECONDS = 86400.0
"""How long a record stays for its own pid namespace, which alone can remove the rest."""


def members(workdir: Path, owner: Owner) -> Callable[[int], bool]:
    """Return how to tell whether a process belongs to a sandbox.

    Args:
        workdir: The sandbox's folder.
        owner: Its owner.
    """
    if not owner.process.local:
        return lambda _pid: False
    namespace = network.verified(owner.network)

    def belongs(pid: int) -> bool:
        if namespace is not None and processes.in_network_namespace(pid, namespace):
            return True
        if owner.cgroups and processes.in_control_groups(pid, owner.cgroups):
            return True
        return owner.runsc is not None and processes.runs_container(pid, owner.runsc, workdir / "runsc")

    return belongs


def processes_of(workdir: Path, owner: Owner) -> list[int]:
    """Return the processes of the machine that belong to a sandbox; see :func:`members`."""
    belongs = members(workdir, owner)
    return [pid for pid in processes.every() if belongs(pid)]


def end_processes(workdir: Path, owner: Owner, seconds: float = KILL_SECONDS) -> bool:
    """Kill what still runs in a sandbox, and wait for its end.

    Args:
        workdir: The sandbox's folder.
        owner: Its owner.
        seconds: How long to wait at most.

    Returns:
        Whether nothing runs any more.
    """
    belongs = members(workdir, owner)
    deadline = Deadline.after(seconds)
    while True:
        left = [
            pid
            for pid in processes.every()
            if pid != os.getpid() and belongs(pid) and processes.start_time(pid) is not None
        ]
        if not left or deadline.expired:
            return not left
        for pid in left:
            processes.send(pid, signal.SIGKILL, belongs)
        time.sleep(0.01)


def dispose(workdir: Path, owner: Owner) -> bool:
    """End what still runs in a sandbox, and remove its network, cgroups, mounts and folder.

    The caller holds the folder's lock.

    Args:
        workdir: The sandbox's folder.
        owner: What :func:`.machine.read_owner` gives.

    Returns:
        Whether everything is gone; the folder with its record is there otherwise, for a later try.
    """
    if not end_processes(workdir, owner):
        return False
    if owner.process.this_boot:
        if not network.remove(owner.network):
            return False
        for group in owner.cgroups:
            remove_cgroup(Path(group))
    return unmount_below(workdir) and _remove_folder(workdir, owner)


def _remove_folder(workdir: Path, owner: Owner) -> bool:
    """Remove a folder, its mark last: after a removal that was killed, the rest still bears our mark."""
    marks = {machine.OWNER_FILE, machine.LIFE_FILE}
    with contextlib.suppress(FileNotFoundError):
        paths = [str(path) for path in workdir.iterdir() if path.name not in marks]
        # rm(1) follows no link, stays on the file system, and manages folders that are nested deeper
        # than Python's stack: what runs inside can make such.
        if paths:
            subprocess.run(["rm", "-rf", "--one-file-system", "--", *paths], capture_output=True, check=False)
        if any(os.path.lexists(path) for path in paths):
            return False
        foreign = owner.process.this_boot and not owner.process.local
        if foreign and clock.wall() - (workdir / machine.OWNER_FILE).stat().st_mtime < TOMBSTONE_SECONDS:
            return False
        machine.private_folder(machine.partial())
        gone = machine.partial() / workdir.name
        workdir.rename(gone)
        machine.forget(gone)
    return True


def reap(seconds: float = REAP_SECONDS) -> list[str]:
    """Remove what runs that were killed left behind; no lock of the machine is held meanwhile.

    Sandboxes are removed side by side, so that one that hangs does not keep the others.

    Args:
        seconds: How long to wait at most; removals that take longer go on beside the caller.

    Returns:
        The names of the sandboxes that were removed.
    """
    reaped: list[str] = []
    threads = [
        threading.Thread(target=_reap, args=(folder, reaped), name=f"reap-{folder.name}", daemon=True)
        for folder, _ in orphans()
    ]
    for thread in threads:
        thread.start()
    deadline = Deadline.after(seconds)
    for thread in threads:
        thread.join(deadline.remaining())
    with contextlib.suppress(OSError):
        machine.remove_unfinished()
    return sorted(reaped)


def _reap(folder: Path, reaped: list[str]) -> None:
    # Another process removes it, or holds its lock; or the home is not this user's alone any more.
    with contextlib.suppress(OSError, SandboxError):
        life = locks.take(folder / machine.LIFE_FILE)
        try:
            owner = machine.read_owner(folder)
            if owner is not None and not owner.process.alive and dispose(folder, owner):
                reaped.append(folder.name)
        finally:
            life.release()


def orphans() -> list[tuple[Path, Owner]]:
    """Return the sandboxes whose owner is gone."""
    if not machine.sandboxes().is_dir():
        return []
    found = []
    for folder in sorted(machine.sandboxes().iterdir()):
        owner = machine.read_owner(folder)
        if owner is not None and not owner.alive(folder):
            found.append((folder, owner))
    return found


def mounts_below(folder: Path) -> list[str]:
    """Return the mount points below a folder, in the order in which they were mounted."""
    points = [
        mountinfo.unescape(line.split(" ")[4]) for line in processes.lines(Path("/proc/self/mountinfo"))
    ]
    return [point for point in points if Path(point).is_relative_to(folder)]


def unmount_below(folder: Path) -> bool:
    """Unmount everything that is mounted below a folder of ours, the last mounted first.

    runsc leaves one such mount: a network namespace named ``null-netns`` in its root.

    Returns:
        Whether nothing is mounted there any more.
    """
    points = mounts_below(folder)
    for point in reversed(points):
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                ["umount", "--lazy", "--no-canonicalize", point], capture_output=True, check=False, timeout=20
            )
    return not points or not mounts_below(folder)


def remove_cgroup(group: Path, seconds: float = 2.0) -> None:
    """Remove a cgroup and its descendants, whose tasks have been killed; one with tasks stays.

    The inside may have made descendants, at any depth. A message tells of those beyond the limits.

    Args:
        group: Its folder.
        seconds: How long to wait for tasks that are still on their way out (EBUSY).
    """
    deadline = Deadline.after(seconds)
    while os.path.lexists(group):
        complete = _remove_groups(group, deadline)
        time.sleep(0.01)
        if deadline.expired:
            if not complete and os.path.lexists(group):
                # No warning of Python's: a test that makes errors of them must not stop a clean-up.
                sys.stderr.write(
                    f"k3s-sandbox: the cgroup {group} is left: it has more than {MOST_GROUPS} descendants, "
                    f"or one deeper than {MOST_DEPTH}, or to look at them took more than {seconds:g} s\n"
                    f"Remedy: find {group} -depth -type d -delete\n"
                )
            return


def _remove_groups(group: Path, deadline: Deadline) -> bool:
    """Remove descendants of a cgroup and itself, the deepest first; return whether all were looked at."""
    complete, seen = True, 0
    way = [(group, _groups(group))]
    while way:
        folder, below = way[-1]
        following = None
        if seen == MOST_GROUPS or deadline.expired:
            complete = False
        else:
            try:
                following = next(below, None)
            except OSError:
                complete = False
        if following is not None and len(way) <= MOST_DEPTH:
            seen += 1
            way.append((following, _groups(following)))
            continue
        complete = complete and following is None
        below.close()
        way.pop()
        with contextlib.suppress(OSError):
            folder.rmdir()
    return complete


def _groups(folder: Path) -> Generator[Path, None, None]:
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)


def _of_another_pid_namespace(group: Path) -> bool:
    """Tell whether a cgroup has processes without an id here (cgroups(7)): those of another container."""
    with contextlib.suppress(OSError):
        return "0" in (group / "cgroup.procs").read_text().split()
    return False


def leftovers() -> list[str]:
    """Return the objects on the machine of sandboxes without an owner or a folder.

    Only names that a sandbox of ours can have are looked at.

    Returns:
        A line each for processes, mounts, network namespaces, interfaces, cgroups and folders.
    """
    found = [f"folder {folder}" for folder, _ in orphans()]
    for what, places in (
        ("network namespace", Path("/run/netns").glob("k3ssb-*")),
        ("interface", (Path(name) for _, name in socket.if_nameindex())),
        ("cgroup", Path("/sys/fs/cgroup").glob("**/k3ssb-*")),
    ):
        named = [path for path in places if re.fullmatch(r"k3s(sb-)?[0-9a-f]{8}(-gw)?", path.name)]
        if what == "cgroup":
            named = [path for path in named if not _of_another_pid_namespace(path)]
        found += [f"{what} {path if what == 'cgroup' else path.name}" for path in named]
    below = machine.sandboxes()
    folder = re.compile(re.escape(os.fsencode(below)) + rb"/[0-9a-f]{8}(/|\0|$)")
    points = [point for point in mounts_below(below) if folder.match(os.fsencode(point))]
    found += [f"mount {point}" for point in points]
    for pid in processes.every():
        with contextlib.suppress(OSError):
            argv = Path(f"/proc/{pid}/cmdline").read_bytes()
            if folder.search(argv):
                found.append(f"process {pid}: {argv.replace(bytes(1), b' ').decode(errors='replace')}")
    # Asked last: a sandbox that started while this looked around is alive, too.
    strange = machine.strangers()
    gone = {folder for folder, _ in orphans()}
    alive = {folder.name for folder in below.glob("*") if folder not in gone and folder not in strange}
    return [line[:200] for line in found if not any(name in line for name in alive)]
