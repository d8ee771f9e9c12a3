"""How long from a sandbox's start to a Ready node and Running pods, in gVisor and natively."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kubernetes.client import ApiException
from urllib3.exceptions import HTTPError

from pytest_k3s_sandbox.bench import Result, Say
from pytest_k3s_sandbox.bench.podwatch import PodWatch
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import SandboxError
from pytest_k3s_sandbox.node.session import NodeSession, open_session
from pytest_k3s_sandbox.node.spec import NodeSpec
from pytest_k3s_sandbox.report.records import read_run
from pytest_k3s_sandbox.settings import KINDS
from pytest_k3s_sandbox.toolchain import Toolchain

PODS = 10
"""How many pods are made on a node, each when the one before runs."""
PATIENCE = 90.0
LINES = 20
"""How many of the kubelet's error lines are kept of a start that failed."""


@dataclass(frozen=True)
class Start:
    """One cold start.

    Attributes:
        sandbox: The sandbox's kind.
        ready: Seconds from the sandbox's start to the node's Ready; None when it never was.
        pod: Seconds from the first pod's creation to Running; None when it never was.
        phases: Seconds that each step of the bring-up took.
        cadvisor_errors: cAdvisor's error lines in the kubelet's log.
        failure: Why it failed, if it did.
        said: The last error lines of the kubelet's log, if it failed.
        later: The same as ``pod`` of the second to the tenth pod.
    """

    sandbox: str
    ready: float | None
    pod: float | None
    phases: dict[str, float]
    cadvisor_errors: list[str]
    failure: str | None = None
    said: list[str] = field(default_factory=list)
    later: list[float] = field(default_factory=list)


def pod(number: int) -> dict[str, Any]:
    """Return the pod with a number: a small one that waits."""
    return {
        "metadata": {"name": f"bench-{number}"},
        "spec": {"containers": [{"name": "c", "image": "busybox:1.36", "command": ["sleep", "86400"]}]},
    }


def to_running(session: NodeSession, watch: PodWatch, number: int) -> float:
    """Make a pod, and return the seconds from its creation to Running.

    Raises:
        ClusterError: It was not Running after :data:`PATIENCE`.
    """
    asked = time.monotonic()
    made = pod(number)
    name = made["metadata"]["name"]
    session.cluster.core.create_namespaced_pod("default", made)
    session.cluster.wait(
        lambda: name in watch.seen.running, f"pod {number} to be Running", Deadline.after(PATIENCE)
    )
    return watch.seen.running[name] - asked


def cold_start(kind: str, toolchain: Toolchain) -> Start:
    """Start a sandbox with all its layers and a cluster, run pods, end everything.

    A failure is recorded in the result, so that the other starts still count.
    """
    ready = first = None
    later: list[float] = []
    phases: dict[str, float] = {}
    errors: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            began = time.monotonic()
            with open_session(
                NodeSpec(kind), toolchain=toolchain, folder=Path(folder) / "run", experiment="coldstart"
            ) as session:
                cluster = session.cluster
                cluster.node.wait_ready(PATIENCE)
                ready = time.monotonic() - began
                cluster.wait_usable("default", Deadline.after(PATIENCE))
                with PodWatch(cluster.core, "default") as watch:
                    first = to_running(session, watch, 1)
                    later += (to_running(session, watch, number) for number in range(2, PODS + 1))
                errors = [line.text for line in session.readiness.errors("cadvisor")]
                phases = {
                    p.name: p.end - p.start for p in read_run(session.folder).phases if p.end is not None
                }
        except (SandboxError, ApiException, HTTPError) as error:
            if isinstance(error, SandboxError):
                error.log = None  # it is in the folder that ends with this block
            lines = said(Path(folder) / "run")
            return Start(kind, ready, first, phases, errors, str(error), lines, later)
    return Start(kind, ready, first, phases, errors, later=later)


def said(folder: Path) -> list[str]:
    """Return the kubelet's last error lines in a run, as far as they were recorded."""
    try:
        lines = read_run(folder).errors
    except (SandboxError, OSError):
        return []
    return [line.text for line in lines if line.component == "kubelet"][-LINES:]


