"""Experiment 04: /proc/sys from a tree of files, by ptrace, and nothing else.

First that programs of every kind see the tree, whatever call they read it by and however many
threads ask; then what it does for a worker node.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import pytest

from pytest_k3s_sandbox.lab.places import need_9p, placed
from pytest_k3s_sandbox.lab.probes import ONLOOKERS, READS, build_all, compared, look
from pytest_k3s_sandbox.lab.survival import follow
from pytest_k3s_sandbox.layers.stack import parse
from pytest_k3s_sandbox.node.spec import NodeSpec
from pytest_k3s_sandbox.pytestplugin.claims import Claims
from pytest_k3s_sandbox.pytestplugin.stash import SETTINGS
from pytest_k3s_sandbox.report.records import RunWriter, Stage
from pytest_k3s_sandbox.sandbox.base import STATE_DIR

if TYPE_CHECKING:
    from pytest_k3s_sandbox.lab.nodes import NodeTrials
    from pytest_k3s_sandbox.node.session import NodeSession
    from pytest_k3s_sandbox.pytestplugin.recording import Claim
    from pytest_k3s_sandbox.sandbox.started import StartedSandbox
    from pytest_k3s_sandbox.toolchain import Toolchain

pytestmark = [pytest.mark.exp04, pytest.mark.k3s_requires("root", "ptrace")]

MODULE = "pytest_k3s_sandbox.layers.interceptor"
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
    """What the tree has, comes from the tree; everything else is as without the interceptor."""
    program = ONLOOKERS[name]
    if threads > 1 and not program.words:
        pytest.skip("not applicable: busybox has no threads")
    calls = [call for call in program.calls if call in READS]
    questions = [(call, path) for call in calls for path in (*TUNABLES, *UNTOUCHED)]
    claim = Claims(k3s_run, suffix=f"-{place.kind}", prefix=f"{place.kind}: ")
    text = f"{name} sees the tree in {threads} threads, and all else as it is"
    with claim.of(f"tree-{name}-{threads}", text, limit=f"{len(questions)} answers") as one:
        plain = look(place, program, questions)
        wrap = [sys.executable, "-m", MODULE, "--preset", "exp04", "--tree", TREE, "--"]
        under = look(place, program, questions, threads=threads, wrap=wrap)
        tree = {(call, path): value for call in calls for path, value in TUNABLES.items()}
        one.judge(*compared(plain, under, tree))


# The worker node. The workarounds here are those that the research had beside its interceptor, without what
# the interceptor itself is for: the tree is there, and nothing but a rule leads to it.
OWN = "workarounds:cgroups+kmsg+oci+private+tree,fake_cni"
FUSE = "workarounds:kmsg+oci+private+tree,fuse_cgroupfs,fake_cni"
RULES = "ptrace_interceptor:exp04"
STATISTICS = "unable to find data in memory cache"
FATES = {
    (OWN, False): (Stage.STARTED, STATISTICS),
    (OWN, True): (Stage.STARTED, STATISTICS),
    (FUSE, False): (Stage.STARTED, "/proc/sys/kernel/keys/root_maxbytes"),
    (FUSE, True): (Stage.READY, "cgroup"),
}
"""How far the node gets and what stops it then, with the sandbox's own cgroups or those of experiment 07,
without and with the rules: as it was found with Kubernetes 1.34."""


@pytest.mark.k3s_requires("gvisor", "fuse")
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("base", "rules"),
    [pytest.param(*key, marks=() if key == (OWN, True) else pytest.mark.nightly) for key in FATES],
    ids=lambda value: {OWN: "own", FUSE: "fuse", True: "rules", False: "none"}[value],
)
def test_how_far_the_node_gets(trials: NodeTrials, claim: Claim, base: str, rules: bool) -> None:
    """The rules take one wall away, that of the kernel tunables; the one before it stays."""
    stage, words = FATES[base, rules]
    text = (
        f"{'With' if rules else 'Without'} the rules a node of {base} gets as far as '{stage}', "
        f"and the error speaks of '{words}'"
    )
    with claim.of(f"fate-{'fuse' if base == FUSE else 'own'}-{'rules' if rules else 'none'}", text) as fate:
        seen = trials.run(parse([*base.split(","), *([RULES] if rules else [])]))
        fate.judge(seen.reached is stage and seen.speaks_of(words), f"{seen.reached}: {seen.said}")


@pytest.fixture(scope="session")
def k3s_spec(request: pytest.FixtureRequest) -> NodeSpec:
    """A sandbox whose root is a single 9p mount, as for the trials above."""
    settings = request.config.stash[SETTINGS]
    spec = NodeSpec.of(settings)
    return replace(spec, layers=None, distribution="embedded", one_root=spec.sandbox == "gvisor")


@pytest.mark.nightly
@pytest.mark.k3s_requires("gvisor", "fuse")
@pytest.mark.timeout(1200)
@pytest.mark.k3s_layers(*FUSE.split(","), RULES)
def test_how_long_it_stays_ready(
    request: pytest.FixtureRequest, k3s_session: NodeSession, k3s_claim: Claim
) -> None:
    """The research's nodes were lost after 30 to 60 seconds; this one has what they lacked, and is held."""
    need_9p(k3s_session.stack.sandbox)  # on plain Linux the kubelet would set the machine's own tunables
    settings = request.config.stash[SETTINGS]
    text = f"The node is Ready in every sample of a hold of {settings.duration:g} s"
    with k3s_claim.of("stays-ready", text, limit=f"{settings.duration:g} s") as claim:
        fate = follow(k3s_session, settings.duration, settings.timeout_scale)
        claim.judge(fate.ready_seconds >= settings.duration and fate.losses == 0, fate.sentence())
