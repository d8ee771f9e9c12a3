"""The kernel's cgroup v1 and ours, file by file and write by write: the same names, modes, forms and errno.

Where this machine's kernel has no cgroup v1, the tests say "not applicable". Our tree is compared both as
a model and through FUSE. What differs is in ``DIFFERENCES``, each with its reason, and in docs/cgroupfs.md.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import pytest

from pytest_k3s_sandbox.layers.cgroupfs.accounting import ProcAccounting
from pytest_k3s_sandbox.layers.cgroupfs.tree import Tree
from support.cgroup_cases import ROOT, SCENARIOS, Scenario, Step
from support.cgroup_sides import (
    DIFFERENCES,
    TOP,
    Folder,
    Model,
    Side,
    both,
    compared,
    furnish,
    fuse_side,
    kernel_side,
    outcome,
    sleeper,
)


@pytest.fixture(scope="module", params=[*SCENARIOS, "cpu,cpuacct"])
def controller(request: pytest.FixtureRequest) -> str:
    """Return what is compared."""
    return str(request.param)


@pytest.fixture(scope="module")
def kernel(controller: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    """Give our own group in the kernel's hierarchy."""
    with kernel_side(controller, tmp_path_factory.mktemp("kernel")) as side:
        furnish(side, controller)
        yield side


@pytest.fixture(scope="module", params=["model", "fuse"])
def make(
    request: pytest.FixtureRequest, controller: str, kernel: Folder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Side]]:
    """Give what makes our tree, or a part of it, with a group of some name."""
    if request.param == "fuse":
        with fuse_side(controller, tmp_path_factory.mktemp("fuse")) as fuse:
            fuse.ours = kernel.ours
            furnish(fuse, controller)
            yield fuse.part
        return

    # One tree for all, as through FUSE: a new one would take a sample of the machine for each scenario.
    tree = Tree(ProcAccounting(), [controller])
    tree.mkdir(f"/{controller}/{TOP}")
    furnish(Model(tree, controller), controller)
    yield lambda name: Model(tree, controller, f"{TOP}/{name}")


def act(side: Side, step: Step, words: dict[str, int | str]) -> int:
    """Carry out a step and return its errno."""
    for word, value in words.items():
        step = tuple(part.replace(f"{{{word}}}", str(value)) for part in step)
    match step:
        case ("+", path):
            return outcome(lambda: side.mkdir(path))
        case ("-", path):
            return outcome(lambda: side.rmdir(path))
        case ("mv", old, new):
            return outcome(lambda: side.rename(old, new))
        case (path, text):
            return outcome(lambda: side.write(path, text))
    raise AssertionError(step)


def a_disk() -> str:
    """Return the number of a disk, or of none where there is none."""
    disks = (path for path in Path("/sys/dev/block").glob("*") if not (path / "partition").exists())
    return next((path.name for path in sorted(disks)), "99:99")


def descriptors(stack: ExitStack, folder: Path) -> dict[str, int | str]:
    """Open what a registration for events names."""
    found: dict[str, int | str] = {}
    for word, name in (
        ("usage", "usage_in_bytes"),
        ("oom", "oom_control"),
        ("pressure", "pressure_level"),
        ("stat", "stat"),
    ):
        found[word] = os.open(folder / f"memory.{name}", os.O_RDONLY | os.O_CREAT)
    found["event"] = os.eventfd(0)
    found["null"] = os.open(os.devnull, os.O_RDONLY)
    for fd in found.values():
        stack.callback(os.close, int(fd))
    return found


def play(scenario: Scenario, kernel: Folder, ours: Side, stack: ExitStack, scratch: Path) -> list[str]:
    """Do the same on both sides; return what was not the same."""
    text = str(scenario)
    words: list[dict[str, int | str]] = [{"disk": a_disk()}, {"disk": a_disk()}]
    if any(f"{{{word}}}" in text for word in ("pid", "many", "tid")):
        one, many = (stack.enter_context(sleeper(threads)) for threads in (1, 3))
        tid = max(int(task.name) for task in Path(f"/proc/{many}/task").iterdir())
        kernel.ours.update({one, many, tid})
        for side in words:
            side.update(pid=one, many=many, tid=tid)
    if "event_control" in text:
        dummy = scratch / f"{TOP}/{kernel.base.name}/g"
        dummy.mkdir(parents=True, exist_ok=True)
        words[0].update(descriptors(stack, kernel.base / "g"))
        words[1].update(descriptors(stack, ours.base / "g" if isinstance(ours, Folder) else dummy))
    wrong = []
    for step in scenario:
        theirs, own = (act(side, step, known) for side, known in zip((kernel, ours), words, strict=True))
        if theirs != own:
            names = [errno.errorcode.get(number, "taken") for number in (theirs, own)]
            wrong.append(f"{step!r:.80}: the kernel says {names[0]}, we say {names[1]}")
    said = both(kernel, ours)
    wrong += [
        f"{file}: the kernel says {said[0].get(file)!r}, we say {said[1].get(file)!r}"
        for file in sorted(said[0].keys() | said[1].keys())
        if said[0].get(file) != said[1].get(file)
    ]
    return [f"{scenario!r:.200}: {line}" for line in wrong]


