"""References from numbers to records."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.report.cite import Citations, key_figures, label

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_k3s_sandbox.report.records import Record, Run


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ([], "none"),
        ([5], "5"),
        ([7, 5, 6, 5], "5\u20137"),
        ([1, 3, 4], "1, 3\u20134"),
        ([1, 3, 5, 7, 8], "5 lines from 1 to 8"),
    ],
)
def test_lines_as_people_read_them(lines: list[int], text: str) -> None:
    assert label(lines) == text


@given(st.lists(st.integers(1, 300), min_size=1))
def test_a_label_names_the_first_and_the_last_line(lines: list[int]) -> None:
    assert str(min(lines)) in label(lines)
    assert str(max(lines)) in label(lines)


def test_key_figures_cite_what_they_were_computed_from(
    make_run: Callable[..., Run], good_records: tuple[Record, ...]
) -> None:
    run = make_run(*good_records)
    cites = Citations(run, "p")
    found = key_figures(cites, run, run.metrics)
    assert found["to_ready"] is not None
    assert found["to_ready"].href == "#p-L8"
    lines = {one.title: one.lines for one in cites.derivations}
    assert lines["Pod created to Running"] == "9, 11"
    assert lines["Longest unbroken time Ready"] == "8, 10\u201312, 14\u201315"
    assert lines["Times Ready was lost"] == "8"
    assert lines["Error lines"] == "none"
    cited = dict(cites.records)
    assert {8, 9, 11, 15} <= set(cited)
    assert '"what":"default/hello"' in cited[9]


def test_a_run_without_samples_has_little_to_cite(make_run: Callable[..., Run]) -> None:
    run = make_run()
    found = key_figures(Citations(run, "p"), run, run.metrics)
    assert [name for name, cite in found.items() if cite is not None] == ["losses", "errors"]
