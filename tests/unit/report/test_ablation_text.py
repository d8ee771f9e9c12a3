"""The ablation in words, and tables that are not monotone."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.report import ablation_text
from pytest_k3s_sandbox.report.ablation import is_ready, matrix, sets
from pytest_k3s_sandbox.report.records import Ablation, FirstError, RunWriter, Stage, read_run

PARTS = ("a", "b", "c")
ROWS = [subset for size in range(len(PARTS) + 1) for subset in combinations(PARTS, size)]
PUBLISHED = Path(__file__).parents[3] / "reports" / "ablation"
PAGE = Path(__file__).parents[3] / "docs" / "ablation.md"

CONTAINER = "76b4484943d6c8561782e7243a64462f089d97417289eeaf44a54811c089720a"


def error(words: str) -> FirstError:
    return FirstError(component="kubelet", kind="other", text=words)


@given(st.lists(st.sampled_from(Stage), min_size=len(ROWS), max_size=len(ROWS)), st.sampled_from(Stage))
def test_sets_of_any_table(stages: list[Stage], least: Stage) -> None:
    """Also where a part more makes a node fail."""
    cells = [
        Ablation(layers=row, version="1", reached=stage) for row, stage in zip(ROWS, stages, strict=True)
    ]
    (found,) = sets(matrix(cells), least)
    good = {frozenset(cell.layers) for cell in cells if is_ready(cell, least)}
    assert found.ready == len(good)
    assert set(found.sufficient) <= good
    assert all(any(one <= row for one in found.sufficient) for row in good)
    assert not any(one < other for one in found.sufficient for other in found.sufficient)
    assert all(part in row for part in found.necessary or () for row in good)


def test_the_text_says_what_was_recorded() -> None:
    refusal = f'failed to start sandbox \\"{CONTAINER}\\": no | cgroup'
    cells = [
        Ablation(layers=(), version="1.34.4", reached=Stage.STARTED, error=error("no kmsg"), exit_code=1),
        Ablation(layers=("a",), version="1.34.4", reached=Stage.READY, error=error(refusal)),
        Ablation(layers=("a", "b"), version="1.34.4", reached=Stage.POD, stats_summary=True),
        Ablation(layers=(), version="1.36.3", reached=Stage.STARTED, error=error("no kmsg"), exit_code=1),
    ]
    assert ablation_text.text(cells).splitlines() == [
        "**Kubernetes 1.34.4**",
        "",
        "| a | b | 1.34.4 |",
        "| --- | --- | --- |",
        "|  |  | started, ended with 1 (a) |",
        "| x |  | Ready (b) |",
        "| x | x | Ready, pod Running, statistics |",
        "",
        "- (a) `no kmsg`",
        '- (b) `failed to start sandbox "ID": no | cgroup`',
        "",
        "For Ready:",
        "",
        "- 1.34.4: reached with 2 of 3 combinations. Necessary: a. Smallest that suffice: a.",
        "",
        "For a running pod:",
        "",
        "- 1.34.4: reached with 1 of 3 combinations. Necessary: a + b. Smallest that suffice: a + b.",
        "",
        "**Kubernetes 1.36.3**",
        "",
        "| 1.36.3 |",
        "| --- |",
        "| started, ended with 1 (a) |",
        "",
        "- (a) `no kmsg`",
        "",
        "For Ready:",
        "",
        "- 1.36.3: reached with 0 of 1 combinations.",
        "",
        "For a running pod:",
        "",
        "- 1.36.3: reached with 0 of 1 combinations.",
    ]


def test_long_errors_are_cut() -> None:
    assert len(ablation_text.shown(error("x" * 1000))) == ablation_text.LONGEST + 3


def test_the_command_reads_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        with RunWriter(tmp_path / str(number)) as writer:
            writer.append(Ablation(layers=("a",), version=f"1.{number}", reached=Stage.POD))
    assert ablation_text.main([str(tmp_path / "1"), str(tmp_path / "2")]) == 0
    assert capsys.readouterr().out.startswith("**Kubernetes 1.1**\n\n| a | 1.1 |\n")


@pytest.mark.skipif(not PUBLISHED.parent.is_dir(), reason="not applicable: a package without published runs")
@pytest.mark.parametrize("name", ["subsets", "parts"])
def test_the_published_page_is_that_of_the_published_runs(name: str) -> None:
    """``docs/ablation.md`` holds no table that is not made of ``reports/ablation``."""
    runs = sorted(PUBLISHED.glob(f"{name}-*"))
    assert runs
    cells = [cell for run in runs for cell in read_run(run).ablation]
    assert ablation_text.text(cells) in PAGE.read_text()
