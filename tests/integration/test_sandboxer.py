"""Pods whose containers a sandboxer runs: what the node has for them, and what a container sees of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from pytest_k3s_sandbox.cluster.sandboxer import PROGRAM
from pytest_k3s_sandbox.node.runtime import provision
from pytest_k3s_sandbox.node.session import open_session
from pytest_k3s_sandbox.node.spec import NodeSpec
from pytest_k3s_sandbox.toolchain import Toolchain
from support.runtimes import CLASSES, SECONDS, manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_k3s_sandbox.cluster.cluster import Cluster
    from pytest_k3s_sandbox.cluster.namespace import Namespace

pytestmark = [
    pytest.mark.k3s_requires("root", "fuse", "ptrace", "gvisor"),
    pytest.mark.timeout(240),
]

PRIVILEGED = {"securityContext": {"privileged": True}}
CROWD = 30
GONE_SECONDS = 45
"""Thirty containers that end at once took more than a minute while one exit waited for the other."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose pods a sandboxer holds."""
    spec, toolchain = NodeSpec(runtime="crun", supervised=True), Toolchain()
    provision(spec, toolchain)
    folder = tmp_path_factory.mktemp("sandboxer") / "run"
    with open_session(spec, toolchain=toolchain, folder=folder, experiment="sandboxer") as session:
        session.cluster.node.wait_ready(SECONDS)
        yield session.cluster


@pytest.fixture(scope="module")
def pods(cluster: Cluster) -> Iterator[Namespace]:
    """A namespace with a pod of each kind, which come up side by side."""
    shared = manifest("shared", "crun", spec={"shareProcessNamespace": True}, **PRIVILEGED)
    usual = manifest("usual", "crun", spec={"hostname": "named"}, **PRIVILEGED)
    with cluster.namespace() as namespace:
        namespace.apply([*CLASSES, usual, shared])
        for name in ("usual-crun", "shared-crun"):
            namespace.wait(name, "Ready", timeout=SECONDS)
        yield namespace


def test_a_pod_has_no_shim_and_no_pause_container(cluster: Cluster, pods: Namespace) -> None:
    assert pods.exec("usual-crun", "hostname").stdout == "named\n"
    names = cluster.sandbox.run(["sh", "-c", "cat /proc/[0-9]*/comm"], check=False).stdout.split()
    assert names.count(PROGRAM) == 2  # and the first process of the pod whose containers share processes
    assert not [name for name in names if name.startswith("containerd-shim")]


def test_containers_that_share_processes_see_nothing_of_the_node(pods: Namespace) -> None:
    """The first process of their namespace is the sandboxer's, which shows an empty root even to root."""
    sees = "tr '\\0' ' ' </proc/1/cmdline; echo; ls -A /proc/1/root/; grep ^Uid: /proc/1/status"
    first, *rest = pods.exec("shared-crun", "sh", "-c", sees).stdout.splitlines()
    assert first.endswith("pause ")
    assert [line.split() for line in rest] == [["Uid:", "65535", "65535", "65535", "65535"]]
    alone = pods.exec("usual-crun", "sh", "-c", "cat /proc/[0-9]*/comm").stdout
    assert PROGRAM not in alone
    assert "kubelet" not in alone


@pytest.mark.nightly
def test_many_pods_end_at_once(cluster: Cluster, pods: Namespace) -> None:
    pods.apply([manifest(f"crowd{number}", "crun") for number in range(CROWD)])
    for number in range(CROWD):
        pods.wait(f"crowd{number}-crun", "Ready", timeout=SECONDS)
    began = time.monotonic()
    cluster.core.delete_collection_namespaced_pod(pods)
    for number in range(CROWD):
        pods.wait(f"crowd{number}-crun", "deleted", timeout=GONE_SECONDS)
    assert time.monotonic() - began < GONE_SECONDS
