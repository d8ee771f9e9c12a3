r"""Text that comes from inside a sandbox, made harmless for the place where it is shown.

A pod chooses what it logs, how it ends and what its events say. A terminal obeys control sequences in such
a text, a spreadsheet computes it, LaTeX runs it. Each place has its function here, all pure.

All of them write invisible characters as escapes in the notation of Python: ESC is ``\x1b``, a
right-to-left override is ``\u202e``. A text without such characters stays as it is, so that escaping twice
does no harm. A backslash is not doubled: people read the escapes, and no program decodes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

UNSEEN = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and newline, DEL, C1 (ECMA-48)
    "\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"  # invisible, line ends, bidi (UAX #9)
    "\ufff9-\ufffb\ufffe\uffff"  # annotations, non-characters; XML 1.0 forbids the last two
    "\ud800-\udfff"  # halves of a character, which cannot be encoded
    "\U000e0000-\U000e007f"  # tags: a text within the text
)
"""The characters that are escaped everywhere, as a class of a regular expression."""

FILE_NAME = 120
"""Characters of a file's name that the inside has chosen."""

SUFFIX = 9
"""Characters of an extension that a shortened file name keeps."""

PLOT = 60
"""Characters of a name in a figure."""

_UNSEEN = re.compile(f"[{UNSEEN}]")
_UNSEEN_OR_BREAK = re.compile(f"[{UNSEEN}\t\n]")
_LATEX = {
    "\\": r"\textbackslash{}",
    # Braces by name: BibTeX counts them, also behind a backslash.
    "{": r"\textbraceleft{}",
    "}": r"\textbraceright{}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}
_FORMULA = re.compile("\\s*[=+\\-@\t\r\n\uff0b\uff0d\uff1d\uff20]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\Z", re.ASCII)
# What CommonMark and GitHub's dialect see anywhere in a line. An underscore within a word is not markup;
# addresses become links by themselves.
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~&@]|(?<![^\W_])_|_(?![^\W_])|!(?=\[)|:(?=//)|(?<=www)\.", re.IGNORECASE)
_MARKDOWN_START = re.compile(r"([#+-]|\d+(?=[.)](?:\s|\Z)))", re.ASCII)
_SAFE_NAME = re.compile(r"[^A-Za-z0-9._-]")


def visible(text: str) -> str:
    """Return a text for a terminal or a file for people; its lines and tabs stay.

    Args:
        text: Any text.
    """
    return _UNSEEN.sub(_escape, text)


def line(text: str) -> str:
    """Return a text for one line of a terminal or of a list: its ends of lines and tabs are escaped, too."""
    return _UNSEEN_OR_BREAK.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def xml(text: str) -> str:
    """Return a text that XML 1.0 (section 2.2) and HTML can hold.

    The writer of the document escapes their syntax (``<``, ``&``, quotes): ElementTree
    for SVG, jinja2 for the page, pytest for JUnit.
    """
    return visible(text)


def plot(text: str) -> str:
    """Return a text for a figure of matplotlib's, cut to its room there.

    Between dollar signs matplotlib typesets formulas, which need not be valid.
    """
    short = text if len(text) <= PLOT else f"{text[:PLOT]}\u2026"
    return line(short).replace("$", r"\$")


def latex(text: str) -> str:
    """Return a text for LaTeX or a field of BibTeX, in one line; ``textcomp`` is not needed."""
    return "".join(_LATEX.get(character, character) for character in line(" ".join(text.split())))


def csv_cell(value: object) -> object:
    """Return a value for a cell of CSV that a spreadsheet does not compute.

    A text that begins with ``=``, ``+``, ``-``, ``@`` (also in their wide forms), a tab or an end of line
    gets an apostrophe before it, unless it is a number. Source: OWASP, CSV Injection.

    Args:
        value: The cell; only texts are changed.
    """
    if not isinstance(value, str):
        return value
    guarded = f"'{value}" if _FORMULA.match(value) and not _NUMBER.match(value) else value
    return visible(guarded)


def markdown(text: str) -> str:
    """Return a text for one line of Markdown, a cell of a table included.

    Nothing in it is markup, a link, HTML or a mention then (CommonMark 0.31, section 2.4: backslash escapes).
    """
    escaped = _MARKDOWN.sub(lambda found: f"\\{found[0]}", line(" ".join(text.split())))
    start = _MARKDOWN_START.match(escaped)
    if start is None:
        return escaped
    return f"{start[0]}\\{escaped[start.end() :]}" if start[0][0].isdigit() else f"\\{escaped}"


def markdown_code(text: str) -> str:
    """Return a text as a code span of Markdown, outside of tables (CommonMark 0.31, section 6.1)."""
    plain = line(" ".join(text.split())) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", plain)), default=0))
    space = " " if plain[0] == "`" or plain[-1] == "`" else ""
    return f"{fence}{space}{plain}{space}{fence}"


def properties(values: Mapping[str, str]) -> str:
    """Return names and values as a file of Java's properties, which allure reads.

    Args:
        values: Each name with its value.
    """

    def escaped(text: str, special: str) -> str:
        return re.sub(special, r"\\\g<0>", line(text))

    return "".join(
        f"{escaped(name, '[ =:#!]|' + BACKSLASH)} = {escaped(value, BACKSLASH)}\n"
        for name, value in values.items()
    )


BACKSLASH = r"\\"
"""A regular expression for one backslash."""


def file_name(name: str) -> str:
    """Return a name for a file on the machine; different names stay different.

    Letters, digits, ``.``, ``_`` and ``-`` stay, the others are percent-encoded. A name that is long then
    ends with a part of its hash. It begins with neither a dot nor a hyphen, and is never empty.

    Args:
        name: Any name, as the inside chose it.
    """
    raw = name.encode("utf-8", "surrogatepass").decode("latin-1")
    made = _SAFE_NAME.sub(lambda found: f"%{ord(found[0]):02X}", raw)
    if made[:1] in {"", ".", "-"}:
        made = f"%{made[:1].encode().hex().upper()}{made[1:]}"
    if len(made) <= FILE_NAME:
        return made
    import hashlib

    stem, dot, suffix = made.rpartition(".")
    ending = f"{dot}{suffix}" if stem and len(suffix) <= SUFFIX else ""
    mark = f"~{hashlib.sha256(raw.encode()).hexdigest()[:16]}{ending}"
    return made[: FILE_NAME - len(mark)] + mark
