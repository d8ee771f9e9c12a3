"""Trials: one control plane, whose node is started again and again, each time in other layers.

A trial starts from the state that the first one started from: whatever the node of the trial before
left in the sandbox and in the API server is removed, and that this is so is checked before the next one.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pytest_k3s_sandbox.cluster.answers import found
from pytest_k3s_sandbox.cluster.cluster import Cluster
from pytest_k3s_sandbox.cluster.components import KUBELET_ROOT, ON_9P
from pytest_k3s_sandbox.cluster.embedded import NODE, Embedded
from pytest_k3s_sandbox.cluster.process_wait import ended, tail
from pytest_k3s_sandbox.cluster.runner import START_SECONDS, ClusterRunner
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import ClusterError, ConfigError
from pytest_k3s_sandbox.lab import reset
from pytest_k3s_sandbox.lab.observe import POD_NAMESPACE, Limits, Observation, Watch
from pytest_k3s_sandbox.layers.base import Layer
from pytest_k3s_sandbox.layers.stack import bring_up
from pytest_k3s_sandbox.layers.workarounds.layer import TREE
from pytest_k3s_sandbox.sandbox.base import STATE_DIR
from pytest_k3s_sandbox.sandbox.trees import copy_tree_in, copy_tree_out

PRISTINE_BYTES = 1 << 30
"""Bytes of containerd's folder with its images that are copied at most; it has some 15 million."""
CONTAINERD_ROOT = ON_9P.root
LEFT = (
    "/run/containerd",
    "/run/k3s-sandbox",
    "/run/mount",
    "/run/netns",
    "/dev/kmsg",
    "/var/lib/cni",
    KUBELET_ROOT,
    "/var/log/containers",
    "/var/log/pods",
    *(f"{STATE_DIR}/{name}" for name in ("cni", "runtime", "tree")),
)
"""Folders that a node and the layers leave, besides mounts, processes and :data:`CONTAINERD_ROOT`."""

State = Mapping[str, Sequence[str]]


def differences(before: State, after: State) -> dict[str, list[str]]:
    """Return the differences between two states of a sandbox, by place: ``+`` for new, ``-`` for missing.

    Args:
        before: A state as :mod:`.sweep` tells it.
        after: A later one.
    """
    found = {}
    for place in dict.fromkeys((*before, *after)):
        old, new = list(before.get(place, ())), list(after.get(place, ()))
        came = [f"+ {line}" for line in new if new.count(line) > old.count(line)]
        went = [f"- {line}" for line in old if old.count(line) > new.count(line)]
        if came or went:
            found[place] = [*came, *went]
    return found


def trial_pod(cluster: Cluster) -> dict[str, Any]:
    """Return the pod that a trial's node is to run: with a token volume, and bound to it already."""
    return {
        "metadata": {"name": "trial"},
        "spec": {
            "nodeName": cluster.node.name,
            "terminationGracePeriodSeconds": 0,
            "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "trial", "image": "busybox:1.36", "command": ["sleep", "86400"]}],
        },
    }


