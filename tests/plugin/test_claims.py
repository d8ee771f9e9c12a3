"""A result means what it says: whatever ends a claim or a test, the run knows, and does not call it held."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pytest_k3s_sandbox.report.headline import is_ok, outcome, summarize
from support.own_xml import parsed
from support.result_formats import cases, documents, ends

if TYPE_CHECKING:
    from pytest_k3s_sandbox.report.records import Run, Verdict
    from support.project import Project

HEAD = """
import os, time, signal
import pytest
from pytest_k3s_sandbox.errors import ClusterError, WaitError

pytestmark = pytest.mark.exp08

def test_first(k3s_claim):
    k3s_claim("first", "The first", True, 1, 2, "s")

"""
LAST = """

def test_last(k3s_claim):
    '''The last one.'''
    k3s_claim("last", "The last", True)
"""
WAITING = """
def test_waits(k3s_claim):
    '''It is fast.'''
    with k3s_claim.of("fast", "It is fast", limit=30, unit="s") as claim:
        {body}
"""


def the_run(project: Project) -> Run:
    (run,) = project.runs
    return run


def verdict(run: Run, name: str) -> Verdict:
    (found,) = [one for one in run.verdicts if one.name == name]
    return found


@pytest.mark.parametrize(
    ("body", "judged", "ended"),
    [
        ("raise WaitError('timed out waiting for it')", True, "WaitError: timed out waiting for it"),
        ("raise ClusterError('kubectl failed')", False, "ClusterError: kubectl failed"),
        ("assert 1 == 2, 'one is not two'", True, "AssertionError: one is not two"),
        ("raise OSError('the machine broke')", False, "OSError: the machine broke"),
        ("pass", False, "the test did not judge it"),
        ("raise KeyboardInterrupt", False, "KeyboardInterrupt"),
        ("pytest.exit('enough')", False, "Exit: enough"),
        ("pytest.fail('Timeout (>9s) from pytest-timeout.')", False, "Failed: Timeout (>9s) from"),
    ],
)
def test_whatever_ends_a_claim_it_is_recorded_with_its_limit(
    project: Project, body: str, ended: str, *, judged: bool
) -> None:
    result = project.run(HEAD + WAITING.format(body=body) + LAST, subprocess=True)
    assert result.ret != 0
    run = the_run(project)
    found = verdict(run, "fast")
    assert (found.held, found.judged, found.limit, found.unit) == (False, judged, 30, "s")
    assert isinstance(found.measured, float)
    assert (found.ended or "").startswith(ended)
    assert outcome(run) == ("not held" if judged else "incomplete")


def test_how_far_a_claim_got_is_recorded(project: Project) -> None:
    body = "claim.so_far = lambda: f'{3} of 9'\n        raise WaitError('timed out')"
    project.run(HEAD + WAITING.format(body=body))
    assert verdict(the_run(project), "fast").measured == "3 of 9"


def test_a_claim_that_cannot_tell_how_far_it_got_is_recorded_all_the_same(project: Project) -> None:
    body = "claim.so_far = lambda: 1 / 0\n        raise WaitError('timed out')"
    project.run(HEAD + WAITING.format(body=body))
    assert verdict(the_run(project), "fast").measured == "not known: ZeroDivisionError: division by zero"


@pytest.mark.parametrize(("measured", "held"), [("30", True), ("30.5", False)])
def test_a_claim_within_its_limit_holds(project: Project, measured: str, *, held: bool) -> None:
    result = project.run(HEAD + WAITING.format(body=f"claim.within({measured})"))
    result.assert_outcomes(passed=1 + held, failed=1 - held)
    assert verdict(the_run(project), "fast").word == ("held" if held else "not held")


def test_a_claim_is_judged_once(project: Project) -> None:
    project.run(HEAD + WAITING.format(body="claim.judge(True)\n        claim.judge(True)")).assert_outcomes(
        passed=1, failed=1
    )
    assert outcome(the_run(project)) == "incomplete"


def test_a_claim_that_is_announced_and_never_reached_is_shown(project: Project) -> None:
    test = """
def test_two(k3s_claim):
    one = k3s_claim.of("one", "One")
    two = k3s_claim.of("two", "Two of them", limit=7)
    with one:
        one.judge(False, 3)
    with two:
        two.judge(True, 4)
