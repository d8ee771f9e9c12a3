"""Run inside a sandbox: ends a node's processes, removes its remains, and prints the state.

``python -I -S reset.py REQUEST``, with a JSON object: ``keep``, the processes that go on (with their
descendants); ``mounts``, the ids of the mounts that stay, null to change nothing at all; ``groups``,
the cgroups that stay; ``remove``, folders to empty. The answer is a JSON object of lists of text, the
same for equal states. It uses the standard library alone, because it runs once for every trial.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
import signal
import stat
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

MNT_DETACH = 2  # umount2(2)
MS_REC, MS_PRIVATE = 0x4000, 1 << 18  # mount(2)
KILL_SECONDS = 5.0
LISTED = ("/dev", "/run", "/sys/class", "/sys/fs/cgroup", "/var/lib", "/var/log")
VALUES = "/proc/sys/vm /proc/sys/kernel"
"""The folders of kernel tunables whose contents are compared, besides all their names."""


def main(argv: list[str]) -> int:
    """Carry out the request, and print the state."""
    request = json.loads(argv[1])
    if request["mounts"] is not None:
        kill(others(set(request["keep"])))
        unmount(set(request["mounts"]))
        groups(set(request["groups"]))
        for folder in request["remove"]:
            empty(folder)
    sys.stdout.write(json.dumps(state(set(request["keep"]))))
    return 0


def others(keep: set[int]) -> list[int]:
    """Return the processes that are neither kept, nor a descendant of those, nor on the way to this one."""
    parents = {pid: parent_of(pid) for pid in processes()}

    def spared(pid: int) -> bool:
        while pid in parents:
            if pid in keep or pid == os.getpid():
                return True
            pid = parents[pid]
        return False

    return [pid for pid in parents if pid not in (1, os.getpid(), os.getppid()) and not spared(pid)]


def kill(pids: list[int]) -> None:
    """End processes by force, and wait until process 1 has reaped them."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    until = time.monotonic() + KILL_SECONDS
    while time.monotonic() < until and set(pids) & set(processes()):
        time.sleep(0.01)


def unmount(keep: set[str]) -> None:
    """Take off all mounts but those with these ids, the latest first; make the others private again."""
    libc = ctypes.CDLL(None, use_errno=True)
    for fields in reversed(mountinfo()):
        if fields[0] not in keep:
            point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[4])
            libc.umount2(os.fsencode(point), MNT_DETACH)
    libc.mount(b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None)


def groups(keep: Collection[str] | None = None) -> list[str]:
    """Return the groups in the kernel's own cgroup hierarchies, as ``CONTROLLER PATH``.

    Args:
        keep: Groups that stay; all others are removed, if no process is in them. None removes nothing: where
            the machine itself is a gVisor sandbox, groups of its own may be there.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/cgroups", encoding="ascii") as table:
        rows = [line.split() for line in table if not line.startswith("#")]
    found = []
    point = "/run/sweep"
    for name in (row[0] for row in rows if int(row[2]) > 1):
        os.makedirs(point, exist_ok=True)
        if libc.mount(b"none", point.encode(), b"cgroup", 0, name.encode()) == 0:
            for folder, _, _ in os.walk(point, topdown=False):
                group = f"{name} {os.path.relpath(folder, point)}"
                if folder == point:
                    continue
                if keep is None or group in keep or not removed(folder):
                    found.append(group)
            libc.umount2(point.encode(), MNT_DETACH)
        os.rmdir(point)
    return sorted(found)


def removed(group: str) -> bool:
    """Remove a cgroup; return whether it is gone: it stays while a process is in it (cgroups(7))."""
    try:
        os.rmdir(group)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def empty(folder: str) -> None:
    """Remove a folder with its content."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        os.unlink(folder)


def state(keep: Collection[int]) -> dict[str, list[str]]:
    """Return the state that a node can find, as sorted text."""
    rows = [" ".join(fields[2:]) for fields in mountinfo()]
    with open("/proc/cgroups", encoding="ascii") as table:
        found = {"mounts": sorted(rows), "cgroups": table.read().splitlines()}
    found["groups"] = groups()
    found["processes"] = sorted(command(pid) for pid in others(set(keep)))
    found |= {folder: sorted(entries(folder)) for folder in LISTED}
    found["/proc/sys"] = sorted(
        os.path.join(top, name) for top, _, names in os.walk("/proc/sys") for name in names
    )
    found["tunables"] = sorted(values())
    return found


def entries(folder: str) -> Iterator[str]:
    """Yield the names in a folder, with their types."""
    try:
        for entry in os.scandir(folder):
            mode = entry.stat(follow_symlinks=False).st_mode
            yield f"{stat.filemode(mode)[0]} {entry.name}"
    except FileNotFoundError:
        yield "missing"


def values() -> Iterator[str]:
    """Yield kernel tunables with their values."""
    for folder in VALUES.split():
        for entry in os.scandir(folder):
            if entry.is_file() and entry.name != "random":
                try:
                    with open(entry.path, encoding="utf-8") as file:
                        yield f"{entry.path} {file.read().strip()}"
                except OSError as error:
                    yield f"{entry.path} {errno.errorcode.get(error.errno or 0)}"


def processes() -> list[int]:
    """Return the ids of all processes."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def parent_of(pid: int) -> int:
    """Return the id of a process' parent, 0 for one that has ended (proc_pid_stat(5))."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def command(pid: int) -> str:
    """Return a process' command line."""
    try:
        with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
            return file.read().replace("\0", " ").strip()
    except OSError:
        return ""


def mountinfo() -> list[list[str]]:
    """Return the lines of this process' mount table as fields (proc_pid_mountinfo(5))."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        return [line.split() for line in file]


if __name__ == "__main__":
    sys.exit(main(sys.argv))
