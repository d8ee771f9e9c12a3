"""Faults on a node that is up: what is killed is started again, and nothing that was acknowledged is lost.

Each test says at its end what was observed, as a row of docs/faults.md (``pytest -rP``). A few run by
default; the whole list is nightly.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from pytest_k3s_sandbox.cluster.answers import found
from pytest_k3s_sandbox.cluster.reading import is_ready
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.lab.churn import pod
from pytest_k3s_sandbox.layers.cgroupfs.layer import FuseCgroupfs
from pytest_k3s_sandbox.node.session import NodeSession, open_session
from pytest_k3s_sandbox.node.spec import NodeSpec
from pytest_k3s_sandbox.report.records import Event, read_run
from pytest_k3s_sandbox.toolchain import Toolchain

if TYPE_CHECKING:
    from kubernetes.client import V1Pod

pytestmark = [pytest.mark.k3s_requires("root", "fuse", "ptrace", "gvisor"), pytest.mark.timeout(300)]

NAMESPACE = "default"
DETECTED_SECONDS = 5.0
PATIENCE = 120.0
STEADY = "steady"
Pid = Callable[["Faulty"], int]


class Faulty:
    """A node on which a pod runs, and on which things are broken."""

    def __init__(self, up: NodeSession) -> None:
        """Run the pod that is to survive everything."""
        self.up, self.cluster, self.core = up, up.cluster, up.cluster.core
        self.cluster.node.wait_ready(PATIENCE)
        self.cluster.wait_usable(NAMESPACE, Deadline.after(PATIENCE))
        self.core.create_namespaced_pod(NAMESPACE, pod(STEADY))
        self.wait(lambda: self.ready(STEADY), "the steady pod to be Ready")

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition."""
        self.cluster.wait(condition, what, Deadline.after(PATIENCE), self.lost)

    def lost(self) -> str | None:
        """Return what the supervisor has given up."""
        supervisor = self.up.runner.supervisor
        assert supervisor is not None
        return supervisor.lost()

    def pod(self, name: str) -> V1Pod:
        """Return a pod."""
        return self.core.read_namespaced_pod(name, NAMESPACE)

    def ready(self, name: str) -> bool:
        """Tell whether a pod is Ready."""
        return is_ready(self.pod(name).status.conditions)

    def objects(self) -> dict[str, str]:
        """Return every pod, config map, account and node by its unique id."""
        core = self.core
        every = (
            *core.list_pod_for_all_namespaces().items,
            *core.list_config_map_for_all_namespaces().items,
            *core.list_service_account_for_all_namespaces().items,
            *core.list_node().items,
        )
        return {each.metadata.uid: f"{each.metadata.namespace}/{each.metadata.name}" for each in every}

    def works(self, name: str) -> bool:
        """Tell whether all works: a new pod gets Ready, the steady one answers, the layers are healthy."""
        if found(lambda: self.pod(name)) is None:
            self.core.create_namespaced_pod(NAMESPACE, pod(name))
        if not (self.ready(name) and self.ready(STEADY) and self.cluster.node.ready):
            return False
        asked = self.cluster.kubectl("exec", STEADY, "--", "echo", "out", check=False)
        return asked.stdout == "out\n" and all(health.ok for health in self.up.stack.check().values())

    def inside(self, number: int, pid: int) -> None:
        """Send a signal to a process inside, by its id there."""
        self.up.stack.sandbox.run(["kill", f"-{number}", str(pid)])

    def program(self, name: str) -> int:
        """Return the id of a program: the tracer's child, where there is one."""
        process = self.cluster.processes[name]
        if name not in self.up.runner.distribution.traced:
            return process.pid
        return next(row.pid for row in self.up.stack.sandbox.usage() if row.parent == process.pid)

    def runner(self) -> int:
        """Return the id of the process that runs the steady pod's containers: a sandboxer, or a shim."""
        container = self.pod(STEADY).status.container_statuses[0].container_id.rpartition("/")[2]
        task = f"/run/containerd/io.containerd.runtime.v2.task/k8s.io/{container}"
        paths = self.up.stack.sandbox.run(["sh", "-c", f"cat {task}/init.pid"]).stdout
        table = {row.pid: row for row in self.up.stack.sandbox.usage()}
        return table[int(paths)].parent

    def cgroupfs(self) -> int:
        """Return the id of the cgroupfs server."""
        layer = next(each for each in self.up.runner.layers if isinstance(each, FuseCgroupfs))
        assert layer.pid is not None
        return layer.pid

    def restarts(self) -> int:
        """Return how often the steady pod's container was started again."""
        return int(self.pod(STEADY).status.container_statuses[0].restart_count)

    def events(self, since: float) -> list[Event]:
        """Return what the supervisor has recorded since then."""
        return [event for event in read_run(self.up.folder).events if event.t >= since]

    @contextlib.contextmanager
    def observed(self, fault: str) -> Iterator[None]:
        """Break something in the block, wait until all works again, and look whether something is lost."""
        self.core.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": f"before-{fault}"}})
        before, restarts, uid = self.objects(), self.restarts(), self.pod(STEADY).metadata.uid
        seen, began = len(self.up.readiness.samples), time.monotonic()
        yield
        name = f"after-{fault}"
        self.wait(lambda: self.works(name), f"all to work after the fault {fault}")
        seconds = time.monotonic() - began
        after = self.objects()
        lost = sorted(what for each, what in before.items() if each not in after)
        assert lost == []
        assert self.pod(STEADY).metadata.uid == uid
        samples = self.up.readiness.samples[seen:]
        unready = sum(sample.node_ready is False for sample in samples)
        silent = sum(not sample.api_reachable for sample in samples)
        assert self.lost() is None
        sys.stdout.write(
            f"| {fault} | {seconds:.1f} s | {self.restarts() - restarts} | 0 of {len(before)} | "
            f"{unready} of {len(samples)} | {silent} of {len(samples)} |\n"
        )
        self.core.delete_namespaced_pod(name, NAMESPACE, grace_period_seconds=1)
        self.wait(lambda: found(lambda: self.pod(name)) is None, f"pod {name} to be gone")


