"""Experiment 08: with every layer together, is the worker node stable?

The claims are the research's targets. Each is measured on a node in a genuine sandbox,
recorded, and only then asserted, so that a claim that does not hold is in the report, too.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_k3s_sandbox.cluster.answers import found
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.pytestplugin.stash import SETTINGS
from pytest_k3s_sandbox.report.records import Event, read_run
from pytest_k3s_sandbox.report.wording import root_name
from pytest_k3s_sandbox.sandbox.base import V9FS_MAGIC, root_magic
from pytest_k3s_sandbox.support import clock

if TYPE_CHECKING:
    from pytest_k3s_sandbox.cluster.cluster import Cluster, Node
    from pytest_k3s_sandbox.cluster.sampler import Sampler
    from pytest_k3s_sandbox.node.session import NodeSession
    from pytest_k3s_sandbox.pytestplugin.recording import Claim

pytestmark = [pytest.mark.exp08, pytest.mark.k3s_requires("root", "fuse", "ptrace")]

READY_SECONDS = 30
POD_SECONDS = 10
GONE_SECONDS = 40
STATS_SECONDS = (
    30  # cAdvisor's housekeeping comes round every 10 s; a new pod's statistics cannot be there before
)
OVERTIME = 3  # how many times a limit is waited for, so that the report says by how much it was missed
YOUNG_LINES = 2  # how often a container may be too young to have statistics

POD = {
    "metadata": {"name": "hello"},
    "spec": {
        "terminationGracePeriodSeconds": 5,
        "containers": [
            {
                "name": "hello",
                "image": "busybox:1.36",
                "command": ["sh", "-c", "trap 'exit 0' TERM; echo hello from $HOSTNAME; sleep 86400 & wait"],
                "readinessProbe": {"exec": {"command": ["true"]}, "periodSeconds": 1},
            }
        ],
    },
}


@pytest.fixture(scope="module")
def pod(k3s_session: NodeSession, k3s: Cluster, k3s_node: Node) -> Iterator[dict[str, Any]]:
    """A pod with its service account token, in a namespace of its own, and when it was asked for."""
    assert k3s_node.ready
    with k3s.namespace("exp08") as namespace:
        asked = clock.monotonic()
        k3s_session.writer.append(
            Event(t=k3s_session.writer.now(), kind="pod-created", what=f"{namespace}/hello")
        )
        k3s.core.create_namespaced_pod(namespace, POD)
        yield {"namespace": namespace, "asked": asked}


@pytest.mark.timeout(180)
def test_root_is_9p(k3s_session: NodeSession, k3s_claim: Claim) -> None:
    """The sandbox is the case under study: statfs says 9p for its root, without any layer's help."""
    magic = root_magic(k3s_session.stack.sandbox)
    if k3s_session.stack.sandbox.kind == "host" and magic != V9FS_MAGIC:
        pytest.skip(
            f"not applicable: the root of this machine is {root_name(magic)}; this run is the control"
        )
    k3s_claim(
        "root-9p", 'statfs("/") in the sandbox gives 9p', magic == V9FS_MAGIC, hex(magic), hex(V9FS_MAGIC)
    )


@pytest.mark.timeout(180)
def test_layers_are_healthy(k3s_session: NodeSession, k3s_claim: Claim) -> None:
    """Every layer passes its check while the cluster runs."""
    with k3s_claim.together() as claim, contextlib.ExitStack() as opened:
        open_claims = {
            name: opened.enter_context(claim.of(f"layer-{name}", f"The layer {name} is healthy"))
            for name in k3s_session.stack.names
        }
        for name, health in k3s_session.stack.check().items():
            details = ", ".join(f"{key}: {value}" for key, value in health.details.items())
            open_claims[name].judge(health.ok, details)


