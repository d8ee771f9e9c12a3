"""Experiments run outside pytest's output, here a folder of tiny ones that start nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pytest_k3s_sandbox.cli import experiments
from pytest_k3s_sandbox.cli.experiments import Outcome
from pytest_k3s_sandbox.cli.options import say
from pytest_k3s_sandbox.errors import ConfigError

GOOD = """
def test_node_gets_ready(): pass
def test_pod_runs():
    print("pytest's output, not ours")
"""
BAD = """
import pytest
@pytest.fixture
def node(): raise RuntimeError("the node broke")
def test_holds(): pass
def test_does_not_hold(): assert 1 == 2, "one is not two"
def test_needs_node(node): pass
def test_skips(): pytest.skip("for a reason")
@pytest.fixture
def untidy():
    yield
    raise RuntimeError("teardown broke")
def test_untidy(untidy): pass
"""
PAGES = """
from pathlib import Path
from pytest_k3s_sandbox.pytestplugin.stash import REPORTS
def test_it(request): request.config.stash[REPORTS].append(Path("/runs/1/index.html"))
"""
OPTIONS = """
def test_it(request):
    assert request.config.getoption("k3s_layers") == "none"
    assert request.config.getoption("k3s_require") == "1"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder of experiments that stands for the real one."""
    made = tmp_path / "experiments"
    for number, text in enumerate((GOOD, BAD, PAGES, OPTIONS), start=1):
        (made / f"exp{number:02}").mkdir(parents=True)
        # A name of its own each time: this process imports it, and must not take another test's for it.
        (made / f"exp{number:02}" / f"test_{number}_{tmp_path.name}.py").write_text(text)
    (made / "README.md").touch()
    (made / "helpers").mkdir()
    monkeypatch.setattr(experiments, "experiments_folder", lambda: made)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return made


def run(name: str, tmp_path: Path, *options: str) -> tuple[Outcome, list[str]]:
    lines: list[str] = []
    outcome = experiments.run(name, options, tmp_path / "reports", lines.append)
    return outcome, [line.partition(" (")[0] for line in lines]


def test_names_are_the_folders() -> None:
    assert experiments.names() == ["exp01", "exp02", "exp03", "exp04"]


def test_real_folder_holds_the_main_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert "exp08" in experiments.names()


@pytest.mark.parametrize(
    ("name", "remedy"), [("exp1", "did you mean 'exp01'?"), ("helpers", "use one of these")]
)
def test_unknown_experiment(tmp_path: Path, name: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as refused:
        run(name, tmp_path)
    assert refused.value.what == f"unknown experiment {name!r}"
    assert refused.value.cause == "known are exp01, exp02, exp03, exp04"
    assert refused.value.remedy == remedy
    assert not (tmp_path / "reports").exists()


def test_experiment_that_holds(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    outcome, lines = run("exp01", tmp_path)
    assert outcome.code == 0
    assert lines == [
        "... node gets ready",
        "    node gets ready: held",
        "... pod runs",
        "    pod runs: held",
    ]
    assert capfd.readouterr() == ("", "")
    assert outcome.log == tmp_path / "reports" / "exp01.log"
    assert "2 passed" in outcome.log.read_text()


def test_every_way_not_to_hold_is_said_with_its_reason(tmp_path: Path) -> None:
    outcome, lines = run("exp02", tmp_path)
    assert outcome.code == 1
    said = "\n".join(lines)
    assert "    holds: held" in lines
    assert "    does not hold: DID NOT HOLD" in lines
    assert "one is not two" in said
    assert "    needs node: BROKEN" in lines
    assert "the node broke" in said
    assert "    skips: skipped" in lines
    assert "for a reason" in said
    assert "    untidy: held" in lines
    assert "    untidy: teardown: BROKEN" in lines
    assert "teardown broke" in said


def test_pages_of_runs_are_remembered(tmp_path: Path) -> None:
    assert run("exp03", tmp_path)[0].pages == (Path("/runs/1/index.html"),)


def test_options_reach_the_plugin_and_missing_capabilities_fail(tmp_path: Path) -> None:
    assert run("exp04", tmp_path, "--k3s-layers=none")[0].code == 0


def test_what_pytest_refuses_is_the_message(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        run("exp01", tmp_path, "--k3s-layers=magic")
    assert refused.value.what == "pytest refused to run exp01"
    assert refused.value.cause is not None
    assert "--k3s-layers: unknown layer 'magic'" in refused.value.cause
    assert refused.value.log == tmp_path / "reports" / "exp01.log"
    assert capfd.readouterr().err == ""


def test_lines_go_where_standard_error_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiments.run("exp01", [], tmp_path / "reports", say)
    assert "... pod runs" in capsys.readouterr().err


def test_report_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "reports").touch()
    with pytest.raises(ConfigError) as refused:
        run("exp01", tmp_path)
    assert str(tmp_path / "reports") in refused.value.what
    assert refused.value.remedy == "name a folder that can be written"


def test_pages_of_an_experiment_are_not_those_of_the_one_before(tmp_path: Path) -> None:
    assert run("exp03", tmp_path)[0].pages
    assert run("exp01", tmp_path)[0].pages == ()


@pytest.mark.parametrize(
    ("ok", "outcome", "code", "wanted"),
    [
        (True, "held", 0, (True, "held")),
        (True, "held", 1, (False, "incomplete")),
        (False, "not held", 1, (False, "not held")),
        (False, "incomplete", 0, (False, "incomplete")),
    ],
)
def test_a_summary_is_ok_only_if_pytest_says_so_too(
    ok: bool, outcome: str, code: int, wanted: tuple[bool, str]
) -> None:
    made = experiments.judged({"ok": ok, "outcome": outcome, "run": "r"}, code)
    assert (made["ok"], made["outcome"]) == wanted
    assert (made["pytest_exit_code"], made["run"]) == (code, "r")
