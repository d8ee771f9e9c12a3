"""Each line of docs/security.md names tests that there are, or says why none plays it."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.blocks import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = ROOT / "docs" / "security.md"
TESTS = ROOT / "tests"

if not PAGE.is_file():
    pytest.skip("not applicable: this is not a checkout", allow_module_level=True)

CODE = re.compile(r"`([^`]+)`")
BETWEEN = re.compile(r"(?<!\\)\|")
REASON = re.compile(r"none: \w+( \S+){2,}")
"""A reason is a sentence, not a word."""


def cells(line: str) -> list[str]:
    """Return the cells of a line of a table, in which a span of code may hold no bar."""
    return [cell.strip() for cell in BETWEEN.split(line)[1:-1]]


def lines(text: str) -> Iterator[tuple[str | None, str]]:
    """Yield what the column of tests says in each line of a table, and the file that its head names."""
    file: str | None = None
    within = False
    for line in text.splitlines():
        if not line.startswith("|"):
            within = False
            continue
        last = cells(line)[-1]
        if last == "test" or last.startswith("test ("):
            within, file = True, next(iter(CODE.findall(last)), None)
        elif within and not set(last) <= {"-"}:
            yield file, last


@functools.cache
def functions(path: Path) -> frozenset[str]:
    """Return the names of a file's functions."""
    return frozenset(
        node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)
    )


def wrong(file: str | None, cell: str) -> list[str]:
    """Return what is wrong about the tests that a line names."""
    names = CODE.findall(cell)
    if not names:
        return [] if REASON.match(cell) else [f"no test, and no reason: {cell!r}"]
    found = []
    for name in names:
        before, colons, function = name.rpartition("::")
        if not colons and name.endswith(".py"):
            before, function = name, ""
        file = (before or file or "").removeprefix("tests/")
        path = TESTS / file
        if not path.is_file():
            found.append(f"no such file: {name}")
        elif function and function not in functions(path):
            found.append(f"no such test: {name} in {file}")
    return found


def test_each_line_names_tests_that_there_are_or_a_reason() -> None:
    found = list(lines(PAGE.read_text()))
    assert len(found) > 60
    assert [complaint for file, cell in found for complaint in wrong(file, cell)] == []


def test_each_file_of_attacks_is_named() -> None:
    text = PAGE.read_text()
    assert [
        path.name for path in sorted((TESTS / "security").glob("test_*.py")) if path.name not in text
    ] == []


@pytest.mark.parametrize(
    ("head", "cell", "complaint"),
    [
        ("test", "none", ["no test, and no reason: 'none'"]),
        ("test", "none: rare", ["no test, and no reason: 'none: rare'"]),
        ("test", "none: it would end the machine", []),
        ("test", "`security/test_gone.py`", ["no such file: security/test_gone.py"]),
        (
            "test (`tests/security/test_kills.py`)",
            "`test_six_kills`, `test_x`",
            ["no such test: test_x in security/test_kills.py"],
        ),
        (
            "test",
            "`security/test_kills.py::test_six_kills`, `::test_y`",
            ["no such test: ::test_y in security/test_kills.py"],
        ),
    ],
)  # fmt: skip
def test_what_is_no_test_is_found(head: str, cell: str, complaint: list[str]) -> None:
    ((file, last),) = lines(f"| who | {head} |\n|---|---|\n| one | {cell} |\n")
    assert wrong(file, last) == complaint
