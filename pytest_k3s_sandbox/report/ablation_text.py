"""The ablation as Markdown for the documentation, from the records of runs.

``python -m pytest_k3s_sandbox.report.ablation_text RUN ...`` writes it for the runs of these folders.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_k3s_sandbox.report.ablation import STAGE_NAMES, Matrix, Sets, matrix, sets
from pytest_k3s_sandbox.report.records import Ablation, FirstError, Stage, read_run
from pytest_k3s_sandbox.support import escaping

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_k3s_sandbox.report.ablation import Combination

LONGEST = 420
"""The most characters of an error that the text shows."""

_ID = re.compile(r"\b[0-9a-f]{12,}\b")
_GOALS = {Stage.READY: "Ready", Stage.POD: "a running pod"}


def text(cells: Sequence[Ablation]) -> str:
    """Return for each version its table, its errors, and the necessary and sufficient parts.

    Args:
        cells: The cells as they were recorded.
    """
    versions = dict.fromkeys(cell.version for cell in cells)
    return "\n".join(_of_version(one, [cell for cell in cells if cell.version == one]) for one in versions)


def _of_version(version: str, cells: Sequence[Ablation]) -> str:
    table = matrix(cells)
    labels = _labels(cells)
    parts = [f"**Kubernetes {escaping.markdown(version)}**\n", _table(table, labels), _legend(labels)]
    for least, goal in _GOALS.items():
        found = sets(table, least)
        parts.append(f"For {goal}:\n\n" + "\n".join(f"- {_sentence(one)}" for one in found) + "\n")
    return "\n".join(parts)


def _labels(cells: Iterable[Ablation]) -> dict[str, str]:
    """Return a letter for each error, in the order of first use."""
    words = dict.fromkeys(shown(cell.error) for cell in cells if cell.error is not None)
    return {word: chr(ord("a") + number) for number, word in enumerate(words)}


def shown(error: FirstError) -> str:
    """Return the text of an error, shortened, with ``ID`` for the ids of containers."""
    line = _ID.sub("ID", error.text).replace('\\"', '"')
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


def _cell(cell: Ablation | None, labels: dict[str, str]) -> str:
    if cell is None:
        return ""
    words = STAGE_NAMES[cell.reached]
    if cell.reached is Stage.POD and cell.stats_summary:
        words += ", statistics"
    if cell.exit_code is not None:
        words += f", ended with {cell.exit_code}"
    return words if cell.error is None else f"{words} ({labels[shown(cell.error)]})"


def _table(table: Matrix, labels: dict[str, str]) -> str:
    head = [*table.parts, *table.versions]
    lines = [head, ["---"] * len(head)]
    for row in table.rows:
        marks = ["x" if part in row else "" for part in table.parts]
        lines.append([*marks, *(_cell(table.cells.get((row, one)), labels) for one in table.versions)])
    lines[0] = [escaping.markdown(word) for word in head]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _legend(labels: dict[str, str]) -> str:
    return "".join(f"- ({letter}) {escaping.markdown_code(word)}\n" for word, letter in labels.items())


def _sentence(found: Sets) -> str:
    start = f"{escaping.markdown(found.version)}: reached with {found.ready} of {found.tried} combinations"
    if found.necessary is None:
        return f"{start}."
    smallest = "; or ".join(_together(one) for one in found.sufficient)
    return f"{start}. Necessary: {_together(found.necessary)}. Smallest that suffice: {smallest}."


def _together(parts: Combination) -> str:
    return " + ".join(escaping.markdown(part) for part in sorted(parts)) or "nothing"


def main(folders: Sequence[str]) -> int:
    """Write the text of runs to standard output.

    Args:
        folders: The runs' folders.
    """
    cells = [cell for folder in folders for cell in read_run(Path(folder)).ablation]
    sys.stdout.write(text(cells))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
