"""Workers of pytest-xdist share one cluster: one starts it, all use it, the last one ends it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_k3s_sandbox.daemon import process
from support.experiment_conftest import MARKS

pytest.importorskip("xdist")

from support.project import Project

CONFTEST = f"""
import sys
from types import SimpleNamespace
import pytest
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from support import fake_keeper
from pytest_k3s_sandbox.daemon import process as daemon

daemon.launch = fake_keeper.launch

@pytest.fixture(scope="session")
def k3s_toolchain():
    return SimpleNamespace(kubernetes=None, get=lambda _name: SimpleNamespace(path="/none"))
"""


@pytest.fixture
def sharing(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A user's project whose shared clusters are made of nothing."""
    monkeypatch.setattr(process, "launch", process.launch)  # what the conftest replaces in this process
    monkeypatch.setenv("K3S_SANDBOX_HOME", str(project.pytester.path / "home"))
    project.pytester.makeconftest(CONFTEST + MARKS)
    return project


def left(project: Project) -> list[str]:
    return [str(path) for path in (project.pytester.path / "home").glob("*/*")]


def test_all_workers_use_one_cluster_that_the_last_one_ends(sharing: Project) -> None:
    result = sharing.run(
        """
        import pytest

        @pytest.mark.parametrize("number", range(6))
        def test_it(k3s, k3s_sandbox, k3s_layers, k3s_claim, number):
            assert k3s.sandbox is k3s_sandbox is k3s_layers.sandbox
            assert k3s_layers.names == ("fake_cni",)
            k3s_claim(f"claim-{number}", "It holds", True)
        """,
        "-n2",
        "--k3s-share",
        subprocess=True,
    )
    result.assert_outcomes(passed=6)
    assert sharing.journal == ["shared cluster up", "shared cluster down"]
    (run,) = sharing.runs
    assert run.complete
    assert {verdict.name for verdict in run.verdicts} == {f"claim-{number}" for number in range(6)}
    result.stdout.fnmatch_lines(["*[[]gw?[]] k3s-sandbox: uses the shared cluster share-*"])
    (folder,) = sharing.folders
    assert result.outlines.count(f"k3s-sandbox report: {folder}/index.html") == 1
    assert (folder / "index.html").exists()
    assert left(sharing) == []


def test_a_worker_that_is_killed_takes_nothing_from_the_others(sharing: Project) -> None:
    result = sharing.run(
        """
        import os, signal
        import pytest

        @pytest.mark.parametrize("number", range(6))
        def test_it(k3s, number):
            if number == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        """,
        "-n2",
        "--k3s-share",
        subprocess=True,
    )
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines(["*worker 'gw?' crashed*"])
    assert sharing.journal == ["shared cluster up", "shared cluster down"]
    assert left(sharing) == []


def test_without_a_test_that_needs_it_there_is_no_cluster(sharing: Project) -> None:
    sharing.run("def test_it(): pass", "-n2", "--k3s-share", subprocess=True).assert_outcomes(passed=1)
    assert sharing.journal == []
    assert left(sharing) == []


