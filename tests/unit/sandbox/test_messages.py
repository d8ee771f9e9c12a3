"""What process 1 says is a message of one of five forms, or the end of the sandbox; never anything else."""

from __future__ import annotations

import json
from dataclasses import astuple
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.sandbox import agent, messages
from pytest_k3s_sandbox.sandbox.base import Usage
from pytest_k3s_sandbox.sandbox.messages import (
    Exit,
    Lines,
    Message,
    ProtocolError,
    Ready,
    Refused,
    Spawned,
    Used,
    parse,
)

PIDS = st.integers(1, messages.MOST_PIDS)
NUMBERS = st.integers(1, 1 << 53)
KEYS = st.sampled_from(["ready", "id", "pid", "error", "usage", "exit", "status"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | KEYS, inner),
)
ROWS = st.lists(
    st.builds(
        Usage,
        PIDS,
        st.integers(0, messages.MOST_PIDS),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=15),
        st.floats(0, 1e9),
        st.integers(0, messages.MOST_BYTES),
        st.floats(0, 1e9),
    ),
    max_size=5,
)


def line(value: object) -> bytes:
    return json.dumps(value).encode()


@given(PIDS, NUMBERS, st.integers(-64, 255), ROWS)
def test_each_message_of_the_agent_is_read(pid: int, number: int, status: int, rows: list[Usage]) -> None:
    assert parse(line({"ready": pid})) == Ready()
    assert parse(line({"id": number, "pid": pid})) == Spawned(number, pid)
    assert parse(line({"id": number, "error": "No such file"})) == Refused(number, "No such file")
    assert parse(line({"exit": pid, "status": status})) == Exit(pid, status)
    told = [list(astuple(row)) for row in rows]
    assert parse(line({"id": number, "usage": told})) == Used(number, tuple(rows))


@given(st.binary() | JSON.map(line))
def test_any_line_is_a_message_or_refused_in_printable_words(data: bytes) -> None:
    found: Message | ProtocolError
    try:
        found = parse(data)
    except ProtocolError as error:
        found = error
    assert isinstance(found, Message | ProtocolError)
    if isinstance(found, ProtocolError):
        said = str(found)
        assert said.isascii()
        assert said.isprintable()
        assert len(said) < 600


@pytest.mark.parametrize(
    "message",
    [
        {"ready": 0},
        {"ready": True},
        {"ready": 1.0},
        {"ready": 1, "more": 1},
        {"id": 1, "pid": messages.MOST_PIDS + 1},
        {"id": 1, "pid": "7"},
        {"id": 0, "pid": 7},
        {"id": None, "error": "x"},
        {"id": 1, "error": 7},
        {"id": 1, "error": "x" * (agent.ERROR_CHARACTERS + 1)},
        {"exit": 1, "status": 256},
        {"exit": 1, "status": -65},
        {"exit": -1, "status": 0},
        {"id": 1, "usage": {}},
        {"id": 1, "usage": [[1, 0, "a", 0.0]]},
        {"id": 1, "usage": [[1, 0, "a", -1.0, 0, 0.0]]},
        {"id": 1, "usage": [[1, 0, "a", float("nan"), 0, 0.0]]},
        {"id": 1, "usage": [[1, 0, "a", float("inf"), 0, 0.0]]},
        {"id": 1, "usage": [[1, 0, "a", 1e11, 0, 0.0]]},
        {"id": 1, "usage": [[1, 0, "a", True, 0, 0.0]]},
        {"id": 1, "usage": [[1, 0, "a" * 65, 0.0, 0, 0.0]]},
        {"id": 1, "usage": [[1, 0, None, 0.0, 0, 0.0]]},
        {"id": 1, "usage": [[1, 0, "a", 0.0, 2**60, 0.0]]},
        {"id": 1, "usage": [[1, 0, "a", 0.0, 0, -1.0]]},
        {"id": 1, "usage": [[1, -1, "a", 0.0, 0, 0.0]]},
        {"id": 1, "usage": [[1, 0, "a", 0.0, 0, 0.0]] * (agent.USAGE_ROWS + 1)},
    ],
    ids=range(26),
)
def test_a_value_out_of_its_range_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        parse(line(message))


def test_text_from_inside_has_no_control_characters() -> None:
    said = parse(line({"id": 1, "error": "a\x1b]0;b\x07\u202e\ud800\nc"}))
    assert said == Refused(1, "a\ufffd]0;b\ufffd\ufffd\ufffd\nc")


def test_the_longest_usage_of_the_agent_fits_into_a_line() -> None:
    row = (messages.MOST_PIDS, messages.MOST_PIDS, "\x01" * 15, 99999999.99, 1 << 45, 99999999.99)
    assert len(line({"id": 1 << 53, "usage": [row] * agent.USAGE_ROWS})) < agent.LINE_BYTES


@given(st.lists(st.binary(max_size=20).map(lambda each: each.replace(b"\n", b"")), max_size=9), st.data())
def test_lines_come_whole_however_they_are_cut(texts: list[bytes], data: st.DataObject) -> None:
    rest = b"".join(text + b"\n" for text in texts)
    lines, found = Lines(), []
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        found += lines.feed(rest[:size])
        rest = rest[size:]
    assert found == texts


def test_a_piece_does_not_copy_what_came_before() -> None:
    class Piece(bytes):
        __slots__ = ()

        def __radd__(self, other: bytes) -> bytes:
            raise AssertionError(f"{len(other)} bytes were copied")

    lines = Lines()
    for _ in range(3):
        assert lines.feed(Piece(b"x")) == []
    assert lines.feed(Piece(b"\n")) == [b"xxx"]


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_line_without_an_end_is_kept_up_to_the_limit(end: bytes) -> None:
    lines = Lines()
    for _ in range(agent.LINE_BYTES >> 16):
        assert lines.feed(b"x" * 65536) == []
    with pytest.raises(ProtocolError, match="a line is longer than"):
        lines.feed(b"x" + end)
