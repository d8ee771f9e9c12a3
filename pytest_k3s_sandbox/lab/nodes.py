"""A control plane for experiments that try one node after the other, and a record for each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_k3s_sandbox.cluster.cluster import Cluster
    from pytest_k3s_sandbox.cluster.runner import ClusterRunner
    from pytest_k3s_sandbox.lab.observe import Observation
    from pytest_k3s_sandbox.lab.trials import Trials
    from pytest_k3s_sandbox.layers.base import Layer
    from pytest_k3s_sandbox.node.spec import NodeSpec
    from pytest_k3s_sandbox.report.records import RunWriter
    from pytest_k3s_sandbox.sandbox.started import StartedSandbox
    from pytest_k3s_sandbox.toolchain import Toolchain

ISOLATION = "localStorageCapacityIsolation"
"""The kubelet's setting that decides whether it asks cAdvisor for the root's file system at its start."""

VAR_MOUNT = "/var a mount of its own"
"""The variant of a sandbox with a second 9p mount, as this project's usually are."""


class NodeTrials:
    """Tries nodes on one control plane, which starts when it is first asked for; see :class:`.Trials`.

    Args:
        spec: The specification; its distribution must be ``embedded``.
        toolchain: Where the programs come from.
        record: Opens a run's records; called with further words of its folder's name.
        experiment: Names the experiment, when a run begins.
        timeout_scale: How much slower than usual the machine is.
        check: Called with the sandbox when it is up; raises if no node can be tried there.
    """

    def __init__(
        self,
        spec: NodeSpec,
        toolchain: Toolchain,
        record: Callable[..., AbstractContextManager[RunWriter]],
        experiment: Callable[[], str],
        timeout_scale: float = 1.0,
        check: Callable[[StartedSandbox], None] = lambda _sandbox: None,
    ) -> None:
        """Start nothing yet."""
        self._spec = spec
        self._toolchain = toolchain
        self._record = record
        self._experiment = experiment
        self._timeout_scale = timeout_scale
        self._check = check
        self._open = contextlib.ExitStack()
        self._up: tuple[Trials, RunWriter] | None = None

    @property
    def cluster(self) -> Cluster:
        """The cluster, which has a node only during a trial."""
        return self.start()[0].cluster

    @property
    def runner(self) -> ClusterRunner:
        """The cluster's programs."""
        return self.start()[0].runner

    @property
    def writer(self) -> RunWriter:
        """The run's records."""
        return self.start()[1]

    @property
    def version(self) -> str:
        """The version of Kubernetes."""
        return self.cluster.settings.kubernetes

    def start(self) -> tuple[Trials, RunWriter]:
        """Return the trials and their records; starts both if need be.

        Raises:
            SandboxError: The control plane did not come up; nothing is left.
        """
        if self._up is None:
            with contextlib.ExitStack() as stack:
                self._up = self._begin(stack)
                self._open = stack.pop_all()
        return self._up

    def close(self) -> None:
        """End the control plane and its records; both can be started again."""
        self._up = None
        self._open.close()

    def run(self, words: Sequence[str], *, isolation: bool = True, also: Sequence[Layer] = ()) -> Observation:
        """Try a node in fresh layers, and record how far it gets.

        Args:
            words: The layers.
            isolation: The kubelet's ``localStorageCapacityIsolation``.
            also: Further layers, made for the cluster's sandbox.

        Raises:
            SandboxError: As for :meth:`.Trials.run`.
        """
        trials, writer = self.start()
        seen = trials.run(words, isolation=isolation, also=also)
        names = (*words, *(layer.name for layer in also))
        variant = None if self._spec.one_root else VAR_MOUNT
        writer.append(seen.cell(names, self.version, settings(isolation=isolation), variant))
        return seen

    def _begin(self, stack: contextlib.ExitStack) -> tuple[Trials, RunWriter]:
        from pytest_k3s_sandbox.lab.observe import Limits
        from pytest_k3s_sandbox.lab.trials import Trials
        from pytest_k3s_sandbox.layers.stack import LayerStack
        from pytest_k3s_sandbox.node.diagnostics import explained
        from pytest_k3s_sandbox.node.fingerprint import fingerprint
        from pytest_k3s_sandbox.node.session import open_control_plane, open_sandbox, open_stack

        spec, toolchain = self._spec, self._toolchain
        writer = stack.enter_context(self._record("trials", *([] if spec.one_root else ["var-mount"])))
        sandbox = stack.enter_context(open_sandbox(spec, toolchain, writer))
        self._check(sandbox)
        writer.append(fingerprint(LayerStack(sandbox, ()), spec, toolchain, self._experiment()))
        folder = writer.path.parent
        with explained(sandbox, folder):
            runner = open_control_plane(sandbox, spec, toolchain, writer)
            stack.enter_context(open_stack(sandbox, (), writer, runner))
            limits = Limits().stretched(self._timeout_scale)
            return stack.enter_context(Trials(runner, folder / "logs", limits)), writer


def settings(*, isolation: bool) -> Mapping[str, str]:
    """Return the kubelet's settings that are not as usual, as records have them."""
    return {} if isolation else {ISOLATION: "false"}
