"""The tree in docs/architecture.md, held against the folders."""

from __future__ import annotations

import re
from pathlib import Path

import pytest_k3s_sandbox

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGE = Path(pytest_k3s_sandbox.__file__).parent
MOST_ENTRIES = 18
"""Of the package, the experiments counted as one."""


def tree() -> dict[str, str]:
    """Return what the page says of each entry of the package."""
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


def test_the_tree_names_every_entry_of_the_package_and_no_other() -> None:
    assert set(tree()) == entries()


def test_the_package_has_few_entries() -> None:
    assert len(entries()) + len({"experiments/"}) <= MOST_ENTRIES


def test_the_modules_that_the_tree_names_are_there() -> None:
    for folder, text in tree().items():
        if not folder.endswith("/"):
            continue
        modules = {path.stem for path in (PACKAGE / folder).iterdir() if path.name != "__init__.py"}
        named = re.sub(r"\([^)]*\)", "", text).rpartition(": ")[2] if ": " in text else ""
        for name in re.findall(r"\b[a-z]\w*(?=,|;|$)", named):
            assert name in modules, f"{folder} has no module {name}"
