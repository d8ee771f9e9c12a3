"""Any order of making, removing, renaming, writing and moving: the kernel's tree and ours stay the same."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from pytest_k3s_sandbox.layers.cgroupfs.accounting import ProcAccounting
from pytest_k3s_sandbox.layers.cgroupfs.tree import Tree
from support.cgroup_cases import SCENARIOS
from support.cgroup_sides import (
    TOP,
    Folder,
    Model,
    contents,
    furnish,
    kernel_side,
    outcome,
    sleeper,
    wait_until,
)

NAMES = ("a", "b", "tasks")

PEAKS = ("pids.peak",)
"""The kernel's may be one higher for a moment in which it counts a task in two groups."""


def texts(controller: str) -> list[tuple[str, str]]:
    """Return the writes of the conformance table that need no process."""
    steps = [step for scenario in SCENARIOS[controller] for step in scenario if len(step) == 2]
    plain = (
        (path.rpartition("/")[2], text) for path, text in steps if path not in {"+", "-"} and "{" not in text
    )
    return sorted({(file, text) for file, text in plain if file not in {"tasks", "cgroup.procs", "a"}})


class Trees(RuleBasedStateMachine):
    """One hierarchy of the kernel's and one of ours, with the same processes."""

    controller: ClassVar[str]
    base: ClassVar[Folder]
    groups: Bundle[str] = Bundle("groups")

    def __init__(self) -> None:
        """Begin with an empty group on both sides, and four processes in neither."""
        super().__init__()
        self.stack = ExitStack()
        self.kernel = self.base.part("stateful")
        self.kernel.mkdir("")
        self.stack.callback(self.kernel.clear)
        self.tree = Tree(ProcAccounting(max_age=0), [self.controller])
        self.tree.mkdir(f"/{self.controller}/{TOP}")
        furnish(Model(self.tree, self.controller), self.controller)
        self.ours = Model(self.tree, self.controller, f"{TOP}/stateful")
        self.ours.mkdir("")
        for side in (self.kernel, self.ours):
            furnish(side, self.controller)
        self.processes: list[tuple[int, ExitStack]] = []
        for threads in (1, 1, 3):
            self._start(threads)

    def _start(self, threads: int) -> None:
        stack = ExitStack()
        pid = stack.enter_context(sleeper(threads))
        self.kernel.ours.update([pid, *self._threads(pid)])
        self.processes.append((pid, stack))

    @staticmethod
    def _threads(pid: int) -> list[int]:
        return sorted(int(path.name) for path in Path(f"/proc/{pid}/task").iterdir())

    def teardown(self) -> None:
        """End the processes, which a frozen group would not let go."""
        if self.controller == "freezer":
            self._thaw("")
        for _, stack in self.processes:
            stack.close()
        self.stack.close()

    def _thaw(self, path: str) -> None:
        self.kernel.write(f"{path}/freezer.state".lstrip("/"), "THAWED")
        for name in self.kernel.groups(path):
            self._thaw(f"{path}/{name}".lstrip("/"))
        self.ours.write(f"{path}/freezer.state".lstrip("/"), "THAWED")

    def _both(self, action: str, *arguments: str) -> int:
        theirs, own = (
            outcome(partial(getattr(side, action), *arguments)) for side in (self.kernel, self.ours)
        )
        assert own == theirs, f"{action} {arguments}: the kernel says {theirs}, we say {own}"
        return own

    @rule(target=groups)
    def root(self) -> str:
        """Name the group that everything is in."""
        return ""

    @rule(target=groups, parent=groups, name=st.sampled_from(NAMES))
    def mkdir(self, parent: str, name: str) -> str:
        """Make a group, or fail to."""
        path = f"{parent}/{name}".lstrip("/")
        self._both("mkdir", path)
        return path if name != "tasks" else ""

    @rule(path=groups.filter(bool))
    def rmdir(self, path: str) -> None:
        """Remove a group, or fail to."""
        self._both("rmdir", path)

    @rule(old=groups.filter(bool), parent=groups, name=st.sampled_from(NAMES))
    def rename(self, old: str, parent: str, name: str) -> None:
        """Rename a group, or fail to; into itself the system call refuses before any filesystem."""
        new = f"{parent}/{name}".lstrip("/")
        if not f"{new}/".startswith(f"{old}/") and not f"{old}/".startswith(f"{new}/"):
            self._both("rename", old, new)

    @rule(path=groups, data=st.data())
    def write(self, path: str, data: st.DataObject) -> None:
        """Write something good or bad."""
        file, text = data.draw(st.sampled_from(texts(self.controller)))
        self._both("write", f"{path}/{file}".lstrip("/"), text)

    @rule(path=groups, which=st.integers(0, 2), thread=st.integers(0, 2), whole=st.booleans())
    def attach(self, path: str, which: int, thread: int, whole: bool) -> None:
        """Move a process or a thread."""
        threads = self._threads(self.processes[which][0])
        file = "cgroup.procs" if whole else "tasks"
        self._both("write", f"{path}/{file}".lstrip("/"), str(threads[thread % len(threads)]))

    @rule(which=st.integers(0, 2))
    def end(self, which: int) -> None:
        """End a process and start another of its kind."""
        if self.controller == "freezer":  # the kernel lets no frozen task end; ours can be killed
            return
        pid, stack = self.processes.pop(which)
        threads = len(self._threads(pid))
        stack.close()
        self.kernel.ours.discard(pid)
        self._start(threads)
        self.processes.insert(which, self.processes.pop())

    @invariant()
    def all_files_say_the_same(self) -> None:
        """Compare everything; the kernel forgets the dead and freezes the living in its own time."""
        found: list[dict[str, Any]] = []

        def same() -> bool:
            found[:] = [contents(self.kernel), contents(self.ours)]
            for said in found:
                for name in [name for name in said if name.endswith(PEAKS)]:
                    del said[name]
            return found[0] == found[1]

        try:
            wait_until(same, 2)
        except AssertionError:
            assert found[1] == found[0]


@pytest.mark.parametrize("examples", [2, pytest.param(100, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("controller", ["systemd", "cpuset", "cpu", "devices", "pids", "freezer"])
def test_stateful(controller: str, examples: int, tmp_path: Path) -> None:
    """Run sequences of steps on one hierarchy."""
    with kernel_side(controller, tmp_path) as kernel:
        furnish(kernel, controller)
        machine = type("Trees", (Trees,), {"controller": controller, "base": kernel})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=25,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                database=None,
            ),
        )
