"""The matrix of the ablation, and the necessary and sufficient parts."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.report.ablation import combination, is_ready, matrix, sets
from pytest_k3s_sandbox.report.records import Ablation, FirstError, Stage
from pytest_k3s_sandbox.report.sections import conclusion

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

PARTS = ("a", "b", "c")


def cell(
    layers: Collection[str], reached: Stage, version: str = "1", settings: dict[str, str] | None = None
) -> Ablation:
    return Ablation(layers=tuple(layers), version=version, reached=reached, settings=settings or {})


def full(sufficient: Sequence[frozenset[str]]) -> list[Ablation]:
    """Every subset: Ready where it holds one of those that suffice."""
    return [
        cell(subset, Stage.READY if any(one <= set(subset) for one in sufficient) else Stage.STARTED)
        for size in range(len(PARTS) + 1)
        for subset in combinations(PARTS, size)
    ]


def test_one_layer_is_necessary_and_one_of_two_others() -> None:
    (found,) = sets(matrix(full([frozenset("ab"), frozenset("ac")])))
    assert found.necessary == frozenset("a")
    assert found.sufficient == (frozenset("ab"), frozenset("ac"))
    assert (found.tried, found.ready) == (8, 3)
    assert conclusion(found) == (
        "The node was Ready with 3 of 8 combinations tried. Necessary: a. Sufficient: a + b or a + c."
    )


def test_nothing_suffices_where_nothing_is_ready() -> None:
    (found,) = sets(matrix(full([])))
    assert (found.necessary, found.sufficient, found.ready) == (None, (), 0)
    assert conclusion(found) == "The node was Ready with 0 of 8 combinations tried."


def test_what_was_never_left_out_is_not_called_necessary() -> None:
    (found,) = sets(matrix([cell("ab", Stage.POD), cell("a", Stage.STARTED)]))
    assert found.necessary == frozenset("b")


@given(st.lists(st.frozensets(st.sampled_from(PARTS)), max_size=3))
def test_sets_are_what_their_definitions_say(sufficient: list[frozenset[str]]) -> None:
    cells = full(sufficient)
    (found,) = sets(matrix(cells))
    ready = [frozenset(one.layers) for one in cells if is_ready(one)]
    for part in PARTS:
        assert (part in (found.necessary or ())) == (bool(ready) and all(part in row for row in ready))
    assert set(found.sufficient) == {row for row in ready if not any(other < row for other in ready)}


def test_settings_and_variants_have_places_of_their_own() -> None:
    setting = {"localStorageCapacityIsolation": "false"}
    table = matrix(
        [
            cell("a", Stage.READY),
            cell("a", Stage.STARTED, settings=setting),
            Ablation(layers=("a",), version="1", variant="9p plugin", reached=Stage.POD),
        ]
    )
    assert table.parts == ("a", "localStorageCapacityIsolation=false")
    assert table.versions == ("1", "1 (9p plugin)")
    assert [len(row) for row in table.rows] == [1, 2]
    assert len(table.cells) == 3


def test_a_cell_that_was_tried_again_counts_once() -> None:
    error = FirstError(component="kubelet", kind="kmsg", text="no such device")
    table = matrix(
        [cell("a", Stage.NOTHING), Ablation(layers=("a",), version="1", reached=Stage.READY, error=error)]
    )
    assert [one.reached for one in table.cells.values()] == [Stage.READY]


def test_a_layer_in_a_variant_is_each_of_its_parts() -> None:
    one = cell(("w:a+b", "c"), Stage.POD, settings={"s": "false"})
    assert combination(one) == {"w:a", "w:b", "c", "s=false"}
    assert matrix([one]).parts == ("w:a", "w:b", "c", "s=false")
