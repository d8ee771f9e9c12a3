"""The code that makes interrupted calls again: executed on this machine, and found in programs."""

from __future__ import annotations

import errno
import itertools
import os
import platform
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.layers.interceptor import repeating
from pytest_k3s_sandbox.layers.interceptor.profiles import repeated_calls
from pytest_k3s_sandbox.layers.interceptor.repeating import FUNCTION, GoProgram
from pytest_k3s_sandbox.layers.interceptor.rules import FaultRule, RetryRule, Rules
from pytest_k3s_sandbox.layers.interceptor.syscalls import NUMBERS, Group
from support.go_page import Page

processor = pytest.mark.skipif(platform.machine() != "x86_64", reason="its instructions are x86-64's")

OPENAT2, STAT = 437, 4


def enter(number: int, answers: list[int], wanted: set[int]) -> tuple[int, int]:
    """Execute the page's code, and return its result and how often it called.

    Args:
        number: The call's number, as Go gives it in rax.
        answers: What the kernel answers, one after the other.
        wanted: The numbers of the calls that are made again.
    """
    done = Page(repeating.content(wanted, {})).call(number, answers=answers)
    assert done.skipped == 0
    return done.result, done.made


@processor
@pytest.mark.parametrize("answer", [0, 3, -errno.ENOENT, -errno.EBADF, -errno.ESRCH, -512, 2**40, -(2**40)])
def test_an_answer_goes_on_behind_the_call(answer: int) -> None:
    assert enter(OPENAT2, [answer], {OPENAT2}) == (answer, 1)


@processor
def test_an_interrupted_call_that_is_wanted_is_made_until_it_is_not_interrupted() -> None:
    assert enter(OPENAT2, [-errno.EINTR, -errno.EINTR, 7], {OPENAT2}) == (7, 3)
    assert enter(STAT, [-errno.EINTR, -errno.ENOENT], {OPENAT2, STAT}) == (-errno.ENOENT, 2)


@processor
@pytest.mark.parametrize("number", [0, 5, 436, 438, 511, 512, 437 + 512, 2**31, 2**40, -1, -(2**63)])
def test_an_interrupted_call_that_is_not_wanted_is_answered_so(number: int) -> None:
    assert enter(number, [-errno.EINTR], {OPENAT2, STAT}) == (-errno.EINTR, 1)


@processor
@given(st.frozensets(st.integers(0, 511), max_size=8), st.integers(0, 600))
def test_exactly_the_wanted_numbers_are_made_again(wanted: frozenset[int], number: int) -> None:
    assert enter(number, [-errno.EINTR, 1], set(wanted)) == (
        (1, 2) if number in wanted else (-errno.EINTR, 1)
    )


def test_the_jump_fits_over_the_functions_beginning() -> None:
    assert len(repeating.jump(repeating.ADDRESS)) == len(FUNCTION)
    assert len(repeating.page(repeating.content(range(512), {}), 0x401000)) <= repeating.PAGE


def test_an_instruction_pointer_is_inside_the_page_or_not() -> None:
    assert [repeating.inside(repeating.ADDRESS + at) for at in (-1, 0, 4095, 4096)] == [
        False,
        True,
        True,
        False,
    ]


def elf(*segments: tuple[int, int, bytes, int], entry: int = 0x401000, kind: int = 2) -> bytes:
    """Return an ELF file with these segments: type, flags, content, address."""
    offset = 64 + 56 * len(segments)
    table, body = b"", b""
    for what, flags, content, address in segments:
        at = offset + len(body)
        table += struct.pack("<IIQQQQQQ", what, flags, at, address, address, len(content), len(content), 4096)
        body += content
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", kind, 62, 1, entry, 64, 0, 0, 64, 56, len(segments), 0, 0, 0
    )
    return header + table + body


def program_of(file: bytes) -> GoProgram | None:
    code = repeating.code_of(file)
    if code is None:
        return None
    offset, length, address = code
    return repeating.program_of(file[:4096], file[offset : offset + length], address)


