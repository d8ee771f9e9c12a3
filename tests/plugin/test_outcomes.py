"""What goes to JUnit's XML, to allure and to the terminal: valid, and trouble is told from a finding."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_k3s_sandbox.pytestplugin.results import is_broken, mend_junit
from support.own_xml import parsed
from support.project import Project
from support.result_formats import attachments, cases, documents, ends, properties, steps_of

TESTS = """
import time
import pytest
from pytest_k3s_sandbox.errors import ClusterError
from pytest_k3s_sandbox.report.records import Sample

pytestmark = pytest.mark.exp08

def test_held(k3s_claim, k3s_session):
    for t in range(3):
        k3s_session.writer.append(Sample(t=t, node_ready=t > 0, api_reachable=True))
    k3s_claim("fast", "It is fast", True, 1, 2, "s")

def test_disproved(k3s_claim):
    k3s_claim("faster", "It is faster", False, 3, 2, "s")

def test_trouble(k3s):
    raise ClusterError("the API server is gone", cause="it was killed")

@pytest.mark.timeout(0.2)
def test_slow(k3s):
    time.sleep(5)

def test_skipped(k3s, request):
    request.node.user_properties.append(("sandbox", "another"))
    pytest.skip("not applicable: no reason")

def test_without_node():
    raise ValueError("a user's own")
"""
BROKEN_LAYER = """
from dataclasses import replace
import pytest
from pytest_k3s_sandbox.errors import LayerError
from pytest_k3s_sandbox.layers.registry import LAYERS

def broken(k3s_sandbox, variant): raise LayerError("fake_cni is not healthy")

@pytest.fixture(scope="session", autouse=True)
def breaking(_nothing_is_real):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LAYERS, "fake_cni", replace(LAYERS["fake_cni"], make=broken))
        yield

