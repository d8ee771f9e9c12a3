"""Escaping: for any text, the place where it is shown sees no more than a text."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from xml.etree import ElementTree as ET

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_k3s_sandbox.support import escaping

ANY = st.text(st.characters(), max_size=40)
HOSTILE = "\x1b]0;owned\x07\x9b31m\u202eevil\u2066\r\n\t\0\ud800\ufffe\U000e0041=1+1|`<b>&\\"


def unseen(text: str) -> list[str]:
    """Return what moves, hides, reorders or cannot be encoded, by Unicode's own categories."""
    known = "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2"  # Arabic and Syriac signs
    return [
        each
        for each in text
        if unicodedata.category(each) in {"Cc", "Cs", "Zl", "Zp"}
        or (unicodedata.category(each) == "Cf" and each not in known and ord(each) < 0x10000)
    ]


@given(ANY)
@example(HOSTILE)
def test_nothing_unseen_is_left_but_lines_and_tabs(text: str) -> None:
    assert set(unseen(escaping.visible(text))) <= {"\n", "\t"}
    assert unseen(escaping.line(text)) == []
    escaping.visible(text).encode()


@given(ANY)
def test_escaping_twice_changes_nothing(text: str) -> None:
    for one in (escaping.visible, escaping.line, escaping.xml):
        assert one(one(text)) == one(text)


@given(st.text(st.characters(codec="ascii", min_codepoint=32, max_codepoint=126)))
def test_a_plain_text_stays(text: str) -> None:
    assert escaping.visible(text) == escaping.line(text) == escaping.xml(text) == text


def test_what_is_hidden_can_be_read() -> None:
    assert escaping.line("\x1b[2J\x9b\u202e\r\n\t\ud800\U000e0041") == (
        r"\x1b[2J\x9b\u202e\r\n\t\ud800\U000e0041"
    )
    assert escaping.visible("h\u00e9 \u4e16 \U0001f600 \ufffd") == "h\u00e9 \u4e16 \U0001f600 \ufffd"


@given(ANY)
@example(HOSTILE)
def test_xml_can_hold_it(text: str) -> None:
    element = ET.Element("a", {"b": escaping.xml(text)})
    element.text = escaping.xml(text)
    read = ET.fromstring(ET.tostring(element))  # noqa: S314 - made above
    assert read.text == (escaping.xml(text) or None)
    assert read.get("b") == escaping.xml(text)


@given(st.text(st.sampled_from("$\\\x1b a{}_^"), max_size=20))
@example(r"$\frac{$")
@example("$x$ costs $1")
def test_a_figure_typesets_nothing(text: str) -> None:
    made = escaping.plot(text)
    assert made.count("$") == made.count(r"\$")  # matplotlib.cbook.is_math_text
    assert made.replace(r"\$", "$") == escaping.line(text)


@given(ANY)
@example(HOSTILE)
def test_latex_holds_commands_of_ours_only(text: str) -> None:
    made = escaping.latex(text)
    known = "backslash|braceleft|braceright|asciicircum|asciitilde|less|greater|bar"
    bare = re.sub(rf"\\text(?:{known})\{{\}}|\\[$&#%_]", "", made)
    assert not re.search(r"[\\{}$&#%_^~<>|]", bare)
    assert made.count("{") == made.count("}")
    assert unseen(made) == []


@given(st.lists(ANY, min_size=2, max_size=2))
@example(["=1+1", HOSTILE])
@example(["\t=1", " @SUM(A1)"])
def test_a_cell_is_no_formula(cells: list[str]) -> None:
    out = io.StringIO()
    csv.writer(out).writerow([escaping.csv_cell(cell) for cell in cells])
    (row,) = list(csv.reader(io.StringIO(out.getvalue(), newline="")))
    for cell in row:
        number = re.fullmatch(r"[+-]?[0-9.]+([eE][+-]?[0-9]+)?", cell)
        assert number or cell.strip()[:1] not in set("=+-@\uff0b\uff0d\uff1d\uff20") - {""}
        assert set(unseen(cell)) <= {"\n", "\t"}


@pytest.mark.parametrize("value", [1, -1.5, None, True, "-1", "+2.5e-3", ".5", "a=b", "", "12:03"])
def test_numbers_and_plain_cells_stay(value: object) -> None:
    assert escaping.csv_cell(value) == value


def flat(markdown: str) -> str:
    """Return a line of Markdown with its backslash escapes undone, or fail on what is not escaped."""
    bare = re.sub(r"\\[!-/:-@\[-`{-~]", " ", markdown)
    assert not re.search(r"[\\`*\[\]<>|~&@]|(?<!\w)_|_(?!\w)|://|www\.", bare, re.IGNORECASE), markdown
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", markdown)


@given(ANY)
@example(HOSTILE)
@example("![a](http://x) <img src=x> www.x.de a@b.c ~~x~~ &lt; | # 1. - +")
@example("1. one")
@example("# head")
def test_markdown_holds_no_markup(text: str) -> None:
    made = escaping.markdown(text)
    assert flat(made) == escaping.line(" ".join(text.split()))
    assert not re.match(r"[#+-]|\d+[.)](\s|$)", made, re.ASCII)


@given(ANY)
@example("``` `` `")
@example("`")
def test_a_code_span_ends_where_it_should(text: str) -> None:
    made = escaping.markdown_code(text)
    fence = re.match("`+", made)
    assert fence is not None
    assert made.endswith(fence[0])
    content = made[len(fence[0]) : -len(fence[0])]
    assert fence[0] not in re.findall("`+", content)
    assert content[:1] != "`"
    assert content[-1:] != "`"


@given(st.dictionaries(ANY, ANY, max_size=4))
def test_properties_are_a_line_each(values: dict[str, str]) -> None:
    assert len(escaping.properties(values).splitlines()) == len(values)


@given(ANY)
@example("../../etc/passwd")
@example("")
@example("-rf")
@example("a" * 300 + ".log")
def test_a_file_name_is_a_name_in_this_folder(name: str) -> None:
    made = escaping.file_name(name)
    assert re.fullmatch(r"[A-Za-z0-9_%][A-Za-z0-9._%~-]*", made)
    assert len(made) <= escaping.FILE_NAME


@given(ANY, ANY)
@example("a\n", "a%0A")
@example("", "%")
@example("a" * 200, "a" * 201)
def test_different_names_stay_different(one: str, other: str) -> None:
    assert (one == other) == (escaping.file_name(one) == escaping.file_name(other))


def test_names_of_logs_stay() -> None:
    for name in ("kubelet.log", "kube-apiserver.log", "k3s_2.log"):
        assert escaping.file_name(name) == name
    assert escaping.file_name("x" * 300 + ".log").endswith(".log")
