"""Thirty pods at once on one node: how long until all are Ready, and until all are gone."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from kubernetes.client import ApiException
from urllib3.exceptions import HTTPError

from pytest_k3s_sandbox.bench import Result, Say
from pytest_k3s_sandbox.cluster.reading import is_ready
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import SandboxError
from pytest_k3s_sandbox.lab.churn import pod
from pytest_k3s_sandbox.node.session import NodeSession, open_session
from pytest_k3s_sandbox.node.spec import NodeSpec
from pytest_k3s_sandbox.report.records import Measurement, Verdict
from pytest_k3s_sandbox.settings import KINDS
from pytest_k3s_sandbox.toolchain import Toolchain

PODS = 30
READY_SECONDS, GONE_SECONDS, RATIO = 90.0, 60.0, 2.0
"""The targets: all Ready, all gone, and Ready in gVisor as a multiple of natively."""
PATIENCE = 300.0
NAMESPACE = "default"
SHIM = "containerd-shim"


@dataclass(frozen=True)
class Crowd:
    """Pods that were made at once and deleted at once.

    Attributes:
        sandbox: The sandbox's kind.
        ready: Seconds from the first one's creation until all were Ready; None when they never were.
        gone: Seconds from the first one's deletion until the API had none; None when it still had some.
        firsts: Seconds until half of them were Ready.
        left: Their remains on the node afterwards.
        cpu: Seconds of processor time by program or layer, from the first creation to all Ready.
        failure: Why it could not be measured, if so.
    """

    sandbox: str
    ready: float | None = None
    gone: float | None = None
    firsts: float | None = None
    left: tuple[str, ...] = ()
    cpu: Mapping[str, float] | None = None
    failure: str | None = None


def spent(session: NodeSession) -> dict[str, float]:
    """Return the seconds of processor time of everything in the sandbox that runs, by name."""
    totals: dict[str, float] = {}
    traced = {session.cluster.processes[name].pid for name in session.runner.distribution.traced}
    for row in session.stack.sandbox.usage():
        name = f"{row.name}'s tracer" if row.pid in traced else row.name
        totals[name] = totals.get(name, 0.0) + row.cpu_seconds
    return totals


def left(session: NodeSession) -> tuple[str, ...]:
    """Return the remains of deleted pods on a node: shims, network namespaces, groups, folders."""
    shims = [f"process {row.name}" for row in session.stack.sandbox.usage() if row.name.startswith(SHIM)]
    look = "ls -d /run/netns/* /var/lib/kubelet/pods/* /run/containerd/io.containerd.runtime.v2.task/k8s.io/*"
    paths = session.stack.sandbox.run(["sh", "-c", f"{look} 2>/dev/null"], check=False).stdout.split()
    return (*shims, *paths)


def crowd(session: NodeSession, count: int = PODS) -> Crowd:
    """Make pods at once on a Ready node, wait until all are Ready, delete them at once, wait for their end.

    Args:
        session: The node.
        count: How many.

    Raises:
        ClusterError: They were not Ready, or not gone, after :data:`PATIENCE`.
    """
    cluster, core = session.cluster, session.cluster.core
    names = [f"crowd-{number:02}" for number in range(count)]
    ready: set[str] = set()
    firsts = 0.0
    before, began = spent(session), time.monotonic()

    def look() -> bool:
        nonlocal firsts
        ready.update(
            one.metadata.name
            for one in core.list_namespaced_pod(NAMESPACE).items
            if is_ready(one.status.conditions)
        )
        if not firsts and 2 * len(ready) >= count:
            firsts = time.monotonic() - began
        return len(ready) == count

    for name in names:
        core.create_namespaced_pod(NAMESPACE, pod(name))
    cluster.wait(
        look, f"{count} pods to be Ready", Deadline.after(PATIENCE), lambda: f"{len(ready)} of {count} are"
    )
    to_ready = time.monotonic() - began
    cpu = {name: round(used - before.get(name, 0.0), 2) for name, used in spent(session).items()}
    began = time.monotonic()
    core.delete_collection_namespaced_pod(NAMESPACE)
    cluster.wait(
        lambda: not core.list_namespaced_pod(NAMESPACE).items,
        f"{count} pods to be gone",
        Deadline.after(PATIENCE),
    )
    gone = time.monotonic() - began
    end = Deadline.after(30)  # the kubelet cleans up after it has told the API
    while (remains := left(session)) and not end.expired:
        time.sleep(0.5)
    return Crowd(session.stack.sandbox.kind, to_ready, gone, firsts, remains, cpu)


def run(kind: str, toolchain: Toolchain) -> Crowd:
    """Bring a node up, and look at one crowd on it. A failure is recorded in the result."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with open_session(
                NodeSpec(kind), toolchain=toolchain, folder=Path(folder) / "run", experiment="pods"
            ) as session:
                session.cluster.node.wait_ready(PATIENCE)
                session.cluster.wait_usable(NAMESPACE, Deadline.after(PATIENCE))
                return crowd(session)
        except (SandboxError, ApiException, HTTPError) as error:
            if isinstance(error, SandboxError):
                error.log = None  # it is in the folder that ends with this block
            return Crowd(kind, failure=str(error))


