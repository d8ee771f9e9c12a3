"""The claim that an experiment's node makes by itself: no program ends during its start."""

from __future__ import annotations

import pytest

from pytest_k3s_sandbox.report.headline import outcome
from pytest_k3s_sandbox.report.records import EventKind, Run
from support.project import Project

TEST = """
import pytest

@pytest.mark.exp08
def test_it(k3s_claim):
    k3s_claim("it", "It is", True)
"""
MINE = """
def test_mine(k3s): pass
"""


def the_run(project: Project) -> Run:
    (run,) = project.runs
    return run


def words(run: Run) -> dict[str, str]:
    return {one.name: one.word for one in run.verdicts}


def supervised(run: Run) -> str:
    assert run.environment is not None
    return run.environment.pins["supervised"]


def test_every_experiment_with_a_node_makes_it(project: Project) -> None:
    project.run(TEST)
    run = the_run(project)
    assert words(run) == {"clean-start": "held", "it": "held"}
    assert supervised(run) == "False"


def test_a_kubelet_that_ended_is_a_failed_claim(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_KUBELET_ENDS", "1")
    result = project.run(TEST + TEST.replace("test_it", "test_more"))
    result.assert_outcomes(errors=1, skipped=1)
    assert result.ret == 1
    run = the_run(project)
    (verdict,) = run.verdicts
    assert (verdict.name, verdict.word) == ("clean-start", "not held")
    said = "E1126 12:00:00.000000 7 run.go:72] interrupted system call"
    assert verdict.measured == f"1: kubelet ended with exit code 1 during the start: {said}"
    assert [event.component for event in run.events if event.kind == EventKind.FAULT] == ["kubelet"]
    assert outcome(run) == "not held"
    result.stdout.fnmatch_lines(["*ClusterError: the start of the node was not clean: 1: kubelet ended*"])


def test_a_start_that_does_not_come_that_far_does_not_reach_it(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SANDBOX_BREAKS", "1")
    project.run(TEST)
    run = the_run(project)
    assert [claim.name for claim in run.unreached] == ["clean-start"]
    assert outcome(run) == "incomplete"


def test_a_users_node_makes_no_such_claim_and_is_supervised(project: Project) -> None:
    project.run(MINE, "--k3s-keep=always")
    run = the_run(project)
    assert words(run) == {}
    assert supervised(run) == "True"


def test_a_node_that_an_experiment_will_share_with_a_users_test_is_the_experiments(project: Project) -> None:
    project.run(MINE + TEST)
    run = the_run(project)
    assert words(run) == {"clean-start": "held", "it": "held"}
    assert supervised(run) == "False"


def test_an_experiment_without_a_node_makes_no_such_claim(project: Project) -> None:
    test = "assert b'clean-start' not in k3s_run.path.read_bytes()"
    result = project.run(f"import pytest\n@pytest.mark.exp08\ndef test_it(k3s_run): {test}\n")
    result.assert_outcomes(passed=1)