def measure(count: int, say: Say) -> list[Start]:
    """Make ``count`` cold starts in gVisor and as many natively, in turn.

    Args:
        count: How many of each.
        say: Called with a line for each start.
    """
    toolchain = Toolchain()
    toolchain.provision()
    starts = []
    for number in range(1, count + 1):
        for kind in KINDS:
            start = cold_start(kind, toolchain)
            starts.append(start)
            seconds = "never" if start.ready is None else f"{start.ready:.1f} s"
            pod = "never" if start.pod is None else f"{start.pod:.1f} s"
            more = f", later ones {statistics.median(start.later):.2f} s" if start.later else ""
            say(f"{number}/{count} {kind}: Ready after {seconds}, pod Running after {pod}{more}")
            for line in (*start.cadvisor_errors, *start.said):
                say(f"    {line}")
            if start.failure is not None:
                say(f"    {start.failure}")
    return starts


def distribution(values: Sequence[float]) -> dict[str, float]:
    """Return the quartiles and extremes of values, all in the values' unit."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"min": min(values), "p25": low, "median": middle, "p75": high, "max": max(values)}


def summary(starts: Sequence[Start]) -> dict[str, Any]:
    """Return counts, distributions, and gVisor's medians as ratios to the native ones."""
    result: dict[str, Any] = {"starts": [asdict(start) for start in starts]}
    for kind in KINDS:
        mine = [start for start in starts if start.sandbox == kind]
        ready = [start.ready for start in mine if start.ready is not None]
        first = [start.pod for start in mine if start.pod is not None]
        later = [statistics.median(start.later) for start in mine if start.later]
        result[kind] = {
            "n": len(mine),
            "ready": len(ready),
            "failures": sum(start.failure is not None for start in mine),
            "cadvisor_errors": sum(len(start.cadvisor_errors) for start in mine),
            "seconds_to_ready": distribution(ready) if len(ready) > 1 else None,
            "seconds_to_pod_running": distribution(first) if len(first) > 1 else None,
            "seconds_to_later_pod_running": distribution(later) if len(later) > 1 else None,
        }
    for name in ("seconds_to_ready", "seconds_to_pod_running", "seconds_to_later_pod_running"):
        ours, native = result["gvisor"][name], result["host"][name]
        if ours and native:
            result[f"ratio_of_{name}"] = ours["median"] / native["median"]
    return result


def table(result: dict[str, Any]) -> str:
    """Return the summary as a text table."""
    lines = [f"{'':8} {'n':>3} {'Ready':>5}  {'seconds to Ready':^37}  {'seconds to pod Running':^37}"]
    heads = "".join(f"{name:>7}" for name in ("min", "p25", "median", "p75", "max"))
    lines.append(f"{'':18}  {heads:>37}  {heads:>37}")
    for kind in KINDS:
        mine = result[kind]
        cells = [
            "".join(f"{value:7.1f}" for value in (mine[name] or {}).values())
            for name in ("seconds_to_ready", "seconds_to_pod_running")
        ]
        lines.append(f"{kind:8} {mine['n']:>3} {mine['ready']:>5}  {cells[0]:>37}  {cells[1]:>37}")
    for kind in KINDS:
        cell = "".join(
            f"{value:7.2f}" for value in (result[kind]["seconds_to_later_pod_running"] or {}).values()
        )
        what = f"{kind:8} pods 2 to {PODS}, one after another (medians):"
        lines.append(f"{what:57}  {cell:>37}")
    names = ("ready", "pod_running", "later_pod_running")
    ratios = [result.get(f"ratio_of_seconds_to_{name}") for name in names]
    words = ["unknown" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
    lines.append(f"ratio of the medians, gvisor to here: {', '.join(words[:-1])} and {words[-1]}")
    return "\n".join(lines)


def bench(count: int, say: Say) -> Result:
    """Measure ``count`` cold starts of each kind; a start that failed makes it a failure."""
    result = summary(measure(count, say))
    return Result(result, table(result), ok=not any(result[kind]["failures"] for kind in KINDS))