def summary(crowds: Sequence[Crowd]) -> dict[str, Any]:
    """Return the medians by kind, their ratios, and every crowd."""
    result: dict[str, Any] = {"pods": PODS, "crowds": [asdict(each) for each in crowds]}
    for kind in KINDS:
        mine = [each for each in crowds if each.sandbox == kind]
        fine = [each for each in mine if each.ready is not None and each.gone is not None]
        result[kind] = {
            "n": len(mine),
            "failures": len(mine) - len(fine),
            "left": sum(len(each.left) for each in mine),
            **{name: _median(fine, attrgetter(name)) for name in ("ready", "gone")},
        }
    for name in ("ready", "gone"):
        ours, native = result["gvisor"][name], result["host"][name]
        result[f"ratio_{name}"] = None if ours is None or not native else ours / native
    return result


def records(crowds: Sequence[Crowd], result: Mapping[str, Any]) -> tuple[Measurement | Verdict, ...]:
    """Return the measurements and the targets as a report shows them."""
    found: list[Measurement | Verdict] = []
    for kind in KINDS:
        fine = [each for each in crowds if each.sandbox == kind and each.failure is None]
        for name in ("ready", "gone"):
            values = [getattr(each, name) for each in fine]
            if values:
                found.append(Measurement.of(f"pods-{name}-{kind}", values, "s"))
    for name, measured, limit, unit in (
        ("ready", result["gvisor"]["ready"], READY_SECONDS, "s"),
        ("gone", result["gvisor"]["gone"], GONE_SECONDS, "s"),
        ("ratio", result["ratio_ready"], RATIO, ""),
    ):
        held = measured is not None and measured <= limit
        text = TEXTS[name]
        value = None if measured is None else round(measured, 2)
        found.append(
            Verdict(name=f"pods-{name}", text=text, held=held, measured=value, limit=limit, unit=unit)
        )
    return tuple(found)


TEXTS = {
    "ready": f"{PODS} pods made at once in gVisor are Ready within {READY_SECONDS:g} s",
    "gone": f"{PODS} pods deleted at once in gVisor are gone within {GONE_SECONDS:g} s",
    "ratio": f"{PODS} pods made at once take at most {RATIO:g} times as long in gVisor as natively",
}


def table(result: Mapping[str, Any]) -> str:
    """Return the summary as a text table."""
    lines = [f"{'':8} {'n':>3} {'Ready':>8} {'gone':>8} {'left':>5}   (medians, seconds; {PODS} pods)"]
    for kind in KINDS:
        mine = result[kind]
        lines.append(
            f"{kind:8} {mine['n']:>3} {_cell(mine['ready'])} {_cell(mine['gone'])} {mine['left']:>5}"
        )
    lines.append(f"{'ratio':8} {'':>3} {_cell(result['ratio_ready'], 2)} {_cell(result['ratio_gone'], 2)}")
    return "\n".join(lines)


def _cell(value: float | None, digits: int = 1) -> str:
    return f"{'never':>8}" if value is None else f"{value:8.{digits}f}"


def _median(crowds: Sequence[Crowd], of: Callable[[Crowd], float]) -> float | None:
    return statistics.median(map(of, crowds)) if crowds else None


def bench(count: int, say: Say) -> Result:
    """Make ``count`` crowds in gVisor and as many natively, in turn, each on a node of its own."""
    toolchain = Toolchain()
    toolchain.provision()
    crowds = []
    for number in range(1, count + 1):
        for kind in KINDS:
            one = run(kind, toolchain)
            crowds.append(one)
            say(
                f"{number}/{count} {kind}: "
                + (one.failure or f"Ready {one.ready:.1f} s, gone {one.gone:.1f} s")
            )
            busiest = sorted((one.cpu or {}).items(), key=lambda item: -item[1])[:6]
            say("    " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in busiest))
            for each in one.left[:5]:
                say(f"    left: {each}")
    result = summary(crowds)
    ok = not any(result[kind]["failures"] for kind in KINDS)
    return Result(result, table(result), ok=ok, records=records(crowds, result))
