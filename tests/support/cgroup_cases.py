"""The table of what is done to both trees, out of ``cases.txt``, which says how it is written."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

CASES = Path(__file__).parents[1] / "integration" / "cgroupfs" / "cases.txt"

Step = tuple[str, ...]
"""``(path, text)`` for a write, ``("+", path)``, ``("-", path)``, ``("mv", old, new)``."""

Scenario = list[Step]

NOBODY = "2147483647"
"""More than a process' number can be."""


def _plain(text: str) -> str:
    return "" if text == '""' else text.encode().decode("unicode_escape").replace("{nobody}", NOBODY)


def _alternatives(texts: str, sets: dict[str, list[str]]) -> list[str]:
    parts = [text.strip(" ") for text in texts.split(" | ")]
    return [text for part in parts for text in (sets[part] if part.startswith("@") else [_plain(part)])]


def _steps(text: str, sets: dict[str, list[str]]) -> list[Step]:
    """Return a step in all its forms."""
    if text[0] in "+-":
        return [(text[0], _plain(text[1:]))]
    if " -> " in text:
        old, _, new = text.partition(" -> ")
        return [("mv", old, _plain(new))]
    path, _, texts = text.partition(" = ")
    return [(path, one) for one in _alternatives(texts, sets)]


def _read() -> Iterator[tuple[str, Scenario]]:
    """Yield each scenario with the name of its section."""
    sets = {"@LONG": ["x" * 4095 + "\n", "x" * 5000]}
    section = ""
    for line in CASES.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line.startswith("@"):
            name, _, texts = line.partition(" = ")
            sets.setdefault(name, []).extend(_alternatives(texts, sets))
        elif line and not line.startswith("#"):
            for scenario in itertools.product(*(_steps(step, sets) for step in line.split(" ; "))):
                yield section, list(scenario)


SCENARIOS: dict[str, list[Scenario]] = {}
"""Scenarios by hierarchy."""

ROOT: dict[str, list[Scenario]] = {}
"""Those of the kernel's own root."""

for _section, _scenario in _read():
    _name = _section.removeprefix("root ")
    (SCENARIOS if _name == _section else ROOT).setdefault(_name, []).append(_scenario)
