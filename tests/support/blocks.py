"""The fenced blocks of the documentation: examples that tests execute or at least understand."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"(?:^<!-- not run: ([^\n]+) -->\n)?^```(\S*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NAME = re.compile(r"# (\w+\.(?:py|yaml))\n")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: The page's path in the repository.
        language: The word after the fence.
        text: Its lines.
        reason: Why no test executes it; None for a block that is executed.
    """

    page: str
    language: str
    text: str
    reason: str | None = None

    @property
    def file(self) -> str | None:
        """The file's name, if the block is a whole file: its first line is a comment with the name."""
        found = NAME.match(self.text)
        return found[1] if found else None

    @property
    def commands(self) -> Iterator[list[str]]:
        """The words of every command line, without prompts and comments."""
        for line in self.text.splitlines():
            if words := shlex.split(line, comments=True):
                yield from split(words)


def split(words: list[str]) -> Iterator[list[str]]:
    """Yield the commands of a line with ``&&`` in it."""
    while "&&" in words:
        at = words.index("&&")
        yield words[:at]
        words = words[at + 1 :]
    yield words


def pages() -> list[Path]:
    """Return README and every page of the documentation."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str) -> list[Block]:
    """Return the blocks of a language in all pages."""
    return [
        Block(str(page.relative_to(ROOT)), language, match[3], match[1])
        for page in pages()
        for match in FENCE.finditer(page.read_text())
        if match[2] == language
    ]
