"""How long namespaces live that tests share, and what a failing test's report says of its cluster."""

from __future__ import annotations

import pytest

from support.project import Project

SECTION = "the cluster's last events"

SHARED = """
import pytest
from pathlib import Path

def note(line):
    with Path("journal.txt").open("a") as file:
        file.write(f"{line}\\n")

@pytest.fixture(scope="module")
def module(k3s_namespaces):
    return k3s_namespaces("mine", scope="module")

def test_one(module, k3s_namespaces):
    assert module == "mine"
    assert module.cluster is k3s_namespaces().cluster
    k3s_namespaces(scope="function")
    note("one")

def test_two(module, k3s_namespaces):
    assert module == "mine"
    assert k3s_namespaces() != k3s_namespaces()
    note("two")
"""


def test_a_namespace_lives_as_long_as_its_scope(project: Project) -> None:
    project.pytester.makepyfile(test_last="from test_first import note\ndef test_last(k3s): note('last')")
    project.pytester.makepyfile(test_first=SHARED)
    run = project.pytester.runpytest_inprocess("-rA", "-p", "no:randomly", "test_first.py", "test_last.py")
    run.assert_outcomes(passed=3)
    words = [line for line in project.journal if line in {"one", "two", "last"} or "namespace" in line]
    gone = "namespace gone"
    assert words == ["one", gone, "two", gone, "last", gone, gone, gone]


@pytest.mark.parametrize(
    ("scope", "words"),
    [
        ("modul", "did you mean 'module'?"),
        ("class", "no running test is in such a scope"),
        ("year", "use one of these"),
    ],
)
def test_a_scope_that_is_none(project: Project, scope: str, words: str) -> None:
    run = project.run(f"def test_it(k3s_namespaces): k3s_namespaces(scope={scope!r})")
    run.assert_outcomes(failed=1)
    run.stdout.fnmatch_lines([f"*the scope '{scope}' of a namespace*"])
    assert words in run.stdout.str()


FAILING = """
def test_bad(k3s_namespace):
    assert False, "it is wrong"

def test_good(k3s_namespace): pass

def test_other():
    assert False, "another"
"""


def test_a_failing_tests_report_has_the_events_of_its_cluster(project: Project) -> None:
    run = project.run(FAILING)
    run.assert_outcomes(failed=2, passed=1)
    said = run.stdout.str()
    assert said.count(SECTION) == 1
    assert project.count["events read"] == 1  # a test that passes costs nothing
    (line,) = [line for line in run.outlines if line.startswith("namespace test-")]
    after = run.outlines[run.outlines.index(line) :]
    assert after[1] == "  --:--:-- Warning  pod/it: no such image \\x1b[2J"
    assert after[2] == "warnings of the rest of the cluster:"
    assert "it is wrong" in said


def test_a_cluster_that_does_not_answer_changes_nothing(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_API_ENDS", "1")
    run = project.run(FAILING)
    run.assert_outcomes(failed=2, passed=1)
    assert SECTION not in run.stdout.str()
    assert "INTERNALERROR" not in run.stdout.str()


def test_a_namespace_that_is_shared_is_told_of_to_those_that_use_it(project: Project) -> None:
    run = project.run("""
def test_first(k3s_namespaces):
    k3s_namespaces("mine")

def test_bad(k3s_namespaces):
    assert False

def test_without(k3s):
    assert False
""")
    run.assert_outcomes(failed=2, passed=1)
    assert run.stdout.str().count("namespace mine:") == 1


def test_an_error_of_ours_shows_the_tests_line_and_not_the_way_through_this_package(project: Project) -> None:
    run = project.run("""
def test_it(k3s_namespace):
    k3s_namespace.apply("nope.yaml")
""")
    run.assert_outcomes(failed=1)
    said = "*the manifest nope.yaml: there is no such file*"
    run.stdout.fnmatch_lines([">*k3s_namespace.apply(*nope.yaml*)", f"E{said}"])
    assert "manifests.py" not in run.stdout.str()
