"""Pods whose containers a sandboxer runs: what the node has for them, and what a container sees of it."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from pytest_k3s_sandbox.cluster.sandboxer import PROGRAM
from pytest_k3s_sandbox.deadline import Deadline
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


BEGUN, GO_ON = "/run/slow-begun", "/run/slow-goes-on"
SLOW = """#!/bin/sh
for word; do
  if test "$before" = --bundle && grep -q '"slow-crun"' "$word/config.json"; then
    : >{begun}
    until test -e {go_on}; do sleep 0.1; done
  fi
  before=$word
done
exec {crun} "$@"
"""
"""A crun that creates the container of the pod ``slow-crun`` only when it is allowed to."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose pods a sandboxer holds, with a crun that can be held up."""
    spec, toolchain = NodeSpec(runtime="crun", supervised=True), Toolchain()
    provision(spec, toolchain)
    crun, folder = toolchain.get("crun").path, tmp_path_factory.mktemp("sandboxer")
    if not crun.is_relative_to("/usr"):
        pytest.skip("not applicable: a program around this machine's crun would not find it in the sandbox")
    held_up = folder / "crun"
    held_up.write_text(SLOW.format(begun=BEGUN, go_on=GO_ON, crun=crun))
    held_up.chmod(0o755)
    toolchain = Toolchain(environ={**os.environ, "K3S_SANDBOX_CRUN": str(held_up)})
    with open_session(spec, toolchain=toolchain, folder=folder / "run", experiment="sandboxer") as session:
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


def test_a_container_that_takes_long_to_create_holds_up_no_other(cluster: Cluster, pods: Namespace) -> None:
    pods.apply(manifest("slow", "crun"))
    begun = ["test", "-e", BEGUN]
    cluster.wait(
        lambda: cluster.sandbox.run(begun, check=False).returncode == 0,
        "crun to begin with a container",
        Deadline.after(SECONDS),
    )
    try:
        pods.apply(manifest("quick", "crun"))
        pods.wait("quick-crun", "Ready", timeout=SECONDS)
    finally:
        cluster.sandbox.run(["touch", GO_ON])
    pods.wait("slow-crun", "Ready", timeout=SECONDS)


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
