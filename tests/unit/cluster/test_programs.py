"""Programs are started again as they were started before, in the same log."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import pytest

from pytest_k3s_sandbox.cluster.components import ClusterSettings
from pytest_k3s_sandbox.cluster.programs import Programs, stop_all
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import ClusterError, WaitError
from pytest_k3s_sandbox.layers.base import NodeOverrides
from pytest_k3s_sandbox.sandbox.base import Process, Sandbox
from pytest_k3s_sandbox.sandbox.inside import InsidePath

SETTINGS = ClusterSettings(node="n", address="10.213.0.2")
UNDER = NodeOverrides(wrap={"kubelet": ("intercept", "--")}, environment={"SEEN": "yes"})


class Part:
    """A process that ends when it is told to."""

    def __init__(self, name: str, number: int, log: InsidePath) -> None:
        """Run."""
        self.name, self.pid, self.log = name, number, log
        self.code: int | None = None

    def poll(self) -> int | None:
        """Return how it ended."""
        return self.code

    def wait(self, _deadline: Deadline) -> int | None:
        """Return how it ended."""
        return self.code

    def signal(self, number: int) -> None:
        """End, unless it has."""
        self.code = -number if self.code is None else self.code

    def stop(self, grace: float = 5.0) -> int:
        """End."""
        del grace
        self.signal(9)
        return self.code or 0


class FakeSandbox:
    """Starts parts, and knows what was asked for."""

    def __init__(self, folder: Path) -> None:
        """Keep the folder of the logs."""
        self.folder = folder
        self.spawned: list[tuple[str, list[str], dict[str, str]]] = []
        self.parts: list[Part] = []

    def spawn(self, argv: Sequence[str], *, name: str, env: Mapping[str, str]) -> Process:
        """Start one; its log goes on."""
        self.spawned.append((name, list(argv), dict(env)))
        log = InsidePath(self.folder / f"{name}.log")
        with Path(log).open("a") as file:
            file.write(f"{len(self.parts)} begins\n")
        self.parts.append(Part(name, 10 + len(self.parts), log))
        return self.parts[-1]


class Two(Programs):
    """Two programs, of which one says when it serves."""

    refuses = False

    def start(self, sandbox: Sandbox) -> None:
        """Start both."""
        self._spawn(sandbox, "kine", ["kine"])
        self._spawn(sandbox, "kubelet", ["intercept", "--", "kubelet"], UNDER)

    def end(self, *names: str) -> None:
        """End some."""
        self._stop(names)

    def wait_for(self, condition: Callable[[], bool], seconds: float = 5.0) -> None:
        """Wait as a start does."""
        self._until(condition, "x", Deadline.after(seconds), poll=0.01)

    def _serves(
        self, sandbox: Sandbox, settings: ClusterSettings, name: str, seen: int, deadline: Deadline
    ) -> None:
        del sandbox, settings, deadline
        if self.refuses:
            raise ClusterError("it does not serve")
        assert "begins" in self.processes[name].log.read_bytes()[seen:].decode()


@pytest.fixture
def sandbox(tmp_path: Path) -> FakeSandbox:
    return FakeSandbox(tmp_path)


@pytest.fixture
def programs(sandbox: FakeSandbox) -> Two:
    made = Two()
    made.start(cast("Sandbox", sandbox))
    return made


def restart(programs: Two, sandbox: FakeSandbox, name: str, *, leave: bool = False) -> None:
    programs.restart(cast("Sandbox", sandbox), SETTINGS, name, Deadline.after(1), leave=leave)


def test_a_program_starts_again_as_it_was_started_and_keeps_its_place(
    programs: Two, sandbox: FakeSandbox
) -> None:
    sandbox.parts[0].code = -9
    restart(programs, sandbox, "kine")
    restart(programs, sandbox, "kubelet")
    assert sandbox.spawned[2:] == sandbox.spawned[:2]
    assert list(programs.processes) == ["kine", "kubelet"]
    assert [each.poll() for each in programs.processes.values()] == [None, None]
    assert programs.traced == {"kubelet"}
    assert [env for _, _, env in sandbox.spawned[:2]] == [{}, {"LC_ALL": "C", "SEEN": "yes"}]
    assert sandbox.parts[1].code == -15  # the running process was told to end


def test_what_is_left_goes_on_until_the_programs_are_ended(programs: Two, sandbox: FakeSandbox) -> None:
    restart(programs, sandbox, "kubelet", leave=True)
    assert sandbox.parts[1].code is None
    programs.end("kubelet")
    assert [part.code for part in sandbox.parts] == [None, -9, -15]
    programs.end("kine", "kubelet")
    assert programs.processes == {}


def test_a_program_that_does_not_serve_does_not_run(programs: Two, sandbox: FakeSandbox) -> None:
    programs.refuses = True
    with pytest.raises(ClusterError, match="does not serve"):
        restart(programs, sandbox, "kine")
    assert programs.processes["kine"].poll() == -9


class Stubborn(Part):
    """A process that ends at a given SIGTERM."""

    def __init__(self, tries: int, log: InsidePath) -> None:
        """Run."""
        super().__init__("stubborn", 7, log)
        self.left = tries
        self.waited = 0.0

    def wait(self, deadline: Deadline) -> int | None:
        """Wait, if there is anything to wait for."""
        if self.code is None:
            self.waited += deadline.remaining()
        return self.code

    def signal(self, number: int) -> None:
        """Count."""
        self.left -= 1
        if number == signal.SIGKILL or self.left == 0:
            super().signal(number)


@pytest.mark.parametrize(
    ("tries", "code", "waited"),
    [(1, -15, 0.0), (2, -15, 0.25), (3, -9, 2.25)],
    ids=["at once", "again", "never"],
)
def test_sigterm_is_sent_twice_and_then_sigkill(tries: int, code: int, waited: float, tmp_path: Path) -> None:
    quick, stubborn = Part("quick", 6, InsidePath(tmp_path)), Stubborn(tries, InsidePath(tmp_path))
    stop_all([cast("Process", quick), cast("Process", stubborn)])
    assert (quick.poll(), stubborn.poll()) == (-15, code)
    assert stubborn.waited == pytest.approx(waited, abs=0.2)


class Attending:
    """Lets go of one program, as a supervisor does, and starts it again at the third question."""

    def __init__(self, programs: Two, start: Callable[[], None]) -> None:
        """Keep both."""
        self.programs, self.start, self.asked = programs, start, 0

    def attend(self) -> Mapping[str, Process]:
        """Return all but the kubelet."""
        self.asked += 1
        if self.asked == 3:
            self.start()
        return {name: each for name, each in self.programs.processes.items() if name != "kubelet"}

    def restarts(self, name: str) -> int:
        """Return 2 for kine."""
        return {"kine": 2}[name]

    def trouble(self) -> str | None:
        """Return something."""
        return "kubelet ended"


def test_a_wait_outlives_a_program_that_is_started_again(programs: Two, sandbox: FakeSandbox) -> None:
    sandbox.parts[1].code = 1
    with pytest.raises(WaitError, match="kubelet ended with exit code 1"):
        programs.wait_for(lambda: False)
    programs.attendant = Attending(programs, lambda: restart(programs, sandbox, "kubelet"))
    programs.wait_for(lambda: programs.processes["kubelet"].poll() is None)
    assert len(sandbox.spawned) == 3


def test_a_wait_with_an_attendant_fails_with_the_known_state(programs: Two, sandbox: FakeSandbox) -> None:
    programs.attendant = Attending(programs, lambda: None)
    with pytest.raises(WaitError, match="timed out waiting for x: kubelet ended"):
        programs.wait_for(lambda: False, seconds=0.05)
    sandbox.parts[0].code = 1
    with pytest.raises(WaitError, match=r"kine ended with exit code 1 .* started again 2 times"):
        programs.wait_for(lambda: False)


def test_a_start_that_is_not_waited_for_returns_at_once(programs: Two, sandbox: FakeSandbox) -> None:
    programs.refuses = True
    programs.restart(cast("Sandbox", sandbox), SETTINGS, "kubelet", Deadline.after(1), wait=False)
    assert programs.processes["kubelet"].poll() is None
