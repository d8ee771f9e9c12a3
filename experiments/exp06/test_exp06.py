"""Experiment 06: as experiment 04, and statfs says another file system.

First that programs of every kind see it, whatever call they ask by and however many threads ask, and that
nothing else is changed; then how far a worker node gets with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from pytest_k3s_sandbox.lab.places import placed
from pytest_k3s_sandbox.lab.probes import ONLOOKERS, build_all, compared, look
from pytest_k3s_sandbox.lab.rules import FUSE, INTERCEPTOR, OWN, STATISTICS, Fate
from pytest_k3s_sandbox.layers.stack import parse
from pytest_k3s_sandbox.node.spec import NodeSpec
from pytest_k3s_sandbox.pytestplugin.claims import Claims
from pytest_k3s_sandbox.pytestplugin.recording import claims
from pytest_k3s_sandbox.report.records import RunWriter, Stage
from pytest_k3s_sandbox.sandbox.base import STATE_DIR

if TYPE_CHECKING:
    from pytest_k3s_sandbox.lab.nodes import NodeTrials
    from pytest_k3s_sandbox.pytestplugin.recording import Claim
    from pytest_k3s_sandbox.sandbox.started import StartedSandbox
    from pytest_k3s_sandbox.toolchain import Toolchain

pytestmark = [pytest.mark.exp06, pytest.mark.k3s_requires("root", "ptrace")]

RULES_FILE = f"{STATE_DIR}/exp06.toml"
MAGICS = {"ext4": 0xEF53, "xfs": 0x58465342, "btrfs": 0x9123683E, "overlayfs": 0x794C7630}  # linux/magic.h
ELSEWHERE = ("/proc", "/dev/shm", "/tmp")  # noqa: S108 - file systems of other types, which no rule is about
ASKING = ("statfs", "fstatfs")


@pytest.fixture(scope="module", params=["gvisor", "host"])
def place(
    request: pytest.FixtureRequest, k3s_toolchain: Toolchain, k3s_spec: NodeSpec, k3s_run: RunWriter
) -> Iterator[StartedSandbox]:
    """A sandbox with the programs, but nothing of Kubernetes."""
    with placed(request.param, "exp06", build_all(), k3s_toolchain, k3s_spec, k3s_run) as sandbox:
        yield sandbox


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "magic",
    [name if name == "ext4" else pytest.param(name, marks=pytest.mark.nightly) for name in MAGICS],
)
@pytest.mark.parametrize("name", ONLOOKERS)
def test_programs_see_the_magic(place: StartedSandbox, k3s_run: RunWriter, name: str, magic: str) -> None:
    """The root's file system has the rule's type, in 16 threads at once; all others keep theirs."""
    if MAGICS[magic] == place.root_magic():
        pytest.skip(f"not applicable: the root's file system is {magic} here")
    program = ONLOOKERS[name]
    calls = [call for call in program.calls if call in ASKING]
    roots = ("/", "/usr")
    questions = [(call, path) for call in calls for path in (*roots, *ELSEWHERE)]
    claim = Claims(k3s_run, suffix=f"-{place.kind}", prefix=f"{place.kind}: ")
    text = f"{name} sees {magic} where the root's file system is, and all others as they are"
    with claim.of(f"magic-{name}-{magic}", text, limit=f"{len(questions)} answers") as one:
        plain = look(place, program, questions)
        original = int(plain["statfs", "/"], 16)
        rule = f"[[statfs]]\noriginal = {original}\nreplacement = {MAGICS[magic]}\n"
        place.files.write(RULES_FILE, rule)
        wrap = [*INTERCEPTOR, "--rules", RULES_FILE, "--"]
        under = look(place, program, questions, threads=16 if program.words else 1, wrap=wrap)
        same = [question for question in questions if int(plain[question], 16) == original]
        assert "/" in {path for _, path in same}
        assert "/proc" not in {path for _, path in same}
        one.judge(*compared(plain, under, dict.fromkeys(same, hex(MAGICS[magic]))))


# The worker node, with the same layers as in experiment 04; lab/rules.py names them.
RULES = "ptrace_interceptor:exp06"
FATES = (
    Fate(OWN, None, Stage.STARTED, STATISTICS),
    Fate(OWN, RULES, Stage.STARTED, STATISTICS),
    Fate(FUSE, RULES, Stage.READY, "cgroup"),
)


@pytest.mark.k3s_requires("gvisor", "fuse")
@pytest.mark.timeout(180)
@pytest.mark.nightly  # each needs a control plane of its own
@pytest.mark.parametrize("fate", FATES, ids=lambda fate: fate.name)
def test_how_far_the_node_gets(trials: NodeTrials, claim: Claim, fate: Fate) -> None:
    """The node gets no further than with experiment 04's rules: the file system's type is not in its way."""
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


@pytest.mark.nightly
@pytest.mark.k3s_requires("gvisor", "fuse")
@pytest.mark.timeout(180)
@pytest.mark.parametrize("preset", ["exp04", "exp06"])
def test_a_second_9p_mount_is_a_wall_that_statfs_does_not_take_away(
    trials_with: Callable[..., NodeTrials], k3s_toolchain: Toolchain, preset: str
) -> None:
    """On a 9p mount that is not the root the type matters, but in the mount table, which has no rule here."""
    made = trials_with(k3s_toolchain, False)
    text = "A node whose /var is a 9p mount of its own ends with 'could not find device' all the same"
    try:
        with claims(made.writer).of(f"second-mount-{preset}", text) as wall:
            seen = made.run(parse([*FUSE.split(","), f"ptrace_interceptor:{preset}"]))
            wall.judge(
                seen.reached is Stage.STARTED and seen.speaks_of("could not find device"),
                f"{seen.reached}: {seen.said}",
            )
    finally:
        made.close()
