"""Experiment 08, the question behind it: which layer is needed for what, and for which Kubernetes?

Every subset of the layers is tried on a node of its own, with and without the kubelet's
``localStorageCapacityIsolation``, in two sandboxes: one whose root is a single 9p mount, as the research's
was, and one with another 9p mount for /var, as this project's usually are. ``-m nightly`` tries all of
them; the default run leaves out one layer at a time, which shows what is necessary beside the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from typing import TYPE_CHECKING

import pytest

from pytest_k3s_sandbox.lab.nodes import ISOLATION
from pytest_k3s_sandbox.layers.stack import FULL
from pytest_k3s_sandbox.report.records import Ablation, Stage

if TYPE_CHECKING:
    from pytest_k3s_sandbox.lab.nodes import NodeTrials
    from pytest_k3s_sandbox.pytestplugin.recording import Claim

pytestmark = [pytest.mark.exp08, pytest.mark.k3s_requires("root", "gvisor", "fuse", "ptrace")]

SUBSETS = [subset for size in range(len(FULL) + 1) for subset in combinations(FULL, size)]
VERSIONS = ("1.34", "1.36")
ROOTS = {"one-root": True, "var-mount": False}

WITHOUT = {
    "workarounds": (Stage.STARTED, "/dev/kmsg"),
    "fuse_cgroupfs": (Stage.STARTED, "failed to find cgroup mounts"),
    "ptrace_interceptor": (Stage.READY, "/sys/fs/cgroup"),
    "fake_cni": (Stage.REGISTERED, "cni plugin not initialized"),
}
"""How far a node of Kubernetes 1.34 gets without one of the layers, and a part of the error."""

LATER = {"ptrace_interceptor": (Stage.STARTED, "cannot find filesystem info for device")}
"""The differences from 1.36 on, where cAdvisor knows no 9p."""

REST = "kmsg+sysctl+oci+private"
OTHERS = "fuse_cgroupfs,ptrace_interceptor,fake_cni"
OFF = f"{ISOLATION}=false"
NO_INTERCEPTOR = frozenset(FULL) - {"ptrace_interceptor"}
READY_WITH = {
    "1.34-one-root": {NO_INTERCEPTOR},
    "1.34-var-mount": {NO_INTERCEPTOR | {OFF}, frozenset(FULL)},
    "1.36-one-root": {NO_INTERCEPTOR | {OFF}, frozenset(FULL)},
    "1.36-var-mount": {NO_INTERCEPTOR | {OFF}, frozenset(FULL)},
}
"""The smallest sets of layers and settings with which a node is Ready, by version and root, as recorded in
``reports/ablation``."""

POD_WITH = {frozenset(FULL)}
"""The same for a node that runs a pod, whatever the version and the root."""

PARTS = {
    f"workarounds:cgroups+{REST},fake_cni": (Stage.STARTED, Stage.POD),
    f"workarounds:cgroups+{REST},ptrace_interceptor,fake_cni": (Stage.STARTED, Stage.POD),
    f"workarounds:sysctl+oci+private,{OTHERS}": (Stage.STARTED, Stage.STARTED),
    f"workarounds:kmsg+oci+private,{OTHERS}": (Stage.STARTED, Stage.STARTED),
    f"workarounds:kmsg+tree+oci+private,{OTHERS}": (Stage.POD, Stage.POD),
    f"workarounds:kmsg+sysctl+private,{OTHERS}": (Stage.READY, Stage.READY),
    f"workarounds:kmsg+sysctl+oci,{OTHERS}": (Stage.POD, Stage.POD),
    f"workarounds:kmsg+sysctl+oci+shared,{OTHERS}": (Stage.POD, Stage.POD),
}
"""Stacks in which one of the workarounds is missing, or does what another layer does, and how far a node gets
with the isolation of local storage and without it: as recorded in ``reports/ablation`` for both versions."""


@pytest.mark.timeout(180)
@pytest.mark.parametrize("missing", FULL)
def test_without_one_layer(trials: NodeTrials, claim: Claim, missing: str) -> None:
    """No layer can be left out: without it a pod does not run."""
    later = tuple(map(int, trials.version.split(".")[:2])) >= (1, 36)
    reached, words = (LATER if later and missing in LATER else WITHOUT)[missing]
    text = f"Without {missing} a node gets as far as '{reached}', and the error speaks of '{words}'"
    with claim.of(f"without-{missing}", text) as wall:
        seen = trials.run([name for name in FULL if name != missing])
        wall.judge(seen.reached is reached and seen.speaks_of(words), f"{seen.reached}: {seen.said}")


@pytest.fixture
def column(request: pytest.FixtureRequest, trials_with: Callable[..., NodeTrials]) -> Iterator[NodeTrials]:
    """Trials of one version of Kubernetes in one of the two sandboxes, in a run of the test's own."""
    from pytest_k3s_sandbox.toolchain import Toolchain

    version, root = request.param
    toolchain = Toolchain(kubernetes=version)
    toolchain.provision()
    made = trials_with(toolchain, ROOTS[root])
    try:
        yield made
    finally:
        made.close()


