"""A test that forks: the child ends and records nothing of its parent's, and does not act as pytest."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import weakref
from pathlib import Path

import pytest

from pytest_k3s_sandbox.daemon.clients import Clients
from pytest_k3s_sandbox.errors import ConfigError
from pytest_k3s_sandbox.pytestplugin.children import ended_here
from pytest_k3s_sandbox.report.records import RunWriter
from pytest_k3s_sandbox.support import forks
from support.project import Project

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

BEFORE_AND_AFTER = """
import multiprocessing, os, sys, time, pytest

def code(): return os.waitstatus_to_exitcode(os.wait()[1])

def test_before(k3s_claim): k3s_claim("a", "It is", True)

TESTS

def test_after(k3s_claim): k3s_claim("b", "It is still", True)
"""


CRASHED = """
@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    if item.name != "test_crashes":
        return None
    from _pytest import runner
    call = runner.CallInfo.from_call(lambda: 0 / 0, "???")
    call.excinfo = None
    report = runner.pytest_runtest_makereport(item, call)
    report.outcome, report.longrepr = "failed", "CRASHED with signal 9"
    item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True
"""


def project_of(*bodies: str) -> str:
    tests = [
        f"def test_forks_{number}(k3s_claim, k3s_session, k3s_namespace):\n    {body}"
        for number, body in enumerate(bodies)
    ]
    return BEFORE_AND_AFTER.replace("TESTS", "\n\n".join(tests))


FORKED = '''
import json, os, pytest
from _pytest.runner import runtestprotocol

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    """Run a test with the marker in a process of its own, as pytest-forked does."""
    if item.get_closest_marker("forked") is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    hear, say = os.pipe()
    if os.fork() == 0:
        reports = runtestprotocol(item, log=False)
        to = item.config.hook.pytest_report_to_serializable
        os.write(say, json.dumps([to(config=item.config, report=each) for each in reports]).encode())
        os._exit(0)
    os.close(say)
    with open(hear) as file:
        for each in json.load(file):
            report = item.config.hook.pytest_report_from_serializable(config=item.config, data=each)
            item.ihook.pytest_runtest_logreport(report=report)
    os.wait()
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True
'''


BODIES = (
    "if os.fork() == 0: assert False\n    assert code() == 1",
    "if os.fork() == 0: return\n    assert code() == 0",
    "if os.fork() == 0: sys.exit(3)\n    assert code() == 3",
    "if os.fork() == 0: sys.exit('words')\n    assert code() == 1",
    "if os.fork() == 0: pytest.skip('not here')\n    assert code() == 1",
    "if os.fork() == 0: pytest.exit('all')\n    assert code() == 1",
    "if os.fork() == 0: os._exit(4)\n    assert code() == 4",
    "if os.fork() == 0: raise KeyboardInterrupt\n    assert code() == 1",
    """p = multiprocessing.get_context('fork').Process(target=sys.exit, args=(5,))
    p.start(); p.join(); assert p.exitcode == 5""",
    """p = multiprocessing.get_context('fork').Process(target=lambda: 1 / 0)
    p.start(); p.join(); assert p.exitcode == 1""",
    """if os.fork() == 0:
        if os.fork() == 0: assert False
        assert code() == 1
        sys.exit(6)
    assert code() == 6""",
)


def test_children_leave_the_run_to_their_parent(project: Project) -> None:
    result = project.run(project_of(*BODIES), "--k3s-keep=always", subprocess=True)
    result.assert_outcomes(passed=2 + len(BODIES))
    assert result.ret == 0
    assert project.count["sandbox up"] == project.count["sandbox down"] == project.count["cluster down"] == 1
    assert project.count["fake_cni down"] == 1
    assert project.count["namespace gone"] == len(BODIES)
    (run,) = project.runs
    assert [verdict.name for verdict in run.verdicts] == ["a", "b"]
    assert run.complete
    assert (project.folders[0] / "index.html").exists()
    text = result.stdout.str()
    assert text.count("test session starts") == text.count("k3s-sandbox report: ") == 1


def test_what_a_child_raised_is_shown_on_the_terminal(project: Project) -> None:
    body = "if os.fork() == 0: assert 'this' == 'that'\n    os.wait(); assert False"
    result = project.run(project_of(body), subprocess=True)
    result.assert_outcomes(passed=2, failed=1)
    said = result.stderr.str()
    assert (
        "::test_forks_0 forked, ends with the test and not as a second pytest; end it by os._exit():" in said
    )
    assert "AssertionError: assert 'this' == 'that'" in said
    assert "/pluggy/" not in said


def test_a_child_of_a_test_without_a_sandbox_is_not_our_business(project: Project) -> None:
    result = project.run(
        "import os\ndef test_it():\n    if os.fork() == 0: assert False\n    os.wait()", subprocess=True
    )
    assert result.stdout.str().count("short test summary info") == 2  # pytest's own, and the child's


def test_a_child_can_make_a_namespace_of_its_own_and_claims_nothing(project: Project) -> None:
    body = (
        "up = k3s_session\n"
        "    if os.fork() == 0:\n"
        "        with up.cluster.namespace('x', spare=lambda: False): pass\n"
        "        with pytest.raises(Exception, match='was forked from its owner'):\n"
        "            k3s_claim('c', 'A child says so', True)\n"
        "        os._exit(7)\n"
        "    assert os.waitstatus_to_exitcode(os.wait()[1]) == 7"
    )
    project.run(project_of(body), "--k3s-keep=always", subprocess=True).assert_outcomes(passed=3)
    assert project.count["namespace gone"] == 2
    assert [verdict.name for verdict in project.runs[0].verdicts] == ["a", "b"]


@pytest.mark.parametrize("first", ["", "def test_first(k3s): pass"])
def test_each_test_in_a_process_of_its_own(project: Project, first: str) -> None:
    """Without a first test each child has a node of its own; with it they use their parent's."""
    tests = (
        f"import pytest\n{first}\n"
        "@pytest.mark.forked\n"
        "def test_one(k3s, k3s_namespace): pass\n"
        "@pytest.mark.forked\n"
        "def test_two(k3s, k3s_namespace): assert False\n"
        "@pytest.mark.forked\n"
        "def test_three(k3s_node): pass\n"
    )
    conftest = project.pytester.path / "conftest.py"
    conftest.write_text(conftest.read_text() + FORKED)
    ini = ("-o", "markers=forked: in a process of its own", "--k3s-keep=failed")
    result = project.run(tests, *ini, subprocess=True)
    result.assert_outcomes(passed=2 + bool(first), failed=1)
    nodes = 1 if first else 3
    assert project.count["sandbox up"] == project.count["sandbox down"] == nodes
    assert project.count["fake_cni down"] == project.count["cluster down"] == nodes
    assert project.count["namespace gone"] == 2
    (run,) = project.runs  # of a session or of a test that failed
    assert run.complete
    assert (project.folders[0] / "index.html").exists()
    result.stdout.fnmatch_lines([f"*k3s-sandbox report: {project.folders[0]}/index.html"])


