"""One cluster for all workers of pytest-xdist.

The first worker that needs the cluster starts it. A daemon process keeps it, so it survives the end of that
worker. The cluster ends with its last client.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_k3s_sandbox.daemon import endings, registry
from pytest_k3s_sandbox.daemon.clients import Clients
from pytest_k3s_sandbox.errors import ClusterError, ConfigError
from pytest_k3s_sandbox.sandbox import locks, machine, processes
from pytest_k3s_sandbox.support import forks

if TYPE_CHECKING:
    from pytest_k3s_sandbox.node.session import NodeSession
    from pytest_k3s_sandbox.node.spec import NodeSpec
    from pytest_k3s_sandbox.toolchain import Toolchain

START_SECONDS = 600.0
"""How long workers wait for the worker that starts the cluster."""


class Share:
    """A worker's part in the cluster that it shares.

    Args:
        run: The id of the pytest run, the same in all workers.
        report: The folder of runs.
        keep: Which run folders are kept.
    """

    def __init__(self, run: str, report: Path, keep: str) -> None:
        """Become a client of the cluster, even before the worker needs it."""
        self.name = f"share-{run[:8]}"
        self._report = report
        self._keep = keep
        self._up: NodeSession | None = None
        self._owner = forks.Owner()
        machine.private_folder(machine.home() / "shared")
        self.clients = Clients(machine.home() / "shared" / run)
        self.clients.enter()

    def up(self, spec: NodeSpec, toolchain: Toolchain) -> NodeSession:
        """Return the cluster; the first caller starts it, and the others wait for the start.

        Args:
            spec: The specification of the node, the same in all workers.
            toolchain: The source of kubectl.

        Raises:
            ClusterError: The cluster did not come up, or has ended.
            ConfigError: Another worker started it with another specification.
        """
        if self._up is None:
            from pytest_k3s_sandbox.daemon.attached import attach

            self._up = attach(
                self._state(spec, toolchain.kubernetes), self.clients, toolchain.get("kubectl").path
            )
        return self._up

    def _state(self, spec: NodeSpec, version: str | None) -> registry.State:
        wanted = json.loads(json.dumps(asdict(replace(spec, version=version))))
        with self.clients.start_lock:
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
            said = self.clients.read("log") or ""
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
        """The reason why the worker's cluster was ended early; None if it was not."""
        found = None if self._up is None else endings.read(self.name)
        return None if found is None else found.why

    def _launched(self) -> dict[str, Any] | None:
        text = self.clients.read("launched")
        return None if text is None else dict(json.loads(text))

    def _launch(self, spec: NodeSpec, wanted: dict[str, Any]) -> dict[str, Any]:
        from pytest_k3s_sandbox.daemon import process as daemon
        from pytest_k3s_sandbox.node.session import run_folder

        folder = run_folder(self._report, "test", spec.sandbox, "shared")
        order = daemon.Keep(
            name=self.name,
            origin="shared by workers of pytest-xdist",
            spec=wanted,
            experiment="test",
            folder=str(folder),
            clients=str(self.clients.folder),
            keep="always" if self._keep == "running" else self._keep,
        )
        process = daemon.launch(order, self.clients.folder / "log")
        launched = {
            "name": self.name,
            "pid": process.pid,
            "start": processes.start_time(process.pid),
            "folder": str(folder),
            "users": str(self.clients.folder),
            "spec": wanted,
        }
        daemon.disown(process)
        self.clients.note("launched", json.dumps(launched))
        return launched

    def leave(self, *, failed: bool) -> dict[str, Any] | None:
        """Stop counting as a client; the cluster ends with its last client.

        Args:
            failed: Whether a test of this worker failed.

        Returns:
            The argument of :func:`wait_ended`; None when no cluster was started, and in a forked process.
        """
        if not self._owner.mine:
            return None
        if self._up is not None:
            self._up.writer.close()
            if failed:
                self.clients.note("failed")
                if self._keep == "running":
                    self.clients.note("stay")
        launched = self._launched()
        self.clients.leave()
        if launched is None:  # no daemon process will remove the folder
            with contextlib.ExitStack() as last:
                if self.clients.gone(last):
                    last.callback(self.clients.remove)
        return launched


def _over(launched: Mapping[str, Any]) -> bool:
    """Return whether the process that keeps the cluster has ended."""
    start = launched["start"]  # None if the process ended at once
    return start is None or bool(processes.start_time(launched["pid"]) != start)


def wait_ended(launched: Mapping[str, Any]) -> bool:
    """Wait until a shared cluster has ended after its last client; return False if it goes on.

    Args:
        launched: The result of :meth:`Share.leave`.
    """
    clients = Clients(Path(launched["users"]))
    registry.wait_for(lambda: _over(launched) or clients.stay, registry.END_SECONDS)
    return _over(launched)


def remove_stale_folders() -> None:
    """Remove the folders of runs whose workers and daemon process were killed."""
    for folder in (machine.home() / "shared").glob("*"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if folder.is_symlink() or not (folder / "users").is_file():
                continue
            clients = Clients(folder)
            launched = json.loads(clients.read("launched") or "null")
            if launched is not None and (
                not _over(launched) or locks.held(registry.lock_file(registry.check_name(launched["name"])))
            ):
                continue
            with contextlib.ExitStack() as last:
                if clients.gone(last):
                    last.callback(clients.remove)
