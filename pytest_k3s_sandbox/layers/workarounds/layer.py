"""The older workarounds as one layer: kmsg, kernel tunables, mount propagation, OCI spec."""

from __future__ import annotations

import contextlib
import json
from types import TracebackType
from typing import Self

from pytest_k3s_sandbox.errors import ConfigError, LayerError, StartError
from pytest_k3s_sandbox.layers.base import Health, NodeOverrides
from pytest_k3s_sandbox.layers.workarounds import sysctl
from pytest_k3s_sandbox.layers.workarounds.oci_runtime import write_crun_wrapper, write_wrapper
from pytest_k3s_sandbox.sandbox.base import (
    BIN_DIR,
    STATE_DIR,
    V9FS_MAGIC,
    Process,
    Sandbox,
    described,
    root_magic,
)
from pytest_k3s_sandbox.sandbox.trees import staged

TREE = f"{STATE_DIR}/tree"
"""The folder inside with replacements for missing kernel files, by their paths."""

ASIDE = "/run/k3s-sandbox/proc-sys"
"""The mountpoint of the sandbox's own /proc/sys while the tree covers it."""

KMSG_HOLDER = "{ test -p /dev/kmsg || mkfifo -m 600 /dev/kmsg; } && exec sleep infinity <>/dev/kmsg"
"""A kernel log without entries: a FIFO, which a process holds open for writing.

A null device (``mknod c 1 3``), as in the research, ends at once, which cAdvisor logs as an error: ``exiting
analyzeLines. OOM events will not be reported``.
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
"""Prints the existing files, the tunables and the network devices."""

CHECK = f"""
test -r /dev/kmsg && echo readable
cd /proc/sys && cat {" ".join(sysctl.KUBELET_WANTS)} >/dev/null &&
read -r value <vm/overcommit_memory && echo "$value" >vm/overcommit_memory && echo writable
"""
"""Reads the kernel log and the tunables, and writes the tunable that gVisor refuses."""

PARTS = ("kmsg", "private", "shared", "sysctl", "tree", "oci", "cgroups")
"""The workarounds by their names in a variant; ``tree`` is ``sysctl`` without its mount."""


def parse_parts(text: str) -> frozenset[str]:
    """Parse the names of workarounds in a text like ``kmsg+oci``.

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
    """The workarounds of the research before the other layers; implements :class:`~..base.Layer`.

    Args:
        sandbox: The sandbox.
        kmsg: Provide /dev/kmsg.
        sysctl_tree: Write the tree of kernel tunables.
        over: Mount that tree over /proc/sys; otherwise only an interceptor redirects to it.
        propagation: The recursive mount propagation of ``/``: ``private``, ``shared`` or None for no change.
            With ``shared``, as in the research, gVisor cannot unmount secret volumes.
        adapt_oci: Wrap runc in a runtime that adapts OCI specs.
        cgroups: Mount the sandbox's own cgroup v1 controllers, as container hosts have them.

    Attributes:
        name: The layer's name, with the workarounds if :meth:`only` made it.
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
        """Keep the arguments; nothing is changed yet."""
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
        """Return a layer of only the workarounds in a text like ``kmsg+oci``.

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
        """The OCI runtime, with ``adapt_oci``."""
        return self._overrides

    def __enter__(self) -> Self:
        """Apply the workarounds and check them.

        Raises:
            LayerError: One failed; the mounts are unmounted again.
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
        """Unmount the trees; the propagation ends with the sandbox."""
        with contextlib.suppress(StartError):  # the sandbox has ended
            if self._holder is not None:
                self._holder.stop()
                self._holder = None
                self._sandbox.run(["rm", "/dev/kmsg"], check=False)
            while self._mounted:
                self._sandbox.run(["umount", "--lazy", self._mounted.pop()], check=False)

    def check(self) -> Health:
        """Read the files that the kubelet reads."""
        kmsg, tunables = self._kmsg, self._sysctl_tree and self._over
        if not (kmsg or tunables):
            return Health(ok=True)
        # One program for all checks, because its start takes longer than its work.
        answers = self._sandbox.run(["sh", "-c", CHECK], check=False)
        details = {}
        if kmsg:
            details["kmsg"] = "readable" if "readable" in answers.stdout else "not readable"
        if tunables:
            details["sysctl"] = "writable" if "writable" in answers.stdout else answers.stderr.strip()
        ok = details.get("kmsg") in (None, "readable") and details.get("sysctl") in (None, "writable")
        return Health(ok, details)

    def fault(self) -> str | None:
        """Return why no process holds the FIFO of the kernel log; see :meth:`~..base.Restorable.fault`."""
        code = None if self._holder is None else self._holder.poll()
        return None if code is None else f"the holder of /dev/kmsg {described(code)}"

    def restore(self) -> None:
        """Hold the FIFO again; readers have got its end, and must open it again."""
        self._holder = self._sandbox.spawn(["sh", "-c", KMSG_HOLDER], name="kmsg")

    def _put(self) -> None:
        """Survey the sandbox with one program inside, and add the missing files with another."""
        seen = self._sandbox.run(["sh", "-c", SURVEY]).stdout
        present, listing, links = (part.strip() for part in seen.split("--\n"))
        commands = []
        if self._kmsg and "kmsg" not in present:
            self._holder = self._sandbox.spawn(["sh", "-c", KMSG_HOLDER], name="kmsg")
            commands.append("until test -p /dev/kmsg; do sleep 0.01; done")
        if self._propagation is not None:
            commands.append(PROPAGATION.format(mode=self._propagation))
        if self._sysctl_tree:
            aside = ASIDE if self._over else "/proc/sys"  # no mount covers it
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
                # cAdvisor lists network devices in this folder, which gVisor's sysfs lacks.
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
                # By name: k3s puts the folder of its own runc first in PATH, the sandbox that of its.
                runtimes = {"runc": write_wrapper(folder, inside, "runc")}
                if root_magic(self._sandbox) != V9FS_MAGIC:
                    runtimes["crun"] = write_crun_wrapper(folder, inside, f"{BIN_DIR}/crun")
            self._overrides = NodeOverrides(runtimes=runtimes)

    def _mount_cgroups(self) -> None:
        """Mount each controller of the sandbox's kernel (/proc/cgroups, cgroups(7)) by its name.

        Raises:
            LayerError: The root is not a 9p mount, so the kernel and its cgroups are the machine's.
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