def _root(side: Side, controller: str) -> Side:
    """Return the whole of a tree of ours."""
    if isinstance(side, Model):
        return Model(side.tree, controller, "")
    assert isinstance(side, Folder)
    return Folder(side.base.parent.parent)


def test_the_table_is_large() -> None:
    steps = [step for scenarios in SCENARIOS.values() for scenario in scenarios for step in scenario]
    writes = [step for step in steps if step[0] not in {"+", "-", "mv"}]
    assert len(writes) >= 600
    assert len(DIFFERENCES) <= 5


class Listed:
    """A side with one file, which says one thing after the other and stays with the last."""

    def __init__(self, *said: str) -> None:
        """Begin with the first."""
        self.said = list(said)

    def modes(self, _path: str) -> dict[str, int]:
        """Return the file."""
        return {"net_prio.ifpriomap": 0o644}

    def groups(self, _path: str) -> list[str]:
        """Return that there are none."""
        return []

    def read(self, _path: str) -> str:
        """Return what it says now."""
        return self.said.pop(0) if len(self.said) > 1 else self.said[0]


def test_an_interface_that_comes_meanwhile_is_no_difference() -> None:
    """But one that ours never lists, or that the kernel never does, is."""
    for theirs, ours, same in (
        (("lo 0", "lo 0 k3s1 0"), ("lo 0 k3s1 0",), True),
        (("lo 0 k3s1 0", "lo 0"), ("lo 0",), True),
        (("lo 0 k3s1 0",), ("lo 0",), False),
        (("lo 0",), ("lo 0 k3s1 0",), False),
        (("lo 0",), ("lo 5",), False),
    ):
        said = both(cast("Side", Listed(*theirs)), cast("Side", Listed(*ours)))
        assert (said[0] == said[1]) is same
    with pytest.raises(pytest.fail.Exception, match="never stay the same"):
        both(cast("Side", Listed(*map(str, range(100)))), cast("Side", Listed("x")))


def test_files(controller: str, kernel: Folder, make: Callable[[str], Side]) -> None:
    """Every file of the kernel's is in ours, in the root and in a group, with its mode and form."""
    theirs, ours = kernel.part("g"), make("g")
    with ExitStack() as stack:
        for side in (theirs, ours):
            side.mkdir("")
            stack.callback(side.clear)
        root = _root(ours, controller)
        for their, own, is_root in ((theirs, ours, False), (Folder(kernel.base.parent), root, True)):
            modes, mine = (
                {name: mode for name, mode in side.modes("").items() if compared(name)}
                for side in (their, own)
            )
            assert mine == modes
            forms, ours_too = both(their, own, root=is_root)
            if is_root:  # the machine's owner may have set these
                forms.update({name: ours_too[name] for name in ("release_agent", "notify_on_release")})
            assert ours_too == forms


def test_writes(controller: str, kernel: Folder, make: Callable[[str], Side], tmp_path: Path) -> None:
    """What is refused, how, and what is there afterwards."""
    wrong: list[str] = []
    for number, scenario in enumerate(SCENARIOS.get(controller, [])):
        with ExitStack() as stack:
            theirs, ours = kernel.part(f"s{number}"), make(f"s{number}")
            for side in (theirs, ours):
                side.mkdir("")
                stack.callback(side.clear)
                furnish(side, controller)
                if controller != "systemd":
                    side.mkdir("g")
            wrong += play(scenario, theirs, ours, stack, tmp_path)
    assert not wrong, "\n".join(wrong)


def test_what_the_root_refuses(controller: str, kernel: Folder, make: Callable[[str], Side]) -> None:
    """Only writes without effect if accepted: the kernel's root belongs to the machine."""
    own, theirs = _root(make("g"), controller), Folder(kernel.base.parent)
    steps = [step for scenario in ROOT.get(controller, []) for step in scenario]
    assert [act(own, step, {}) for step in steps] == [act(theirs, step, {}) for step in steps]
