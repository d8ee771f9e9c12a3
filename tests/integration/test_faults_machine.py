"""Faults of what a node stands on: its work directory is full, its clock jumps."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_k3s_sandbox.cluster.answers import found
from pytest_k3s_sandbox.cluster.reading import is_ready
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.lab.churn import pod
from pytest_k3s_sandbox.node.session import NodeSession, open_session
from pytest_k3s_sandbox.node.spec import NodeSpec
from pytest_k3s_sandbox.node.start import start_sandbox
from pytest_k3s_sandbox.report.records import read_run
from pytest_k3s_sandbox.toolchain import Toolchain

pytestmark = [
    pytest.mark.k3s_requires("root", "fuse", "ptrace", "gvisor"),
    pytest.mark.timeout(600),
    pytest.mark.nightly,
]

NAMESPACE = "default"
SIZE = "1200m"  # the programs are copied to it, being on another file system
FULL_SECONDS = 30.0
PATIENCE = 120.0


@pytest.fixture
def small_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Let sandboxes live on a small file system of their own, which is gone afterwards."""
    home = tmp_path / "home"
    home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(home)], check=True)
    monkeypatch.setenv("K3S_SANDBOX_HOME", str(home))
    try:
        yield home
    finally:
        subprocess.run(["umount", str(home)], check=True)


def replicas(name: str) -> dict[str, Any]:
    """Return a ReplicaSet of one pod: an evicted pod alone does not come back, by Kubernetes' own rules."""
    one = pod(name)
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": one["spec"]}
    return {
        "metadata": {"name": name},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template},
    }


def acknowledged(up: NodeSession, number: int) -> bool:
    """Try to make a config map; tell whether the API server has taken it."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        up.cluster.core.create_namespaced_config_map(
            NAMESPACE, {"metadata": {"name": f"full-{number}"}, "data": {"x": "x" * 4096}}, _request_timeout=5
        )
    except (ApiException, HTTPError):
        return False
    return True


def test_a_full_work_directory(small_home: Path, k3s_toolchain: Toolchain, tmp_path: Path) -> None:
    """What was acknowledged is there afterwards; pods may be evicted, which is Kubernetes' answer."""
    from kubernetes.client import AppsV1Api

    with open_session(
        NodeSpec(supervised=True), toolchain=k3s_toolchain, folder=tmp_path / "run", experiment="test"
    ) as up:
        cluster, core = up.cluster, up.cluster.core
        cluster.node.wait_ready(PATIENCE)
        cluster.wait_usable(NAMESPACE, Deadline.after(PATIENCE))
        core.create_namespaced_pod(NAMESPACE, pod("bare"))
        AppsV1Api(cluster.client).create_namespaced_replica_set(NAMESPACE, replicas("kept"))

        def running() -> set[str]:
            pods = core.list_namespaced_pod(NAMESPACE).items
            return {one.metadata.name for one in pods if is_ready(one.status.conditions)}

        cluster.wait(lambda: len(running()) == 2, "two pods to be Ready", Deadline.after(PATIENCE))
        before = running()
        filler = small_home / "filler"
        taken = []
        try:
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(small_home).free)
            end = time.monotonic() + FULL_SECONDS
            for number in range(1000):
                if acknowledged(up, number):
                    taken.append(number)
                if time.monotonic() > end:
                    break
                time.sleep(0.5)
        finally:
            filler.unlink()
        asked = number + 1
        began = time.monotonic()

        def recovered() -> bool:
            if found(lambda: core.read_namespaced_pod("after", NAMESPACE)) is None:
                core.create_namespaced_pod(NAMESPACE, pod("after"))
            ready = running()
            return "after" in ready and any(name.startswith("kept-") for name in ready)

        def hint() -> str:
            conditions = {name: each.status for name, each in cluster.node.conditions().items()}
            pods = {one.metadata.name: one.status.reason for one in core.list_namespaced_pod(NAMESPACE).items}
            return f"{conditions}, {pods}, {up.runner.supervisor and up.runner.supervisor.lost()}"

        # The kubelet takes pods again 5 min after a pressure (evictionPressureTransitionPeriod).
        cluster.wait(recovered, "pods to run again", Deadline.after(400), hint)
        seconds = time.monotonic() - began
        there = {one.metadata.name for one in core.list_namespaced_config_map(NAMESPACE).items}
        assert {f"full-{number}" for number in taken} <= there
        bare = core.read_namespaced_pod("bare", NAMESPACE).status
        events = [(event.kind, event.component) for event in read_run(up.folder).events]
        sys.stdout.write(
            f"full for {FULL_SECONDS:g} s: {len(taken)} of {asked} writes taken, and all of them there; "
            f"works {seconds:.0f} s after; pods before {sorted(before)}, now {sorted(running())}, "
            f"bare: {bare.phase} {bare.reason}; events {events}\n"
        )


def test_the_clock_cannot_jump(k3s_toolchain: Toolchain) -> None:
    """No process in gVisor can set its clock, and natively it is the machine's clock."""
    with start_sandbox(NodeSpec(), k3s_toolchain) as sandbox:
        done = sandbox.run(["date", "--set", "+1 hour"], check=False)
        assert done.returncode != 0
        assert "cannot set date" in done.stderr
        sys.stdout.write(done.stderr)
