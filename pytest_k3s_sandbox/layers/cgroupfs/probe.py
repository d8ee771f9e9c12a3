"""Checks a cgroup file system as a program: for the server at its start, or ``probe.py DIR NAME...``.

It imports little of the standard library, because every start runs it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence

CGROUP_SUPER_MAGIC = 0x27E0EB
"""``f_type`` of the kernel's cgroup v1."""

FUSE_SUPER_MAGIC = 0x65735546
"""``f_type`` of FUSE mounts; programs inside see the other only under the interceptor."""

_NAMES = {
    CGROUP_SUPER_MAGIC: "cgroup",
    FUSE_SUPER_MAGIC: f"FUSE; {CGROUP_SUPER_MAGIC:#x} only under the interceptor",
}


def magic(path: str) -> int:
    """Return ``f_type`` of statfs(2).

    Raises:
        OSError: The call failed.
    """
    buffer = (ctypes.c_long * 32)()  # struct statfs has 120 bytes; f_type is its first word
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(os.fsencode(path), ctypes.byref(buffer)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return int(buffer[0])


def probe(root: str, controllers: Sequence[str]) -> dict[str, str]:
    """Use the file system as a node does.

    Args:
        root: The directory with one directory for each controller.
        controllers: The expected controllers.

    Returns:
        The findings by name; ``problems`` is empty for a healthy file system.
    """
    seen: dict[str, str] = {}
    problems: list[str] = []
    kinds: set[int] = set()
    for name in controllers:
        folder = f"{root}/{name}"
        try:
            kinds.add(magic(folder))
            if "cpuacct" in name.split(","):
                seen["cpuacct.usage"] = _usage(folder)
            if name == "memory":
                seen["memory.total_rss"] = _memory(folder)
            _group(folder)
        except (OSError, ValueError, KeyError) as error:
            problems.append(f"{name}: {error!r}")
    seen["f_type"] = " and ".join(f"{kind:#x} ({_NAMES.get(kind, 'unknown')})" for kind in sorted(kinds))
    seen["problems"] = "; ".join(problems)
    return seen


def render(seen: dict[str, str]) -> str:
    """Return the findings as lines of text."""
    return "".join(f"seen {name}: {value}\n" for name, value in seen.items())


def parse(text: str) -> dict[str, str]:
    """Parse the output of :func:`render`, anywhere in a text.

    Raises:
        ValueError: The text has no such lines.
    """
    lines = [line.removeprefix("seen ") for line in text.splitlines() if line.startswith("seen ")]
    found = {name: value for name, _, value in (line.partition(": ") for line in lines)}
    if "problems" not in found:
        raise ValueError(f"not what a probe says: {text[-500:]!r}")
    return found


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


def _usage(folder: str) -> str:
    first, second = (int(_read(f"{folder}/cpuacct.usage")) for _ in range(2))
    cpus = _read(f"{folder}/cpuacct.usage_percpu").split()
    if second < first or not cpus:
        raise ValueError(f"cpuacct.usage went from {first} to {second} on {len(cpus)} CPUs")
    return str(second)


def _memory(folder: str) -> str:
    return dict(line.split() for line in _read(f"{folder}/memory.stat").splitlines())["total_rss"]


def _group(folder: str) -> None:
    """Make a group, write to it, read that back, remove it."""
    group = f"{folder}/k3s-sandbox-probe-{os.getpid()}"
    file = f"{group}/notify_on_release"
    os.mkdir(group)
    try:
        with open(file, "w", encoding="ascii") as written:
            written.write("1")
        if _read(file) != "1\n":
            raise ValueError(f"{file} does not keep what is written")
    finally:
        os.rmdir(group)
    if os.path.exists(group):
        raise ValueError(f"{group} is there after its removal")


if __name__ == "__main__":
    sys.stdout.write(render(probe(sys.argv[1], sys.argv[2:])))
