"""The report's modules import downwards only, and the project takes records from one module."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import pytest_k3s_sandbox
from pytest_k3s_sandbox.report import records

PACKAGE = Path(pytest_k3s_sandbox.__file__).parent
REPORT = "pytest_k3s_sandbox.report"
BELOW = {"", "errors", "deadline", "support"}
"""The modules that the report may import; the package itself has the version."""

BEHIND_THE_DOOR = {"base", "schema", "outcomes", "run_records", "run"}
"""Modules of records that only each other, the figures and the door import."""

FIGURES = {"series", "metrics", "distributions"}
"""Modules whose figures a run has; a run imports them."""


def imports(path: Path) -> set[str]:
    """Return the modules of this project that a file imports, those for types only included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            inner = [f"{node.module}.{name.name}" for name in node.names]
            found |= {name if is_module(name) else node.module for name in inner}
    return {name for name in found if name.split(".")[0] == PACKAGE.name}


def is_module(name: str) -> bool:
    """Tell whether a dotted name of this project is a module or a package."""
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def modules() -> dict[str, set[str]]:
    """Return the modules of the report, each with those that it imports."""
    return {path.stem: imports(path) for path in (PACKAGE / "report").glob("*.py")}


def test_no_module_imports_itself_through_others() -> None:
    prefix = f"{REPORT}."
    within = {
        name: {one.removeprefix(prefix) for one in imported if one.startswith(prefix)}
        for name, imported in modules().items()
    }
    order = list(TopologicalSorter(within).static_order())  # raises CycleError
    assert order.index("records") > order.index("run") > order.index("metrics")


def test_the_report_imports_nothing_that_stands_above_it() -> None:
    parts = {
        (name, one.removeprefix(PACKAGE.name).strip(".").split(".")[0])
        for name, imported in modules().items()
        for one in imported
    }
    assert {(name, part) for name, part in parts if part not in BELOW | {"report"}} == set()


def test_records_are_imported_from_their_door_only() -> None:
    inner = {f"{REPORT}.{name}" for name in BEHIND_THE_DOOR}
    allowed = {PACKAGE / "report" / f"{name}.py" for name in BEHIND_THE_DOOR | FIGURES | {"records"}}
    past = {
        str(path.relative_to(PACKAGE)): found
        for path in PACKAGE.rglob("*.py")
        if path not in allowed and (found := imports(path) & inner)
    }
    assert past == {}


@pytest.mark.parametrize("name", records.__all__)
def test_the_door_has_what_it_names(name: str) -> None:
    assert getattr(records, name) is not None