"""
    project.run(HEAD + test)
    run = the_run(project)
    assert [one.name for one in run.unreached] == ["two"]
    page = (project.folders[0] / "index.html").read_text()
    assert "Not reached" in page
    assert "Two of them" in page


def test_claims_together_are_all_recorded(project: Project) -> None:
    test = """
def test_all(k3s_claim):
    with k3s_claim.together() as claim, claim.of("c", "C") as third:
        claim("a", "A is", False, 1)
        claim("b", "B is", False, 2)
        third.judge(True)
"""
    result = project.run(HEAD + test)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*NotHeld: A is: measured 1*", "*B is: measured 2*"])
    words = {one.name: one.word for one in the_run(project).verdicts}
    assert words == {
        "clean-start": "held",
        "first": "held",
        "a": "not held",
        "b": "not held",
        "c": "held",
    }


def test_a_claim_that_another_one_ends_is_not_judged(project: Project) -> None:
    test = """
def test_both(k3s_claim):
    with k3s_claim.of("a", "A") as a, k3s_claim.of("b", "B"):
        a.judge(False)
"""
    project.run(HEAD + test)
    words = {one.name: one.word for one in the_run(project).verdicts}
    assert (words["a"], words["b"]) == ("not held", "not judged")


WRONG = {
    "a wait that raises before the claim": (
        "def test_it(k3s, k3s_claim):\n    raise WaitError('timed out')\n",
        "incomplete",
    ),
    "an assertion before the claim": ("def test_it(k3s_claim):\n    assert 1 == 2\n", "not held"),
    "a fixture that breaks": (
        "@pytest.fixture\ndef pod(k3s): raise ClusterError('no pod')\ndef test_it(pod, k3s_claim): pass\n",
        "incomplete",
    ),
    "a teardown that breaks": (
        (
            "@pytest.fixture\ndef pod(k3s):\n    yield\n    raise ClusterError('no end')\n"
            "def test_it(pod, k3s_claim): pass\n"
        ),
        "incomplete",
    ),
    "a session's teardown that breaks": (
        (
            "@pytest.fixture(scope='session')\ndef pod(k3s):\n    yield\n    raise ClusterError('no end')\n"
            "def test_it(pod, k3s_claim): pass\n"
        ),
        "incomplete",
    ),
    "a time limit": (
        "@pytest.mark.timeout(0.2)\ndef test_it(k3s, k3s_claim):\n    time.sleep(5)\n",
        "incomplete",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_experiment_with_a_failed_or_broken_test_is_nowhere_held(project: Project, what: str) -> None:
    test, word = WRONG[what]
    result = project.run(HEAD + test, "--junitxml=junit.xml", "--alluredir=allure")
    assert result.ret == 1
    run = the_run(project)
    assert outcome(run) == word
    assert not is_ok(run)
    made = json.loads(json.dumps(summarize(run)))
    assert made["ok"] is False
    assert [one["outcome"] for one in made["tests"] if one["nodeid"].endswith("::test_it")] == [
        "failed" if word == "not held" else "broken"
    ]
    page = (project.folders[0] / "index.html").read_text()
    assert f"<title>{word.capitalize()}: exp08" in page
    assert "1 of 2 tests passed" in page
    result.stdout.fnmatch_lines([f"k3s-sandbox exp08: {word}; 2 of 2 claims, *, 1 test failed"])
    tags = ends(cases(project.pytester.path / "junit.xml")["test_it"])
    assert tags == (["failure"] if word == "not held" else ["error"])
    statuses = {one["name"]: one["status"] for one in documents(project.pytester.path / "allure", "result")}
    if "teardown" not in what:  # allure's status is that of the call
        assert statuses["test_it"] == ("failed" if word == "not held" else "broken")
    cli = [sys.executable, "-m", "pytest_k3s_sandbox.cli", "report", str(project.folders[0])]
    subprocess.run([*cli, "--width", "84"], check=True, capture_output=True)
    text = (project.folders[0] / "export" / "results.md").read_text()
    assert f"| Result | {word} |" in text
    assert f": {word}" in (project.folders[0] / "export" / "citation.bib").read_text()


def test_side_by_side_the_run_with_the_broken_test_is_not_held(project: Project) -> None:
    project.run(HEAD + WRONG["a fixture that breaks"][0])
    project.run(HEAD)
    cli = [sys.executable, "-m", "pytest_k3s_sandbox.cli", "report", *map(str, project.folders)]
    subprocess.run([*cli, "--no-figures"], check=True, capture_output=True, cwd=project.pytester.path)
    page = (project.pytester.path / "reports" / "comparison" / "index.html").read_text()
    assert "1 of 2 runs held" in page


def test_tests_that_are_never_reached_are_shown(project: Project) -> None:
    project.run(HEAD + WRONG["an assertion before the claim"][0] + LAST, "-x")
    run = the_run(project)
    assert [(test.text, test.word) for test in run.tests if test.nodeid.endswith("test_last")] == [
        ("The last one.", "not reached")
    ]
    assert "1 test not reached." in summarize(run)["incomplete_reason"]
    page = (project.folders[0] / "index.html").read_text()
    assert "The last one." in page
    assert "Not reached" in page


def test_the_test_that_was_interrupted_is_not_one_that_was_not_reached(project: Project) -> None:
    project.run(HEAD + "def test_it(k3s): raise KeyboardInterrupt\n" + LAST, subprocess=True)
    run = the_run(project)
    words = {test.nodeid.partition("::")[2]: test.word for test in run.tests}
    assert words == {"test_first": "passed", "test_it": "broken", "test_last": "not reached"}
    assert outcome(run) == "incomplete"


def test_a_killed_run_knows_what_was_to_come(project: Project) -> None:
    test = """