def test_a_test_whose_own_process_ends_is_recorded_without_a_phase(project: Project) -> None:
    """As pytest-forked tells it."""
    conftest = project.pytester.path / "conftest.py"
    conftest.write_text(conftest.read_text() + CRASHED)
    tests = "def test_first(k3s): pass\ndef test_crashes(k3s): pass"
    project.run(tests, "--k3s-keep=always", subprocess=True).assert_outcomes(passed=1, failed=1)
    (run,) = project.runs
    assert [(one.outcome, one.phase, one.message) for one in run.tests if "crashes" in one.nodeid] == [
        ("broken", None, "CRASHED with signal 9")
    ]
    assert run.complete


# Without a pytest around.


def child(body: str, *arguments: object) -> int:
    """Fork, and return the child's exit code: 0 if the body is true there."""
    pid = os.fork()
    if pid == 0:
        try:
            held = eval(body, {"forks": forks, "os": os}, {"a": arguments})  # noqa: S307 - a literal of a test
            os._exit(0 if held else 9)
        finally:
            os._exit(8)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_forked_process_knows_what_is_not_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "_alive", weakref.WeakSet())  # what other tests of this process have left
    owner = forks.Owner()
    assert child("not a[0].mine", owner) == 0
    with RunWriter(tmp_path / "run"):
        assert child("forks.inherited()") == 0
    assert child("not forks.inherited()") == 0  # it was closed before
    owner.check("nothing")
    owner.pid -= 1
    with pytest.raises(ConfigError, match=r"recording: this process \(\d+\) was forked from its owner"):
        owner.check("recording")


def test_a_writer_in_a_forked_process_writes_and_closes_nothing(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run") as writer:
        before = (tmp_path / "run" / "records.jsonl").read_bytes()
        # Nor when another thread had its lock at the fork.
        with writer._lock:
            assert child("a[0].close() is None and a[0].close('why') is None", writer) == 0
        assert (tmp_path / "run" / "records.jsonl").read_bytes() == before


def test_a_process_that_comes_back_ends_with_the_code_of_what_it_did() -> None:
    class Thing:
        def forked(self) -> None:
            """Let go of nothing."""

    thing = Thing()
    forks.watch(thing)
    try:
        with ended_here("it"):
            pid = os.fork()
        assert pid != 0
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        with pytest.raises(ZeroDivisionError), ended_here("it"):
            _ = 1 / 0  # the parent's own errors are its own
    finally:
        forks.forget(thing)


def test_a_child_that_goes_on_does_not_count_as_a_user(tmp_path: Path) -> None:
    """flock(2) locks belong to the open file, which a child has, too."""
    clients = Clients(tmp_path / "users")
    clients.enter()
    pid = os.fork()
    if pid == 0:
        time.sleep(30)
        os._exit(0)
    try:
        fd = clients._fd
        assert fd is not None
        os.close(fd)  # as with SIGKILL: nothing is unlocked
        clients._fd = None
        deadline = time.monotonic() + 5
        while True:
            with contextlib.ExitStack() as last:
                if Clients(tmp_path / "users").gone(last):
                    break
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
