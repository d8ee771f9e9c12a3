"""One cluster for all workers of pytest-xdist: the first one that needs it starts it, the last one ends it.

It is kept by a process of its own, so that no worker takes it away from the others, whichever
ends first or is killed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_k3s_sandbox.daemon import endings, registry
from pytest_k3s_sandbox.daemon.clients import Users
from pytest_k3s_sandbox.errors import ClusterError, ConfigError
from pytest_k3s_sandbox.sandbox import locks, machine, processes
from pytest_k3s_sandbox.support import forks

if TYPE_CHECKING:
    from pytest_k3s_sandbox.node.session import NodeSession
    from pytest_k3s_sandbox.node.spec import NodeSpec
    from pytest_k3s_sandbox.toolchain import Toolchain

START_SECONDS = 600.0
"""How long the others wait for the one that starts the cluster; what it does has limits of its own."""


class Share:
    """A worker's part in the cluster that it shares.

    Args:
        run: What all workers of one run of pytest have in common, and others have not.
        report: The folder of runs.
        keep: Whose run folders are kept.
    """

    def __init__(self, run: str, report: Path, keep: str) -> None:
        """Count as a user from now on, whether it will need the cluster or not."""
        self.name = f"share-{run[:8]}"
        self._report = report
        self._keep = keep
        self._up: NodeSession | None = None
        self._owner = forks.Owner()
        machine.private_folder(machine.home() / "shared")
        self.users = Users(machine.home() / "shared" / run)
        self.users.enter()

    def up(self, spec: NodeSpec, toolchain: Toolchain) -> NodeSession:
        """Return the cluster; the first one that asks starts it, and the others wait for that.

        Args:
            spec: What to bring up; the same for all.
            toolchain: Where kubectl comes from.

        Raises:
            ClusterError: It did not come up, or it has ended.
            ConfigError: Somebody else wished for something else.
        """
        if self._up is None:
            from pytest_k3s_sandbox.daemon.attached import attach

            self._up = attach(
                self._state(spec, toolchain.kubernetes), self.users, toolchain.get("kubectl").path
            )
        return self._up

    def _state(self, spec: NodeSpec, version: str | None) -> registry.State:
        wanted = json.loads(json.dumps(asdict(replace(spec, version=version))))
        with self.users.start_lock:
            launched = self._launched() or self._launch(spec, wanted)
        if launched["spec"] != wanted:
            raise ConfigError(
                "a cluster that is shared (--k3s-share)",
                cause=f"one test asks for {launched['spec']}, another one for {wanted}",
                remedy="have one k3s_spec for all tests, or do not share",
            )

        registry.wait_for(
            lambda: registry.read_state(self.name) is not None or _over(launched), START_SECONDS, poll=0.2
        )
        state = registry.read_state(self.name)
        if state is None:
            said = self.users.read("log") or ""
            raise ClusterError(
                "the shared cluster did not come up, or has ended",
                cause=said.strip()[-3000:] or "the process that keeps it has ended",
                log=Path(launched["folder"]),
            )
        why = endings.why(state)
        if why is not None:
            raise ClusterError("the shared cluster has ended", cause=why, log=Path(state.folder))
        return state

    @property
    def ended(self) -> str | None:
        """Why the cluster that this worker uses was ended before its time; None if it was not."""
        found = None if self._up is None else endings.read(self.name)
        return None if found is None else found.why

    def _launched(self) -> dict[str, Any] | None:
        text = self.users.read("launched")
        return None if text is None else dict(json.loads(text))

    def _launch(self, spec: NodeSpec, wanted: dict[str, Any]) -> dict[str, Any]:
        from pytest_k3s_sandbox.daemon import process as keeper
        from pytest_k3s_sandbox.node.session import run_folder

        folder = run_folder(self._report, "test", spec.sandbox, "shared")
        order = keeper.Keep(
            name=self.name,
            origin="shared by workers of pytest-xdist",
            spec=wanted,
            experiment="test",
            folder=str(folder),
            users=str(self.users.folder),
            keep="always" if self._keep == "running" else self._keep,
        )
        process = keeper.launch(order, self.users.folder / "log")
        launched = {
            "name": self.name,
            "pid": process.pid,
            "start": processes.start_time(process.pid),
            "folder": str(folder),
            "users": str(self.users.folder),
            "spec": wanted,
        }
        keeper.disown(process)
        self.users.note("launched", json.dumps(launched))
        return launched

    def leave(self, *, failed: bool) -> dict[str, Any] | None:
        """Count no longer; the cluster ends with its last user.

        Args:
            failed: Whether a test of this worker failed.

        Returns:
            What :func:`wait_ended` takes; None when nobody has started a cluster, and in a forked process.
        """
        if not self._owner.mine:
            return None
        if self._up is not None:
            self._up.writer.close()
            if failed:
                self.users.note("failed")
                if self._keep == "running":
                    self.users.note("stay")
        launched = self._launched()
        self.users.leave()
        if launched is None:  # there is no process that would remove the folder with its cluster
            with contextlib.ExitStack() as last:
                if self.users.gone(last):
                    last.callback(self.users.remove)
        return launched


def _over(launched: Mapping[str, Any]) -> bool:
    """Tell whether the process that keeps the cluster has ended."""
    start = launched["start"]  # None when it had ended at once
    return start is None or bool(processes.start_time(launched["pid"]) != start)


def wait_ended(launched: Mapping[str, Any]) -> bool:
    """Wait until a shared cluster has ended after its last user; return False if it goes on instead.

    Args:
        launched: What :meth:`Share.leave` returned.
    """
    users = Users(Path(launched["users"]))
    registry.wait_for(lambda: _over(launched) or users.stay, registry.END_SECONDS)
    return _over(launched)


def sweep() -> None:
    """Remove what workers left that were killed together with the process that kept their cluster."""
    for folder in (machine.home() / "shared").glob("*"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if folder.is_symlink() or not (folder / "users").is_file():
                continue
            users = Users(folder)
            launched = json.loads(users.read("launched") or "null")
            if launched is not None and (
                not _over(launched) or locks.held(registry.lock_file(registry.check_name(launched["name"])))
            ):
                continue
            with contextlib.ExitStack() as last:
                if users.gone(last):
                    last.callback(users.remove)