TEXT = b"\x90" * 100 + FUNCTION + b"\x48\x3d"


def test_the_function_is_found_in_the_code_alone() -> None:
    data, code = (1, 6, TEXT, 0x500000), (1, 5, TEXT, 0x401000)
    assert program_of(elf(data, code)) == GoProgram(0x401000 + 100, 0x401000)
    assert program_of(elf(data)) is None
    assert program_of(elf((1, 5, b"\x90" * 200, 0x401000))) is None


def test_a_file_that_is_not_a_program_has_no_function() -> None:
    fine = elf((1, 5, TEXT, 0x401000))
    for broken in (b"", b"#!/bin/sh\n", fine[:63], b"\x7fELF\x01" + fine[5:], elf((1, 5, TEXT, 0), kind=1)):
        assert program_of(broken) is None


@given(st.binary(max_size=300))
def test_whatever_stands_in_a_header_is_read_without_an_error(noise: bytes) -> None:
    program_of((elf((1, 5, TEXT, 0x401000))[:5] + noise).ljust(64, b"\xff"))


def test_an_empty_segment_at_an_offset_that_no_file_has_is_passed_over() -> None:
    file = bytearray(elf((1, 5, b"", 0x400000), (1, 5, TEXT, 0x401000)))
    struct.pack_into("<Q", file, 64 + 8, 1 << 63)
    assert program_of(bytes(file)) == GoProgram(0x401000 + 100, 0x401000)


@given(st.integers(0, 2**48), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_whatever_entry_a_program_claims_the_function_has_an_address(
    function: int, entry: int, value: int
) -> None:
    found = repeating.loaded_at(GoProgram(function, entry), struct.pack("=QQ", 9, value))
    assert found is not None
    assert 0 <= found < 1 << 64


def test_a_program_is_loaded_where_its_entry_says() -> None:
    program = GoProgram(0x1064, 0x1000)
    auxiliary = struct.pack("=QQQQQQ", 6, 4096, 9, 0x5555_0000_1000, 0, 0)
    assert repeating.loaded_at(program, auxiliary) == 0x5555_0000_1064
    assert repeating.loaded_at(program, auxiliary[:16]) is None


def test_this_process_is_no_go_program_and_an_ended_one_is_nothing() -> None:
    programs = repeating.GoPrograms()
    assert programs.function(os.getpid()) is None
    ended = next(number for number in itertools.count(2**22 - 1, -1) if not Path(f"/proc/{number}").exists())
    assert programs.function(ended) is None


def test_only_rules_that_watch_returns_repeat_inside_programs() -> None:
    rule = RetryRule("/sys", (Group.OPEN, Group.LIST, Group.CLOSE), exits=("openat",))
    wanted = {NUMBERS[name] for name in ("open", "openat", "openat2", "creat", "getdents", "getdents64")}
    assert repeated_calls(Rules(retries=(rule,))) == wanted
    assert repeated_calls(Rules(retries=(rule._replace(exits=()),))) == frozenset()
    fault = FaultRule("/sys/file", errno.EINTR, groups=(Group.OPEN,))
    assert repeated_calls(Rules(retries=(rule,), faults=(fault,))) == wanted - {2, 85, 257, 437}
    assert repeated_calls(Rules(retries=(rule,), faults=(fault._replace(errno=errno.EIO),))) == wanted
    both = {NUMBERS["statfs"], NUMBERS["fstatfs"]}
    assert repeated_calls(Rules(retries=(rule._replace(groups=(Group.STATFS,)),))) == both


def test_only_so_many_programs_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that starts from a copy in memory has a new file each time."""
    monkeypatch.setattr(repeating, "_REMEMBERED", 3)
    opened, files = os.open, [tmp_path / str(number) for number in range(7)]
    programs = repeating.GoPrograms()
    for file in files:
        file.write_bytes(elf((1, 5, TEXT, 0x401000)))
        monkeypatch.setattr(os, "open", lambda _path, flags, file=file: opened(file, flags))
        programs.function(os.getpid())
        assert 0 < len(programs._known) <= 3
