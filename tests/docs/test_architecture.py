"""The tree in docs/architecture.md and its rules, held against the folders and the imports."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import pytest_k3s_sandbox

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGE = Path(pytest_k3s_sandbox.__file__).parent
NAME = PACKAGE.name
MOST_ENTRIES = 18
"""Of the package, the experiments counted as one."""

MOST_LINES = 400
"""Of a module of the package or of an experiment."""


GROUND = {"errors.py", "deadline.py", "support/"}
"""The entries of the lowest level: errors show texts by support/escaping, and support/forks raises errors."""


def tree() -> dict[str, str]:
    """Return what the page says of each entry of the package, the highest level first."""
    block = PAGE.read_text(encoding="utf-8").split("```")[1]
    return dict(re.findall(r"^  (\S+) +(.+)$", block, re.MULTILINE))


def entries() -> set[str]:
    """Return the entries of the package; in its wheel the experiments are among them."""
    left_out = {"__pycache__", "py.typed", "experiments"}
    return {
        f"{path.name}/" if path.is_dir() else path.name
        for path in PACKAGE.iterdir()
        if path.name not in left_out
    }


def modules() -> dict[str, Path]:
    """Return the modules of the package by their names."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] != "experiments":
            found[".".join((NAME, *(part for part in parts if part != "__init__")))] = path
    return found


def imported(text: str, package: str) -> Iterator[tuple[int, str]]:
    """Return what a module's text imports, wherever in it, with the line; of a name also its module.

    Args:
        text: The text.
        package: The package that relative imports count from.
    """
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def arrows(found: Mapping[str, Path]) -> dict[str, dict[str, int]]:
    """Return which modules each module imports, with the line of an import.

    Args:
        found: The modules.
    """
    drawn: dict[str, dict[str, int]] = {}
    for name, path in found.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        drawn[name] = {}
        for line, target in imported(path.read_text(encoding="utf-8"), package):
            known = target
            while known and known not in found:
                known = known.rpartition(".")[0]
            if known and known != name:
                drawn[name].setdefault(known, line)
    return drawn


def entry(module: str) -> str:
    """Return the entry of the tree that a module belongs to."""
    first = module.split(".")[1] if "." in module else "__init__"
    return f"{first}/" if (PACKAGE / first).is_dir() else f"{first}.py"


def upward(drawn: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return the imports from a higher level, each as a line of text."""
    levels = {name: 0 if name in GROUND else number for number, name in enumerate(reversed(tree()))}
    return [
        f"{source}:{line} imports {target}, which is above it"
        for source, targets in drawn.items()
        for target, line in targets.items()
        if levels[entry(target)] > levels[entry(source)]
    ]


def circle(drawn: Mapping[str, Collection[str]]) -> list[str]:
    """Return modules that import each other in a circle; an empty list without one."""
    try:
        TopologicalSorter(drawn).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def test_the_tree_names_every_entry_of_the_package_and_no_other() -> None:
    assert set(tree()) == entries()


def test_the_package_has_few_entries() -> None:
    assert len(entries()) + len({"experiments/"}) <= MOST_ENTRIES


def test_no_module_is_long() -> None:
    paths = [*PACKAGE.rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert {str(path): count for path, count in lines.items() if count > MOST_LINES} == {}


def test_the_modules_that_the_tree_names_are_there() -> None:
    for folder, text in tree().items():
        if not folder.endswith("/"):
            continue
        modules = {path.stem for path in (PACKAGE / folder).iterdir() if path.name != "__init__.py"}
        named = re.sub(r"\([^)]*\)", "", text).rpartition(": ")[2] if ": " in text else ""
        for name in re.findall(r"\b[a-z]\w*(?=,|;|$)", named):
            assert name in modules, f"{folder} has no module {name}"


def test_the_lowest_lines_of_the_tree_are_one_level() -> None:
    assert set(list(tree())[-len(GROUND) :]) == GROUND


def test_a_module_imports_from_its_own_level_and_lower_ones_only() -> None:
    assert upward(arrows(modules())) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle(arrows(modules())) == []


@pytest.mark.parametrize(
    "text",
    [
        "from pytest_k3s_sandbox.cluster import wait",
        "import pytest_k3s_sandbox.cluster.process_wait",
        "def late():\n    from ..cluster.process_wait import wait_for",
        "if TYPE_CHECKING:\n    from pytest_k3s_sandbox.cluster.process_wait import Goal",
    ],
)
def test_an_import_from_a_higher_level_is_found_wherever_it_stands(tmp_path: Path, text: str) -> None:
    added = tmp_path / "added.py"
    added.write_text(text)
    drawn = arrows({**modules(), f"{NAME}.sandbox.added": added})
    (line,) = upward(drawn)
    assert line.startswith(f"{NAME}.sandbox.added:")
    assert line.endswith("which is above it")


def test_a_circle_is_found_within_a_level(tmp_path: Path) -> None:
    added = tmp_path / "added.py"
    added.write_text(f"def late():\n    import {NAME}.sandbox.client")
    client = tmp_path / "client.py"
    client.write_text(f"from {NAME}.sandbox import added")
    drawn = arrows({f"{NAME}.sandbox.added": added, f"{NAME}.sandbox.client": client})
    assert upward(drawn) == []
    assert set(circle(drawn)) == set(drawn)
