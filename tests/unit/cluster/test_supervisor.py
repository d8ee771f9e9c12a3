"""What is started again, when, and what is recorded of it; what ends on purpose stays ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pytest_k3s_sandbox.cluster import supervisor
from pytest_k3s_sandbox.cluster.base import Supervised
from pytest_k3s_sandbox.cluster.restarts import Policy
from pytest_k3s_sandbox.cluster.supervisor import Supervisor
from pytest_k3s_sandbox.errors import ClusterError, LayerError, StartError
from pytest_k3s_sandbox.report.records import Event, RunWriter, read_run
from pytest_k3s_sandbox.sandbox.base import Usage
from pytest_k3s_sandbox.support import clock
from support.waiting import until

Entry = tuple[str, str | None, str]


class Log:
    """A log with some lines."""

    def tail(self, _size: int) -> bytes:
        """Return the lines."""
        return b"I1126 all is well\nE1126 run.go:72] openat2: interrupted system call\n"


class Part:
    """A process that ends when a test says so."""

    def __init__(self, name: str, pid: int) -> None:
        """Run."""
        self.name, self.pid, self.code = name, pid, cast("int | None", None)
        self.log = Log()
        self.lost: str | None = None

    def poll(self) -> int | None:
        """Return how it ended."""
        return self.code


class FakeLayer:
    """A layer that breaks when a test says so."""

    name = "fuse_cgroupfs"

    def __init__(self) -> None:
        """Be up."""
        self.why: str | None = None
        self.refuses = False

    def fault(self) -> str | None:
        """Return what the test said."""
        return self.why

    def restore(self) -> None:
        """Come up, or not."""
        if self.refuses:
            raise LayerError("no")
        self.why = None


class FakeCluster:
    """A cluster of parts, and what was done to them."""

    def __init__(self) -> None:
        """Run two programs, one of them under a tracer."""
        self.changing = threading.RLock()
        self.processes = {
            "kine": Part("kine", 2),
            "containerd": Part("containerd", 3),
            "kubelet": Part("kubelet", 4),
        }
        self.layers: list[Any] = [SimpleNamespace(name="fake_cni")]
        self.settings = None
        self.traced = {"containerd"}
        self.kubelet_process = "kubelet"
        self.attendant: Supervisor | None = None
        self.waited: list[bool] = []
        self.distribution = self
        self.sandbox = self
        self.handed_over = False
        self.restarts: list[tuple[str, bool]] = []
        self.fails: Callable[[str], bool] = lambda _name: False
        self.table = [Usage(3, 1, "containerd", 0, 0), Usage(5, 3, "containerd", 0, 0)]
        self.gone = False

    def usage(self) -> list[Usage]:
        """Return the table."""
        if self.gone:
            raise StartError("the sandbox has ended")
        return self.table

    def restart(
        self, _sandbox: object, _settings: object, name: str, _deadline: object, *, leave: bool, wait: bool
    ) -> None:
        """Note it; the new process has another id."""
        self.restarts.append((name, leave))
        self.waited.append(wait)
        if self.fails(name):
            raise ClusterError("no")
        self.processes[name] = Part(name, self.processes[name].pid + 10)


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[RunWriter]:
    with RunWriter(tmp_path / "run") as made:
        yield made


@pytest.fixture
def supervised(cluster: FakeCluster, writer: RunWriter) -> Supervisor:
    """Supervise, step by step."""
    policy = Policy(pause=1.0, window=60.0, limit=2)
    return Supervisor(cast("Supervised", cluster), writer, lambda: True, policy)


def recorded(writer: RunWriter) -> list[Entry]:
    events = read_run(writer.path.parent).of(Event)
    return [(event.kind, event.component, event.what) for event in events]


def test_while_all_works_nothing_is_done(
    cluster: FakeCluster, supervised: Supervisor, writer: RunWriter
) -> None:
    for second in range(5):
        supervised.step(100.0 + second)
    assert cluster.restarts == []
    assert recorded(writer) == []


def test_what_ended_is_started_at_once_and_both_are_recorded(
    cluster: FakeCluster, supervised: Supervisor, writer: RunWriter
) -> None:
    cluster.processes["kine"].code = -9
    supervised.step(100.0)
    supervised.step(100.3)
    assert cluster.restarts == [("kine", False)]
    assert recorded(writer) == [
        ("fault", "kine", "was ended by SIGKILL"),
        ("restart", "kine", "kine started again"),
    ]


def test_an_end_again_waits_and_one_too_many_is_final(
    cluster: FakeCluster, supervised: Supervisor, writer: RunWriter
) -> None:
    for now in (100.0, 101.0, 101.5, 102.0, 103.0, 104.0):
        cluster.processes["kubelet"].code = 1
        supervised.step(now)
    assert len(cluster.restarts) == 2  # at 100.0 and 102.0
    assert recorded(writer)[-1] == (
        "given-up",
        "kubelet",
        "3 times within 60 s, last: ended with exit code 1",
    )
    assert supervised.lost() == "kubelet: 3 times within 60 s, last: ended with exit code 1"


def test_a_start_that_fails_counts_as_an_end(cluster: FakeCluster, supervised: Supervisor) -> None:
    cluster.fails = lambda name: name == "kine"
    cluster.processes["kine"].code = 2
    for second in range(20):
        supervised.step(100.0 + second)
    assert cluster.restarts == [("kine", False)] * 2
    assert "kine" in (supervised.lost() or "")


def test_what_was_ended_on_purpose_is_not_there_to_be_started(
    cluster: FakeCluster, supervised: Supervisor
) -> None:
    cluster.processes["kubelet"].code = 0
    del cluster.processes["kubelet"]  # as stop_node does
    supervised.step(100.0)
    assert cluster.restarts == []


def test_a_stop_on_purpose_and_a_step_exclude_each_other(
    cluster: FakeCluster, supervised: Supervisor
) -> None:
    cluster.processes["kubelet"].code = 0
    step = threading.Thread(target=supervised.step, args=(100.0,))
    with cluster.changing:
        step.start()
        step.join(0.1)
        assert step.is_alive()
        del cluster.processes["kubelet"]
    step.join(5)
    assert cluster.restarts == []


def test_a_program_that_ended_under_its_tracer_is_started_beside_it(
    cluster: FakeCluster, supervised: Supervisor, writer: RunWriter
) -> None:
    supervised.step(100.0)
    cluster.table = [Usage(3, 1, "containerd", 0, 0), Usage(7, 1, "containerd-shim", 0, 0)]
    supervised.step(100.2)  # too early for another look at the table
    assert cluster.restarts == []
    supervised.step(101.2)
    assert cluster.restarts == [("containerd", True)]
    assert recorded(writer)[0][:2] == ("fault", "containerd")
    supervised.step(102.4)
    assert len(cluster.restarts) == 1


def test_a_tracer_that_has_no_program_yet_is_no_fault(cluster: FakeCluster, supervised: Supervisor) -> None:
    cluster.table = [Usage(3, 1, "containerd", 0, 0)]
    for second in range(3):
        supervised.step(100.0 + 2 * second)
    assert cluster.restarts == []


def test_a_layer_comes_up_again_and_the_kubelet_after_it(
    cluster: FakeCluster, supervised: Supervisor, writer: RunWriter
) -> None:
    layer = FakeLayer()
    cluster.layers.append(layer)
    supervised.step(100.0)
    layer.why = "the server was ended by SIGKILL"
    supervised.step(101.0)
    assert layer.why is None
    assert cluster.restarts == [("kubelet", False)]
    assert recorded(writer) == [
        ("fault", "fuse_cgroupfs", "the server was ended by SIGKILL"),
        ("restart", "fuse_cgroupfs", "fuse_cgroupfs started again"),
    ]


def test_a_layer_that_does_not_come_up_is_given_up_with_its_reason(
    cluster: FakeCluster, supervised: Supervisor
) -> None:
    layer = FakeLayer()
    layer.why, layer.refuses = "the server ended with exit code 2", True
    cluster.layers.append(layer)
    for second in range(10):
        supervised.step(100.0 + second)
    assert supervised.lost() == "fuse_cgroupfs: 3 times within 60 s, last: the server ended with exit code 2"


def test_the_end_of_the_sandbox_is_no_error_of_the_supervisors(
    cluster: FakeCluster, supervised: Supervisor
) -> None:
    cluster.gone, cluster.fails = True, lambda _name: True
    for process in cluster.processes.values():
        process.code = -9
    for second in range(20):
        supervised.step(100.0 + second)
    assert {name for name, _leave in cluster.restarts} == set(cluster.processes)
    assert len(cluster.restarts) == 2 * len(cluster.processes)


@pytest.fixture
def starting(
    cluster: FakeCluster, writer: RunWriter, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Supervisor, Callable[[float], dict[str, Any]]]]:
    """Supervise a node that has not been Ready; gives what a waiting thread asks at a time."""
    monkeypatch.setattr(supervisor, "POLL_SECONDS", 1000.0)
    policy = Policy(pause=1.0, window=60.0, limit=2)
    with Supervisor(cast("Supervised", cluster), writer, lambda: False, policy) as made:

        def attend(now: float) -> dict[str, Any]:
            monkeypatch.setattr(clock, "monotonic", lambda: now)
            return dict(made.attend())

        yield made, attend
        monkeypatch.undo()


Starting = tuple[Supervisor, Callable[[float], dict[str, Any]]]


def test_a_kubelet_that_ends_during_the_start_is_started_again(
    cluster: FakeCluster, starting: Starting, writer: RunWriter
) -> None:
    made, attend = starting
    assert cluster.attendant is made
    cluster.processes["kubelet"].code = 1
    final = attend(100.0)
    assert set(final) == {"kine", "containerd"}
    assert (cluster.restarts, cluster.waited) == ([("kubelet", False)], [False])
    said = "E1126 run.go:72] openat2: interrupted system call"
    assert recorded(writer) == [
        ("fault", "kubelet", f"ended with exit code 1 during the start: {said}"),
        ("restart", "kubelet", "kubelet started again"),
    ]
    assert made.restarts("kubelet") == 1
    assert made.restarts("kine") == 0
    assert made.trouble() == (
        f"kubelet ended with exit code 1 during the start: {said}, after it was started again once"
    )


def test_a_kubelet_that_ends_again_and_again_during_the_start_is_final(
    cluster: FakeCluster, starting: Starting, writer: RunWriter
) -> None:
    made, attend = starting
    for now in (100.0, 100.1, 101.2, 101.3):
        cluster.processes["kubelet"].code = 1
        final = attend(now)
    assert [name for name, _leave in cluster.restarts] == ["kubelet"] * 2
    assert "kubelet" in final
    assert recorded(writer)[-1][0] == "given-up"
    assert made.restarts("kubelet") == 2


def test_other_programs_are_not_started_again_during_a_start(
    cluster: FakeCluster, starting: Starting, writer: RunWriter
) -> None:
    _, attend = starting
    cluster.processes["kine"].code = 1
    assert attend(100.0)["kine"].code == 1
    assert cluster.restarts == []
    assert recorded(writer) == []


def test_a_kubelet_that_was_not_started_yet_is_none_that_ended(
    cluster: FakeCluster, starting: Starting
) -> None:
    _, attend = starting
    del cluster.processes["kubelet"]
    assert set(attend(100.0)) == {"kine", "containerd"}


def test_a_kubelet_that_ended_with_its_sandbox_is_final(cluster: FakeCluster, starting: Starting) -> None:
    _, attend = starting
    cluster.processes["kubelet"].code, cluster.processes["kubelet"].lost = -9, "the sandbox has ended"
    assert "kubelet" in attend(100.0)
    assert cluster.restarts == []


def test_an_agent_under_a_tracer_that_goes_on_is_looked_for_every_five_seconds(
    cluster: FakeCluster, starting: Starting, writer: RunWriter
) -> None:
    _, attend = starting
    cluster.traced = {"kubelet"}
    cluster.table = [Usage(4, 1, "kubelet", 0, 0), Usage(5, 4, "kubelet", 0, 0)]
    attend(100.0)
    cluster.table = [Usage(4, 1, "kubelet", 0, 0)]
    attend(104.9)
    assert cluster.restarts == []
    attend(105.1)
    assert cluster.restarts == [("kubelet", False)]
    assert recorded(writer)[0][2].startswith("ended under its tracer")


def test_after_the_supervision_nothing_is_attended(cluster: FakeCluster, writer: RunWriter) -> None:
    with Supervisor(cast("Supervised", cluster), writer, lambda: False) as made:
        pass
    assert cluster.attendant is None
    cluster.processes["kubelet"].code = 1
    made.step(100.0)
    assert cluster.restarts == []


def test_other_ends_are_final_until_the_node_was_ready_and_all_after_the_supervision(
    cluster: FakeCluster, writer: RunWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "POLL_SECONDS", 0.01)
    ready = threading.Event()
    made = Supervisor(cast("Supervised", cluster), writer, ready.is_set, Policy(limit=1))
    assert dict(made.unsupervised) == dict[str, Any](cluster.processes)
    with made:
        cluster.processes["kine"].code = 1
        time.sleep(0.1)
        assert cluster.restarts == []
        assert set(made.unsupervised) == {"kine", "containerd"}
        ready.set()
        until(lambda: cluster.restarts == [("kine", False)], seconds=5)
        assert made.unsupervised == {}
        cluster.processes["kine"].code = 1
        until(lambda: "kine" in made.unsupervised, seconds=5)
    assert made.failure is None
    assert dict(made.unsupervised) == dict[str, Any](cluster.processes)


def test_a_sandbox_that_another_process_owns_is_left_alone(
    cluster: FakeCluster, writer: RunWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "POLL_SECONDS", 0.01)
    cluster.handed_over = True
    cluster.processes["kine"].code = -9
    with Supervisor(cast("Supervised", cluster), writer, lambda: True):
        time.sleep(0.1)
    assert cluster.restarts == []
