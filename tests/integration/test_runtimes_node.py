"""Limits, pauses, processes and hooks are the same with crun and with runc, seen from inside the node.

The default run has what is quick, on one pod for each runtime; the rest is nightly.
"""

from __future__ import annotations

import functools
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_k3s_sandbox.cluster.images import find_busybox
from pytest_k3s_sandbox.errors import ClusterError
from pytest_k3s_sandbox.node.session import open_session
from pytest_k3s_sandbox.sandbox.base import BIN_DIR, STATE_DIR
from pytest_k3s_sandbox.settings import RUNTIMES
from support.outside import outside
from support.runtimes import CLASSES, SECONDS, SLEEP, Side, manifest, need_crun

if TYPE_CHECKING:
    from pytest_k3s_sandbox.cluster.cluster import Cluster
    from pytest_k3s_sandbox.cluster.namespace import Namespace
    from pytest_k3s_sandbox.node.spec import NodeSpec
    from pytest_k3s_sandbox.toolchain import Toolchain

pytestmark = [
    pytest.mark.k3s_requires("root", "fuse", "ptrace", "gvisor"),
    pytest.mark.timeout(240),
]

MIB = 1 << 20
BUNDLE = f"{STATE_DIR}/bundle"
RESOURCES = {
    "requests": {"cpu": "50m", "memory": "32Mi"},
    "limits": {"cpu": "200m", "memory": "64Mi"},
}


