"""Numbers and lists as the kernel parses them."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.layers.cgroupfs.values import (
    PAGE_COUNTER_MAX,
    PAGE_SIZE,
    format_list,
    parse_list,
    parse_memory,
    parse_s64,
    parse_u64,
)
from support.cgroupfs_fakes import refused


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("10\n", 10), ("0x1f", 31), ("010", 8), ("+5", 5), (str(2**64 - 1), 2**64 - 1)],
)
def test_unsigned(text: str, value: int) -> None:
    assert parse_u64(text) == value


@pytest.mark.parametrize(
    ("parse", "text", "number"),
    [
        (parse_u64, "", errno.EINVAL),
        (parse_u64, "-1", errno.EINVAL),
        (parse_u64, " 1", errno.EINVAL),
        (parse_u64, "1 ", errno.EINVAL),
        (parse_u64, "1\n\n", errno.EINVAL),
        (parse_u64, "08", errno.EINVAL),
        (parse_u64, "abc", errno.EINVAL),
        (parse_u64, str(2**64), errno.ERANGE),
        (parse_s64, str(2**63), errno.ERANGE),
        (parse_s64, str(-(2**63) - 1), errno.ERANGE),
        (parse_s64, "--1", errno.EINVAL),
        (parse_u64, str(2**64) + "x", errno.ERANGE),
        (parse_u64, "0x", errno.EINVAL),
        (parse_s64, "-+1", errno.EINVAL),
        (parse_memory, "08", errno.EINVAL),
        (parse_memory, "-2", errno.EINVAL),
        (parse_memory, "1X", errno.EINVAL),
        (parse_memory, "1MB", errno.EINVAL),
    ],
)
def test_refused(parse: Callable[[str], int], text: str, number: int) -> None:
    with refused(number):
        parse(text)


@given(st.integers(-(2**63), 2**63 - 1))
def test_signed_round_trip(value: int) -> None:
    assert parse_s64(f"{value}\n") == value


@given(st.integers(0, 2**23), st.sampled_from(["", "k", "K", "m", "G", "t"]))
def test_memory_is_rounded_down_to_pages(value: int, suffix: str) -> None:
    wanted = value << {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}[suffix.lower()]
    got = parse_memory(f" {value}{suffix}\n")
    assert got % PAGE_SIZE == 0
    assert got == min(wanted - wanted % PAGE_SIZE, PAGE_COUNTER_MAX)


@pytest.mark.parametrize(
    ("text", "value"),
    [("", 0), ("k", 0), ("16E", 0), ("0x10k", 16384), ("010k", 8192), (str(2**64 + 4096), 4096)],
)
def test_memory_is_parsed_as_carelessly_as_by_the_kernel(text: str, value: int) -> None:
    assert parse_memory(text) == value


def test_memory_without_limit() -> None:
    assert parse_memory("-1\n") == PAGE_COUNTER_MAX == 9223372036854771712


@given(st.frozensets(st.integers(0, 200)))
def test_list_round_trip(numbers: frozenset[int]) -> None:
    assert parse_list(format_list(numbers) + "\n", possible=range(201)) == numbers


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0-7:2/4", {0, 1, 4, 5}),
        ("3, 1\n", {1, 3}),
        ("all", set(range(8))),
        ("ALL:1/4", {0, 4}),
        ("6-N", {6, 7}),
        (",,1 ,\t2", {1, 2}),
        ("", set()),
    ],
)
def test_list_forms(text: str, numbers: set[int]) -> None:
    assert parse_list(text, possible=range(8)) == numbers


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3-1", errno.EINVAL),
        ("a", errno.EINVAL),
        ("-1", errno.EINVAL),
        ("0-1:3/2", errno.EINVAL),
        ("8", errno.ERANGE),
        ("99999999999", errno.EOVERFLOW),
        ("1:1/2", errno.EINVAL),
        ("0-1:1/0", errno.EINVAL),
        ("0x1", errno.EINVAL),
    ],
)
def test_list_refused(text: str, number: int) -> None:
    with refused(number):
        parse_list(text, possible=range(8))


@pytest.mark.parametrize(("numbers", "text"), [({0, 1, 2, 5}, "0-2,5"), ({1}, "1"), (set(), "")])
def test_list_is_written_as_the_kernel_does(numbers: set[int], text: str) -> None:
    assert format_list(numbers) == text
