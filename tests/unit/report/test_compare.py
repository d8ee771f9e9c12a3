"""Several runs side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_k3s_sandbox.report.compare import claims, comparison
from pytest_k3s_sandbox.report.records import Announced, Run, Verdict
from support.synthetic_runs import everything

if TYPE_CHECKING:
    from collections.abc import Callable


def verdict(name: str, *, held: bool, measured: float | None = None) -> Verdict:
    return Verdict(name=name, held=held, measured=measured, unit="s", text=f"Claim {name}")


def test_a_claim_is_a_row_whatever_its_limit(make_run: Callable[..., Run]) -> None:
    one = make_run(verdict("a", held=True, measured=1), verdict("b", held=True))
    two = make_run(verdict("a", held=False, measured=9))
    first, second = claims([one, two])
    assert [cell and cell["outcome"] for cell in first["cells"]] == ["held", "not held"]
    assert [cell and cell["measured"] for cell in first["cells"]] == ["1 s", "9 s"]
    assert first["differs"]
    assert [cell and cell["outcome"] for cell in second["cells"]] == ["held", None]
    assert not second["differs"]


def test_a_claim_of_many_holds_if_all_of_it_did(make_run: Callable[..., Run]) -> None:
    run = make_run(verdict("a", held=False), verdict("a", held=True))
    assert [cell["outcome"] for row in claims([run]) for cell in row["cells"]] == ["not held"]


def test_only_what_two_runs_have_is_compared(make_run: Callable[..., Run]) -> None:
    run, other = make_run(*everything(60)), make_run(verdict("a", held=True))
    assert comparison([run, other])["distributions"] == []
    titles = [one["title"] for one in comparison([run, run])["distributions"]]
    assert "Pod created to Running, s" in titles
    assert "Memory of fake_cni, MiB" in titles


def test_ratios_stand_beside_each_other(make_run: Callable[..., Run]) -> None:
    run, other = make_run(*everything(60)), make_run(verdict("a", held=True))
    rows = comparison([run, other])["ratios"]
    assert len(rows) == 9
    assert all(len(row["values"]) == 2 and row["values"][1] == "" for row in rows)


def test_a_claim_that_one_run_did_not_reach_differs(make_run: Callable[..., Run]) -> None:
    one, two = make_run(verdict("a", held=True)), make_run(Announced(name="a", text="Claim a"))
    three = make_run(Verdict(name="a", held=False, judged=False, text="Other words"))
    (row,) = claims([one, two, three])
    assert [cell and cell["outcome"] for cell in row["cells"]] == ["held", "not reached", "not judged"]
    assert (row["text"], row["differs"]) == ("Claim a", True)
