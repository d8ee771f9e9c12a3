"""Pods on one OCI runtime of a node, for tests that have to pass on each of them."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from pytest_k3s_sandbox.cluster.access import Timeout
from pytest_k3s_sandbox.cluster.sandboxer import TASKS as ROOT
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.sandbox.base import BIN_DIR, STATE_DIR
from pytest_k3s_sandbox.settings import RUNTIMES

if TYPE_CHECKING:
    from pytest_k3s_sandbox.cluster.cluster import Cluster
    from pytest_k3s_sandbox.cluster.namespace import Namespace
    from pytest_k3s_sandbox.sandbox.base import Completed

NOTES = f"{STATE_DIR}/notes"
"""A folder of the node that pods write to."""
SECONDS = 100
"""For a pod to come up on a machine that does much else."""
SLEEP = "trap 'exit 0' TERM; sleep 1000 & wait"
"""A script that lasts, and ends at once when it is asked to."""

CLASSES = [
    {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name}, "handler": name}
    for name in RUNTIMES
]


def manifest(
    name: str, runtime: str, *, spec: dict[str, Any] | None = None, **container: object
) -> dict[str, Any]:
    """Return a pod with one container, called ``it``, that sleeps unless it is told otherwise."""
    it = {"name": "it", "image": "busybox:1.36", "command": ["sh", "-c", SLEEP], **container}
    common = {
        "runtimeClassName": runtime,
        "terminationGracePeriodSeconds": 2,
        "automountServiceAccountToken": False,
        "dnsPolicy": "Default",
        "containers": [it],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{name}-{runtime}"},
        "spec": common | (spec or {}),
    }


def need_crun(cluster: Cluster) -> None:
    """Skip the test on a machine without crun."""
    if cluster.sandbox.run(["test", "-e", f"{BIN_DIR}/crun"], check=False).returncode != 0:
        pytest.skip("no crun on this machine: run `k3s-sandbox provision`")


class Side:
    """A runtime, and the pods of a namespace that it starts.

    Args:
        cluster: The cluster.
        namespace: The namespace.
        runtime: The runtime's name, which is that of its RuntimeClass.
    """

    def __init__(self, cluster: Cluster, namespace: Namespace, runtime: str) -> None:
        """Keep the arguments."""
        self.cluster, self.namespace, self.runtime = cluster, namespace, runtime
        self.sandbox = cluster.sandbox

    def __str__(self) -> str:
        """Return the runtime's name."""
        return self.runtime

    def start(
        self,
        name: str,
        until: str = "Ready",
        *,
        spec: dict[str, Any] | None = None,
        **container: object,
    ) -> str:
        """Create a pod, and wait for a condition; return its name."""
        made = manifest(name, self.runtime, spec=spec, **container)
        self.namespace.apply(made)
        pod: str = made["metadata"]["name"]
        self.namespace.wait(pod, until, timeout=SECONDS)
        return pod

    def sh(self, pod: str, script: str) -> str:
        """Run a script in a pod's container; return what it writes."""
        return self.namespace.exec(pod, "sh", "-c", script, timeout=60).stdout

    def refused(self, pod: str, *command: str) -> str:
        """Run a program in a pod's container that fails within 20 s; return its words."""
        done = self.namespace.exec(pod, *command, check=False, timeout=20)
        assert done.returncode != 0, done.stdout
        return done.stdout + done.stderr

    def status(self, pod: str) -> dict[str, Any]:
        """Return the status of a pod's container ``it``; empty while it has none."""
        done = self.cluster.kubectl("get", "pod", pod, "-n", str(self.namespace), "-o", "json")
        statuses = json.loads(done.stdout)["status"].get("containerStatuses", [])
        return statuses[0] if statuses else {}

    def wait(self, condition: Callable[[], object], what: str, timeout: Timeout = SECONDS) -> None:
        """Wait until something is so."""
        deadline = timeout if isinstance(timeout, Deadline) else Deadline.after(timeout)
        self.cluster.wait(lambda: bool(condition()), what, deadline)

    def container(self, pod: str) -> str:
        """Return the id of a pod's container."""
        found: str = self.status(pod)["containerID"]
        return found.removeprefix("containerd://")

    def oci(self, *words: str, check: bool = True) -> Completed:
        """Run the runtime in the node, on the containers of pods."""
        return self.node([f"{BIN_DIR}/{self.runtime}", "--root", ROOT, *words], check=check)

    def node(self, argv: Sequence[str], *, check: bool = True) -> Completed:
        """Run a program in the node; one that hangs for 20 s is an error."""
        return self.sandbox.run(argv, timeout=20, check=check)

    def group(self, container: str, controller: str) -> str:
        """Return the folder of a container's cgroup, a path inside."""
        tree = f"/sys/fs/cgroup/{controller}"
        (found,) = self.node(["find", tree, "-type", "d", "-name", container]).stdout.split()
        return found

    def limits(self, container: str) -> dict[str, int]:
        """Return the numbers of a container's cgroup that limits are written to."""
        memory, cpu = self.group(container, "memory"), self.group(container, "cpu")
        files = {
            "memory": f"{memory}/memory.limit_in_bytes",
            "memsw": f"{memory}/memory.memsw.limit_in_bytes",
            "quota": f"{cpu}/cpu.cfs_quota_us",
            "shares": f"{cpu}/cpu.shares",
        }
        return dict(zip(files, map(int, self.node(["cat", *files.values()]).stdout.split()), strict=True))

    @property
    def path(self) -> str:
        """The program that containerd starts as this runtime, a path inside."""
        config = tomllib.loads(self.node(["cat", f"{STATE_DIR}/containerd.toml"]).stdout)
        runtimes = config["plugins"]["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"]
        found: str = runtimes[self.runtime]["options"]["BinaryName"]
        return found

    def frozen(self, container: str) -> str:
        """Return the state of a container's freezer."""
        return self.node(["cat", f"{self.group(container, 'freezer')}/freezer.state"]).stdout.strip()

    def warnings(self, pod: str) -> str:
        """Return what was said of a pod that goes wrong."""
        return "\n".join(each.message for each in self.namespace.events(f"pod/{pod}"))
