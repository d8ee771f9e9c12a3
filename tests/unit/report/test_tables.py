"""CSV, Markdown, LaTeX and BibTeX: read back by the rules of each format."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.report.export import export, figure_data
from pytest_k3s_sandbox.report.records import Announced, Event, Record, Run, Sample, Tested, Verdict, read_run
from pytest_k3s_sandbox.report.tables import (
    bibtex,
    csv_tables,
    csv_text,
    latex,
    markdown,
    results,
)
from pytest_k3s_sandbox.support import escaping
from support.synthetic_runs import ENVIRONMENT, everything, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


CELLS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_every_kind_is_a_table_with_its_lines(make_run: Callable[..., Run]) -> None:
    run = make_run(*everything(60))
    tables = {name: rows_of(text) for name, text in csv_tables(run).items()}
    assert set(tables) == {
        "environment", "phases", "layers", "samples", "pods", "events",
        "measurements", "walls", "ablation", "verdicts",
    }  # fmt: skip
    for sample, row in zip(run.samples, tables["samples"], strict=True):
        assert int(row["line"]) == run.line(sample)
        assert float(row["t"]) == sample.t
        assert row["node_ready"] == {True: "true", False: "false", None: ""}[sample.node_ready]
        assert float(row["cost.fake_cni.cpu_seconds"]) == sample.cost["fake_cni"].cpu_seconds
    assert sum(len(sample.pods) for sample in run.samples) == len(tables["pods"])
    cell = tables["ablation"][5]
    assert (cell["layers"], cell["reached"]) == ("workarounds;fuse_cgroupfs", "ready")
    values = tables["measurements"][0]["values"].split(";")
    assert tuple(map(float, values)) == run.measurements[0].values


@given(st.lists(st.dictionaries(st.sampled_from("abc"), CELLS, min_size=1), min_size=1, max_size=5))
def test_csv_survives_its_reader(rows: list[dict[str, str]]) -> None:
    read = rows_of(csv_text(rows))
    assert [{key: value for key, value in row.items() if value} for row in read] == [
        {key: escaping.csv_cell(value) for key, value in row.items() if value} for row in rows
    ]


def test_figures_data_is_there(make_run: Callable[..., Run]) -> None:
    data = {name: rows_of(text) for name, text in figure_data(make_run(*everything(60))).items()}
    assert set(data) == {"readiness", "distributions", "over-time"}
    assert {row["lane"] for row in data["readiness"]} >= {"API server", "Node", "default/steady"}


def test_results_have_a_row_a_claim_and_a_column_a_run(
    make_run: Callable[..., Run], good_records: tuple[Record, ...]
) -> None:
    lost = Verdict(name="gone", held=False, measured=52.25, unit="s", text="It goes.")
    rows = results([make_run(*good_records), make_run(*good_records, lost)])
    table = {row[0]: row[1:] for row in rows}
    assert table["Start to Ready"] == ["4.0 s", "4.0 s"]
    assert table["The node is Ready."] == ["held (4 s)", "held (4 s)"]
    assert table["It goes."] == ["not judged", "not held (52.25 s)"]


@given(st.lists(st.lists(CELLS, min_size=2, max_size=2), min_size=1, max_size=4))
def test_markdown_keeps_its_columns(rows: list[list[str]]) -> None:
    lines = markdown(rows).split("\n")[:-1]
    assert len(lines) == len(rows) + 1
    for line in lines:
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == 3


@given(CELLS)
def test_latex_has_no_special_character_left(text: str) -> None:
    bare = re.sub(
        r"\\text(backslash|braceleft|braceright|asciicircum|asciitilde|less|greater|bar)\{\}",
        "",
        escaping.latex(text),
    )
    assert not re.search(r"(?<!\\)[{}$&#%_^~]|\\(?![$&#%_])", bare)


def test_latex_is_a_table(make_run: Callable[..., Run], good_records: tuple[Record, ...]) -> None:
    rows = results([make_run(*good_records)])
    made = latex(rows)
    assert made.count(r"\\") == len(rows)
    for word in ("toprule", "midrule", "bottomrule", "begin{tabular}{ll}", "end{tabular}"):
        assert made.count("\\" + word) == 1


def test_the_citation_names_version_pins_date_and_hash(tmp_path: Path) -> None:
    folder = write(tmp_path / "20260102T030405-exp08-gvisor", everything(20))
    entry = bibtex(read_run(folder), folder / "records.jsonl")
    assert entry is not None
    fields = dict(re.findall(r"^  (\w+) = \{?(.*?)\}?,$", entry, re.MULTILINE))
    assert entry.startswith("@misc{20260102T030405-exp08-gvisor,\n")
    assert entry.count("{") == entry.count("}")
    assert (fields["year"], fields["month"], fields["version"]) == ("2026", "jan", "0.1.0")
    assert "kubernetes 1.34.4, runc 1.3.4" in fields["note"]
    digest = hashlib.sha256((folder / "records.jsonl").read_bytes()).hexdigest()
    assert digest in fields["howpublished"]


def test_a_run_without_environment_cannot_be_cited(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", [Event(t=1, kind="a", what="b")])
    assert bibtex(read_run(folder), folder / "records.jsonl") is None


@pytest.mark.parametrize("count", [1, 2])
def test_an_export_names_what_it_wrote(tmp_path: Path, count: int) -> None:
    records: list[Record] = [
        ENVIRONMENT,
        *(Sample(t=t, node_ready=True, api_reachable=True) for t in range(3)),
    ]
    folders = [write(tmp_path / f"run{i}", records) for i in range(count)]
    made = export(folders, tmp_path / "page", widths=[84])
    assert all(path.is_file() for path in made)
    assert {path.parent for path in made} == {tmp_path / "page" / "export"}
    assert len({path.name for path in made}) == len(made)
    prefix = "" if count == 1 else "run2-"
    names = {path.name for path in made}
    assert {f"{prefix}readiness-84mm.pdf", f"{prefix}samples.csv", "results.tex", "citation.bib"} <= names
    assert not [path for path in (tmp_path / "page" / "export").iterdir() if path.name.startswith(".")]


def test_the_table_says_what_was_not_reached_and_how_tests_ended(
    make_run: Callable[..., Run], good_records: tuple[Record, ...]
) -> None:
    more = [
        Announced(name="gone", text="It goes."),
        Tested(t=1, nodeid="a::b", outcome="passed"),
        Tested(t=1, nodeid="a::c", outcome="passed"),
        Tested(t=1, nodeid="a::d", outcome="announced"),
    ]
    rows = {row[0]: row[1:] for row in results([make_run(*good_records, *more), make_run(*good_records)])}
    assert rows["It goes."] == ["not reached", "not judged"]
    assert rows["Tests"] == ["1 not reached, 2 passed", "not recorded"]
    assert "Tests" not in {row[0] for row in results([make_run(*good_records)])}


def test_the_table_has_the_worst_of_a_claim_that_was_judged_twice(make_run: Callable[..., Run]) -> None:
    twice = [Verdict(name="a", held=held, measured=held + 1, text="A") for held in (True, False, True)]
    assert ["A", "not held (1)"] in results([make_run(*twice)])