class Trials:
    """Starts a node in one stack of layers after the other, each from the same state; a context manager.

    Args:
        cluster: A cluster of kind ``embedded`` whose control plane was started, without a node.
        folder: Gets a folder with the logs of each trial.
        limits: How long each step is waited for.

    Raises:
        ConfigError: The cluster is of another kind.

    Attributes:
        runner: The cluster's programs.
        cluster: The cluster.
        first: The state of the sandbox that every trial starts from.
    """

    def __init__(self, runner: ClusterRunner, folder: Path, limits: Limits | None = None) -> None:
        """Keep the parts; nothing is started yet."""
        if not isinstance(runner.distribution, Embedded):
            raise ConfigError(
                f"trials of distribution {runner.distribution.name}",
                cause="its node and its control plane are one process",
                remedy="use --k3s-distribution=embedded",
            )
        self.runner = runner
        self.cluster = runner.cluster
        self._distribution = runner.distribution
        self.first: State = {}
        self._folder = folder
        self._limits = limits or Limits()
        self._sandbox = runner.sandbox
        self._mounts: list[str] = []
        self._number = 0

    def __enter__(self) -> Self:
        """Wait for the control plane, and load the images into a containerd that every trial begins with.

        Raises:
            ClusterError: The control plane or containerd does not come up, or a node leaves files that cannot
                be removed.
        """
        program = self._inside("reset.py")
        self._sandbox.files.copy_in(Path(reset.__file__), program)
        table = self._sandbox.run(["cat", "/proc/self/mountinfo"]).stdout
        self._mounts = [line.split()[0] for line in table.splitlines()]
        runner, deadline = self.runner, Deadline.after(START_SECONDS)
        # As in the research, all of a node's storage is 9p; and it can be copied from outside.
        runner.settings = replace(runner.settings, store=ON_9P)
        self._distribution.wait_control_plane(self._sandbox, runner.settings, deadline)
        self._sandbox.files.mkdir(CONTAINERD_ROOT)
        self._sandbox.run(["rm", "-rf", "/run/mount"])  # files of mount(8), not of a trial
        self.first = self._state(change=False)
        self._start_node(())
        if (dead := ended({"containerd": runner.processes["containerd"]})) is not None:
            raise ClusterError("containerd ended before it had its images", cause=tail(dead), log=dead.log)
        self._end_node()
        copy_tree_out(self._sandbox.files, CONTAINERD_ROOT, self._pristine, PRISTINE_BYTES)
        self.cluster.wait_usable(POD_NAMESPACE, deadline)
        self._clean()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the state that was kept for the next trial."""
        shutil.rmtree(self._pristine, ignore_errors=True)

    def run(self, words: Sequence[str], *, isolation: bool = True, also: Sequence[Layer] = ()) -> Observation:
        """Start a node in fresh layers, see how far it gets, and remove all of it.

        Args:
            words: The layers, as :func:`~pytest_k3s_sandbox.layers.stack.parse` gives them.
            isolation: The kubelet's ``localStorageCapacityIsolation``.
            also: Further layers, which are entered after those.

        Raises:
            LayerError: A layer did not come up.
            ClusterError: The node left files that cannot be removed, or the control plane ended.
        """
        self._number += 1
        cluster, runner = self.cluster, self.runner
        runner.settings = replace(runner.settings, local_storage_isolation=isolation)
        try:
            # The targets of the interceptor's redirects need not exist, but their folder has to.
            self._sandbox.files.mkdir(f"{TREE}/proc/sys")
            with contextlib.ExitStack() as layers:
                stack = layers.enter_context(bring_up(self._sandbox, words))
                more = [layers.enter_context(layer) for layer in also]
                self._start_node((*stack.layers, *more))
                seen = Watch(cluster, trial_pod(cluster), self._limits).follow()
                self._end_node()
        finally:
            self._end_node()
            self._clean()
        return seen

    @property
    def _pristine(self) -> Path:
        return self._sandbox.workdir / "containerd-pristine"

    @staticmethod
    def _inside(name: str) -> str:
        return f"{STATE_DIR}/{name}"

    def _start_node(self, layers: Sequence[Layer]) -> None:
        """Start the node. If it ends meanwhile, its observer sees that."""
        try:
            self.runner.start_node(layers)
        except ClusterError:
            node = {name: each for name, each in self.cluster.processes.items() if name in NODE}
            if ended(node) is None:
                raise

    def _end_node(self) -> None:
        """End the node at once: it need not put anything in order."""
        for name in NODE:
            if name in self.cluster.processes:
                self.cluster.processes[name].signal(signal.SIGKILL)
        self.runner.stop_node()

    def _clean(self) -> None:
        """Remove the remains of the last node everywhere, and make sure that they are gone.

        Raises:
            ClusterError: Something is.
        """
        after = self._state(change=True)
        for folder in ("bin", "net.d"):  # as a sandbox has them from its start
            self._sandbox.files.mkdir(f"{STATE_DIR}/cni/{folder}")
        self._sandbox.files.remove(CONTAINERD_ROOT)
        copy_tree_in(self._pristine, self._sandbox.files, CONTAINERD_ROOT)
        self._forget()
        self._keep_logs()
        left = differences(self.first, after)
        if left:
            raise ClusterError(
                "the node of the last trial left something behind",
                cause="; ".join(f"{place}: {', '.join(lines)}" for place, lines in left.items()),
                log=self._folder,
            )

    def _forget(self) -> None:
        """Remove the node and its objects from the API server."""
        from kubernetes.client import CoordinationV1Api, StorageV1Api

        core, name = self.cluster.core, self.cluster.node.name
        leases, storage = CoordinationV1Api(self.cluster.client), StorageV1Api(self.cluster.client)
        for pod in core.list_pod_for_all_namespaces().items:
            where = (pod.metadata.name, pod.metadata.namespace)
            found(functools.partial(core.delete_namespaced_pod, *where, grace_period_seconds=0))
        found(lambda: core.delete_node(name))
        found(lambda: leases.delete_namespaced_lease(name, "kube-node-lease"))
        # Not parsed: the client refuses the server's answer, a CSINode whose drivers are null.
        found(lambda: storage.delete_csi_node(name, _preload_content=False))

    def _keep_logs(self) -> None:
        """Move the logs of ended processes away, so that the next reader finds a new log."""
        running = set(self.cluster.processes)
        folder = self._folder / f"trial-{self._number:02}"
        folder.mkdir(parents=True, exist_ok=True)
        logs = f"{STATE_DIR}/logs"
        for name in self._sandbox.files.names(logs):
            stem, dot, suffix = name.partition(".")
            if dot + suffix == ".log" and stem not in running:
                self._sandbox.files.copy_out(f"{logs}/{name}", folder / name)
                self._sandbox.files.remove(f"{logs}/{name}")

    def _state(self, *, change: bool) -> State:
        request = {
            "keep": [process.pid for process in self.cluster.processes.values()],
            "mounts": self._mounts if change else None,
            "groups": list(self.first.get("groups", ())),
            "remove": LEFT,
        }
        program = [sys.executable, "-I", "-S", self._inside("reset.py"), json.dumps(request)]
        answer: dict[str, list[str]] = json.loads(self._sandbox.run(program).stdout)
        return answer