def test_it(k3s): pass
def test_more(k3s): pass
"""


def test_junit_tells_trouble_from_a_finding(project: Project) -> None:
    project.run(TESTS, "--junitxml=out/junit.xml")
    found = cases(project.pytester.path / "out" / "junit.xml")
    assert {name.removeprefix("test_"): ends(case) for name, case in found.items()} == {
        "held": [],
        "disproved": ["failure"],
        "trouble": ["error"],
        "slow": ["error"],
        "skipped": ["skipped"],
        "without_node": ["failure"],  # not ours to judge
    }
    held = properties(found["test_held"])
    assert held == {
        "experiment": "exp08",
        "sandbox": "gvisor",
        "layers": "workarounds,fuse_cgroupfs,ptrace_interceptor,fake_cni",
        "run": str(project.folders[0]),
    }
    assert properties(found["test_skipped"]) == {**held, "sandbox": "another"}  # a test's own word counts
    assert properties(found["test_trouble"])["status"] == "broken"
    assert properties(found["test_without_node"]) == {}


def test_allure_tells_trouble_from_a_finding(project: Project) -> None:
    project.run(TESTS, "--alluredir=allure")
    folder = project.pytester.path / "allure"
    results = {one["name"].removeprefix("test_"): one for one in documents(folder, "result")}
    assert {name: one["status"] for name, one in results.items()} == {
        "held": "passed",
        "disproved": "failed",
        "trouble": "broken",
        "slow": "broken",
        "skipped": "skipped",
        "without_node": "broken",
    }
    labels = {one["name"]: one["value"] for one in results["held"]["labels"]}
    assert (labels["experiment"], labels["sandbox"]) == ("exp08", "gvisor")
    assert {"name": "sandbox", "value": "another"} in results["skipped"]["labels"]
    assert labels["layers"].endswith("fake_cni")
    parameters = {one["name"]: one["value"] for one in results["held"]["parameters"]}
    assert parameters["sandbox"] == "'gvisor'"
    assert len({one["historyId"] for one in results.values()}) == len(results)
    environment = (folder / "environment.properties").read_text()
    assert "sandbox = gvisor\n" in environment
    categories = json.loads((folder / "categories.json").read_text())
    assert [one["matchedStatuses"] for one in categories] == [["failed"], ["broken"]]


def test_allure_gets_what_was_recorded_until_a_failure(project: Project) -> None:
    project.run(TESTS, "--alluredir=allure")
    folder = project.pytester.path / "allure"
    results = {one["name"].removeprefix("test_"): one for one in documents(folder, "result")}
    assert attachments(results["held"]) == attachments(results["without_node"]) == {}
    found = attachments(results["disproved"])
    assert set(found) == {"readiness.svg", "samples.csv", "records.jsonl"}
    assert parsed((folder / found["readiness.svg"]).read_text()).tag.endswith("svg")
    assert len((folder / found["samples.csv"]).read_text().splitlines()) == 4
    last = json.loads((folder / found["records.jsonl"]).read_text().splitlines()[-1])
    assert (last["type"], last["name"], last["held"]) == ("verdict", "faster", False)


def test_phases_of_the_bring_up_are_steps(project: Project) -> None:
    project.run("def test_it(k3s): pass", "--alluredir=allure")
    found = set(steps_of(project.pytester.path / "allure"))
    assert ("k3s_sandbox", "sandbox", "passed") in found
    assert ("k3s_fake_cni", "layer fake_cni", "passed") in found


def test_a_bring_up_that_breaks_is_a_broken_step_with_its_logs(project: Project) -> None:
    project.run(BROKEN_LAYER, "--alluredir=allure", "--junitxml=junit.xml")
    folder = project.pytester.path / "allure"
    assert ("k3s_fake_cni", "layer fake_cni", "broken") in set(steps_of(folder))
    first, second = sorted(documents(folder, "result"), key=lambda one: int(one["start"]))
    assert (first["status"], second["status"]) == ("broken", "skipped")
    logs = attachments(first)
    assert "said before it broke" in (folder / logs["some.log"]).read_text()
    found = cases(project.pytester.path / "junit.xml")
    assert [ends(case) for case in found.values()] == [["error"], ["skipped"]]


def test_without_allure_nothing_of_it_is_imported(project: Project) -> None:
    test = "import sys\ndef test_it(k3s): assert 'allure' not in sys.modules"
    project.run(test, "-p", "no:allure_pytest", subprocess=True).assert_outcomes(passed=1)


def test_the_summary_has_a_line_an_experiment(project: Project) -> None:
    more = (
        "\n@pytest.mark.k3s_layers('fake_cni')\ndef test_stack(k3s_claim):\n    k3s_claim('x', 'X', True)\n"
    )
    result = project.run(TESTS + more, "--k3s-keep=never")
    result.stdout.fnmatch_lines(
        [
            (
                "k3s-sandbox exp08: 2 runs, 1 held, 1 not held, 1 test without a run failed; 4 of 5 claims, "
                "Ready after 1.0 s, *, 3 tests failed, 1 test skipped"
            )
        ]
    )


def test_workers_hand_over_figures_and_results(project: Project) -> None:
    project.pytester.makepyfile(test_second=TESTS)
    options = ("-n2", "--dist=loadfile", "--junitxml=junit.xml", "--alluredir=allure")
    result = project.run(TESTS, *options, subprocess=True)
    result.stdout.fnmatch_lines(
        [
            (
                "k3s-sandbox exp08: 2 runs, 2 not held, 2 tests without a run failed; 4 of 6 claims, "
                "Ready after 1.0 s, *"
            )
        ]
    )
    folder = project.pytester.path
    cases(folder / "junit.xml")
    tags = [ends(case) for case in parsed((folder / "junit.xml").read_text()).iter("testcase")]
    assert sorted(tags) == sorted([[], ["failure"], ["error"], ["error"], ["skipped"], ["failure"]] * 2)
    statuses = sorted(one["status"] for one in documents(folder / "allure", "result"))
    assert statuses == sorted(["passed", "failed", "broken", "broken", "skipped", "broken"] * 2)


@pytest.mark.parametrize(
    ("error", "broken"),
    [
        (AssertionError("x"), False),
        (pytest.fail.Exception("no"), False),
        (pytest.fail.Exception("Timeout (>3s) from pytest-timeout."), True),
        (ValueError("x"), True),
    ],
)
def test_only_an_assertion_is_a_finding(error: BaseException, *, broken: bool) -> None:
    assert is_broken(error) == broken


def test_a_junit_file_that_is_none_is_left_alone(tmp_path: Path) -> None:
    mend_junit(tmp_path / "missing.xml")
    (tmp_path / "half.xml").write_text("<testsuites><testsu")
    mend_junit(tmp_path / "half.xml")
    assert [path.name for path in tmp_path.iterdir()] == ["half.xml"]


KILLED = """
import os
import signal
from pytest_k3s_sandbox.report.records import Sample

def test_it(k3s_session, k3s_claim):
    for t in range(30):
        k3s_session.writer.append(Sample(t=t, node_ready=t > 3, api_reachable=True))
    k3s_claim("ready", "The node is Ready", True, 4, 30, "s")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_killed_in_the_middle_has_a_report_that_says_so(project: Project) -> None:
    project.run(KILLED, subprocess=True)
    (folder,) = project.folders
    assert not (folder / "index.html").exists()
    cli = [sys.executable, "-m", "pytest_k3s_sandbox.cli", "report", str(folder), "--width", "84"]
    done = subprocess.run(cli, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{folder}/index.html\n"), done.stderr
    text = (folder / "index.html").read_text()
    assert "<strong>Incomplete.</strong> This run was cut off: its records stop at 29.0 s" in text
    assert "The only claim judged so far held: the node was Ready 4.0 s after" in text
    assert "incomplete" in (folder / "export" / "results.md").read_text()
    (run,) = project.runs
    assert len(run.samples) == 30
