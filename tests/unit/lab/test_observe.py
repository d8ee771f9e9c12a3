"""How far a kubelet got, told from its log and from a cluster that is played."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.client import ApiException

from pytest_k3s_sandbox.cluster.cluster import Cluster
from pytest_k3s_sandbox.lab.observe import (
    ENDINGS,
    POD_FAILURE,
    Limits,
    Milestone,
    Observation,
    Watch,
    pod_error,
    stage_of,
    stopping_error,
)
from pytest_k3s_sandbox.report.records import Stage
from pytest_k3s_sandbox.sandbox.inside import InsidePath

HEAD = "E1123 19:18:12.898079      59 info.go:109] "
NO_NETWORK = f"{HEAD}Failed to get network devices: open /sys/class/net: no such file or directory"
NO_KMSG = (
    'E1123 19:18:12.9      59 run.go:72] "command failed" err="failed to create kubelet: open /dev/kmsg"'
)
WARNING = "W1123 19:18:12.9      59 run.go:72] something is odd"


def test_the_last_error_is_the_one_that_stopped_it() -> None:
    found = stopping_error("kubelet", f"{NO_NETWORK}\n{NO_KMSG}\n{WARNING}\n")
    assert found is not None
    assert (found.component, found.kind) == ("kubelet", "kmsg")
    assert found.text.startswith('"command failed"')


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_another_goroutine_writes_before_the_end_did_not_stop_it(ending: str) -> None:
    other = f'{HEAD}"Unable to get rootfs data from cAdvisor interface" err="unable to find data"'
    found = stopping_error("kubelet", f'{other}\n{HEAD}{ending} err="why"\n{other}\n')
    assert found is not None
    assert found.text == f'{ending} err="why"'


@given(st.lists(st.sampled_from([WARNING, "", "I1123 19:18:12.9 59 a.go:1] fine", "words"])))
def test_a_log_without_an_error_has_none(lines: list[str]) -> None:
    assert stopping_error("kubelet", "\n".join(lines)) is None
    assert pod_error("\n".join(lines)) is None


def attempt(cause: str) -> str:
    lines = (
        f'"RunPodSandbox from runtime service failed" err="rpc error: code = Unknown desc = {cause}"',
        f'"CreatePodSandbox for pod failed" err="rpc error: code = Unknown desc = {cause}, passed on"',
        f'"{POD_FAILURE}, skipping" err="failed to CreatePodSandbox"',
    )
    return "\n".join(HEAD + line for line in lines)


def test_a_pod_fails_for_the_first_reason_of_its_last_attempt() -> None:
    found = pod_error("\n".join((NO_NETWORK, attempt("one"), NO_KMSG, attempt("two"))))
    assert found is not None
    assert found.text.endswith('desc = two"')


def test_an_attempt_that_goes_on_is_no_failure_yet() -> None:
    assert pod_error(attempt("one").rpartition("\n")[0]) is None


def test_a_failure_without_a_cause_is_its_own() -> None:
    found = pod_error(f'{HEAD}"{POD_FAILURE}, skipping" err="timed out"')
    assert found is not None
    assert "timed out" in found.text


@given(st.sets(st.sampled_from(Milestone)))
def test_the_stage_is_that_of_the_last_milestone(reached: set[Milestone]) -> None:
    milestones = dict.fromkeys(reached, 0.0)
    stages = list(Stage)
    lives, ended = stage_of(milestones), stage_of(milestones, ended=True)
    assert (lives is Stage.POD) == (Milestone.POD in reached)
    assert (lives is Stage.NOTHING) == (not reached - {Milestone.CONTAINERD, Milestone.SUMMARY})
    assert stages.index(ended) == min(stages.index(lives), stages.index(Stage.REGISTERED))


@given(st.floats(1, 100))
def test_patience_stretches_every_limit(factor: float) -> None:
    stretched = Limits().stretched(factor)
    for each in fields(Limits):
        assert getattr(stretched, each.name) == factor * getattr(Limits(), each.name)


class Played:
    """A cluster whose node goes through states, one a question.

    Args:
        folder: Gets the logs.
        ready: What the condition Ready says, in turn; the last one stays. None: not registered.
        phases: Phases of the pod, in turn.
        summary: What /stats/summary answers: None, or the error.
        dies: After how many questions the kubelet ends.
    """

    def __init__(
        self,
        folder: Path,
        ready: list[str | None],
        phases: tuple[str, ...] = ("Running",),
        summary: ApiException | None = None,
        dies: int = 10**6,
    ) -> None:
        """Begin with the first state."""
        self.logs = folder
        (folder / "kubelet.log").write_text("")
        self.settings = SimpleNamespace(node="n")
        self.created: list[str] = []
        self.asked = 0
        self._ready, self._phases, self._summary, self._dies = (
            iter_last(ready),
            iter_last(phases),
            summary,
            dies,
        )
        self.processes = {"containerd": self._process(False), "kubelet": self._process(True)}
        self.node = SimpleNamespace(name="n", conditions=self._conditions)
        self.core = self
        self._seen: str | None = None

    def log(self, component: str) -> InsidePath:
        """Say where a component logs."""
        return InsidePath(self.logs / f"{component}.log")

    def _process(self, mortal: bool) -> SimpleNamespace:
        def poll() -> int | None:
            self.asked += 1
            return 1 if mortal and self.asked > self._dies else None

        return SimpleNamespace(poll=poll)

    def read_node(self, _name: str) -> str:
        """Answer, or refuse as for no node."""
        self._seen = next(self._ready)
        if self._seen is None:
            raise ApiException(status=404)
        return "node"

    def _conditions(self) -> dict[str, Any]:
        seen, self._seen = self._seen or next(self._ready), None
        status = "True" if seen == "ready" else "False"
        return {"Ready": SimpleNamespace(type="Ready", status=status, reason="KubeletNotReady", message=seen)}

    def create_namespaced_pod(self, _namespace: str, pod: dict[str, Any]) -> None:
        """Note its name."""
        self.created.append(pod["metadata"]["name"])

    def list_namespaced_pod(self, _namespace: str) -> SimpleNamespace:
        """Return one pod in its next phase."""
        return SimpleNamespace(items=[SimpleNamespace(status=SimpleNamespace(phase=next(self._phases)))])

    def connect_get_node_proxy_with_path(self, _name: str, _path: str) -> str:
        """Answer or refuse."""
        if self._summary is not None:
            raise self._summary
        return "{}"


def iter_last(values: Sequence[str | None]) -> Iterator[str | None]:
    return itertools.chain(values, itertools.repeat(values[-1]))


QUICK = Limits(registered=0.3, ready=5.0, settled=0.3, pod=0.5, summary=0.2)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_k3s_sandbox.lab.observe.POLL_SECONDS", 0.02)


def watch(played: Played) -> Observation:
    return Watch(cast("Cluster", played), {"metadata": {"name": "trial"}}, QUICK).follow()


def test_a_node_that_reaches_all(tmp_path: Path) -> None:
    seen = watch(Played(tmp_path, [None, "starting", "starting", "ready"], ("Pending", "Running")))
    assert seen.reached is Stage.POD
    assert seen.error is None
    assert list(seen.milestones) == list(Milestone)
    cell = seen.cell(("a",), "1.34.4", {"x": "y"})
    assert cell.stats_summary
    assert cell.seconds_to_ready == seen.milestones[Milestone.READY]


def test_a_reason_that_stays_the_same_is_final(tmp_path: Path) -> None:
    seen = watch(Played(tmp_path, ["starting", "starting", "cni plugin not initialized"]))
    assert seen.reached is Stage.REGISTERED
    assert seen.error is not None
    assert seen.error.kind == "cni"
    assert seen.error.text == "KubeletNotReady: cni plugin not initialized"


def test_a_kubelet_that_ends_is_an_observation(tmp_path: Path) -> None:
    played = Played(tmp_path, [None], dies=6)
    (tmp_path / "kubelet.log").write_text(f"{NO_NETWORK}\n{NO_KMSG}\n")
    seen = watch(played)
    assert (seen.reached, seen.exit_code) == (Stage.STARTED, 1)
    assert seen.error is not None
    assert seen.error.kind == "kmsg"


def test_a_kubelet_that_ends_when_it_was_ready_is_not(tmp_path: Path) -> None:
    played = Played(tmp_path, ["ready"], ("Pending",), dies=20)
    seen = watch(played)
    assert (seen.reached, seen.ready, seen.exit_code) == (Stage.REGISTERED, False, 1)
    assert seen.error is not None
    assert seen.error.text == "(an empty log)"


def test_a_kubelet_that_never_registers_has_started(tmp_path: Path) -> None:
    seen = watch(Played(tmp_path, [None]))
    assert (seen.reached, seen.exit_code) == (Stage.STARTED, None)


def test_a_pod_is_tried_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(tmp_path, ["ready"], ("Pending",))
    log = tmp_path / "kubelet.log"
    create = played.create_namespaced_pod

    def fail(namespace: str, pod: dict[str, Any]) -> None:
        create(namespace, pod)
        log.write_text(log.read_text() + attempt(f"failure {len(played.created)}") + "\n")

    monkeypatch.setattr(played, "create_namespaced_pod", fail)
    seen = watch(played)
    assert played.created == ["trial-1", "trial-2"]
    assert seen.reached is Stage.READY
    assert seen.error is not None
    assert "failure 2" in seen.error.text


def test_a_summary_that_is_refused_is_named(tmp_path: Path) -> None:
    refusal = ApiException(status=500, reason="Internal Server Error")
    refusal.body = "cannot find filesystem info"
    seen = watch(Played(tmp_path, ["ready"], summary=refusal))
    assert seen.reached is Stage.POD
    assert seen.error is not None
    assert seen.error.text == "/stats/summary: 500 cannot find filesystem info"
    assert seen.cell((), "1").stats_summary is False