KILLED: dict[str, tuple[Pid, str]] = {
    "kubelet": (lambda node: node.program("kubelet"), "kubelet"),
    "kubelet's interceptor": (lambda node: node.cluster.processes["kubelet"].pid, "kubelet"),
    # Before containerd alone, after which the shims of old pods are under the earlier interceptor.
    "containerd's interceptor": (lambda node: node.cluster.processes["containerd"].pid, "containerd"),
    "containerd": (lambda node: node.program("containerd"), "containerd"),
    "cgroupfs": (Faulty.cgroupfs, "fuse_cgroupfs"),
    "kine": (lambda node: node.program("kine"), "kine"),
    "API server": (lambda node: node.program("kube-apiserver"), "kube-apiserver"),
    "scheduler": (lambda node: node.program("kube-scheduler"), "kube-scheduler"),
    "controller manager": (lambda node: node.program("kube-controller-manager"), "kube-controller-manager"),
}
"""What is killed: how its process id is found, and under which name its restart is recorded."""

SHORT = ("cgroupfs", "kubelet's interceptor", "kine")


@pytest.fixture(scope="module")
def node(
    k3s_spec: NodeSpec, k3s_toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Faulty]:
    """Bring a supervised node up, for all faults."""
    folder = tmp_path_factory.mktemp("faults") / "run"
    with open_session(
        NodeSpec(runtime=k3s_spec.runtime, supervised=True),
        toolchain=k3s_toolchain,
        folder=folder,
        experiment="test",
    ) as up:
        yield Faulty(up)


def kill(node: Faulty, fault: str) -> None:
    """Kill it, and look whether that is detected in time and answered by one start."""
    pid, component = KILLED[fault]
    with node.observed(fault.replace(" ", "-").replace("'", "").lower()):
        began = node.up.writer.now()
        node.inside(signal.SIGKILL, pid(node))
    mine = [event for event in node.events(began) if event.component == component]
    assert [event.kind for event in mine] == ["fault", "restart"]
    assert mine[0].t - began <= DETECTED_SECONDS


@pytest.mark.parametrize("fault", SHORT)
def test_what_is_killed_is_started_again_and_nothing_is_lost(fault: str, node: Faulty) -> None:
    kill(node, fault)


@pytest.mark.nightly
@pytest.mark.parametrize("fault", [name for name in KILLED if name not in SHORT])
def test_more_that_is_killed_is_started_again_and_nothing_is_lost(fault: str, node: Faulty) -> None:
    kill(node, fault)


@pytest.mark.nightly
def test_what_runs_containers_is_killed_and_costs_them_and_nothing_else(node: Faulty) -> None:
    """With the sandboxer containerd is ended; the end of a shim it sees. The kubelet starts them again."""
    restarts, began = node.restarts(), node.up.writer.now()
    with node.observed("runner"):
        node.inside(signal.SIGKILL, node.runner())
        node.wait(lambda: node.restarts() > restarts, "the container to be started again")
    by_sandboxer = node.up.cluster.settings.sandboxer
    assert [event.kind for event in node.events(began)] == (["fault", "restart"] if by_sandboxer else [])


@pytest.mark.nightly
def test_a_kubelet_that_is_stopped_for_30_s_goes_on(node: Faulty) -> None:
    """A stopped process has not ended: nothing is restarted; the API server waits 50 s for a heartbeat."""
    restarts, began = node.restarts(), node.up.writer.now()
    pid = node.program("kubelet")
    with node.observed("kubelet-stopped"):
        node.inside(signal.SIGSTOP, pid)
        try:
            time.sleep(30)
        finally:
            node.inside(signal.SIGCONT, pid)
    assert node.events(began) == []
    assert (node.restarts(), node.program("kubelet")) == (restarts, pid)


@pytest.mark.nightly
def test_the_whole_node_at_once(node: Faulty) -> None:
    with node.observed("everything-of-the-node"):
        for fault in ("cgroupfs", "kubelet's interceptor", "containerd's interceptor"):
            node.inside(signal.SIGKILL, KILLED[fault][0](node))


@pytest.mark.nightly
def test_what_is_stopped_on_purpose_stays_stopped_and_can_be_started_again(node: Faulty) -> None:
    layers, began = node.up.runner.layers, node.up.writer.now()
    with node.observed("node-stopped-and-started"):
        node.up.runner.stop_node()
        time.sleep(3)
        assert not {"kubelet", "containerd"} & node.cluster.processes.keys()
        node.up.runner.start_node(layers)
    assert node.events(began) == []
