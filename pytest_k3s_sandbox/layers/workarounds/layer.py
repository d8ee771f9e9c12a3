"""The older workarounds as one layer: kmsg, kernel tunables, mount propagation, OCI spec."""

from __future__ import annotations

import contextlib
import json
from types import TracebackType
from typing import Self

from pytest_k3s_sandbox.errors import ConfigError, LayerError, StartError
from pytest_k3s_sandbox.layers.base import Health, NodeOverrides
from pytest_k3s_sandbox.layers.workarounds import sysctl
from pytest_k3s_sandbox.layers.workarounds.oci_runtime import write_wrapper
from pytest_k3s_sandbox.sandbox.base import (
    STATE_DIR,
    V9FS_MAGIC,
    Process,
    Sandbox,
    described,
    root_magic,
)
from pytest_k3s_sandbox.sandbox.trees import staged

TREE = f"{STATE_DIR}/tree"
"""The folder inside that stands in for missing kernel files, with their paths."""

ASIDE = "/run/k3s-sandbox/proc-sys"
"""Where the sandbox's own /proc/sys stays reachable while the tree lies over it."""

KMSG_HOLDER = "{ test -p /dev/kmsg || mkfifo -m 600 /dev/kmsg; } && exec sleep infinity <>/dev/kmsg"
"""A kernel log in which nothing ever happens: a FIFO that somebody holds open for writing.

A null device (``mknod c 1 3``), the research's way, can be opened, too, but ends at once,
which cAdvisor logs as an error: ``exiting analyzeLines. OOM events will not be reported``.
"""

PROPAGATION = "mount --make-r{mode} /"

SURVEY = """
test -e /dev/kmsg && echo kmsg
test -e /sys/class/net && echo net
echo --
find /proc/sys -mindepth 1 -printf '%y %P\\n'
echo --
ip -json link show
"""
"""Says what is there already, which tunables there are, and which network devices."""

CHECK = f"""
test -r /dev/kmsg && echo readable
cd /proc/sys && cat {" ".join(sysctl.KUBELET_WANTS)} >/dev/null &&
read -r value <vm/overcommit_memory && echo "$value" >vm/overcommit_memory && echo writable
"""
"""Reads the kernel log's file and the tunables, and writes the one that gVisor refuses."""

PARTS = ("kmsg", "private", "shared", "sysctl", "tree", "oci", "cgroups")
"""The workarounds by the words of a variant: ``tree`` is ``sysctl`` without its mount."""


def parse_parts(text: str) -> frozenset[str]:
    """Return the parts that a text like ``kmsg+oci`` names.

    Raises:
        ConfigError: One is unknown, or two exclude each other.
    """
    parts = frozenset(text.split("+"))
    for part in sorted(parts - set(PARTS)):
        raise ConfigError(f"unknown workaround {part!r}", cause=f"known are {', '.join(PARTS)}")
    for pair in ({"private", "shared"}, {"sysctl", "tree"}):
        if pair <= parts:
            raise ConfigError(
                f"workarounds {text!r}", cause=f"{' and '.join(sorted(pair))} exclude each other"
            )
    return parts


