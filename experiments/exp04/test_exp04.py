"""Experiment 04: /proc/sys from a tree of files, by ptrace, and nothing else.

First that programs of every kind see the tree, whatever call they read it by and however many
threads ask; then how far a worker node gets with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import pytest

from pytest_k3s_sandbox.lab.places import placed
from pytest_k3s_sandbox.lab.probes import ONLOOKERS, READS, build_all, compared, look
from pytest_k3s_sandbox.lab.rules import FUSE, INTERCEPTOR, OWN, STATISTICS, Fate
from pytest_k3s_sandbox.node.spec import NodeSpec
from pytest_k3s_sandbox.pytestplugin.claims import Claims
from pytest_k3s_sandbox.report.records import RunWriter, Stage
from pytest_k3s_sandbox.sandbox.base import STATE_DIR

if TYPE_CHECKING:
    from pytest_k3s_sandbox.lab.nodes import NodeTrials
    from pytest_k3s_sandbox.pytestplugin.recording import Claim
    from pytest_k3s_sandbox.sandbox.started import StartedSandbox
    from pytest_k3s_sandbox.toolchain import Toolchain

pytestmark = [pytest.mark.exp04, pytest.mark.k3s_requires("root", "ptrace")]

TREE = f"{STATE_DIR}/exp04"
TUNABLES = {
    "/proc/sys/kernel/ostype": "Multics",  # which every kernel has
    "/proc/sys/vm/overcommit_memory": "17",
    "/proc/sys/kernel/keys/root_maxbytes": "25000000",  # which gVisor has not
    "/proc/sys/net/there/is/none": "made up",
}
UNTOUCHED = ("/proc/sys/kernel/hostname", "/proc/sys/kernel/no-such-tunable", "/proc/version")


@pytest.fixture(scope="module", params=["gvisor", "host"])
def place(
    request: pytest.FixtureRequest, k3s_toolchain: Toolchain, k3s_spec: NodeSpec, k3s_run: RunWriter
) -> Iterator[StartedSandbox]:
    """A sandbox with the programs and the tree, but nothing of Kubernetes."""
    with placed(request.param, "exp04", build_all(), k3s_toolchain, k3s_spec, k3s_run) as sandbox:
        for path, value in TUNABLES.items():
            sandbox.files.mkdir(str(PurePosixPath(TREE + path).parent))
            sandbox.files.write(TREE + path, f"{value}\n")
        yield sandbox


@pytest.mark.timeout(120)
@pytest.mark.parametrize("threads", [1, 16])
@pytest.mark.parametrize("name", ONLOOKERS)
def test_programs_see_the_tree(place: StartedSandbox, k3s_run: RunWriter, name: str, threads: int) -> None:
    """Files of the tree are read from the tree; every other answer is as without the interceptor."""
    program = ONLOOKERS[name]
    if threads > 1 and not program.words:
        pytest.skip("not applicable: busybox has no threads")
    calls = [call for call in program.calls if call in READS]
    questions = [(call, path) for call in calls for path in (*TUNABLES, *UNTOUCHED)]
    claim = Claims(k3s_run, suffix=f"-{place.kind}", prefix=f"{place.kind}: ")
    text = f"{name} sees the tree in {threads} threads, and all else as it is"
    with claim.of(f"tree-{name}-{threads}", text, limit=f"{len(questions)} answers") as one:
        plain = look(place, program, questions)
        wrap = [*INTERCEPTOR, "--preset", "exp04", "--tree", TREE, "--"]
        under = look(place, program, questions, threads=threads, wrap=wrap)
        tree = {(call, path): value for call in calls for path, value in TUNABLES.items()}
        one.judge(*compared(plain, under, tree))


# The worker node, with the layers that lab/rules.py names.
RULES = "ptrace_interceptor:exp04"
FATES = (
    Fate(OWN, None, Stage.STARTED, STATISTICS),
    Fate(OWN, RULES, Stage.STARTED, STATISTICS),
    Fate(FUSE, None, Stage.STARTED, "/proc/sys/kernel/keys/root_maxbytes"),
    Fate(FUSE, RULES, Stage.READY, "cgroup"),
)


@pytest.mark.k3s_requires("gvisor", "fuse")
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "fate",
    [
        pytest.param(fate, marks=() if fate == FATES[1] else pytest.mark.nightly, id=fate.name)
        for fate in FATES
    ],
)
def test_how_far_the_node_gets(trials: NodeTrials, claim: Claim, fate: Fate) -> None:
    """The rules take one wall away, that of the kernel tunables; the one before it stays."""
    with claim.of(f"fate-{fate.name}", fate.text) as found:
        seen = trials.run(fate.layers)
        found.judge(fate.holds(seen), f"{seen.reached}: {seen.said}")


@pytest.fixture(scope="session")
def k3s_spec(one_root_spec: NodeSpec) -> NodeSpec:
    """A sandbox whose root is a single 9p mount, as for the trials above."""
    return one_root_spec


@pytest.mark.nightly
@pytest.mark.k3s_requires("gvisor", "fuse")
@pytest.mark.timeout(1200)
@pytest.mark.k3s_layers(*FUSE.split(","), RULES)
def test_how_long_it_stays_ready(hold: Callable[[], None]) -> None:
    """The research's nodes were lost after 30 to 60 seconds; this one has the layers that they lacked."""
    hold()
