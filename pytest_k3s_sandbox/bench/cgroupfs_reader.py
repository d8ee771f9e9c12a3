"""Reads cgroup files as programs do, and says how long that took: ``cgroupfs_reader.py STEP ARGUMENTS``.

Runs inside a sandbox, natively or in gVisor. It imports the standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

BUFFER = 4096
LEAST_PASSES = 3
"""How often the groups are read at least: a single pass says little."""

CADVISOR = {
    "blkio": [
        "blkio.bfq.io_serviced_recursive",
        "blkio.bfq.sectors_recursive",
        "blkio.sectors_recursive",
        "blkio.throttle.io_serviced",
        "blkio.throttle.io_serviced_recursive",
    ],
    "cpu": ["cgroup.procs", "cpu.stat"],
    "cpuacct": ["cpuacct.stat", "cpuacct.usage", "cpuacct.usage_all", "cpuacct.usage_percpu"],
    "cpuset": [
        "cpuset.cpu_exclusive",
        "cpuset.cpus",
        "cpuset.mem_exclusive",
        "cpuset.mem_hardwall",
        "cpuset.memory_migrate",
        "cpuset.memory_pressure",
        "cpuset.memory_spread_page",
        "cpuset.memory_spread_slab",
        "cpuset.mems",
        "cpuset.sched_load_balance",
        "cpuset.sched_relax_domain_level",
    ],
    "memory": [
        "memory.failcnt",
        "memory.kmem.failcnt",
        "memory.kmem.limit_in_bytes",
        "memory.kmem.max_usage_in_bytes",
        "memory.kmem.tcp.failcnt",
        "memory.kmem.tcp.limit_in_bytes",
        "memory.kmem.tcp.max_usage_in_bytes",
        "memory.kmem.tcp.usage_in_bytes",
        "memory.kmem.usage_in_bytes",
        "memory.limit_in_bytes",
        "memory.max_usage_in_bytes",
        "memory.memsw.failcnt",
        "memory.memsw.limit_in_bytes",
        "memory.memsw.max_usage_in_bytes",
        "memory.memsw.usage_in_bytes",
        "memory.numa_stat",
        "memory.stat",
        "memory.usage_in_bytes",
        "memory.use_hierarchy",
    ],
    "pids": ["pids.current", "pids.max"],
}
"""The files that cAdvisor 0.52.1 opens in one housekeeping of one group, by strace. Some do not exist."""


def read(path: str) -> int:
    """Read a file to its end, as every program does; return its size, -1 when it is not there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    size = 0
    try:
        while part := os.read(fd, BUFFER):
            size += len(part)
    finally:
        os.close(fd)
    return size


def latency(roots: dict[str, str], files: list[str], count: int) -> dict[str, dict[str, float]]:
    """Return microseconds for a read of each file below each root, root after root for each file."""
    found: dict[str, dict[str, float]] = {name: {} for name in roots}
    for file in files:
        for name, root in roots.items():
            path = f"{root}/{file}"
            if read(path) < 0:
                raise FileNotFoundError(path)
            begun = time.perf_counter()
            for _ in range(count):
                read(path)
            found[name][file] = (time.perf_counter() - begun) / count * 1e6
    return found


def throughput(roots: dict[str, str], file: str, readers: int, seconds: float) -> dict[str, float]:
    """Return how many reads a second several processes together do below each root."""
    result = {}
    for name, root in roots.items():
        receive, send = os.pipe()
        for _ in range(readers):
            if os.fork() == 0:
                done, until = 0, time.monotonic() + seconds
                while time.monotonic() < until:
                    read(f"{root}/{file}")
                    done += 1
                os.write(send, f"{done}\n".encode())
                os._exit(0)
        os.close(send)
        with os.fdopen(receive) as answers:
            result[name] = sum(int(line) for line in answers) / seconds
        for _ in range(readers):
            os.wait()
    return result


def used(pid: int) -> float:
    """Return the processor seconds that a process has used, as exactly as the kernel tells."""
    total = 0.0
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/schedstat", encoding="ascii") as file:
                total += int(file.read().split()[0]) / 1e9
    except FileNotFoundError:  # gVisor has no schedstat
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            fields = file.read().rpartition(")")[2].split()
        total = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


@contextlib.contextmanager
def groups(root: str, controllers: list[str], count: int, *, living: bool) -> Iterator[None]:
    """Make groups in each controller, each with a process that sleeps if it is to live, and remove them."""
    folders = [[f"{root}/{controller}/bench-{n}" for controller in controllers] for n in range(count)]
    sleepers = []
    try:
        for group in folders:
            for folder in group:
                os.mkdir(folder)
            if living:
                sleepers.append(_sleeper(root, group))
        yield
    finally:
        for pid in sleepers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for group in folders:
            for folder in group:
                with contextlib.suppress(FileNotFoundError):
                    os.rmdir(folder)


def _sleeper(root: str, group: list[str]) -> int:
    """Start a process that sleeps, in the folders of one group; return its id."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    for folder in group:
        if "/cpuset/" in folder:  # no process can join a group without (cpuset(7))
            for name in ("cpuset.cpus", "cpuset.mems"):
                with open(f"{root}/cpuset/{name}", encoding="ascii") as source:
                    _write(f"{folder}/{name}", source.read())
        _write(f"{folder}/cgroup.procs", str(pid))
    return pid


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def housekeeping(
    root: str, controllers: list[str], pid: int, sizes: list[int], seconds: float
) -> dict[int, Any]:
    """Return for each size the server's cost of one pass over the groups, and the reader's time."""
    result = {}
    for size in sizes:
        with groups(root, controllers, size, living=True):
            paths = [
                f"{root}/{controller}/bench-{n}/{file}"
                for n in range(size)
                for controller, files in CADVISOR.items()
                for file in files
            ]
            files = sum(read(path) >= 0 for path in paths)  # caches fill
            passes, cpu, begun = 0, used(pid), time.perf_counter()
            while passes < LEAST_PASSES or time.perf_counter() - begun < seconds:
                for path in paths:
                    read(path)
                passes += 1
            wall = time.perf_counter() - begun
            cpu = used(pid) - cpu
            result[size] = {"files": files, "passes": passes, "cpu": cpu / passes, "wall": wall / passes}
    return result


def memory(root: str, controllers: list[str], pid: int, count: int) -> dict[str, float]:
    """Return the server's resident MiB with that many groups in each controller, all looked at."""
    with groups(root, controllers, count, living=False):
        for controller in controllers:
            for n in range(count):
                folder = f"{root}/{controller}/bench-{n}"
                for name in os.listdir(folder):
                    os.stat(f"{folder}/{name}")
        with open(f"/proc/{pid}/status", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
    return {
        "groups": count,
        "directories": count * len(controllers),
        "rss": int(lines["VmRSS"].split()[0]) / 1024,
    }


STEPS: dict[str, Callable[..., Any]] = {
    "latency": latency,
    "throughput": throughput,
    "housekeeping": housekeeping,
    "memory": memory,
}

if __name__ == "__main__":
    sys.stdout.write(json.dumps(STEPS[sys.argv[1]](**json.loads(sys.argv[2]))))