def every(column: NodeTrials, stacks: Iterable[tuple[str, ...]], so_far: list[Ablation]) -> None:
    """Try stacks with and without the isolation of local storage, and add the records."""
    from pytest_k3s_sandbox.report.records import read_run

    stacks = list(stacks)
    for isolation in (True, False):
        for stack in stacks:
            column.run(stack, isolation=isolation)
            so_far[:] = read_run(column.writer.path).ablation


def words_of(found: Iterable[frozenset[str]]) -> str:
    """Return sets of layers in words."""
    return " or ".join(sorted(" + ".join(sorted(one)) or "nothing" for one in found)) or "none"


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("column", [(v, r) for v in VERSIONS for r in ROOTS], indirect=True, ids="-".join)
def test_every_subset(request: pytest.FixtureRequest, column: NodeTrials) -> None:
    """All layers together give a node with a pod and statistics; fewer give the known results."""
    from pytest_k3s_sandbox.pytestplugin.recording import claims
    from pytest_k3s_sandbox.report.ablation import matrix, sets

    wanted = {Stage.READY: READY_WITH["-".join(request.node.callspec.params["column"])], Stage.POD: POD_WITH}
    names = {Stage.READY: "Ready", Stage.POD: "a running pod"}
    cells: list[Ablation] = []
    with claims(column.writer).together() as claim, contextlib.ExitStack() as opened:
        sufficient = {
            least: opened.enter_context(
                claim.of(
                    f"sufficient-{least}",
                    f"The smallest sets of layers and settings for {names[least]} are those of before",
                    limit=words_of(sets_wanted),
                )
            )
            for least, sets_wanted in wanted.items()
        }
        summary = opened.enter_context(claim.of("summary", "With all of them /stats/summary is served"))
        for one in (*sufficient.values(), summary):
            one.so_far = lambda: f"{len(cells)} of {2 * len(SUBSETS)} stacks were tried"
        every(column, SUBSETS, cells)
        for least, one in sufficient.items():
            (found,) = sets(matrix(cells), least)
            one.judge(set(found.sufficient) == wanted[least], words_of(found.sufficient))
        served = [cell for cell in cells if cell.stats_summary]
        summary.judge(
            any(cell.layers == FULL and not cell.settings for cell in served),
            words_of({frozenset(cell.layers) for cell in served}),
        )


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("column", [(v, "one-root") for v in VERSIONS], indirect=True, ids="-".join)
def test_parts_of_the_workarounds(column: NodeTrials) -> None:
    """The workarounds for demands of the kubelet or runc cannot be left out."""
    from pytest_k3s_sandbox.pytestplugin.recording import claims

    cells: list[Ablation] = []
    stacks = {tuple(stack.split(",")): stages for stack, stages in PARTS.items()}
    text = "With each part of the workarounds missing, a node gets as far as before"
    with claims(column.writer).of("parts", text, limit=f"{2 * len(stacks)} stacks") as claim:
        claim.so_far = lambda: f"{len(cells)} of {2 * len(stacks)} stacks were tried"
        every(column, stacks, cells)
        wrong = [
            f"{','.join(cell.layers)}{' ' + OFF if cell.settings else ''}: {cell.reached}"
            for cell in cells
            if cell.reached is not stacks[cell.layers][bool(cell.settings)]
        ]
        right = len(cells) - len(wrong)
        claim.judge(
            not wrong and right == 2 * len(stacks),
            f"{right} of {2 * len(stacks)}" + "".join(f"; {one}" for one in wrong),
        )
