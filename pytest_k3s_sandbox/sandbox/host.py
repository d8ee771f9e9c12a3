"""The machine that pytest runs on, in namespaces of its own.

On plain Linux this is the native control; inside a gVisor sandbox it is the case under
study without a sandbox of ours. The root is a folder with the same view as a gVisor
sandbox gets.

This kind is not a boundary: it keeps accidents from the machine, not attackers. A privileged process inside
is root of the machine's kernel. It can mount the read-only binds again to write the machine's /usr, write the
machine's tunables by a /proc of its own, make device files of the machine's disks, and load programs into
the kernel (bpf(2)). The programs under test are copies, capabilities that no node needs are dropped
(:data:`.enter.DROPPED`), and the environment is our own. Run in it only what you would run as root
without a sandbox.
"""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pytest_k3s_sandbox.errors import StartError
from pytest_k3s_sandbox.sandbox import groups, layout, processes
from pytest_k3s_sandbox.sandbox.enter import DROPPED
from pytest_k3s_sandbox.sandbox.started import StartedSandbox, agent_argv

CGROUPS = Path("/sys/fs/cgroup")
MOUNTS = Path("/proc/self/mountinfo")
READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


class HostSandbox(StartedSandbox):
    """A sandbox of mount, pid, network, UTS and (on Linux) cgroup namespaces.

    Args:
        programs: Programs on the machine that appear inside, in ``BIN_DIR``.
        binds: Further files and folders to show.

    Raises:
        MissingCapability: Not root.
        StartError: It did not start.
    """

    kind: ClassVar[str] = "host"
    copies: ClassVar[bool] = True

    def shell_argv(self, argv: Sequence[str]) -> list[str]:
        """Return the command on the machine that runs ``argv`` inside on the caller's terminal."""
        return [
            "nsenter",
            "--all",
            "--target",
            str(self._init_pid()),
            "setpriv",
            "--inh-caps=-all",
            f"--bounding-set={','.join(f'-cap_{number}' for number in sorted(DROPPED.values()))}",
            "env",
            f"PATH={layout.SHELL_PATH}",
            *argv,
        ]

    def _launch(self) -> list[str]:
        folders = cgroup_folders(self.name)
        self._claim(replace(self._record, cgroups=tuple(folders)))
        limited: set[str] = set()
        for folder in folders:
            try:
                make_cgroup(Path(folder))
                limited |= groups.limit(Path(folder), self.limits)
            except OSError as error:
                if error.errno not in READ_ONLY:
                    raise
                raise StartError(
                    "cannot start a sandbox of kind host",
                    cause=f"the machine's cgroups cannot be changed ({error})",
                    remedy=f"mount {CGROUPS} writable (in a container: start it with --privileged), "
                    "or use --k3s-sandbox=gvisor, which needs no cgroup of the machine",
                ) from error
        recipe = self.workdir / "enter.json"
        recipe.write_text(json.dumps(enter_recipe(self.layout, hostname=self.name, groups=folders)))
        namespaces = ["--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child=KILL"]
        why = "the machine's control groups do not give it to this kind of sandbox"
        self.unlimited = {name: why for name in groups.CONTROLLERS if name not in limited}
        if folders:
            namespaces.insert(0, "--cgroup")
        return [
            "nsenter",
            f"--net=/run/netns/{self.network.netns}",
            sys.executable,
            "-I",
            "-S",
            str(Path(__file__).with_name("enter.py")),
            "join",
            str(recipe),
            "unshare",
            *namespaces,
            sys.executable,
            "-I",
            "-S",
            str(Path(__file__).with_name("enter.py")),
            "root",
            str(recipe),
            *agent_argv(),
        ]

    def _assert_genuine(self) -> None:
        done = self.run(["cat", "/proc/1/comm"])
        if not done.stdout.startswith("python"):
            raise StartError(f"the sandbox {self.name} has no pid namespace of its own", cause=done.stdout)
        for group in cgroup_folders(self.name):
            if (Path(group) / "cgroup.controllers").exists():
                delegate(Path(group))

    def _init_pid(self) -> int:
        """Return process 1 of the sandbox as the machine numbers it."""
        netns = (Path("/run/netns") / self.network.netns).stat()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                same = (folder / "ns/net").stat().st_ino == netns.st_ino
                status = processes.lines(folder / "status")
                inner = next(line for line in status if line.startswith("NSpid:")).split()[1:]
            except (OSError, StopIteration):
                continue
            # A pod in the host's network has a process 1, too, in a pid namespace one level deeper.
            if same and inner[1:] == ["1"]:
                return int(folder.name)
        raise StartError(f"the sandbox {self.name} has ended")


def cgroup_folders(name: str) -> list[str]:
    """Return the folders in the machine's cgroup trees that a sandbox of this name gets.

    Only hierarchies with a controller are used (cgroups(7)); the list is empty where
    cgroup namespaces do not exist, as in gVisor.
    """
    if not Path("/proc/self/ns/cgroup").exists():
        return []
    return [str(Path(point) / name) for point in cgroup_mounts("\n".join(processes.lines(MOUNTS)))]


def cgroup_mounts(mountinfo: str) -> list[str]:
    """Return the mount points of cgroup hierarchies that have a controller to give.

    Args:
        mountinfo: The content of /proc/self/mountinfo (proc(5)).
    """
    points = []
    for line in filter(None, mountinfo.split("\n")):
        fields, _, tail = line.partition(" - ")
        kind, _, options = tail.split(" ", 2)
        point = fields.split(" ")[4]
        if (kind == "cgroup" and "name=" not in options) or (kind == "cgroup2" and point == str(CGROUPS)):
            points.append(point)
    return points


def make_cgroup(group: Path) -> None:
    """Create a group that tasks can join: cpuset v1 needs its cpus and mems first (cgroups(7))."""
    group.mkdir()
    for name in ("cpuset.cpus", "cpuset.mems"):
        inherited = group.parent / name
        if inherited.exists() and (group / name).exists() and not (group / name).read_text().strip():
            (group / name).write_text(inherited.read_text())


def delegate(group: Path) -> None:
    """Let a cgroup v2 group give its controllers to groups below it.

    A group with processes of its own cannot (cgroups(7), "no internal processes"), so that
    they move to a leaf first.
    """
    leaf = group / "init"
    leaf.mkdir()
    for pid in (group / "cgroup.procs").read_text().split():
        (leaf / "cgroup.procs").write_text(pid)
    names = (group / "cgroup.controllers").read_text().split()
    (group / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in names))


def enter_recipe(plan: layout.Layout, *, hostname: str, groups: list[str]) -> dict[str, Any]:
    """Return what ``enter.py`` has to do, as JSON values.

    Args:
        plan: The file system to show.
        hostname: The name that ``uname -n`` gives inside.
        groups: Folders of cgroups that the sandbox's processes belong to.
    """
    return {
        "hostname": hostname,
        "rootfs": str(plan.rootfs),
        "binds": [[str(bind.source), bind.target, bind.writable] for bind in plan.binds],
        "tmpfs": list(plan.tmpfs),
        "groups": groups,
    }
