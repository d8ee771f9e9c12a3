"""Probes of the kernel's features; each probe leaves nothing behind."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

PROBE_SECONDS = 10.0
FSTYPE = 2
"""The index of ``fs_vfstype`` in a line of /proc/mounts, fstab(5)."""

FILESYSTEMS = {
    0x01021997: "9p",
    0xEF53: "ext",
    0x794C7630: "overlay",
    0x01021994: "tmpfs",
    0x9123683E: "btrfs",
    0x58465342: "xfs",
    0x2FC12FC1: "zfs",
    0x65735546: "fuse",
    0x6969: "nfs",
    0x27E0EB: "cgroup",
    0x63677270: "cgroup2",
}
"""Filesystem magics, from statfs(2)."""

TRACEME = "import ctypes, sys; sys.exit(ctypes.CDLL(None).ptrace(0, 0, 0, 0) != 0)"
"""ptrace(2) PTRACE_TRACEME, in a process of its own."""

FILTER = """
import ctypes, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
allow = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 1, ctypes.addressof(allow)))
libc.prctl(38, 1, 0, 0, 0)
sys.exit(libc.prctl(22, 2, program, 0, 0) != 0)
"""
"""A seccomp filter that allows everything (seccomp(2), PR_SET_SECCOMP), in a process of its own."""


def _works(*argv: str) -> bool:
    try:
        done = subprocess.run(argv, capture_output=True, timeout=PROBE_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def can_trace() -> bool:
    """Tell whether a process may be traced."""
    return _works(sys.executable, "-c", TRACEME)


def can_filter() -> bool:
    """Tell whether a seccomp filter may be installed."""
    return _works(sys.executable, "-c", FILTER)


def can_unshare(kind: str) -> bool:
    """Tell whether a namespace can be made: ``net`` or ``mount``."""
    unshare = shutil.which("unshare")
    return unshare is not None and _works(unshare, f"--{kind}", "true")


def can_open(device: str) -> str | None:
    """Return why a device cannot be opened for reading and writing, or None if it can."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.strerror or str(error)
    return None


def filesystem_magic(path: str) -> int:
    """Return ``f_type`` of statfs(2), the first word of the structure on x86-64.

    Raises:
        OSError: The path cannot be asked for.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = (ctypes.c_long * 64)()
    if libc.statfs(os.fsencode(path), buffer) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return buffer[0]


def filesystem(path: str) -> str:
    """Return the name and magic of the filesystem that a path is on."""
    magic = filesystem_magic(path)
    return f"{FILESYSTEMS.get(magic, 'unknown')} ({magic:#x})"


def cgroup_mode(mounts: str) -> str:
    """Return how control groups are mounted.

    Args:
        mounts: The text of /proc/mounts.

    Returns:
        ``v1``, ``v2``, ``hybrid`` (cgroups(7)) or ``none``.
    """
    types = {words[FSTYPE] for line in mounts.splitlines() if len(words := line.split()) > FSTYPE}
    return {(True, True): "hybrid", (True, False): "v1", (False, True): "v2"}.get(
        ("cgroup" in types, "cgroup2" in types), "none"
    )


def free_bytes(folder: Path) -> int:
    """Return the free room where a folder is or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
