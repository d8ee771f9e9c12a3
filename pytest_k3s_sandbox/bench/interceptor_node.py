"""The processor time of the kubelet's and containerd's tracers, with one pod and while pods come and go."""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_k3s_sandbox.bench import Say
from pytest_k3s_sandbox.cluster.answers import found
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import ClusterError
from pytest_k3s_sandbox.layers.interceptor.layer import ROLES
from pytest_k3s_sandbox.node.session import NodeSession, open_session
from pytest_k3s_sandbox.node.spec import NodeSpec
from pytest_k3s_sandbox.toolchain import Toolchain

PODS = 50
AT_ONCE = 5
IDLE_SECONDS = 60.0
PATIENCE = 90.0
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(stat: str) -> float:
    """Return user and system time of a process, from the content of /proc/PID/stat (proc_pid_stat(5))."""
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def tracers_cpu(session: NodeSession) -> dict[str, float]:
    """Return the seconds of CPU that each role's tracer has used: it is the process that was started."""
    pids = [str(session.cluster.processes[role].pid) for role in ROLES]
    stats = session.stack.sandbox.run(["cat", *(f"/proc/{pid}/stat" for pid in pids)]).stdout.splitlines()
    return {role: cpu_seconds(stat) for role, stat in zip(ROLES, stats, strict=True)}


def _spent(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    return {role: after[role] - before[role] for role in after}


def _pod(name: str) -> dict[str, Any]:
    container = {"name": "c", "image": "busybox:1.36", "command": ["sleep", "86400"]}
    return {
        "metadata": {"name": name},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 0},
    }


def start(session: NodeSession, names: list[str]) -> list[str]:
    """Start pods side by side; return those that were not Running in time."""
    core = session.cluster.core
    for name in names:
        core.create_namespaced_pod("default", _pod(name))
    waiting = set(names)

    def running() -> bool:
        pods = core.list_namespaced_pod("default").items
        waiting.difference_update(pod.metadata.name for pod in pods if pod.status.phase == "Running")
        return not waiting

    try:
        session.cluster.wait(running, f"pods {', '.join(names)} to run", Deadline.after(PATIENCE))
    except ClusterError:
        if not waiting:
            raise
    return sorted(waiting)


def stop(session: NodeSession, names: list[str]) -> None:
    """Delete pods and wait until they are gone."""
    core = session.cluster.core
    for name in names:
        core.delete_namespaced_pod(name, "default")

    def gone() -> bool:
        reads = [functools.partial(core.read_namespaced_pod, name, "default") for name in names]
        return all(found(read) is None for read in reads)

    session.cluster.wait(gone, f"pods {', '.join(names)} to be gone", Deadline.after(PATIENCE))


def measure(toolchain: Toolchain, say: Say) -> dict[str, Any]:
    """Bring a node up in gVisor with every layer, and read its tracers' CPU.

    Args:
        toolchain: Where the programs come from.
        say: Told how it goes.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        open_session(
            NodeSpec("gvisor"), toolchain=toolchain, folder=Path(folder) / "run", experiment="bench"
        ) as session,
    ):
        session.cluster.node.wait_ready(PATIENCE)
        session.cluster.wait_usable("default", Deadline.after(PATIENCE))
        failed = start(session, ["idle"])
        time.sleep(10)  # the start's own work is over
        before, began = tracers_cpu(session), time.monotonic()
        time.sleep(IDLE_SECONDS)
        idle, seconds = _spent(before, tracers_cpu(session)), time.monotonic() - began
        say(f"node: {sum(idle.values()):.2f} s of the tracers' CPU in {seconds:.0f} s with 1 pod")
        before = tracers_cpu(session)
        began = time.monotonic()
        for first in range(0, PODS, AT_ONCE):
            names = [f"pod-{number}" for number in range(first, min(first + AT_ONCE, PODS))]
            failed += start(session, names)
            stop(session, names)
            say(f"node: {first + len(names)}/{PODS} pods started and stopped")
        busy, busy_seconds = _spent(before, tracers_cpu(session)), time.monotonic() - began
    baseline = sum(idle.values()) / seconds * busy_seconds
    return {
        "seconds": seconds,
        "idle": idle,
        "percent_of_a_core": 100 * sum(idle.values()) / seconds,
        "pods": PODS,
        "at_once": AT_ONCE,
        "busy": busy,
        "busy_seconds": busy_seconds,
        "seconds_a_pod": sum(busy.values()) / PODS,
        "seconds_a_pod_above_idle": (sum(busy.values()) - baseline) / PODS,
        "failed": len(failed),
    }