class Workarounds:
    """What the research did before the three layers; implements :class:`~..base.Layer`.

    Args:
        sandbox: Where to do it.
        kmsg: Provide /dev/kmsg.
        sysctl_tree: Write the tree of kernel tunables.
        over: Put that tree over /proc/sys; otherwise only an interceptor leads there.
        propagation: What ``/`` is made recursively: ``private``, ``shared`` or None for no change.
            With ``shared`` (the research's way) secret volumes cannot be unmounted in gVisor.
        adapt_oci: Put the runtime that adapts OCI specs in front of runc.
        cgroups: Mount the sandbox's own cgroup v1 controllers, as container hosts have them.

    Attributes:
        name: The layer's name, with the parts if it was made by :meth:`only`.
    """

    name = "workarounds"

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        kmsg: bool = True,
        sysctl_tree: bool = True,
        over: bool = True,
        propagation: str | None = "private",
        adapt_oci: bool = True,
        cgroups: bool = False,
    ) -> None:
        """Keep what to do; nothing is done yet."""
        self._sandbox = sandbox
        self._kmsg = kmsg
        self._sysctl_tree = sysctl_tree
        self._over = over
        self._propagation = propagation
        self._adapt_oci = adapt_oci
        self._cgroups = cgroups
        self._overrides = NodeOverrides()
        self._mounted: list[str] = []
        self._holder: Process | None = None

    @classmethod
    def only(cls, sandbox: Sandbox, text: str) -> Self:
        """Return a layer of the workarounds that a text like ``kmsg+oci`` names, and no others.

        Raises:
            ConfigError: As for :func:`parse_parts`.
        """
        parts = parse_parts(text)
        made = cls(
            sandbox,
            kmsg="kmsg" in parts,
            sysctl_tree=bool({"sysctl", "tree"} & parts),
            over="sysctl" in parts,
            propagation=next((mode for mode in ("private", "shared") if mode in parts), None),
            adapt_oci="oci" in parts,
            cgroups="cgroups" in parts,
        )
        made.name = f"{cls.name}:{text}"
        return made

    @property
    def overrides(self) -> NodeOverrides:
        """The adapting runtime, when it was asked for."""
        return self._overrides

    def __enter__(self) -> Self:
        """Do the workarounds and check them.

        Raises:
            LayerError: One was refused; what was mounted is unmounted again.
        """
        try:
            self._put()
            health = self.check()
        except (StartError, LayerError) as error:
            self.__exit__(None, None, None)
            if isinstance(error, LayerError):
                raise
            raise LayerError("the layer workarounds did not come up", cause=str(error)) from error
        if not health.ok:
            self.__exit__(None, None, None)
            raise LayerError("the layer workarounds is not healthy", cause=str(dict(health.details)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the trees off; the propagation ends with the sandbox."""
        with contextlib.suppress(StartError):  # with a sandbox that has ended, all of it has
            if self._holder is not None:
                self._holder.stop()
                self._holder = None
                self._sandbox.run(["rm", "/dev/kmsg"], check=False)
            while self._mounted:
                self._sandbox.run(["umount", "--lazy", self._mounted.pop()], check=False)

    def check(self) -> Health:
        """Read what the kubelet will read."""
        kmsg, tunables = self._kmsg, self._sysctl_tree and self._over
        if not (kmsg or tunables):
            return Health(ok=True)
        # One program inside for all, because starting one there takes longer than what it does.
        answers = self._sandbox.run(["sh", "-c", CHECK], check=False)
        details = {}
        if kmsg:
            details["kmsg"] = "readable" if "readable" in answers.stdout else "not readable"
        if tunables:
            details["sysctl"] = "writable" if "writable" in answers.stdout else answers.stderr.strip()
        ok = details.get("kmsg") in (None, "readable") and details.get("sysctl") in (None, "writable")
        return Health(ok, details)

    def fault(self) -> str | None:
        """Tell when nobody holds the kernel log's FIFO open; see :meth:`~..base.Restorable.fault`."""
        code = None if self._holder is None else self._holder.poll()
        return None if code is None else f"the holder of /dev/kmsg {described(code)}"

    def restore(self) -> None:
        """Hold the FIFO again; readers have seen its end meanwhile, and have to open it again."""
        self._holder = self._sandbox.spawn(["sh", "-c", KMSG_HOLDER], name="kmsg")

    def _put(self) -> None:
        """Look at what there is, with one program inside, and put what is missing there, with another."""
        seen = self._sandbox.run(["sh", "-c", SURVEY]).stdout
        present, listing, links = (part.strip() for part in seen.split("--\n"))
        commands = []
        if self._kmsg and "kmsg" not in present:
            self._holder = self._sandbox.spawn(["sh", "-c", KMSG_HOLDER], name="kmsg")
            commands.append("until test -p /dev/kmsg; do sleep 0.01; done")
        if self._propagation is not None:
            commands.append(PROPAGATION.format(mode=self._propagation))
        if self._sysctl_tree:
            aside = ASIDE if self._over else "/proc/sys"  # where nothing lies over it
            with staged(self._sandbox.files, f"{TREE}/proc") as proc:
                sysctl.write_tree(proc, sysctl.plan(listing, aside))
            if self._over:
                self._mounted += [ASIDE, "/proc/sys"]
                commands += [
                    f"mkdir -p {ASIDE}",
                    f"mount --bind /proc/sys {ASIDE}",
                    f"mount --bind {TREE}/proc/sys /proc/sys",
                ]
            if self._over and "net" not in present:
                # cAdvisor lists network devices by this folder, which gVisor's sysfs lacks.
                with staged(self._sandbox.files, f"{TREE}/sys/class") as folder:
                    sysctl.write_network_class(folder, json.loads(links))
                self._mounted.append("/sys/class")
                commands.append(f"mount --bind {TREE}/sys/class /sys/class")
        if commands:
            self._shell(" && ".join(commands))
        if self._cgroups:
            self._mount_cgroups()
        if self._adapt_oci:
            inside = f"{STATE_DIR}/runtime"
            with staged(self._sandbox.files, inside) as folder:
                # By its name: k3s puts the folder of its own runc in front of PATH, and the sandbox ours.
                wrapper = write_wrapper(folder, inside, "runc")
            self._overrides = NodeOverrides(runtime=wrapper)

    def _mount_cgroups(self) -> None:
        """Mount each controller that the sandbox's kernel has (/proc/cgroups, cgroups(7)) by its name.

        Raises:
            LayerError: The root is no 9p mount, so that the kernel and its cgroups are the machine's.
        """
        sandbox = self._sandbox
        magic = root_magic(sandbox)
        if magic != V9FS_MAGIC:
            raise LayerError(
                "the workaround cgroups",
                cause=f"statfs says {magic:#x} for the root, not 9p: the cgroups are the machine's own",
                remedy="use a gvisor sandbox, or run in one",
            )
        self._shell("mkdir -p /sys/fs/cgroup && mount -t tmpfs tmpfs /sys/fs/cgroup")
        self._mounted.append("/sys/fs/cgroup")
        table = sandbox.run(["cat", "/proc/cgroups"]).stdout
        for name in (line.split()[0] for line in table.splitlines() if not line.startswith("#")):
            point = f"/sys/fs/cgroup/{name}"
            self._shell(f"mkdir {point} && mount -t cgroup -o {name} cgroup {point}")
            self._mounted.append(point)

    def _shell(self, command: str) -> None:
        self._sandbox.run(["sh", "-c", command])
