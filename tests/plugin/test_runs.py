"""Every run leaves a folder, named in the summary, closed however pytest ends, and apart from others."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from pytest_k3s_sandbox.node import session
from pytest_k3s_sandbox.report.records import RunWriter
from support.project import Project

PASSES = "def test_it(k3s): pass"
FAILS = "def test_it(k3s): assert False"
NOT_HELD = """
import pytest

def test_it(k3s_claim):
    with pytest.raises(AssertionError):
        k3s_claim("fast", "It is fast", False, 3, 2, "s")
"""


@pytest.mark.parametrize(
    ("keep", "test", "kept"),
    [
        ("always", PASSES, True),
        ("always", FAILS, True),
        ("failed", PASSES, False),
        ("failed", FAILS, True),
        ("failed", NOT_HELD, True),
        ("never", PASSES, False),
        ("never", FAILS, False),
    ],
)
def test_whose_folder_is_kept(project: Project, keep: str, test: str, *, kept: bool) -> None:
    result = project.run(test, f"--k3s-keep={keep}")
    assert len(project.folders) == kept
    assert ("k3s-sandbox report: " in result.stdout.str()) == kept


def test_a_run_leaves_records_and_a_page_that_the_summary_names(project: Project) -> None:
    result = project.run(PASSES, "--k3s-report=kept/there")
    (folder,) = (project.pytester.path / "kept" / "there").iterdir()
    assert (folder / "index.html").read_text().startswith("<!doctype html>")
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert [records[0]["type"], records[-1]["type"]] == ["header", "end"]
    assert records[-1]["outcome"] == "finished"
    result.stdout.fnmatch_lines([f"k3s-sandbox report: {folder}/index.html"])


@pytest.mark.parametrize("mark", ["", "@pytest.mark.k3s_layers('fake_cni')"])
@pytest.mark.parametrize(
    ("body", "options", "reason"),
    [
        ("raise KeyboardInterrupt", (), "pytest: interrupted"),
        ("pytest.exit('enough')", (), "pytest: interrupted"),
        ("assert False", ("-x",), "stopping after 1 failures"),
        ("request.session.shouldstop = 'told to'", (), "told to"),
    ],
)
def test_an_interrupted_run_says_so(
    project: Project, mark: str, body: str, options: tuple[str, ...], reason: str
) -> None:
    test = (
        f"import pytest\n{mark}\ndef test_it(k3s, request):\n    {body}\n\n{mark}\ndef test_more(k3s): pass\n"
    )
    project.run(test, *options, subprocess=reason == "pytest: interrupted")
    (run,) = project.runs
    assert run.end is not None
    assert (run.end.outcome, run.end.reason) == ("interrupted", reason)
    assert project.journal[-1] == "sandbox down"
    assert project.count["sandbox up"] == 1


INTERRUPTED = """
from dataclasses import replace
import pytest
from pytest_k3s_sandbox.layers.registry import LAYERS

def interrupted(k3s_sandbox, variant): raise KeyboardInterrupt

@pytest.fixture(scope="session", autouse=True)
def impatient(_nothing_is_real):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LAYERS, "fake_cni", replace(LAYERS["fake_cni"], make=interrupted))
        yield

{mark}
def test_it(k3s): pass
"""


@pytest.mark.parametrize("mark", ["", "@pytest.mark.k3s_layers('workarounds', 'fake_cni')"])
def test_an_interrupted_bring_up_says_so_and_takes_everything_down(project: Project, mark: str) -> None:
    result = project.run(INTERRUPTED.format(mark=mark), subprocess=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    (run,) = project.runs
    assert run.end is not None
    assert run.end.outcome == "interrupted"
    assert project.count["sandbox down"] == project.count["workarounds down"] == 1
    result.stdout.fnmatch_lines(["k3s-sandbox report: *"])


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path: Path) -> None:
    folders = [session.run_folder(tmp_path / "new", "test", "gvisor") for _ in range(20)]
    assert len(set(folders)) == 20
    for folder in folders:
        RunWriter(folder).close()


def test_a_folder_that_cannot_be_made_is_explained_by_who_writes_there(project: Project) -> None:
    (project.pytester.path / "reports").write_text("a file")
    result = project.run(PASSES)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*ConfigError: run folder *reports/*", "*name a folder that can be written"])


@pytest.mark.skipif(importlib.util.find_spec("xdist") is None, reason="pytest-xdist is not installed")
def test_workers_of_xdist_do_not_collide_and_their_pages_are_named(project: Project) -> None:
    test = "import pytest\n@pytest.mark.parametrize('number', range(6))\ndef test_it(k3s, number): pass\n"
    project.pytester.makepyfile(test_second=test)
    result = project.run(test, "-n2", "--dist=loadfile", subprocess=True)
    result.assert_outcomes(passed=12)
    assert {run.name.rsplit("-", 1)[1] for run in project.runs} == {"gw0", "gw1"}
    assert all(run.complete for run in project.runs)
    assert len([line for line in result.outlines if line.startswith("k3s-sandbox report: ")]) == 2


@pytest.mark.skipif(importlib.util.find_spec("xdist") is None, reason="pytest-xdist is not installed")
def test_workers_of_xdist_have_the_settings_of_the_whole_run(project: Project) -> None:
    test = "def test_it(k3s, k3s_layers): assert k3s_layers.names == ('fake_cni',)"
    project.run(test, "-n1", "--k3s-layers=fake_cni", "--k3s-keep=never", subprocess=True).assert_outcomes(
        passed=1
    )
    assert project.folders == []


@pytest.mark.skipif(importlib.util.find_spec("xdist") is None, reason="pytest-xdist is not installed")
def test_a_wrong_marker_does_not_crash_a_worker_of_xdist(project: Project) -> None:
    test = "import pytest\n@pytest.mark.k3s_layers('nope')\ndef test_it(k3s): pass\n\ndef test_ok(): pass\n"
    result = project.run(test, "-n1", subprocess=True)
    result.assert_outcomes(errors=1, passed=1)
    result.stdout.fnmatch_lines(
        ["*UsageError: *::test_it: marker k3s_layers: unknown layer 'nope': known are *"]
    )
    assert project.journal == []