@pytest.mark.timeout(180)
def test_node_becomes_ready(
    k3s_session: NodeSession, k3s: Cluster, k3s_readiness: Sampler, k3s_claim: Claim, timeout_scale: float
) -> None:
    """The node is Ready within 30 s of the sandbox's start."""
    limit = READY_SECONDS * timeout_scale
    metrics = read_run(k3s_session.folder).metrics
    text = f"The node is Ready within {limit:g} s of " + (
        "the sandbox's start" if metrics.bring_up_start is None else "its bring-up's start"
    )
    with k3s_claim.of("node-ready", text, limit=limit, unit="s") as claim:
        claim.so_far = lambda: round(k3s_session.writer.now() - metrics.began, 2)
        k3s.node.wait_ready(limit * OVERTIME)
        while k3s_readiness.failure is None and not any(
            sample.node_ready for sample in k3s_readiness.samples
        ):
            time.sleep(0.05)
        assert k3s_readiness.failure is None
        seconds = read_run(k3s_session.folder).metrics.seconds_to_ready  # the page's own figure
        assert seconds is not None
        claim.within(round(seconds, 2))


@pytest.mark.timeout(180)
def test_pod_runs(k3s: Cluster, pod: dict[str, Any], k3s_claim: Claim, timeout_scale: float) -> None:
    """A pod with its service account token is Running and Ready within 10 s."""
    limit = POD_SECONDS * timeout_scale

    def ready() -> bool:
        status = k3s.core.read_namespaced_pod("hello", pod["namespace"]).status
        conditions = {condition.type: condition.status for condition in status.conditions or []}
        return status.phase == "Running" and conditions.get("Ready") == "True"

    text = f"A pod is Running and Ready within {limit:g} s"
    with k3s_claim.of("pod-running", text, limit=limit, unit="s") as claim:
        claim.so_far = lambda: round(clock.monotonic() - pod["asked"], 2)
        k3s.wait(ready, "the pod to be Running and Ready", Deadline.after(limit * OVERTIME))
        claim.within(round(clock.monotonic() - pod["asked"], 2))


@pytest.mark.timeout(180)
def test_logs_and_exec(k3s: Cluster, pod: dict[str, Any], k3s_claim: Claim) -> None:
    """``kubectl logs`` and ``kubectl exec`` reach the pod."""
    namespace = ("-n", pod["namespace"])
    mounted = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    words = ("exec", *namespace, "hello", "--", "sh", "-c", f"test -s {mounted} && echo token; exit 7")
    with (
        k3s_claim.together() as claim,
        claim.of(
            "exec", "kubectl exec gives the output and the exit code", limit="token, exit code 7"
        ) as executed,
        claim.of("logs", "kubectl logs gives what the container wrote", limit="hello from hello") as logged,
    ):
        logs = k3s.kubectl("logs", *namespace, "hello", check=False)
        logged.judge(logs.stdout == "hello from hello\n", logs.stdout.strip() or logs.stderr.strip())
        done = k3s.kubectl(*words, check=False)
        executed.judge(
            (done.stdout, done.returncode) == ("token\n", 7),
            f"{done.stdout.strip()}, exit code {done.returncode}",
        )


@pytest.mark.timeout(180)
def test_stats_summary(
    k3s: Cluster, k3s_node: Node, pod: dict[str, Any], k3s_claim: Claim, timeout_scale: float
) -> None:
    """The kubelet serves /stats/summary with values for the node and the pod."""
    seen: dict[str, Any] = {"values": {}, "pods": []}

    def complete() -> bool:
        summary = k3s_node.stats_summary()
        node = summary["node"]
        seen["values"] = {
            "node CPU": node.get("cpu", {}).get("usageCoreNanoSeconds", 0),
            "node memory": node.get("memory", {}).get("workingSetBytes", 0),
            "node file system": node.get("fs", {}).get("capacityBytes", 0),
        }
        seen["pods"] = [f"{p['podRef']['namespace']}/{p['podRef']['name']}" for p in summary.get("pods", [])]
        return all(seen["values"].values()) and f"{pod['namespace']}/hello" in seen["pods"]

    def said() -> str:
        values = [f"{name} {value}" for name, value in seen["values"].items()]
        return ", ".join([*values, f"pods {' '.join(seen['pods']) or 'none'}"])

    text = f"/stats/summary has values of the node, and the pod, within {STATS_SECONDS * timeout_scale:g} s"
    with k3s_claim.of("stats-summary", text, limit=STATS_SECONDS * timeout_scale, unit="s") as claim:
        claim.so_far = said
        deadline = Deadline.after(STATS_SECONDS * timeout_scale * OVERTIME)
        k3s.wait(complete, "/stats/summary with the pod in it", deadline, said)
        claim.within(round(claim.seconds, 2))


