"""Experiment 08, the question behind it: which layer is needed for what, and for which Kubernetes?

Every subset of the layers is tried on a node of its own, with and without the kubelet's
``localStorageCapacityIsolation``, in two sandboxes: one whose root is a single 9p mount, as the research's
was, and one with another 9p mount for /var, as this project's usually are. ``-m nightly`` tries all of
them; the default run leaves out one layer at a time, which shows what is necessary beside the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import TYPE_CHECKING

import pytest

from pytest_k3s_sandbox.layers.stack import FULL
from pytest_k3s_sandbox.report.findings import Ablation, Stage

if TYPE_CHECKING:
    from pytest_k3s_sandbox.bench.trials import NodeTrials
    from pytest_k3s_sandbox.runs import Claim
    from pytest_k3s_sandbox.toolchain import Toolchain

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
"""How far a node of Kubernetes 1.34 gets without one of the layers, and what the error speaks of."""

LATER = {"ptrace_interceptor": (Stage.STARTED, "cannot find filesystem info for device")}
"""What is different from 1.36 on, where cAdvisor knows no 9p."""

REST = "kmsg+sysctl+oci+private"
PARTS = (
    f"workarounds:cgroups+{REST},fake_cni",
    f"workarounds:cgroups+{REST},ptrace_interceptor,fake_cni",
    "workarounds:sysctl+oci+private,fuse_cgroupfs,ptrace_interceptor,fake_cni",
    "workarounds:kmsg+oci+private,fuse_cgroupfs,ptrace_interceptor,fake_cni",
    "workarounds:kmsg+tree+oci+private,fuse_cgroupfs,ptrace_interceptor,fake_cni",
    "workarounds:kmsg+sysctl+private,fuse_cgroupfs,ptrace_interceptor,fake_cni",
    "workarounds:kmsg+sysctl+oci,fuse_cgroupfs,ptrace_interceptor,fake_cni",
    "workarounds:kmsg+sysctl+oci+shared,fuse_cgroupfs,ptrace_interceptor,fake_cni",
)
"""Stacks in which one of the workarounds is missing, or does what another layer does."""


@pytest.mark.timeout(180)
@pytest.mark.parametrize("missing", FULL)
def test_without_one_layer(trials: NodeTrials, claim: Claim, missing: str) -> None:
    """No layer can be left out: without it a pod does not run."""
    later = tuple(map(int, trials.version.split(".")[:2])) >= (1, 36)
    reached, words = (LATER if later and missing in LATER else WITHOUT)[missing]
    seen = trials.run([name for name in FULL if name != missing])
    assert seen.error is not None
    claim(
        f"without-{missing}",
        f"Without {missing} a node gets as far as '{reached}', and the error speaks of '{words}'",
        seen.reached is reached and words in seen.error.text,
        f"{seen.reached}: {seen.error.text}",
    )


@pytest.fixture(scope="module")
def column(
    request: pytest.FixtureRequest, trials_with: Callable[[Toolchain, bool], NodeTrials]
) -> Iterator[NodeTrials]:
    """Trials of one version of Kubernetes in one of the two sandboxes."""
    from pytest_k3s_sandbox.toolchain import Toolchain  # noqa: PLC0415 - collecting tests imports little

    version, root = request.param
    toolchain = Toolchain(kubernetes=version)
    toolchain.provision()
    made = trials_with(toolchain, ROOTS[root])
    try:
        yield made
    finally:
        made.close()


def every(column: NodeTrials, stacks: list[tuple[str, ...]]) -> list[Ablation]:
    """Try stacks with and without the isolation of local storage, and return what was recorded."""
    from pytest_k3s_sandbox.report.records import read_run  # noqa: PLC0415 - as above

    for isolation in (True, False):
        for stack in stacks:
            column.run(stack, isolation=isolation)
    return list(read_run(column.writer.path).ablation)


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("column", [(v, r) for v in VERSIONS for r in ROOTS], indirect=True, ids="-".join)
def test_every_subset(column: NodeTrials) -> None:
    """All layers together give a node with a pod and statistics; what fewer give is what is asked."""
    from pytest_k3s_sandbox.report.ablation import matrix, sets  # noqa: PLC0415 - as above
    from pytest_k3s_sandbox.runs import claims  # noqa: PLC0415 - likewise

    cells = every(column, SUBSETS)
    claim = claims(column.writer)
    claim("tried", "Every subset was tried", len(cells) == 2 * len(SUBSETS), len(cells), 2 * len(SUBSETS))
    for least, name in ((Stage.READY, "Ready"), (Stage.POD, "a running pod")):
        (found,) = sets(matrix(cells), least)
        claim(
            f"sufficient-{least}",
            f"The four layers suffice for {name}",
            any(combination <= set(FULL) for combination in found.sufficient),
            " or ".join(" + ".join(sorted(one)) or "nothing" for one in found.sufficient),
        )
    (full,) = [cell for cell in cells if cell.layers == FULL and not cell.settings]
    claim("summary", "With all of them /stats/summary is served", bool(full.stats_summary))


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("column", [(v, "one-root") for v in VERSIONS], indirect=True, ids="-".join)
def test_parts_of_the_workarounds(column: NodeTrials) -> None:
    """Of the workarounds, those that stand for what the kubelet or runc demand cannot be left out."""
    from pytest_k3s_sandbox.runs import claims  # noqa: PLC0415 - as above

    column.close()  # a run of its own
    cells = every(column, [tuple(stack.split(",")) for stack in PARTS])
    claims(column.writer)(
        "parts", "Every stack was tried", len(cells) == 2 * len(PARTS), len(cells), 2 * len(PARTS)
    )
