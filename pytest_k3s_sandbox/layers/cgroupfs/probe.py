"""What a program inside sees of a cgroup filesystem: ``python -m ...cgroupfs.probe DIR``, JSON out."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pytest_k3s_sandbox.layers.cgroupfs.controllers import CONTROLLERS

CGROUP_SUPER_MAGIC = 0x27E0EB
"""What statfs(2) says of the kernel's cgroup v1."""

FUSE_SUPER_MAGIC = 0x65735546
"""What it says of every FUSE mount; a program inside sees the other only through the interceptor."""


def magic(path: Path) -> int:
    """Return ``f_type`` of statfs(2).

    Raises:
        OSError: The call failed.
    """
    buffer = (ctypes.c_long * 32)()  # struct statfs is 120 bytes, and f_type its first word
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(os.fsencode(path), ctypes.byref(buffer)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    return int(buffer[0])


def probe(root: Path, controllers: Sequence[str]) -> dict[str, str]:
    """Use the filesystem as a node does.

    Args:
        root: The directory with one directory for each controller.
        controllers: Those that have to be there.

    Returns:
        What was seen, by name; ``problems`` is empty when all is well.
    """
    seen: dict[str, str] = {}
    problems: list[str] = []
    steps: dict[str, Callable[[Path], dict[str, str]]] = {"cpuacct": _usage, "memory": _memory}
    for name in controllers:
        folder = root / name
        try:
            seen[f"magic.{name}"] = f"{magic(folder):#x}"
            if name in steps:
                seen.update(steps[name](folder))
            _group(folder)
        except (OSError, ValueError, KeyError) as error:
            problems.append(f"{name}: {error!r}")
    seen["problems"] = "; ".join(problems)
    return seen


def _usage(folder: Path) -> dict[str, str]:
    first, second = (int((folder / "cpuacct.usage").read_text()) for _ in range(2))
    cpus = (folder / "cpuacct.usage_percpu").read_text().split()
    if second < first or not cpus:
        raise ValueError(f"cpuacct.usage went from {first} to {second} on {len(cpus)} CPUs")
    return {"cpuacct.usage": str(second)}


def _memory(folder: Path) -> dict[str, str]:
    lines = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return {"memory.total_rss": lines["total_rss"]}


def _group(folder: Path) -> None:
    """Make a group, write to it, read that back, remove it."""
    group = folder / f"k3s-sandbox-probe-{os.getpid()}"
    group.mkdir()
    try:
        (group / "notify_on_release").write_text("1")
        if (group / "notify_on_release").read_text() != "1\n":
            raise ValueError(f"{group}/notify_on_release does not keep what is written")
    finally:
        group.rmdir()
    if group.exists():
        raise ValueError(f"{group} is there after its removal")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(probe(Path(sys.argv[1]), sys.argv[2:] or tuple(CONTROLLERS))) + "\n")
