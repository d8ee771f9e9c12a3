"""The ablation as a matrix, and the necessary and sufficient sets of layers; all pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_k3s_sandbox.report.records import Ablation, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence


STAGES = tuple(Stage)
"""The stages of a node's start in their order."""

STAGE_NAMES = {
    Stage.NOTHING: "did not start",
    Stage.STARTED: "started",
    Stage.REGISTERED: "registered",
    Stage.READY: "Ready",
    Stage.POD: "Ready, pod Running",
}
"""Each stage in words."""

Combination = frozenset[str]
"""The parts that are in place: names of layers, and settings as ``name=value``."""


@dataclass(frozen=True)
class Matrix:
    """The ablation as a table.

    Attributes:
        parts: The columns at the left: every layer and setting that occurs, in the order of first use.
        versions: The columns of results: versions of Kubernetes, with the variant of the programs if any.
        rows: The combinations of parts, the smallest first.
        cells: The result of a row in a version. A combination that was not tried has none.
    """

    parts: tuple[str, ...]
    versions: tuple[str, ...]
    rows: tuple[Combination, ...]
    cells: dict[tuple[Combination, str], Ablation]


@dataclass(frozen=True)
class Sets:
    """The parts that one version needs, as far as combinations were tried.

    Attributes:
        version: The version.
        tried: The number of combinations that were tried.
        ready: The number of those with which the node was Ready.
        necessary: The parts that are in each combination with which the node was Ready, and that at least one
            tried combination left out; None where the node was never Ready.
        sufficient: The combinations with which the node was Ready and none of whose subsets made it Ready.
    """

    version: str
    tried: int
    ready: int
    necessary: Combination | None
    sufficient: tuple[Combination, ...]


def combination(cell: Ablation) -> Combination:
    """Return the parts that were in place in a cell as a set."""
    return frozenset(parts_of(cell))


def parts_of(cell: Ablation) -> tuple[str, ...]:
    """Return the parts that were in place in a cell; ``layer:a+b`` stands for ``layer:a`` and ``layer:b``."""
    found = []
    for word in cell.layers:
        name, _, parts = word.partition(":")
        found += [f"{name}:{part}" for part in parts.split("+")] if parts else [name]
    return (*found, *(f"{name}={value}" for name, value in cell.settings.items()))


def version_of(cell: Ablation) -> str:
    """Return a cell's column."""
    return cell.version if cell.variant is None else f"{cell.version} ({cell.variant})"


def matrix(cells: Sequence[Ablation]) -> Matrix:
    """Arrange cells as a table. Of two cells for one place the later one counts.

    Args:
        cells: The cells as they were recorded.
    """
    seen = dict.fromkeys(part for cell in cells for part in parts_of(cell))
    parts = tuple(sorted(seen, key=lambda part: "=" in part))  # settings last
    found = {(combination(cell), version_of(cell)): cell for cell in cells}
    rows = sorted({row for row, _ in found}, key=lambda row: (len(row), [part not in row for part in parts]))
    versions = tuple(dict.fromkeys(version_of(cell) for cell in cells))
    return Matrix(parts, versions, tuple(rows), found)


def is_ready(cell: Ablation, least: Stage = Stage.READY) -> bool:
    """Tell whether a node got at least as far as a stage."""
    return STAGES.index(cell.reached) >= STAGES.index(least)


def sets(table: Matrix, least: Stage = Stage.READY) -> tuple[Sets, ...]:
    """Return for each version which parts are necessary, and which smallest sets of them suffice.

    Args:
        table: The combinations that were tried.
        least: The stage that the node has to reach.
    """
    found = []
    for version in table.versions:
        tried = {row: cell for (row, column), cell in table.cells.items() if column == version}
        good = [row for row, cell in tried.items() if is_ready(cell, least)]
        common = frozenset.intersection(*good) if good else None
        # A part that no combination left out may be needless.
        shown = {part for part in common or () if any(part not in row for row in tried)}
        smallest = [row for row in good if not any(other < row for other in good)]
        found.append(
            Sets(
                version=version,
                tried=len(tried),
                ready=len(good),
                necessary=None if common is None else frozenset(shown),
                sufficient=tuple(sorted(smallest, key=lambda row: (len(row), sorted(row)))),
            )
        )
    return tuple(found)
