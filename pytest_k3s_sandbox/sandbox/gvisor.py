"""A genuine gVisor sandbox whose root and binds are served over 9p."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from pytest_k3s_sandbox.errors import StartError
from pytest_k3s_sandbox.sandbox import agent, groups, oci
from pytest_k3s_sandbox.sandbox.base import V9FS_MAGIC, Bind
from pytest_k3s_sandbox.sandbox.limits import Wanted
from pytest_k3s_sandbox.sandbox.started import StartedSandbox, agent_argv

FLAGS = (
    "--rootless=false",
    "--network=sandbox",
    "--platform=systrap",
    "--overlay2=none",  # an overlay would hide the 9p root, which is the case under study
    "--ignore-cgroups",  # it is started in those that limit it
    "--net-raw",
)


class GvisorSandbox(StartedSandbox):
    """A sandbox of ``runsc run`` with an OCI bundle of its own.

    Args:
        runsc: The runsc program.
        programs: Programs on the machine that appear inside, in ``BIN_DIR``.
        binds: Further files and folders to show.
        one_root: Whether /var is a part of the root, which is writable then: a sandbox with a single 9p
            mount, as the research's was, and not, as usual, with another one for /var.
        opened: TCP ports of the machine that programs inside may reach.
        limits: The limits of its resources on the machine.

    Raises:
        MissingCapability: Not root.
        StartError: It did not start, or its root is not 9p.
    """

    kind: ClassVar[str] = "gvisor"

    def __init__(
        self,
        runsc: Path,
        *,
        programs: Iterable[Path] = (),
        binds: Sequence[Bind] = (),
        one_root: bool = False,
        opened: Sequence[int] = (),
        limits: Wanted | None = None,
    ) -> None:
        """Start it; see the class."""
        self._runsc = runsc
        super().__init__(programs=programs, binds=binds, one_root=one_root, opened=opened, limits=limits)

    def shell_argv(self, argv: Sequence[str]) -> list[str]:
        """Return the command on the machine that runs ``argv`` inside on the caller's terminal."""
        return [*self._runsc_argv(), "exec", self.workdir.name, *argv]

    def _runsc_argv(self) -> list[str]:
        argv = [str(self._runsc), "--root", str(self.workdir / "runsc"), *FLAGS]
        # The machine writes to /var, too; by default gVisor takes the root for its own and caches it.
        return [*argv, "--file-access=shared"] if self.layout.one_root else argv

    def _take(self) -> None:
        """See :meth:`.StartedSandbox._take`."""
        super()._take()
        self._groups = self._take_groups()

    def _launch(self) -> list[str]:
        bundle = oci.config(
            self.layout,
            argv=[*agent_argv(), agent.BY_GROUP],
            hostname=self.name,
            netns=f"/run/netns/{self.network.netns}",
        )
        (self.workdir / "config.json").write_text(json.dumps(bundle, indent=1))
        argv = [*self._runsc_argv(), "run", "--bundle", str(self.workdir), self.workdir.name]
        return groups.joining(self._groups, argv)

    def _assert_genuine(self) -> None:
        magic = self.root_magic()
        if magic != V9FS_MAGIC:
            raise StartError(
                f"the sandbox {self.name} is not the case under study",
                cause=f'statfs("/") gives f_type {magic:#x}, not 9p\'s {V9FS_MAGIC:#x}',
                remedy="use the pinned runsc (`k3s-sandbox provision`)",
            )

    def _program(self) -> str | None:
        return str(self._runsc.absolute())
