"""Every pinned version of Kubernetes gives a node that runs a pod, in gVisor and on the machine itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pytest_k3s_sandbox.cluster import versions
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.node.session import open_session
from pytest_k3s_sandbox.node.spec import NodeSpec
from pytest_k3s_sandbox.report.records import read_run
from pytest_k3s_sandbox.toolchain import Toolchain
from pytest_k3s_sandbox.toolchain.pins import kubernetes_versions

# A version that is not in the cache is built first, which takes minutes.
pytestmark = [
    pytest.mark.k3s_requires("root", "fuse", "ptrace", "gvisor"),
    pytest.mark.nightly,
    pytest.mark.timeout(1800),
]

SECONDS = 90
POD = {
    "metadata": {"name": "it"},
    "spec": {
        "terminationGracePeriodSeconds": 0,
        "containers": [
            {"name": "it", "image": "busybox:1.36", "command": ["sh", "-c", "echo here; sleep 1000"]}
        ],
    },
}
NO_CGROUP_V1 = "kubelet is configured to not run on a host using cgroup v1"


@pytest.mark.parametrize("version", kubernetes_versions())
@pytest.mark.parametrize("kind", ["gvisor", "host"])
def test_a_node_of_a_version_is_ready_and_runs_a_pod(version: str, kind: str, tmp_path: Path) -> None:
    toolchain = Toolchain(kubernetes=version)
    with open_session(NodeSpec(kind), toolchain=toolchain, folder=tmp_path / "run", experiment="test") as up:
        cluster = up.cluster
        cluster.node.wait_ready(SECONDS)
        info = cluster.core.read_node(cluster.node.name).status.node_info
        assert info.kubelet_version == f"v{version}"
        assert cluster.node.stats_summary()["node"]["cpu"]["usageCoreNanoSeconds"] > 0
        with cluster.namespace("version") as namespace:
            cluster.core.create_namespaced_pod(namespace, POD)
            cluster.wait(
                lambda: cluster.core.read_namespaced_pod("it", namespace).status.phase == "Running",
                "the pod to run",
                Deadline.after(SECONDS),
            )
            assert cluster.kubectl("logs", "-n", namespace, "it").stdout == "here\n"
        assert [line.text for line in up.readiness.errors("cadvisor")] == []
    environment = read_run(tmp_path / "run").environment
    assert environment is not None
    assert environment.kubernetes == environment.programs["kubelet"].version == version


@pytest.mark.parametrize(
    "version", [each for each in kubernetes_versions() if versions.release(each) >= (1, 35)]
)
def test_without_its_row_of_the_table_a_version_refuses_cgroups_of_version_1(
    version: str, tmp_path: Path
) -> None:
    toolchain = Toolchain(kubernetes=version)
    with open_session(toolchain=toolchain, folder=tmp_path / "run", experiment="test") as session:
        process, layers = session.runner, session.runner.layers
        process.stop_node()
        process.settings = replace(process.settings, kubelet_overrides=(("failCgroupV1", True),))
        process.start_node(layers)
        kubelet = process.processes["kubelet"]
        assert kubelet.wait(Deadline.after(SECONDS)) == 1
        assert NO_CGROUP_V1 in session.cluster.node.log.read_text()


@pytest.mark.parametrize("version", kubernetes_versions())
def test_a_build_calls_itself_by_its_version(version: str) -> None:
    toolchain = Toolchain(kubernetes=version)
    for name in ("kubelet", "kubectl"):
        assert toolchain.get(name).version == version
