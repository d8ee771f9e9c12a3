"""Runs inside the sandbox, for experiment 07: does something in a cgroup and prints the values of its files.

``python -I -S inside.py STEP [ARGUMENT...]``; the answer is JSON. The standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ROOT = "/sys/fs/cgroup"
BURN = 1.5
MIB = 1 << 20
SIZE = 96 * MIB
PROCESSES = 7
USER_HZ = 100
LIMIT = 10.0


def read(path: str) -> str:
    """Return a file's content."""
    with open(path, encoding="ascii") as file:
        return file.read()


def write(path: str, text: str) -> None:
    """Give a file one line."""
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


@contextmanager
def group(controller: str, name: str = "exp07-inside") -> Iterator[str]:
    """Make a group, and remove it when its processes are gone."""
    folder = f"{ROOT}/{controller}/{name}"
    os.mkdir(folder)
    try:
        yield folder
    finally:
        until(lambda: not read(f"{folder}/cgroup.procs"))
        os.rmdir(folder)


def until(condition: Callable[[], bool]) -> None:
    """Wait for a value that takes a sample to change."""
    end = time.monotonic() + LIMIT
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)


def files(controller: str) -> dict[str, dict[str, str]]:
    """Return for each file of the root and of a group its content, or its errno."""
    with group(controller) as folder:
        found = {}
        for where, place in (("root", f"{ROOT}/{controller}"), ("group", folder)):
            names = [entry.name for entry in os.scandir(place) if entry.is_file()]
            found[where] = {name: _content(f"{place}/{name}") for name in names}
    return found


def _content(path: str) -> str:
    try:
        return read(path)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def times(folder: str) -> dict[str, float]:
    """Return the seconds that each file of a cpuacct group shows."""
    names = ("usage", "usage_percpu", "usage_user", "usage_sys", "usage_all", "stat")
    text = {name: read(f"{folder}/cpuacct.{name}") for name in names}
    rows = [[int(field) for field in line.split()] for line in text["usage_all"].splitlines()[1:]]
    return {
        "cpuacct.usage": int(text["usage"]) / 1e9,
        "cpuacct.usage_percpu": sum(map(int, text["usage_percpu"].split())) / 1e9,
        "cpuacct.usage_user+usage_sys": (int(text["usage_user"]) + int(text["usage_sys"])) / 1e9,
        "cpuacct.usage_all": sum(sum(row[1:]) for row in rows) / 1e9,
        "cpuacct.stat": sum(int(line.split()[1]) for line in text["stat"].splitlines()) / USER_HZ,
    }


def burn() -> dict[str, dict[str, float]]:
    """Let a process in a group use processor time; return its own use and the growth of each file."""
    with group("cpuacct") as folder:
        before = times(folder)
        receive, send = os.pipe()
        held, hold = os.pipe()
        pid = os.fork()
        if pid == 0:
            write(f"{folder}/cgroup.procs", "0")
            begun = time.process_time()
            while time.process_time() < begun + BURN:
                sum(range(1000))
            os.write(send, str(time.process_time() - begun).encode())
            os.read(held, 1)
            os._exit(0)
        burnt = float(os.read(receive, 100))
        until(lambda: times(folder)["cpuacct.usage"] >= 0.9 * burnt)
        time.sleep(1.2)  # and not more than it should
        after = times(folder)
        os.write(hold, b"x")
        os.waitpid(pid, 0)
    return {name: {"burnt": burnt, "grown": after[name] - before[name]} for name in after}


def memory_files(folder: str) -> dict[str, int]:
    """Return the bytes that each file of a memory group shows for its processes."""
    lines = dict(line.split() for line in read(f"{folder}/memory.stat").splitlines())
    return {
        "memory.usage_in_bytes": int(read(f"{folder}/memory.usage_in_bytes")),
        "memory.stat rss": int(lines["rss"]),
        "memory.stat total_rss": int(lines["total_rss"]),
        "memory.max_usage_in_bytes": int(read(f"{folder}/memory.max_usage_in_bytes")),
    }


def allocate() -> dict[str, dict[str, float]]:
    """Let a process in a group take memory and give it back; return the values of each file."""
    with group("memory") as folder:
        told, tell = os.pipe()
        hear, heard = os.pipe()
        pid = os.fork()
        if pid == 0:
            write(f"{folder}/cgroup.procs", "0")
            os.write(heard, b"a")
            os.read(told, 1)
            memory = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            for offset in range(0, SIZE, mmap.PAGESIZE):
                memory[offset] = 1
            os.write(heard, b"b")
            os.read(told, 1)
            memory.close()
            os.write(heard, b"c")
            os.read(told, 1)
            os._exit(0)
        seen = []
        for _ in range(3):
            os.read(hear, 1)
            time.sleep(1.5)  # a sample is at most a second old
            seen.append(memory_files(folder))
            os.write(tell, b"x")
        os.waitpid(pid, 0)
    before, during, after = seen
    return {
        name: {"size": SIZE, "grown": during[name] - before[name], "left": after[name] - before[name]}
        for name in before
    }


def fork() -> dict[str, int]:
    """Let a process in a group have children; return the values of pids.current, tasks and cgroup.procs."""
    with group("pids") as folder:
        held, hold = os.pipe()
        joined, join = os.pipe()
        for number in range(PROCESSES):
            if os.fork() == 0:
                os.close(hold)
                write(f"{folder}/tasks", "0")
                os.write(join, bytes([number]))
                os.read(held, 1)
                os._exit(0)
        count = 0
        while count < PROCESSES:
            count += len(os.read(joined, PROCESSES))
        seen = {
            "pids.current": int(read(f"{folder}/pids.current")),
            "tasks": len(read(f"{folder}/tasks").split()),
            "cgroup.procs": len(read(f"{folder}/cgroup.procs").split()),
        }
        os.close(hold)
        for _ in range(PROCESSES):
            os.wait()
        until(lambda: int(read(f"{folder}/pids.current")) == 0)
        seen["left"] = int(read(f"{folder}/pids.current"))
    return seen


def magic() -> dict[str, int]:
    """Return f_type of the mounts, and of a file that is open there, as runc asks for it."""
    libc = ctypes.CDLL(None, use_errno=True)
    answer = (ctypes.c_long * 32)()
    found = {}
    for controller in sorted(os.listdir(ROOT)):
        folder = f"{ROOT}/{controller}"
        if libc.statfs(folder.encode(), answer) == 0:
            found[controller] = int(answer[0])
        fd = os.open(f"{folder}/tasks", os.O_RDONLY)
        if libc.fstatfs(fd, answer) == 0:
            found[f"{controller}/tasks"] = int(answer[0])
        os.close(fd)
    return found


STEPS: dict[str, Callable[..., object]] = {
    "files": files,
    "burn": burn,
    "allocate": allocate,
    "fork": fork,
    "magic": magic,
}

if __name__ == "__main__":
    sys.stdout.write(json.dumps(STEPS[sys.argv[1]](*sys.argv[2:])))