def test_waits(k3s_claim):
    with k3s_claim.of("fast", "It is fast", limit=30, unit="s"):
        os.kill(os.getpid(), signal.SIGKILL)
"""
    project.run(HEAD + test + LAST, subprocess=True)
    run = the_run(project)
    assert [one.name for one in run.unreached] == ["fast"]
    assert [test.word for test in run.tests] == ["passed", "not reached", "not reached"]
    assert outcome(run) == "incomplete"


def test_tests_of_another_run_are_not_missed_in_this_one(project: Project) -> None:
    test = """
@pytest.mark.k3s_layers("none")
def test_other(k3s_claim):
    k3s_claim("other", "Another", True)
"""
    project.run(HEAD + test + LAST)
    runs = project.runs
    assert [outcome(run) for run in runs] == ["held", "held"]
    assert sorted(len(run.tests) for run in runs) == [1, 2]


def test_a_test_left_to_another_run_is_no_gap(project: Project) -> None:
    test = """
from pytest_k3s_sandbox.pytestplugin.openruns import begin

@pytest.fixture
def closing(request, k3s_run):
    from pytest_k3s_sandbox.pytestplugin.openruns import OPEN_RUNS
    yield
    (run,) = request.config.stash[OPEN_RUNS]
    run.over = True

def test_second(k3s_claim, closing):
    k3s_claim("second", "The second", True)

def test_third(): pass

def test_fourth(k3s): pass
"""
    project.run(HEAD + test)
    (run,) = project.runs
    assert outcome(run) == "held"
    assert [one.nodeid.partition("::")[2] for one in run.tests] == ["test_first", "test_second"]


def test_an_experiment_whose_test_fails_without_a_run_is_not_held(project: Project) -> None:
    result = project.run(HEAD + "def test_it(): assert False\n")
    result.stdout.fnmatch_lines(["k3s-sandbox exp08: not held, 1 test without a run failed; 2 of 2 claims*"])


def test_an_experiment_that_never_got_a_run_is_not_held(project: Project) -> None:
    result = project.run("import pytest\n@pytest.mark.exp05\ndef test_it(): assert False\n")
    result.stdout.fnmatch_lines(["k3s-sandbox exp05: not held, 1 test without a run failed"])


def test_a_users_own_run_with_a_failed_test_says_so(project: Project) -> None:
    result = project.run("def test_it(k3s): assert False\ndef test_more(k3s): pass\n")
    assert outcome(the_run(project)) == "not held"
    result.stdout.fnmatch_lines(["k3s-sandbox test: not held; *, 1 test failed"])


def test_a_skipped_test_is_shown_with_its_reason(project: Project) -> None:
    result = project.run(HEAD + "def test_it(k3s): pytest.skip('not applicable: the moon')\n")
    run = the_run(project)
    assert outcome(run) == "held"
    assert "not applicable: the moon" in (project.folders[0] / "index.html").read_text()
    result.stdout.fnmatch_lines(["k3s-sandbox exp08: held; *, 1 test skipped"])


def test_junit_still_parses(project: Project) -> None:
    project.run(HEAD + WRONG["a session's teardown that breaks"][0], "--junitxml=junit.xml")
    suite = next(iter(parsed((project.pytester.path / "junit.xml").read_text())))
    assert int(suite.get("errors", "0")) == 1
