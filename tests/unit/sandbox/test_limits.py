"""What options say about limits, and what that is on a machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.errors import ConfigError
from pytest_k3s_sandbox.node.spec import NodeSpec
from pytest_k3s_sandbox.sandbox.limits import (
    DISK,
    MEMORY,
    PROCESSES,
    Amount,
    Limits,
    Room,
    Wanted,
    in_words,
    parse_processes,
    parse_size,
)
from pytest_k3s_sandbox.settings import Given, Settings

MIB, GIB = 1 << 20, 1 << 30
MACHINE = Room(memory_bytes=8 * GIB, free_bytes=100 * GIB, pids=4194304)


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("1048576", Amount(MIB)),
        ("2Gi", Amount(2 * GIB)),
        ("1.5Gi", Amount(3 * GIB // 2)),
        ("500M", Amount(500_000_000)),
        ("500Mi", Amount(500 * MIB)),
        ("1k", Amount(1000)),
        ("1K", Amount(1000)),
        ("1Ti", Amount(1024 * GIB)),
        ("75%", Amount(share=0.75)),
        ("12.5%", Amount(share=0.125)),
        ("none", Amount()),
    ],
)
def test_a_size_is_bytes_a_share_or_none(text: str, amount: Amount) -> None:
    assert parse_size(text, "it") == amount


@pytest.mark.parametrize(
    "text",
    [
        "",
        "much",
        "-1",
        "+1",
        "1e9",
        "0x10",
        "2 Gi",
        "2gi",
        "2GiB",
        "0%",
        "101%",
        "%",
        "1/2",
        "inf",
        "nan",
        "٢Gi",
        "9" * 16,
    ],
)
def test_what_is_no_size_is_refused_and_named(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"it: {text!r} is not ")) as caught:
        parse_size(text, "it")
    assert caught.value.remedy


@pytest.mark.parametrize("text", ["", "many", "-1", "1.5", "50%", "1k", "٢", "9" * 10])
def test_what_is_no_number_of_processes_is_refused_and_named(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"it: {text!r} is not a number of processes")):
        parse_processes(text, "it")


@pytest.mark.parametrize(
    "wanted", [{"memory": "1Mi"}, {"disk": "1"}, {"processes": "99"}, {"processes": "0"}]
)
def test_less_than_a_sandbox_itself_needs_is_refused(wanted: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="less than a sandbox itself needs"):
        Wanted(**wanted)


def test_by_default_a_part_of_the_machine_is_left_to_others() -> None:
    assert Wanted().on(MACHINE) == Limits(6 * GIB, 50 * GIB, 32768)


def test_a_number_holds_as_it_is_and_none_is_none() -> None:
    assert Wanted("2Gi", "none", "5000").on(MACHINE) == Limits(2 * GIB, None, 5000)
    assert Wanted("none", "1Gi", "none").on(MACHINE) == Limits(None, GIB, None)


def test_no_sandbox_takes_all_process_ids() -> None:
    """A machine can have no more than 32,768, which is the kernel's own default for small ones."""
    small = Room(MACHINE.memory_bytes, MACHINE.free_bytes, pids=32768)
    assert Wanted().on(small).processes == 24576
    assert Wanted(processes="1000").on(small).processes == 1000
    assert Wanted().on(Room(1, 1, pids=None)).processes == 32768


@given(st.integers(1, 1 << 50))
def test_sizes_are_read_as_they_are_written(size: int) -> None:
    number, unit = in_words(size).split()
    factor = {"bytes": 1, "KiB": 1024, "MiB": MIB, "GiB": GIB, "TiB": 1024 * GIB}[unit]
    assert abs(float(number) * factor - size) <= 0.06 * factor
    assert float(number) <= 1024


def test_they_are_told_in_words() -> None:
    assert str(Limits(600 * MIB, None, 5000)) == "memory 600 MiB, disk no limit, processes 5000"


def test_the_options_have_the_same_defaults_and_name_where_a_wrong_value_came_from() -> None:
    settings = Settings.of({}, Path())
    assert (settings.memory, settings.disk, settings.processes) == (MEMORY, DISK, PROCESSES)
    assert NodeSpec.of(settings).limits == Wanted() == NodeSpec().limits
    with pytest.raises(ConfigError, match=r"^environment variable K3S_DISK: .*'lots' is not an amount"):
        Settings.of({"disk": Given("lots", "environment variable K3S_DISK")}, Path())
    with pytest.raises(ConfigError, match="not a number of processes"):
        NodeSpec(processes="all")
