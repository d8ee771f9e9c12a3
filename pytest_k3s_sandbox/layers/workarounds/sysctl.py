"""Trees that replace kernel files: tunables and network devices.

The kubelet's ContainerManager sets vm/overcommit_memory, vm/panic_on_oom,
kernel/panic, kernel/panic_on_oops, kernel/keys/root_maxkeys and
kernel/keys/root_maxbytes (k8s.io/component-helpers/node/util/sysctl). The tree links to the kernel's existing
files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KUBELET_WANTS: Mapping[str, str] = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""Tunables by path below /proc/sys, with the values that the kubelet sets."""


@dataclass(frozen=True)
class Tree:
    """The content of ``proc/sys`` in the tree.

    Attributes:
        folders: Paths of folders, parents first.
        links: Targets of symbolic links, by path.
        files: Contents of files, by path.
    """

    folders: tuple[str, ...]
    links: Mapping[str, str]
    files: Mapping[str, str]


def plan(listing: str, aside: str) -> Tree:
    """Plan the tree.

    Args:
        listing: The sandbox's files: lines ``TYPE PATH``, as from ``find -printf '%y %P'``.
        aside: The mountpoint of the sandbox's own /proc/sys.

    Returns:
        The sandbox's folders, links to its files, and plain files for the kubelet's tunables. The plain files
        replace existing ones, too, because gVisor's overcommit_memory refuses writes.
    """
    rows = [line.split(" ", 1) for line in listing.splitlines()]
    folders = {path for kind, path in rows if kind == "d"}
    for path in KUBELET_WANTS:
        folders |= {str(parent) for parent in Path(path).parents if str(parent) != "."}
    links = {path: f"{aside}/{path}" for kind, path in rows if kind != "d" and path not in KUBELET_WANTS}
    return Tree(tuple(sorted(folders)), links, {path: f"{value}\n" for path, value in KUBELET_WANTS.items()})


def write_tree(proc: Path, tree: Tree) -> None:
    """Write the tree.

    Args:
        proc: The folder that stands for /proc; gets ``sys`` and an empty ``diskstats``.
        tree: What :func:`plan` returned.
    """
    root = proc / "sys"
    root.mkdir(parents=True, exist_ok=True)
    for path in tree.folders:
        (root / path).mkdir(exist_ok=True)
    for path, target in tree.links.items():
        (root / path).unlink(missing_ok=True)
        (root / path).symlink_to(target)
    for path, content in tree.files.items():
        (root / path).write_text(content)
    (proc / "diskstats").write_text("")  # as of a machine without disks; gVisor lacks the file


def write_network_class(folder: Path, links: Iterable[Mapping[str, Any]]) -> None:
    """Write a replacement of /sys/class with the network devices (sysfs-class-net of the kernel's ABI docs).

    Args:
        folder: The folder that stands for /sys/class.
        links: The output of ``ip -json link show``: ``ifname``, ``mtu`` and ``address`` of each.
    """
    for link in links:
        device = folder / "net" / str(link["ifname"])
        device.mkdir(parents=True, exist_ok=True)
        (device / "address").write_text(f"{link.get('address', '00:00:00:00:00:00')}\n")
        (device / "mtu").write_text(f"{link.get('mtu', 1500)}\n")
        (device / "speed").write_text("-1\n")  # the kernel's value for an unknown speed
