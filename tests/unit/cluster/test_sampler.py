"""The sampler beside clusters that come up, go away and come back; and the logs that it follows."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.exp08 import test_exp08
from pytest_k3s_sandbox.cluster.reading import ApiReader, ApiUnavailable
from pytest_k3s_sandbox.cluster.runner import ClusterRunner
from pytest_k3s_sandbox.cluster.sampler import (
    EACH,
    TEXT_CHARACTERS,
    LogFollower,
    Sampler,
    costs,
    pod_state,
)
from pytest_k3s_sandbox.errors import SandboxError
from pytest_k3s_sandbox.pytestplugin.claims import Claims, NotHeld
from pytest_k3s_sandbox.report.errors import group_errors
from pytest_k3s_sandbox.report.records import Cost, RunWriter, read_run
from pytest_k3s_sandbox.sandbox.base import Usage
from pytest_k3s_sandbox.sandbox.inside import InsidePath
from support.waiting import until

ERROR = 'E1123 15:00:00.000000       1 server.go:302] "Failed to run" err="open /dev/kmsg: no such device"'
WARNING = 'W1123 15:00:00.000000       1 server.go:302] "Something minor"'
CADVISOR = 'E1123 15:00:00.000000       1 cadvisor_stats_provider.go:1] "Partial failure issuing cadvisor"'
INFO = 'I1123 15:00:00.000000       1 server.go:302] "All is well"'


def test_an_error_line_is_found_once(tmp_path: Path) -> None:
    log = tmp_path / "kubelet.log"
    follower = LogFollower("kubelet", lambda: log)
    assert follower.errors() == []  # no file yet
    log.write_text(f"{INFO}\n{ERROR}\n{WARNING}\n")
    assert [text for _kind, text, _errno in follower.errors()] == [ERROR]
    assert follower.errors() == []
    with log.open("a") as file:
        file.write(f"{ERROR}\n")
    assert len(follower.errors()) == 1
    assert follower.lines == 4


def test_half_a_line_waits_for_its_other_half(tmp_path: Path) -> None:
    log = tmp_path / "kubelet.log"
    follower = LogFollower("kubelet", lambda: log)
    with log.open("w", buffering=1) as file:
        file.write(ERROR[:50])
        file.flush()
        assert follower.errors() == []
        file.write(ERROR[50:])
        file.flush()
        assert follower.errors() == []
        file.write("\n")
        assert [text for _kind, text, _errno in follower.errors()] == [ERROR]


@given(st.lists(st.sampled_from([ERROR, INFO, WARNING, ERROR + " ä€", ""]), max_size=8), st.data())
def test_how_a_log_is_cut_does_not_matter(lines: list[str], data: st.DataObject) -> None:
    text = "".join(f"{line}\n" for line in lines).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "kubelet.log"
        follower = LogFollower("kubelet", lambda: log)
        found: list[str] = []
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            with log.open("ab") as file:
                file.write(text[start:end])
            found += [line for _kind, line, _errno in follower.errors()]
    assert found == [line for line in lines if line.startswith("E")]


class FakeCluster:
    """A cluster whose API answers what a test wants."""

    def __init__(self, folder: Path) -> None:
        """Be a cluster that is not up yet."""
        self.logs = folder / "logs"
        self.logs.mkdir()
        self.cluster = self
        self.trouble: Exception | None = ApiUnavailable("/api", "refused")
        self.lost: str | None = None
        self.nodes: list[Any] = []
        self.pods: list[Any] = []
        self.processes: dict[str, Any] = {}
        self.layers = [SimpleNamespace(name="fuse_cgroupfs")]
        self.sandbox = SimpleNamespace(usage=lambda: [Usage(7, 1, "cgroupfs", 1.5, 4096)])

    def log(self, component: str) -> InsidePath:
        """Say where a component logs."""
        return InsidePath(self.logs / f"{component}.log")

    def reader(self, seconds: float) -> ApiReader:
        """Return itself."""
        assert seconds > 0
        return cast("ApiReader", self)

    def items(self, path: str) -> list[Any]:
        """As ApiReader does."""
        if self.trouble is not None:
            raise self.trouble
        return {"/api/v1/nodes": self.nodes, "/api/v1/pods": self.pods}[path]


@pytest.mark.parametrize(
    ("log", "held"),
    [(None, False), ("", False), (INFO, False), (f"{INFO}\n", True), (f"{CADVISOR}\n", False)],
)
def test_without_a_line_of_the_log_no_error_proves_nothing(
    cluster: FakeCluster, writer: RunWriter, log: str | None, held: bool
) -> None:
    (cluster.logs / "containerd.log").write_text(f"{INFO}\n")
    if log is not None:
        (cluster.logs / "kubelet.log").write_text(log)
    sampler = Sampler(cast("ClusterRunner", cluster), writer)
    with contextlib.nullcontext() if held else pytest.raises(NotHeld):
        test_exp08.test_no_cadvisor_errors(sampler, Claims(writer))
    assert sampler.lines_read("containerd") == 1
    (verdict,) = read_run(writer.path).verdicts
    said = "1, the first: " if log and "E1123" in log else 0 if held else "not one line of the kubelet's log"
    assert str(verdict.measured).startswith(str(said))


def test_what_is_in_a_lost_sandbox_is_not_asked(cluster: FakeCluster, writer: RunWriter) -> None:
    cluster.trouble = RuntimeError("asked")
    cluster.lost = "its first process has ended"
    sample = Sampler(cast("ClusterRunner", cluster), writer).take()
    assert (sample.api_reachable, sample.node_ready, sample.pods) == (False, None, {})


def condition(kind: str, status: str, reason: str | None = None) -> dict[str, str | None]:
    return {"type": kind, "status": status, **({"reason": reason} if reason else {})}


def node(*conditions: dict[str, Any]) -> dict[str, Any]:
    return {"status": {"conditions": list(conditions)} if conditions else {}}


def pod(name: str, phase: str | None, *conditions: dict[str, Any]) -> dict[str, Any]:
    status = {"phase": phase, "conditions": list(conditions) or None}
    return {"metadata": {"namespace": "default", "name": name}, "status": status}


@pytest.fixture
def cluster(tmp_path: Path) -> FakeCluster:
    return FakeCluster(tmp_path)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[RunWriter]:
    made = RunWriter(tmp_path / "run")
    yield made
    made.close()


@pytest.fixture
def sampler(cluster: FakeCluster, writer: RunWriter) -> Sampler:
    return Sampler(cast("ClusterRunner", cluster), writer, interval=0.02, rush=0.01)


def test_before_there_is_an_api_server_a_sample_says_that_nothing_answers(sampler: Sampler) -> None:
    sample = sampler.take()
    assert (sample.node_ready, sample.api_reachable, sample.pods) == (None, False, {})


def test_a_sample_has_the_conditions_and_the_pods(sampler: Sampler, cluster: FakeCluster) -> None:
    cluster.trouble = None
    cluster.nodes = [node(condition("Ready", "False", "KubeletNotReady"), condition("DiskPressure", "False"))]
    cluster.pods = [pod("a", "Running", condition("Ready", "True")), pod("b", None)]
    sample = sampler.take()
    assert (sample.node_ready, sample.reason, sample.api_reachable) == (False, "KubeletNotReady", True)
    assert sample.conditions == {"Ready": "False", "DiskPressure": "False"}
    assert {name: (state.phase, state.ready) for name, state in sample.pods.items()} == {
        "default/a": ("Running", True),
        "default/b": ("Unknown", False),
    }


@pytest.mark.parametrize(("status", "ready"), [("True", True), ("False", False), ("Unknown", None)])
def test_ready_is_what_the_condition_says(
    sampler: Sampler, cluster: FakeCluster, status: str, ready: bool | None
) -> None:
    cluster.trouble = None
    cluster.nodes = [node(condition("Ready", status))]
    assert sampler.take().node_ready is ready


def test_a_cluster_without_nodes_answers_but_has_no_ready(sampler: Sampler, cluster: FakeCluster) -> None:
    cluster.trouble = None
    sample = sampler.take()
    assert (sample.node_ready, sample.api_reachable) == (None, True)
    cluster.nodes = [node()]  # registered, no condition yet
    assert sampler.take().node_ready is None


def test_an_api_that_goes_away_and_comes_back_is_seen_and_survived(
    sampler: Sampler, cluster: FakeCluster, writer: RunWriter
) -> None:
    cluster.trouble = None
    cluster.nodes = [node(condition("Ready", "True"))]
    with sampler:
        until(lambda: any(sample.node_ready for sample in sampler.samples))
        cluster.trouble = ApiUnavailable("/api", "refused")
        until(lambda: not sampler.samples[-1].api_reachable)
        cluster.trouble = None
        until(lambda: sampler.samples[-1].api_reachable)
    assert sampler.failure is None
    states = [sample.api_reachable for sample in sampler.samples]
    assert states == sorted(states[: states.index(False)]) + [False] * states.count(False) + [True] * (
        len(states) - states.index(False) - states.count(False)
    )
    times = [sample.t for sample in sampler.samples]
    assert times == sorted(times)
    writer.close()
    assert [sample.t for sample in read_run(writer.path.parent).samples] == pytest.approx(times)


def test_an_error_of_our_own_is_kept_and_not_swallowed(sampler: Sampler, cluster: FakeCluster) -> None:
    cluster.trouble = LookupError("a defect")
    with sampler:
        until(lambda: sampler.failure is not None)
    assert isinstance(sampler.failure, LookupError)


def test_leaving_takes_a_last_sample(cluster: FakeCluster, writer: RunWriter) -> None:
    cluster.trouble = None
    cluster.nodes = [node(condition("Ready", "True"))]
    slow = Sampler(cast("ClusterRunner", cluster), writer, interval=100)
    with slow:
        until(lambda: len(slow.samples) == 1)
        cluster.nodes = [node(condition("Ready", "False"))]
    assert [sample.node_ready for sample in slow.samples] == [True, False]


def test_it_rushes_until_ready_and_then_takes_its_time(cluster: FakeCluster, writer: RunWriter) -> None:
    cluster.trouble = None
    eager = Sampler(cast("ClusterRunner", cluster), writer, interval=100, rush=0.005)
    with eager:
        until(lambda: len(eager.samples) > 5)
        cluster.nodes = [node(condition("Ready", "True"))]
        until(lambda: bool(eager.samples[-1].node_ready))
        count = len(eager.samples)
        time.sleep(0.1)
        assert len(eager.samples) == count


def test_errors_of_the_logs_are_counted_by_kind_and_given_out(sampler: Sampler, cluster: FakeCluster) -> None:
    (cluster.logs / "kubelet.log").write_text(f"{ERROR}\n")
    (cluster.logs / "containerd.log").write_text(
        'time="2026-11-23T15:00:00Z" level=error msg="something else"\n'
    )
    sample = sampler.take()
    assert sum(sample.errors.values()) == 2
    assert [line.component for line in sampler.error_lines] == ["kubelet", "containerd"]
    kind = sampler.error_lines[0].kind
    assert [line.text for line in sampler.errors(kind)] == [ERROR]
    with (cluster.logs / "kubelet.log").open("a") as file:
        file.write(f"{ERROR}\n")
    assert len(sampler.errors(kind)) == 2  # those of this moment are included


@given(
    st.sampled_from(["Pending", "Running", None]), st.none() | st.sampled_from(["True", "False", "Unknown"])
)
def test_a_pod_is_ready_only_when_its_condition_says_so(phase: str | None, ready: str | None) -> None:
    conditions = [] if ready is None else [condition("Initialized", "True"), condition("Ready", ready)]
    state = pod_state(pod("p", phase, *conditions))
    assert state.ready is (ready == "True")
    assert state.phase == (phase or "Unknown")


TABLE = [
    Usage(1, 0, "python", 0.1, 1),
    Usage(5, 1, "cgroupfs", 1.0, 10),
    Usage(6, 1, "containerd", 2.0, 20),
    Usage(7, 6, "containerd", 3.0, 30),
    Usage(8, 6, "containerd-shim", 4.0, 40),
    Usage(9, 1, "kubelet", 5.0, 50),
    Usage(10, 9, "kubelet", 6.004, 60),
    Usage(11, 1, "kine", 7.0, 70),
]


def test_the_tracers_are_the_interceptors_and_their_children_the_node() -> None:
    found = costs(TABLE, ["workarounds", "fuse_cgroupfs", "ptrace_interceptor:exp06", "fake_cni"])
    assert found == {
        "ptrace_interceptor": Cost(cpu_seconds=7.0, rss_bytes=70),
        "containerd": Cost(cpu_seconds=3.0, rss_bytes=30),
        "kubelet": Cost(cpu_seconds=6.0, rss_bytes=60),
        "fuse_cgroupfs": Cost(cpu_seconds=1.0, rss_bytes=10),
    }


def test_without_an_interceptor_the_node_is_what_was_spawned() -> None:
    assert costs(TABLE[5:], ["fake_cni"]) == {"kubelet": Cost(cpu_seconds=5.0, rss_bytes=50)}
    assert costs([], ["ptrace_interceptor"]) == {}


def test_costs_are_sampled_now_and_then_from_the_kubelets_start_on(
    cluster: FakeCluster, sampler: Sampler
) -> None:
    assert sampler.take().cost == {}
    cluster.processes["kubelet"] = object()
    assert sampler.take().cost == {"fuse_cgroupfs": Cost(cpu_seconds=1.5, rss_bytes=4096)}
    assert sampler.take().cost == {}
    sampler._costed -= 10

    def ended() -> list[Usage]:
        raise SandboxError("the sandbox has ended")

    cluster.sandbox.usage = ended
    assert sampler.take().cost == {}


def test_a_log_that_was_rotated_is_read_from_its_new_beginning(tmp_path: Path) -> None:
    log = tmp_path / "kubelet.log"
    follower = LogFollower("kubelet", lambda: log)
    log.write_text(f"{INFO}\n{ERROR}\nhalf a li")
    assert len(follower.errors()) == 1
    log.write_text(f"{ERROR}\n")  # as after a truncation
    assert [text for _kind, text, _errno in follower.errors()] == [ERROR]


def test_an_error_line_that_repeats_for_ever_is_counted(
    sampler: Sampler, cluster: FakeCluster, writer: RunWriter
) -> None:
    """The figures of the report stay true."""
    log = cluster.logs / "kubelet.log"
    other = ERROR.replace("Failed to run", "Failed otherwise")
    for number in range(10):
        with log.open("a") as file:
            for each in range(1000):
                file.write(f"{ERROR.replace('302', str(300 + each))} {number * 1000 + each}\n")
        sampler.take()
    with log.open("a") as file:
        file.write(f"{other}\n")
    sampler._halt.set()
    sample = sampler.take()  # as the thread does at the end
    assert sum(sample.errors.values()) == 10001
    assert sum(line.count for line in sampler.error_lines) == 10001
    run = read_run(writer.path)
    assert sum(line.count for line in run.errors) == sum(run.metrics.errors.values()) == 10001
    assert len(run.errors) <= EACH + 3
    assert writer.path.stat().st_size < 200_000
    first, second = group_errors(run.errors)
    assert (first.count, second.count) == (10000, 1)
    assert f"[{EACH} of these lines are recorded, the others were counted]" in first.text
    assert "counted" not in second.text


def test_lines_that_are_all_different_are_counted_in_the_end(
    sampler: Sampler, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_k3s_sandbox.cluster.sampler.KINDS", 50)
    words = [f"{a}{b}{c}" for a in "ghijklm" for b in "nopqrst" for c in "uvwxyz"] * 2
    (cluster.logs / "kubelet.log").write_text("".join(f"{ERROR} {word}\n" for word in words))
    sampler._halt.set()
    sampler.take()
    assert sum(line.count for line in sampler.error_lines) == len(words)
    assert len(sampler.error_lines) <= 2 * 50 + EACH + 1


def test_a_line_without_an_end_is_recorded_in_part(sampler: Sampler, cluster: FakeCluster) -> None:
    (cluster.logs / "kubelet.log").write_text(f"{ERROR}{'x' * 1_000_000}\n")
    sampler.take()
    assert [len(line.text) for line in sampler.error_lines] == [TEXT_CHARACTERS + 1]
