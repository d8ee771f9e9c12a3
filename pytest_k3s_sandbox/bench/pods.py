"""Thirty pods at once on one node, and thirty one after another: how long, and at what price."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from kubernetes.client import ApiException
from urllib3.exceptions import HTTPError

from pytest_k3s_sandbox.bench import Result, Say
from pytest_k3s_sandbox.bench.pods_figures import CASES, OURS, PODS, Crowd, records, summary, table
from pytest_k3s_sandbox.bench.podwatch import PodWatch
from pytest_k3s_sandbox.bench.spending import (
    AGENT,
    SHIM,
    Snapshot,
    between,
    in_stat,
    programs,
    with_cni,
)
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import SandboxError
from pytest_k3s_sandbox.lab.churn import pod
from pytest_k3s_sandbox.node.runtime import provision
from pytest_k3s_sandbox.node.session import NodeSession, open_session
from pytest_k3s_sandbox.node.spec import NodeSpec
from pytest_k3s_sandbox.toolchain import Toolchain

PATIENCE = 300.0
NAMESPACE = "default"
CNI_LAYER, CNI_CALLS = "fake_cni", 4
"""The layer whose check calls the CNI plugin, and how often one check does."""


def snapshot(session: NodeSession) -> Snapshot:
    """Return what everything in the sandbox has used so far, ended processes too.

    Raises:
        SandboxError: The sandbox has ended.
    """
    sandbox = session.stack.sandbox
    tracers = {session.cluster.processes[name].pid for name in session.runner.distribution.traced}
    inside = None
    if sandbox.kind == "gvisor":
        inside = in_stat(sandbox.run(["head", "-n1", "/proc/stat"]).stdout)
    return Snapshot(sandbox.processor_seconds(), inside, programs(sandbox.usage(), tracers))


def left(session: NodeSession) -> tuple[str, ...]:
    """Return what deleted pods leave on a node for good; the kubelet cleans up after it has told the API."""
    end = Deadline.after(30)
    while (found := remains(session)) and not end.expired:
        time.sleep(0.5)
    return found


def remains(session: NodeSession) -> tuple[str, ...]:
    """Return the remains of deleted pods at this moment: shims, network namespaces, folders."""
    shims = [f"process {row.name}" for row in session.stack.sandbox.usage() if row.name.startswith(SHIM)]
    look = "ls -d /run/netns/* /var/lib/kubelet/pods/* /run/containerd/io.containerd.runtime.v2.task/k8s.io/*"
    paths = session.stack.sandbox.run(["sh", "-c", f"{look} 2>/dev/null"], check=False).stdout.split()
    return (*shims, *paths)


def crowd(session: NodeSession, watch: PodWatch, count: int = PODS) -> Crowd:
    """Make pods at once on a Ready node, wait until all are Ready, delete them at once, wait for their end.

    Args:
        session: The node.
        watch: Sees the pods.
        count: How many.

    Raises:
        ClusterError: They were not Ready, or not gone, after :data:`PATIENCE`.
    """
    cluster, core, seen = session.cluster, session.cluster.core, watch.seen
    names = [f"crowd-{number:02}" for number in range(count)]
    before, began = snapshot(session), time.monotonic()
    for name in names:
        core.create_namespaced_pod(NAMESPACE, pod(name))
    cluster.wait(
        lambda: seen.ready.keys() >= set(names),
        f"{count} pods to be Ready",
        Deadline.after(PATIENCE),
        lambda: f"{len(seen.ready)} of {count} are",
    )
    to_ready = snapshot(session)
    deleted = time.monotonic()
    core.delete_collection_namespaced_pod(NAMESPACE)
    cluster.wait(lambda: seen.gone.keys() >= set(names), f"{count} pods to be gone", Deadline.after(PATIENCE))
    kept = left(session)
    times = sorted(seen.ready[name] - began for name in names)
    return Crowd(
        session.stack.sandbox.kind,
        ready=times[-1],
        gone=max(seen.gone[name] for name in names) - deleted,
        firsts=times[(count - 1) // 2],
        left=kept,
        spent=between(before, to_ready),
        whole=between(before, snapshot(session)),
    )


def one_by_one(session: NodeSession, watch: PodWatch, count: int = PODS) -> tuple[float, ...]:
    """Make pods one after another, each when the one before is gone.

    Args:
        session: The node.
        watch: Sees the pods.
        count: How many.

    Returns:
        The seconds from each one's creation until it was Ready.

    Raises:
        ClusterError: One was not Ready, or not gone, after :data:`PATIENCE`.
    """
    core, seen = session.cluster.core, watch.seen
    times = []
    for number in range(count):
        name = f"single-{number:02}"
        began = time.monotonic()
        core.create_namespaced_pod(NAMESPACE, pod(name))
        _until(session, name, seen.ready, "Ready")
        times.append(seen.ready[name] - began)
        core.delete_namespaced_pod(name, NAMESPACE)
        _until(session, name, seen.gone, "gone")
    return tuple(times)


def cni_seconds(session: NodeSession) -> float:
    """Return what a call of the CNI plugin takes, by the count inside: the mean of the calls of a check.

    What containerd waited for is one number, of the plugin and of the programs that start shims. The layer's
    check makes process 1 call the plugin.

    Raises:
        SandboxError: The sandbox has ended.
    """
    left(session)  # process 1 waits for shims, too
    layer = next((each for each in session.stack.layers if each.name == CNI_LAYER), None)
    if layer is None:
        return 0.0

    def waited() -> float:
        return sum(row.waited_seconds for row in session.stack.sandbox.usage() if row.pid == AGENT)

    before = waited()
    layer.check()
    return (waited() - before) / CNI_CALLS


def measured(session: NodeSession) -> Crowd:
    """Look at one crowd, and at pods one after another, on a node that is Ready."""
    with PodWatch(session.cluster.core, NAMESPACE) as watch:
        found = crowd(session, watch)
        found = replace(found, singles=one_by_one(session, watch))
    if found.spent is None:
        return found
    return replace(found, spent=with_cni(found.spent, PODS * cni_seconds(session)))


def run(kind: str, runtime: str, toolchain: Toolchain) -> Crowd:
    """Bring a node up, and measure on it. A failure is recorded in the result."""
    spec = NodeSpec(kind, runtime=runtime)
    with tempfile.TemporaryDirectory() as folder:
        try:
            with open_session(
                spec, toolchain=toolchain, folder=Path(folder) / "run", experiment="pods"
            ) as session:
                session.cluster.node.wait_ready(PATIENCE)
                session.cluster.wait_usable(NAMESPACE, Deadline.after(PATIENCE))
                return replace(measured(session), runtime=runtime)
        except (SandboxError, ApiException, HTTPError) as error:
            if isinstance(error, SandboxError):
                error.log = None  # it is in the folder that ends with this block
            return Crowd(kind, runtime, failure=str(error))


def _until(session: NodeSession, name: str, seen: Mapping[str, float], what: str) -> None:
    session.cluster.wait(lambda: name in seen, f"pod {name} to be {what}", Deadline.after(PATIENCE))


def bench(count: int, say: Say) -> Result:
    """Make ``count`` crowds of each of :data:`.CASES`, in turn, each on a node of its own."""
    toolchain = Toolchain()
    provision(NodeSpec(runtime=OURS[1]), toolchain)
    crowds = []
    for number in range(1, count + 1):
        for kind, runtime in CASES:
            one = run(kind, runtime, toolchain)
            crowds.append(one)
            say(f"{number}/{count} {kind} with {runtime}: {one.words}")
            for each in one.left[:5]:
                say(f"    left: {each}")
    result = summary(crowds)
    ok = all(one.failure is None for one in crowds)
    return Result(result, table(result), ok=ok, records=records(crowds, result))