@pytest.fixture(scope="module")
def cluster(
    k3s_spec: NodeSpec, k3s_toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """A node whose kubelet makes groups: pods are resized."""
    spec = replace(k3s_spec, pod_groups=True, supervised=False)
    folder = tmp_path_factory.mktemp("runtimes") / "run"
    with open_session(spec, toolchain=k3s_toolchain, folder=folder, experiment="test") as up:
        need_crun(up.cluster)
        if up.cluster.sandbox.run(["test", "-e", "/sys/fs/cgroup/memory"], check=False).returncode != 0:
            pytest.skip("not applicable: cgroups of version 2, whose files have other names")
        up.cluster.node.wait_ready(SECONDS)
        yield up.cluster


@pytest.fixture(scope="module")
def pods(cluster: Cluster) -> Iterator[Namespace]:
    """A namespace with a pod for each runtime."""
    with cluster.namespace() as namespace:
        namespace.apply([*CLASSES, *(manifest("main", name, resources=RESOURCES) for name in RUNTIMES)])
        for name in RUNTIMES:
            namespace.wait(f"main-{name}", "Ready", timeout=SECONDS)
        yield namespace


@pytest.fixture(params=RUNTIMES)
def side(request: pytest.FixtureRequest, cluster: Cluster, pods: Namespace) -> Side:
    return Side(cluster, pods, request.param)


@pytest.fixture
def main(side: Side) -> str:
    """The pod that is looked at by most tests."""
    return f"main-{side}"


def limited(memory: int, quota: int) -> dict[str, int]:
    """Return the numbers of a group with a limit of memory, and none of swap on top."""
    return {"memory": memory * MIB, "memsw": memory * MIB, "quota": quota}


def resize(side: Side, pod: str, memory: int, cpu: int) -> None:
    """Change a pod's limits while it runs: mebibytes, and thousandths of a CPU."""
    limits = {"limits": {"memory": f"{memory}Mi", "cpu": f"{cpu}m"}}
    patch = json.dumps({"spec": {"containers": [{"name": "it", "resources": limits}]}})
    side.cluster.kubectl("patch", "pod", pod, "-n", str(side.namespace), "--subresource=resize", "-p", patch)


def has(side: Side, container: str, wanted: dict[str, int]) -> bool:
    """Return whether a container has limits."""
    return side.limits(container) == wanted


def test_limits_change_up_and_down_while_a_pod_runs(side: Side, main: str) -> None:
    container = side.container(main)
    seen = side.limits(container)
    for memory, cpu in ((128, 300), (48, 100), (64, 200)):
        resize(side, main, memory, cpu)
        wanted = limited(memory, cpu * 100) | {"shares": seen["shares"]}
        side.wait(functools.partial(has, side, container, wanted), f"the limits to be {wanted}")
    status = side.status(main)
    assert (status["containerID"].endswith(container), status["restartCount"]) == (True, 0)


def test_the_runtime_changes_limits_in_the_order_that_memory_needs(side: Side, main: str) -> None:
    """``memory`` must never exceed ``memsw``: up begins with the latter, down with the former."""
    container = side.container(main)
    before = side.limits(container)
    try:
        for size in (96 * MIB, 40 * MIB):
            side.oci("update", "--memory", str(size), "--memory-swap", str(size), container)
            assert side.limits(container) == before | {"memory": size, "memsw": size}
        alone = side.oci("update", "--memory", str(512 * MIB), container, check=False)
        assert alone.returncode != 0
        assert "memory.limit_in_bytes" in alone.stderr
        assert "nvalid argument" in alone.stderr
        side.oci("update", "--cpu-quota", "15000", "--cpu-period", "100000", "--cpu-share", "200", container)
        after = side.limits(container)
        assert (after["quota"], after["shares"]) == (15000, 200)
    finally:
        memory, quota, shares = (str(before[name]) for name in ("memory", "quota", "shares"))
        side.oci("update", "--memory", memory, "--memory-swap", memory, container)
        side.oci("update", "--cpu-quota", quota, "--cpu-share", shares, container)


@pytest.fixture
def paused(side: Side, main: str) -> Iterator[str]:
    """The container of the pod, paused for as long as the test runs."""
    container = side.container(main)
    side.oci("pause", container)
    yield container
    side.oci("resume", container, check=False)


def test_exec_in_a_paused_container_is_refused_at_once(side: Side, main: str, paused: str) -> None:
    assert side.frozen(paused) == "FROZEN"
    assert json.loads(side.oci("state", paused).stdout)["status"] == "paused"
    assert "paused" in side.refused(main, "true")
    side.oci("resume", paused)
    assert side.frozen(paused) == "THAWED"
    assert side.sh(main, "echo thawed") == "thawed\n"


def test_the_runtime_lists_a_containers_processes(side: Side, main: str) -> None:
    container = side.container(main)
    first = json.loads(side.oci("state", container).stdout)["pid"]
    listed = json.loads(side.oci("ps", "--format", "json", container).stdout)
    assert first in listed
    assert len(listed) == 2  # the shell and its sleep


@pytest.mark.nightly
def test_exec_in_a_group_that_is_frozen_by_its_file_is_refused(side: Side, main: str) -> None:
    file = f"{side.group(side.container(main), 'freezer')}/freezer.state"
    side.node(["sh", "-c", f"echo FROZEN > {file}"])
    try:
        assert "paused" in side.refused(main, "true")
    finally:
        side.node(["sh", "-c", f"echo THAWED > {file}"])
    assert side.sh(main, "echo thawed") == "thawed\n"


@pytest.mark.nightly
def test_a_paused_pod_is_deleted(side: Side) -> None:
    """Within its grace, and the seconds that the kubelet adds; in one case not before it is resumed.

    Linux' freezer of version 1 keeps what is killed until it is thawed; runc thaws it, crun 1.8.1 does not.
    """
    pod = side.start("frozen")
    container = side.container(pod)
    side.oci("pause", container)
    began = time.monotonic()
    if (side.sandbox.kind, side.runtime) == ("host", "crun"):
        side.cluster.kubectl("delete", "pod", pod, "-n", str(side.namespace), "--wait=false")
        time.sleep(10)
        assert side.frozen(container) == "FROZEN"
        side.oci("resume", container)
        side.namespace.wait(pod, "deleted", timeout=90)
    else:
        side.namespace.delete(pod, timeout=60)
        assert time.monotonic() - began < 45


@pytest.mark.nightly
def test_what_is_paused_stands_still(side: Side) -> None:
    script = f"while :; do echo x >> /ticks; sleep 0.1; done & {SLEEP}"
    pod = side.start("ticking", command=["sh", "-c", script])
    container = side.container(pod)
    root = f"/run/containerd/io.containerd.runtime.v2.task/k8s.io/{container}/rootfs"
    count = ["wc", "-c", f"{root}/ticks"]
    side.oci("pause", container)
    first = side.node(count).stdout
    time.sleep(3)
    stands = side.node(count).stdout == first
    assert stands
    side.oci("resume", container)
    now = side.node(count).stdout
    side.wait(lambda: side.node(count).stdout != now, "the pod to go on", 30)
    side.namespace.delete(pod, timeout=60)


@pytest.mark.nightly
def test_more_than_a_node_has_is_refused_for_a_resize(side: Side, main: str) -> None:
    with pytest.raises(ClusterError, match="must be less than or equal to memory limit"):
        resize(side, main, 16, 200)  # less than the pod asks for
    assert side.limits(side.container(main))["memory"] == 64 * MIB


def bundle(side: Side, **linux: object) -> str:
    """Write a bundle that runs ``echo`` with each hook; return where its configuration is, inside."""
    folder = outside(side.sandbox, BUNDLE) / str(side)
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("bin", "dev", "proc"):
        (folder / "rootfs" / name).mkdir(parents=True)
    shutil.copy(find_busybox(), folder / "rootfs/bin/busybox")
    at = f"{BUNDLE}/{side}"
    noting = {
        name: [{"path": "/bin/sh", "args": ["sh", "-c", f"cat > {at}/{name}; echo {name} >> {at}/notes"]}]
        for name in ("prestart", "createRuntime", "poststart", "poststop")
    }
    inside = {"path": "/bin/busybox", "args": ["busybox", "echo", "startContainer"]}
    kinds = ("pid", "ipc", "uts", "mount")
    spec: dict[str, Any] = {
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/busybox", "echo", "hi"],
            "env": ["PATH=/bin"],
            "cwd": "/",
        },
        "root": {"path": f"{at}/rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        ],
        "hooks": {**noting, "startContainer": [inside]},
        "linux": {"namespaces": [{"type": kind} for kind in kinds], "cgroupsPath": f"/{side}/one"} | linux,
    }
    (folder / "config.json").write_text(json.dumps(spec))
    return f"{at}/config.json"


def run(side: Side, config: str, name: str, seconds: int = 20) -> tuple[int, str]:
    """Run a bundle by containerd, as pods are; return the exit code and what is said."""
    binary = ["--runc-binary", side.path]
    argv = [f"{BIN_DIR}/ctr", "run", "--rm", *binary, "--config", config, f"{name}-{side}"]
    done = side.sandbox.run(["timeout", str(seconds), *argv], timeout=seconds + 20, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.nightly
def test_hooks_of_a_bundle_run_in_their_order(side: Side) -> None:
    """Kubernetes has no field for them."""
    config = bundle(side)
    code, said = run(side, config, "hooks")
    assert code == 0, said
    assert said.splitlines()[-1] == "hi"
    notes = outside(side.sandbox, BUNDLE) / str(side)
    assert (notes / "notes").read_text().split() == ["prestart", "createRuntime", "poststart", "poststop"]
    assert json.loads((notes / "createRuntime").read_text())["id"] == f"hooks-{side}"


@pytest.mark.nightly
def test_a_run_into_a_frozen_group(side: Side) -> None:
    """With runc an error. crun (1.8.1, 1.21) waits until the group is thawed, on Linux, too."""
    config = bundle(side, cgroupsPath=f"/frozen-{side}")
    group = f"/sys/fs/cgroup/freezer/frozen-{side}"
    side.node(["sh", "-c", f"mkdir {group} && echo FROZEN > {group}/freezer.state"])
    thaw = f"sleep 5; echo THAWED > {group}/freezer.state"
    side.node(["sh", "-c", f"({thaw}) >/dev/null 2>&1 &"])
    began = time.monotonic()
    code, said = run(side, config, "frozen", 40)
    took = time.monotonic() - began
    if side.runtime == "runc":
        assert code != 0
        assert "frozen" in said
    else:
        assert (code, said.splitlines()[-1]) == (0, "hi")
        assert took > 4
