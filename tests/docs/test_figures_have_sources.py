"""Each section of README, docs and experiments that states a figure says where the figure comes from.

A line that begins with ``Source:`` names a command that measures it, a published record,
or the person that measured it by hand. Or it says that the figure is a limit or a setting of the code.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

import pytest

from support.blocks import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

if not (ROOT / "docs").is_dir():
    pytest.skip("not applicable: this is not a checkout", allow_module_level=True)

UNITS = "s|ms|us|MiB|KiB|GiB|%|seconds|minutes|times|cores?"
FIGURE = re.compile(rf"(?<![\w.`/:-])\d[\d,]*(?:\.\d+)?\s?(?:{UNITS})(?![\w-])")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
SOURCE = re.compile(r"^Source: (.+)$", re.MULTILINE)
CODE = re.compile(r"`([^`]+)`")
PROGRAMS = {"k3s-sandbox", "pytest"}


def texts() -> Iterator[Path]:
    """Yield the pages whose figures are ours; the changelog tells what changed, not what is measured."""
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").rglob("*.md"))
    yield from sorted(ROOT.glob("experiments/exp*/README.md"))


def sections(page: Path) -> list[str]:
    """Return a page's sections without blocks of code."""
    return re.split(r"^(?=#{1,3} )", FENCE.sub("", page.read_text()), flags=re.MULTILINE)


def wrong(section: str) -> str | None:
    """Return what is missing about a section's source; None when it has what it needs."""
    figures = FIGURE.findall(CODE.sub("", SOURCE.sub("", section)))
    found = SOURCE.findall(section)
    if not found:
        return f"no source for {len(figures)} figures" if figures else None
    said = found[-1]
    if said.startswith("command "):
        words = shlex.split(CODE.findall(said)[0])
        return None if words[0] in PROGRAMS else f"no command: {words}"
    if said.startswith(("record ", "records ")):
        gone = [name for name in CODE.findall(said) if not (ROOT / name).exists()]
        return f"no such record: {gone}" if gone else None
    return None if said.startswith(("by hand, by ", "no measurement: ")) else f"no kind of source: {said}"


@pytest.mark.parametrize("page", list(texts()), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_section_with_figures_names_their_source(page: Path) -> None:
    found = {section.splitlines()[0]: wrong(section) for section in sections(page) if section.strip()}
    assert {title: why for title, why in found.items() if why is not None} == {}


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ("# A\nIt takes 4 s.\n", "no source for 1 figures"),
        ("# A\nIt takes 4 s.\n\nSource: rumour.\n", "no kind of source: rumour."),
        ("# A\nIt takes 4 s.\n\nSource: record `reports/none`.\n", "no such record: ['reports/none']"),
        ("# A\nIt takes 4 s.\n\nSource: command `stopwatch`.\n", "no command: ['stopwatch']"),
        ("# A\nIt takes 4 s.\n\nSource: command `k3s-sandbox bench`.\n", None),
        ("# A\nIt takes 4 s.\n\nSource: by hand, by us.\n", None),
        ("# A\nVersion 1.34, port `6443 s`.\n", None),
    ],
)
def test_what_is_no_source_is_found(section: str, complaint: str | None) -> None:
    assert wrong(section) == complaint