def test_node_stays_ready(
    request: pytest.FixtureRequest,
    k3s_session: NodeSession,
    k3s: Cluster,
    k3s_readiness: Sampler,
    pod: dict[str, Any],
    k3s_claim: Claim,
) -> None:
    """The node is Ready in every sample of the hold, counted from its first, and the pod never restarts."""
    seconds = request.config.stash[SETTINGS].duration
    with (
        k3s_claim.together() as claim,
        claim.of("no-restarts", "The pod never restarts", limit=0) as restarted,
        claim.of(
            "stays-ready", f"The node is Ready in every sample of a hold of {seconds:g} s", limit="all"
        ) as stays,
    ):
        begin = next(number for number, sample in enumerate(k3s_readiness.samples) if sample.node_ready)
        since = k3s_readiness.samples[begin].t

        def said() -> str:
            held = k3s_readiness.samples[begin:]
            ready = sum(sample.node_ready or False for sample in held)
            return f"{ready} of {len(held)} samples in {held[-1].t - since:.0f} s"

        stays.so_far = said
        while k3s_readiness.failure is None and k3s_session.writer.now() < since + seconds:
            dead = [name for name, process in k3s.processes.items() if process.poll() is not None]
            assert not dead, f"ended during the hold: {dead}"
            time.sleep(0.5)
        assert k3s_readiness.failure is None
        held = k3s_readiness.samples[begin:]
        stays.judge(all(sample.node_ready for sample in held), said())
        status = k3s.core.read_namespaced_pod("hello", pod["namespace"]).status
        restarts = sum(container.restart_count for container in status.container_statuses)
        restarted.judge(restarts == 0, restarts)


@pytest.mark.timeout(180)
def test_pod_goes(
    k3s_session: NodeSession, k3s: Cluster, pod: dict[str, Any], k3s_claim: Claim, timeout_scale: float
) -> None:
    """A deleted pod, its token volume included, is fully gone within 40 s."""
    limit = GONE_SECONDS * timeout_scale
    text = f"A deleted pod is fully gone within {limit:g} s"
    with k3s_claim.of("pod-gone", text, limit=limit, unit="s") as claim:
        writer = k3s_session.writer
        writer.append(Event(t=writer.now(), kind="pod-deleted", what=f"{pod['namespace']}/hello"))
        uid = k3s.core.read_namespaced_pod("hello", pod["namespace"]).metadata.uid
        k3s.core.delete_namespaced_pod("hello", pod["namespace"])
        volumes = f"/var/lib/kubelet/pods/{uid}"

        def gone() -> bool:
            left = found(lambda: k3s.core.read_namespaced_pod("hello", pod["namespace"]))
            return left is None and not k3s.sandbox.files.exists(volumes)

        k3s.wait(gone, "the pod and its volumes to be gone", Deadline.after(limit * OVERTIME))
        claim.within(round(claim.seconds, 2))


@pytest.mark.timeout(60)
def test_no_cadvisor_errors(k3s_readiness: Sampler, k3s_claim: Claim) -> None:
    """The kubelet's log has no error of cAdvisor's, from its first line to the end of the hold."""
    lines = k3s_readiness.errors("cadvisor")
    read = k3s_readiness.lines_read("kubelet")
    measured = f"{len(lines)}, the first: {lines[0].text}" if lines else 0
    k3s_claim(
        "no-cadvisor-errors",
        "cAdvisor logs no error",
        not lines and read > 0,
        measured if read else "not one line of the kubelet's log was read",
        0,
    )


@pytest.mark.timeout(60)
def test_young_containers_grow_up(k3s_readiness: Sampler, k3s_claim: Claim) -> None:
    """A container has no statistics only in its first moments: kind ``young-container`` never persists."""
    lines = k3s_readiness.errors("young-container")
    containers = Counter(name for line in lines for name in set(re.findall("[0-9a-f]{64}", line.text)))
    most = max(containers.values(), default=0)
    k3s_claim(
        "young-containers",
        f"No container is without statistics more than {YOUNG_LINES} times",
        most <= YOUNG_LINES,
        f"{most} times at the most, {len(containers)} containers",
        f"{YOUNG_LINES} times",
    )
