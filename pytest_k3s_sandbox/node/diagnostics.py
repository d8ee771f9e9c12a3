"""Diagnostics of a bring-up that fails: logs, mounts, cgroups, processes, API objects."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from pytest_k3s_sandbox.cluster.cluster import Cluster
from pytest_k3s_sandbox.cluster.logs import copy_logs
from pytest_k3s_sandbox.cluster.reading import ApiUnavailable
from pytest_k3s_sandbox.errors import SandboxError
from pytest_k3s_sandbox.sandbox.base import Reachable, Sandbox
from pytest_k3s_sandbox.support import escaping


@contextlib.contextmanager
def explained(sandbox: Sandbox, folder: Path) -> Iterator[None]:
    """If the enclosed bring-up fails, write diagnostics to a folder and name the folder in the error."""
    try:
        yield
    except SandboxError as error:
        look_inside(sandbox, folder)
        error.log = folder
        raise


def diagnose(cluster: Cluster, folder: Path) -> None:
    """Write diagnostics of a cluster to a folder: logs, mounts, cgroups, processes, API objects."""
    look_inside(cluster.sandbox, folder)
    objects: dict[str, object] = {}
    with contextlib.closing(cluster.reader()) as api:
        for kind in ("nodes", "pods", "events") if cluster.lost is None else ():  # it would time out
            try:
                objects[kind] = found = api.items(f"/api/v1/{kind}")
            except ApiUnavailable as error:
                objects[kind] = str(error)
            else:
                for each in found:
                    each["metadata"].pop("managedFields", None)  # long, and does not show causes
    (folder / "diagnostics" / "objects.json").write_text(json.dumps(objects, indent=1))


def look_inside(sandbox: Reachable, folder: Path) -> None:
    """Write the sandbox's logs, mounts, cgroups and processes to a folder."""
    copy_logs(sandbox, folder)
    inside = {
        "mountinfo.txt": ["cat", "/proc/self/mountinfo"],
        "cgroups.txt": ["sh", "-c", "cat /proc/self/cgroup; find /sys/fs/cgroup -maxdepth 3 -type d"],
        "processes.txt": ["sh", "-c", "ps -eo pid,ppid,stat,rss,time,args 2>&1"],
    }
    target = folder / "diagnostics"
    target.mkdir(exist_ok=True)
    for name, argv in inside.items():
        with contextlib.suppress(SandboxError):
            said = sandbox.run(argv, check=False, timeout=10).stdout
            (target / name).write_text(escaping.visible(said))
