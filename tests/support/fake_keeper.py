"""What stands for a kept cluster in tests of sharing: a process like the real one, around nothing."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pytest_k3s_sandbox.daemon import endings, process, registry
from pytest_k3s_sandbox.daemon.clients import Clients
from pytest_k3s_sandbox.report.finalize import finalize
from pytest_k3s_sandbox.report.records import Environment, Event, EventKind, Machine, RunWriter, Sample
from pytest_k3s_sandbox.sandbox.processes import Identity


def launch(order: process.Keep, log: Path) -> subprocess.Popen[bytes]:
    """Start this file instead of the real keeper."""
    with log.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, __file__, json.dumps(vars(order))],
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


def note(line: str) -> None:
    """Append a line to the journal of the fake node."""
    with Path("journal.txt").open("a") as file:
        file.write(f"{line}\n")


def main(order: dict[str, Any]) -> None:
    """Keep nothing, as ordered."""
    note("shared cluster up")
    clients, folder = Clients(Path(order["clients"])), Path(order["folder"])
    if order["spec"]["api_port"] == 6666:
        sys.exit("it broke")
    own = asdict(Identity.own())
    with contextlib.ExitStack() as last:
        with RunWriter(folder) as writer:
            writer.append(
                Environment(
                    experiment=order["experiment"],
                    sandbox="gvisor",
                    root_magic=None,
                    kernel=None,
                    layers=("fake_cni",),
                    python="3",
                    project_version="0",
                    started="2026-01-01T00:00:00+00:00",
                    argv=("pytest",),
                    machine=Machine(cores=1, memory_bytes=1),
                )
            )
            fields = {"name": order["name"], "origin": order["origin"], "folder": str(folder)}
            fields |= {"kubeconfig": "/none", "shell": ["env"], "sandbox": "fake", "kind": "gvisor"}
            fields |= {"address": "192.0.2.1", "api_port": 6443, "node": "n", "layers": ["fake_cni"]}
            state = registry.State.of({**fields, **own, "processes": {"kubelet": 7}, "zero": writer.zero})
            if why := os.environ.get("FAKE_KUBELET_ENDS"):
                for kind in (EventKind.FAULT, EventKind.RESTART):
                    writer.append(Event(t=writer.now(), kind=kind, what=why, component="kubelet"))
            writer.append(Sample(t=writer.now(), node_ready=True, api_reachable=True))
            registry.write_state(state)
            while not clients.gone(last):
                if (limit := os.environ.get("FAKE_LIMIT")) and len(list(Path.cwd().glob("began-*"))) > 1:
                    endings.note(state, limit)
                time.sleep(0.1)
            if clients.stay:
                note("shared cluster stays")
                os._exit(0)
            last.callback(clients.remove)
            registry.state_file(order["name"]).unlink()
            endings.forget(order["name"])
        finalize(folder, keep=order["keep"], failed=clients.read("failed") is not None)
        note("shared cluster down")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
