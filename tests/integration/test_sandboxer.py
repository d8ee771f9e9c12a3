"""Pods whose containers a sandboxer runs: what the node has for them, and what a container sees of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from pytest_k3s_sandbox.cluster.sandboxer import PROGRAM
from support.runtimes import CLASSES, SECONDS, manifest, need_crun

if TYPE_CHECKING:
    from pytest_k3s_sandbox.cluster.cluster import Cluster
    from pytest_k3s_sandbox.cluster.namespace import Namespace
    from pytest_k3s_sandbox.pytestplugin.namespaces import Namespaces

pytestmark = [
    pytest.mark.k3s_requires("root", "fuse", "ptrace", "gvisor"),
    pytest.mark.timeout(240),
]

PRIVILEGED = {"securityContext": {"privileged": True}}
CROWD = 30
GONE_SECONDS = 45
"""Thirty containers that end at once took more than a minute while one exit waited for the other."""


@pytest.fixture(scope="module")
def pods(k3s: Cluster, k3s_namespaces: Namespaces) -> Namespace:
    """A namespace with a pod of each kind, which come up side by side."""
    need_crun(k3s)
    namespace = k3s_namespaces(scope="module")
    shared = manifest("shared", "crun", spec={"shareProcessNamespace": True}, **PRIVILEGED)
    usual = manifest("usual", "crun", spec={"hostname": "named"}, **PRIVILEGED)
    namespace.apply([*CLASSES, usual, shared])
    for name in ("usual-crun", "shared-crun"):
        namespace.wait(name, "Ready", timeout=SECONDS)
    return namespace


def test_a_pod_has_no_shim_and_no_pause_container(k3s: Cluster, pods: Namespace) -> None:
    assert pods.exec("usual-crun", "hostname").stdout == "named\n"
    names = k3s.sandbox.run(["sh", "-c", "cat /proc/[0-9]*/comm"], check=False).stdout.split()
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
def test_many_pods_end_at_once(k3s: Cluster, k3s_namespaces: Namespaces) -> None:
    namespace = k3s_namespaces()
    namespace.apply([*CLASSES, *(manifest(f"crowd{number}", "crun") for number in range(CROWD))])
    for number in range(CROWD):
        namespace.wait(f"crowd{number}-crun", "Ready", timeout=SECONDS)
    began = time.monotonic()
    k3s.core.delete_collection_namespaced_pod(namespace)
    for number in range(CROWD):
        namespace.wait(f"crowd{number}-crun", "deleted", timeout=GONE_SECONDS)
    assert time.monotonic() - began < GONE_SECONDS