def test_without_workers_there_is_nothing_to_share(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node is the run's own, as without the option."""
    monkeypatch.setenv("K3S_SANDBOX_HOME", str(project.pytester.path / "home"))
    project.run("def test_it(k3s): pass", "--k3s-share").assert_outcomes(passed=1)
    assert project.count["sandbox up"] == project.count["sandbox down"] == 1
    assert left(project) == []


@pytest.mark.parametrize(("keep", "runs"), [("failed", 1), ("never", 0)])
def test_a_failure_in_any_worker_decides_about_the_records(sharing: Project, keep: str, runs: int) -> None:
    test = """
        import pytest

        @pytest.mark.parametrize("number", range(4))
        def test_it(k3s, number): assert number != 2
    """
    result = sharing.run(test, "-n2", "--k3s-share", f"--k3s-keep={keep}", subprocess=True)
    result.assert_outcomes(passed=3, failed=1)
    assert len(sharing.folders) == runs


def test_after_a_failure_it_can_go_on_for_a_look(sharing: Project) -> None:
    test = "def test_it(k3s): assert False"
    result = sharing.run(test, "-n1", "--k3s-share", "--k3s-keep=running", subprocess=True)
    result.assert_outcomes(failed=1)
    assert sharing.journal == ["shared cluster up", "shared cluster stays"]


def test_a_cluster_that_does_not_come_up_is_started_once_and_explained_to_all(sharing: Project) -> None:
    test = """
        import pytest

        @pytest.mark.parametrize("number", range(4))
        def test_it(k3s, number): pass
    """
    result = sharing.run(test, "-n2", "--k3s-share", "--k3s-api-port=6666", "--dist=each", subprocess=True)
    assert sharing.journal == ["shared cluster up"]
    outcomes = result.parseoutcomes()
    assert (outcomes["errors"], outcomes["skipped"]) == (2, 6)
    result.stdout.fnmatch_lines(["*ClusterError: the shared cluster did not come up*: it broke"])


def test_what_is_the_owners_alone_is_refused_with_the_remedy(sharing: Project) -> None:
    result = sharing.run(
        """
        import pytest
        from pytest_k3s_sandbox.errors import ConfigError

        def test_refusals(k3s_session, k3s_layers, k3s_sandbox):
            for refused in (
                k3s_layers.check,
                lambda: k3s_session.runner,
                lambda: k3s_sandbox.spawn(["true"], name="true"),
            ):
                with pytest.raises(ConfigError, match="run this test without --k3s-share"):
                    refused()

        def test_layer(k3s_fake_cni): pass

        @pytest.mark.exp08
        def test_experiment(k3s): pass
        """,
        "-n1",
        "--k3s-share",
        subprocess=True,
    )
    result.assert_outcomes(passed=1, errors=2)
    result.stdout.fnmatch_lines(
        ["*ConfigError: the fixture k3s_fake_cni: another process keeps this cluster*"]
    )
    result.stdout.fnmatch_lines(["*measures for exp08, and the cluster is shared*"])


def test_all_that_share_a_cluster_are_told_the_limit_that_ended_it(
    sharing: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = "the sandbox k3ssb-fake: it took 3 GiB of memory, and was ended; give it more by --k3s-memory"
    monkeypatch.setenv("FAKE_LIMIT", limit)
    result = sharing.run(
        """
        import time
        from pathlib import Path
        import pytest
        from pytest_k3s_sandbox.deadline import Deadline

        def test_wait(k3s):
            Path("began-wait").touch()
            k3s.wait(lambda: False, "it", Deadline.after(20))

        def test_run(k3s_sandbox):
            Path("began-run").touch()
            while k3s_sandbox.run(["true"]).returncode == 0:
                time.sleep(0.1)
                k3s_sandbox.run(["false"], check=False)

        def test_other(k3s): assert not "another reason"
        """,
        "-n2",
        "--k3s-share",
        "--k3s-keep=never",
        subprocess=True,
    )
    assert result.parseoutcomes()["failed"] == 3
    result.stdout.fnmatch_lines(
        [f"*WaitError: the sandbox of kubelet was lost while waiting for it: {limit}"]
    )
    result.stdout.fnmatch_lines([f"*StartError: {limit}"])
    lines = [number for number, line in enumerate(result.outlines) if "- k3s-sandbox -" in line]
    assert len([number for number in lines if result.outlines[number + 1] == limit]) >= 2
    assert left(sharing) == []


# An experiment's test is refused by what it asks for; this one asks when it runs already.
LATE = """
import pytest

@pytest.mark.exp08
def test_experiment(request):
    request.getfixturevalue("k3s_claim")("it", "It is", True)
"""


@pytest.mark.parametrize("why", ["", "kubelet ended with exit code 1 during the start"])
def test_an_experiment_on_a_shared_cluster_that_was_restarted_is_no_clean_start(
    sharing: Project, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_KUBELET_ENDS", why)
    result = sharing.run(LATE, "-n1", "--k3s-share", "--k3s-keep=always", subprocess=True)
    (run,) = sharing.runs
    if why:
        assert {one.name: (one.word, one.measured) for one in run.verdicts} == {
            "clean-start": ("not held", f"1: kubelet {why}")
        }
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines([f"*ClusterError: the start of the node was not clean: 1: kubelet {why}"])
    else:
        assert {one.name: one.word for one in run.verdicts} == {"clean-start": "held", "it": "held"}
        result.assert_outcomes(passed=1)


@pytest.mark.parametrize("first", ["a user's test", "an experiment"])
def test_no_later_experiment_counts_as_cleanly_started_either(
    sharing: Project, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_KUBELET_ENDS", "kubelet ended with exit code 1 during the start")
    user = "def test_mine(k3s): pass\n"
    tests = (user + LATE) if first == "a user's test" else LATE + LATE.replace("test_e", "test_another_e")
    sharing.run(tests, "-n1", "--dist=load", "--k3s-share", "--k3s-keep=always", subprocess=True)
    (run,) = sharing.runs
    words = {one.word for one in run.verdicts if one.name == "clean-start"}
    assert words == {"not held"}
