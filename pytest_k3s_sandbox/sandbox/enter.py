"""Run on the way into a ``host`` sandbox, before and after its namespaces exist.

``join RECIPE CMD...`` puts itself into the sandbox's cgroups, so that the cgroup
namespace made next has them as its roots. ``root RECIPE CMD...``, in the new
namespaces, builds the root and changes into it. Both then become CMD. Standard
library only, and a program of its own: Python must not have been initialized for
anything else when namespaces change.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "fuse", "kmsg")
DEVICE_LINKS = {
    "ptmx": "pts/ptmx",
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}

DROPPED = {
    "SYS_MODULE": 16,
    "SYS_RAWIO": 17,
    "SYS_PACCT": 20,
    "SYS_BOOT": 22,
    "SYS_TIME": 25,
    "SYS_TTY_CONFIG": 26,
    "AUDIT_CONTROL": 30,
    "MAC_OVERRIDE": 32,
    "MAC_ADMIN": 33,
    "WAKE_ALARM": 35,
    "BLOCK_SUSPEND": 36,
    "AUDIT_READ": 37,
}
"""The capabilities that no node needs, with their numbers (capabilities(7), linux/capability.h)."""

PR_CAPBSET_READ, PR_CAPBSET_DROP = 23, 24
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
CAPABILITY_VERSION_3 = 0x20080522
WORDS = 6
"""capset(2), version 3: effective, permitted and inheritable, twice, 32 capabilities each."""

FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
"""Whether the network namespace routes packets between its interfaces (ip-sysctl)."""

NEVER_WRITTEN = ("sysrq-trigger",)
"""Files of /proc by which root reboots or halts the machine (proc(5))."""


def drop_capabilities() -> None:
    """Take capabilities from all that runs from the next execve(2) on, for good (capabilities(7))."""
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    for name, number in DROPPED.items():
        word = ctypes.c_ulong(number)
        if libc.prctl(PR_CAPBSET_READ, word, zero, zero, zero) != 1:
            continue  # it is not there to be given, or this kernel does not know it
        if libc.prctl(PR_CAPBSET_DROP, word, zero, zero, zero) != 0:
            sys.exit(f"dropping CAP_{name}: {os.strerror(ctypes.get_errno())}")
    libc.prctl(PR_CAP_AMBIENT, ctypes.c_ulong(PR_CAP_AMBIENT_CLEAR_ALL), zero, zero, zero)
    header, data = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * WORDS)()
    if libc.capget(header, data) != 0:
        sys.exit(f"capget: {os.strerror(ctypes.get_errno())}")
    data[2] = data[5] = 0
    if libc.capset(header, data) != 0:
        sys.exit(f"capset: {os.strerror(ctypes.get_errno())}")


def mount(*words: str) -> None:
    """Run the program mount with the given words; its message ends this one when it fails."""
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"mount {' '.join(words)}: {done.stderr.strip()}")


def join(recipe: dict[str, Any]) -> None:
    """Join the sandbox's cgroups, and let its network namespace route, as a network of pods needs it.

    Inside, /proc/sys is read-only. What it has of the network belongs to the process's network namespace,
    which is the sandbox's already (proc_sys(5), network_namespaces(7)).
    """
    for group in recipe["groups"]:
        (Path(group) / "cgroup.procs").write_text("0")
    with contextlib.suppress(OSError):  # what needs it says that it is off
        FORWARDING.write_text("1")


def build_root(recipe: dict[str, Any]) -> None:
    """Mount the sandbox's view and make it the root (pivot_root(2))."""
    socket.sethostname(recipe["hostname"])
    mount("--make-rprivate", "/")
    root = recipe["rootfs"]
    mount("--bind", root, root)
    make_devices(f"{root}/dev")
    mount("-t", "proc", "proc", f"{root}/proc")
    # The kubelet sets kernel tunables, and those outside the network belong to the machine.
    mount("--bind", f"{root}/proc/sys", f"{root}/proc/sys")
    mount("-o", "remount,bind,ro", f"{root}/proc/sys")
    for name in NEVER_WRITTEN:
        path = f"{root}/proc/{name}"
        if Path(path).exists():
            mount("--bind", path, path)
            mount("-o", "remount,bind,ro", path)
    mount("-t", "sysfs", "sysfs", f"{root}/sys")
    mount("-o", "remount,bind,ro", f"{root}/sys")
    mount_cgroups(recipe, f"{root}/sys/fs/cgroup")
    for path in recipe["tmpfs"]:
        mount("-t", "tmpfs", "tmpfs", root + path)
    for source, target, writable in recipe["binds"]:
        point = Path(root + target)
        if Path(source).is_dir():
            point.mkdir(parents=True, exist_ok=True)
        elif not point.exists():  # it does in a folder that is shown read-only
            point.parent.mkdir(parents=True, exist_ok=True)
            point.touch()
        mount("--bind", source, str(point))
        if not writable:
            mount("-o", "remount,bind,ro", str(point))
    old = Path(root) / "var" / "tmp"
    subprocess.run(["pivot_root", root, str(old)], check=True)
    os.chdir("/")
    subprocess.run(["umount", "--lazy", f"/{old.relative_to(root)}"], check=True)
    mount("-o", "remount,bind,ro", "/")
    drop_capabilities()


def make_devices(dev: str) -> None:
    """Make a /dev of its own with the machine's harmless devices, as a container gets it."""
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", dev)
    for name in DEVICES:
        machine = Path("/dev", name)
        if machine.is_char_device():
            os.mknod(f"{dev}/{name}", stat.S_IFCHR | 0o666, machine.stat().st_rdev)
            Path(dev, name).chmod(0o666)  # mknod's mode is subject to the umask
    for name, target in DEVICE_LINKS.items():
        Path(dev, name).symlink_to(target)
    for name in ("pts", "shm"):
        Path(dev, name).mkdir()
    mount("-t", "devpts", "-o", "newinstance,ptmxmode=0666", "devpts", f"{dev}/pts")
    mount("-t", "tmpfs", "tmpfs", f"{dev}/shm")


def mount_cgroups(recipe: dict[str, Any], at: str) -> None:
    """Mount the hierarchies anew: in the cgroup namespace their roots are the sandbox's groups."""
    groups = [Path(group) for group in recipe["groups"]]
    if [group.parent for group in groups] == [Path("/sys/fs/cgroup")]:
        mount("-t", "cgroup2", "cgroup2", at)
        return
    if not groups:
        return
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", at)
    for group in groups:
        name = group.parent.name
        Path(at, name).mkdir()
        mount("-t", "cgroup", "-o", name, "cgroup", f"{at}/{name}")


def main() -> None:
    """Do the step that the first argument names, then become the command."""
    step, recipe_file, *command = sys.argv[1:]
    recipe = json.loads(Path(recipe_file).read_text())
    {"join": join, "root": build_root}[step](recipe)
    os.execvp(command[0], command)  # noqa: S606 - the arguments need no shell


if __name__ == "__main__":
    main()
