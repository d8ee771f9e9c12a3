"""Trials of nodes in a real sandbox: what a node leaves is removed, and what cannot be is noticed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import pytest

from pytest_k3s_sandbox.errors import ClusterError
from pytest_k3s_sandbox.lab.observe import Milestone
from pytest_k3s_sandbox.lab.trials import Trials
from pytest_k3s_sandbox.layers.base import Health, NodeOverrides
from pytest_k3s_sandbox.layers.stack import FULL
from pytest_k3s_sandbox.node.session import open_control_plane
from pytest_k3s_sandbox.node.spec import NodeSpec
from pytest_k3s_sandbox.node.start import start_sandbox
from pytest_k3s_sandbox.report.records import RunWriter, Stage

if TYPE_CHECKING:
    from pytest_k3s_sandbox.sandbox.base import Sandbox
    from pytest_k3s_sandbox.toolchain import Toolchain

pytestmark = [
    pytest.mark.k3s_requires("root", "gvisor", "fuse", "ptrace"),
    pytest.mark.nightly,
    pytest.mark.timeout(240),
]


class Litter:
    """A layer that leaves what a command makes; implements :class:`~pytest_k3s_sandbox.layers.base.Layer`."""

    name = "litter"
    overrides = NodeOverrides()

    def __init__(self, sandbox: Sandbox, command: str) -> None:
        """Keep what it will leave."""
        self._sandbox = sandbox
        self._command = command

    def __enter__(self) -> Self:
        """Leave it behind."""
        self._sandbox.run(["sh", "-c", self._command])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave it."""

    def check(self) -> Health:
        """Find nothing."""
        return Health(ok=True)


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory, k3s_toolchain: Toolchain) -> Iterator[Trials]:
    """Trials in a sandbox of the usual kind, where /var is a mount of its own."""
    folder = tmp_path_factory.mktemp("trials")
    spec = NodeSpec()
    with (
        RunWriter(folder / "run") as writer,
        start_sandbox(spec, k3s_toolchain) as sandbox,
        open_control_plane(sandbox, spec, k3s_toolchain, writer) as process,
        Trials(process, folder) as trials,
    ):
        yield trials


REMOVED = """
mkdir -p /run/somewhere && mount -t tmpfs tmpfs /run/somewhere && mkdir /run/somewhere/sub
mount -t tmpfs tmpfs /run/somewhere/sub && mount --make-rshared / && mount -t tmpfs tmpfs /proc/sys
mount -t tmpfs tmpfs /sys/fs/cgroup && mkdir /sys/fs/cgroup/cpu
mount -t cgroup -o cpu cpu /sys/fs/cgroup/cpu
mkdir -p /sys/fs/cgroup/cpu/left/behind
setsid sleep 1000 </dev/null >/dev/null 2>&1 &
mkdir -p /var/lib/kubelet/pods /run/containerd && touch /dev/kmsg
"""
"""What nodes leave, and worse, except for the folder that the trials may not remove."""


def test_a_trial_does_not_profit_from_the_one_before(trials: Trials, tmp_path: Path) -> None:
    """All but an unknown folder is removed; that is noticed; and the next trial is the first one's again."""
    sandbox = trials.runner.sandbox
    with pytest.raises(ClusterError) as caught:
        trials.run((), also=[Litter(sandbox, REMOVED)])
    assert caught.value.cause == "/run: + d somewhere"
    assert "No such file" in sandbox.run(["ls", "/dev/kmsg"], check=False).stderr
    sandbox.run(["rmdir", "/run/somewhere"])
    seen = trials.run(())
    assert (seen.reached, seen.exit_code) == (Stage.STARTED, 1)
    assert seen.error is not None
    assert "cgroup mounts" in seen.error.text
    assert not list(tmp_path.iterdir())


def test_a_whole_node_leaves_nothing(trials: Trials) -> None:
    """Neither a node with a pod nor its objects are there for the next one, which fails as the first did."""
    seen = trials.run(FULL)
    assert Milestone.SUMMARY in seen.milestones
    core = trials.cluster.core
    assert not core.list_node().items
    assert not core.list_pod_for_all_namespaces().items
    assert trials.run(()).exit_code == 1
