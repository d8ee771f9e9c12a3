"""The seccomp filter: what it does with every call, beside what libseccomp's does."""

from __future__ import annotations

import errno
import struct
import tempfile
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.layers.interceptor import filter as seccomp
from pytest_k3s_sandbox.layers.interceptor.filter import (
    NO_PROCESS,
    PROBING,
    RET_ALLOW,
    RET_ERRNO,
    RET_TRACE,
    Stops,
)
from pytest_k3s_sandbox.layers.interceptor.loading import load_preset, preset_names
from pytest_k3s_sandbox.layers.interceptor.profiles import covers, kinds_of_stops
from pytest_k3s_sandbox.layers.interceptor.repeating import ADDRESS, PAGE, SKIPPED
from pytest_k3s_sandbox.layers.interceptor.rules import RetryRule, Rules
from pytest_k3s_sandbox.layers.interceptor.syscalls import NUMBERS, Group

X86_64, I386 = 0xC000_003E, 0x4000_0003
X32 = 0x4000_0000

calls_sets = st.frozensets(st.sampled_from(sorted(NUMBERS)))


def run(
    program: Iterable[tuple[int, int, int, int]],
    number: int,
    arch: int = X86_64,
    arguments: tuple[int, ...] = (),
    pointer: int = 0x1234,
) -> int:
    """Execute a filter as the kernel does, with the instructions that filters use (linux/bpf_common.h)."""
    padded = (*arguments, *(0,) * (6 - len(arguments)))
    data = struct.pack("=IIQ6Q", number & 0xFFFF_FFFF, arch, pointer, *padded)
    instructions = program if isinstance(program, list) else list(program)
    accumulator, at = 0, 0
    while True:
        code, if_true, if_false, value = instructions[at]
        at += 1
        if code == 0x06:
            return value
        if code == 0x20:
            accumulator = struct.unpack_from("=I", data, value)[0]
        elif code == 0x05:
            at += value
        elif code == 0x54:
            accumulator &= value
        else:
            holds = {
                0x15: accumulator == value,
                0x25: accumulator > value,
                0x35: accumulator >= value,
                0x45: bool(accumulator & value),
            }[code]
            at += if_true if holds else if_false


def steps(program: tuple[seccomp.Instruction, ...], number: int) -> int:
    """Return how many instructions a call costs."""
    executed: list[int] = []

    class Counted(list[seccomp.Instruction]):
        def __getitem__(self, index: int) -> seccomp.Instruction:  # type: ignore[override]  # run() uses no slices
            executed.append(index)
            return super().__getitem__(index)

    run(Counted(program), number)
    return len(executed)


@given(calls_sets, st.booleans())
def test_it_reports_what_it_is_to_report(calls: frozenset[str], probing: bool) -> None:
    program = seccomp.build(dict.fromkeys(calls, Stops.ALWAYS), probing=probing)
    wanted = {NUMBERS[name] for name in calls}
    for number in range(600):
        assert run(program, number) == (RET_TRACE if number in wanted else RET_ALLOW)
        assert run(program, number, I386) == RET_ALLOW
        assert run(program, number | X32) == RET_ALLOW
    assert run(program, 0xFFFF_FFFF) == RET_ALLOW
    assert run(program, PROBING, arguments=(NO_PROCESS,)) == (RET_TRACE if probing else RET_ALLOW)


@given(calls_sets)
def test_it_agrees_with_libseccomps(calls: frozenset[str]) -> None:
    try:
        import pyseccomp
    except RuntimeError as error:
        pytest.skip(f"{error}: run `k3s-sandbox provision`")
    reference = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    reference.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.ALLOW)
    for name in calls:
        reference.add_rule(pyseccomp.TRACE(0), name)
    with tempfile.TemporaryFile() as file:
        reference.export_bpf(file)
        file.seek(0)
        theirs = list(struct.iter_unpack("=HBBI", file.read()))
    ours = seccomp.build(dict.fromkeys(calls, Stops.ALWAYS))
    for number in [*range(600), *(number | X32 for number in range(600)), 0xFFFF_FFFF]:
        for arch in (X86_64, I386):
            assert run(ours, number, arch) == run(theirs, number, arch)


@pytest.mark.parametrize("name", preset_names())
def test_a_call_that_is_not_trapped_costs_few_comparisons(name: str) -> None:
    program = seccomp.build(kinds_of_stops(load_preset(name).with_tree("/t")))
    assert max(steps(program, number) for number in range(600) if run(program, number) == RET_ALLOW) <= 14


def test_it_is_laid_out_as_the_kernel_reads_it() -> None:
    program = seccomp.packed(seccomp.build({"open": Stops.ALWAYS}))
    assert len(program) == 50 * 8
    assert program[:8] == struct.pack("=HBBI", 0x20, 0, 0, 4)
    header = seccomp.with_header(program, 0x1000)
    assert struct.unpack("=H6xQ", header[:16]) == (50, 0x1010)
    assert header[16:] == program


def test_refused_calls_get_enosys_unless_they_stop() -> None:
    stops = {"statx": Stops.REFUSED, "openat": Stops.REFUSED | Stops.ALWAYS, "close": Stops.ALWAYS}
    program = seccomp.build(stops)
    assert run(program, NUMBERS["statx"]) == RET_ERRNO | errno.ENOSYS
    assert run(program, NUMBERS["openat"]) == RET_TRACE
    assert run(program, NUMBERS["newfstatat"]) == RET_ALLOW


def test_opens_that_cannot_read_do_not_stop() -> None:
    reading = dict.fromkeys(("open", "openat", "creat"), Stops.READING)
    program = seccomp.build({**reading, "openat2": Stops.ALWAYS, "close": Stops.ALWAYS})
    folder = 0o200000 | 0o2000000
    for number, flags_at in ((NUMBERS["open"], 1), (NUMBERS["openat"], 2)):
        before = (0,) * flags_at
        assert run(program, number, arguments=(*before, folder)) == RET_ALLOW
        assert run(program, number, arguments=(*before, 1 | 0o100)) == RET_ALLOW  # O_WRONLY | O_CREAT
        assert run(program, number, arguments=(*before, 2)) == RET_TRACE  # O_RDWR
        assert run(program, number, arguments=(*before, 0o2000000)) == RET_TRACE
        assert run(program, number, I386, arguments=(*before, 0o2000000)) == RET_ALLOW
    for name in ("openat2", "creat", "close"):
        assert run(program, NUMBERS[name], arguments=(folder, folder, folder)) == RET_TRACE


INSIDE = (ADDRESS, ADDRESS + 17, ADDRESS + PAGE - 1)
OUTSIDE = (
    0,
    0x401234,
    ADDRESS - 1,
    ADDRESS + PAGE,
    ADDRESS & 0xFFFF_FFFF,
    ADDRESS + (1 << 32),
    ADDRESS | 1 << 63,
)


def test_a_call_whose_return_is_watched_passes_from_the_page_that_repeats_it() -> None:
    program = seccomp.build({"openat2": Stops.RETURNING, "openat": Stops.RETURNING | Stops.ALWAYS})
    for pointer in INSIDE:
        assert run(program, NUMBERS["openat2"], pointer=pointer) == RET_ALLOW
        assert run(program, NUMBERS["openat"], pointer=pointer) == RET_TRACE
    for pointer in OUTSIDE:
        assert run(program, NUMBERS["openat2"], pointer=pointer) == RET_TRACE
        assert run(program, NUMBERS["openat"], pointer=pointer) == RET_TRACE


@pytest.mark.parametrize(("name", "flags_at"), [("open", 1), ("openat", 2)])
def test_flags_count_only_in_that_page_where_the_return_is_watched_as_well(name: str, flags_at: int) -> None:
    program = seccomp.build({name: Stops.READING | Stops.RETURNING})
    before = (0,) * flags_at
    for flags, inside in ((0o200000, RET_ALLOW), (1, RET_ALLOW), (0, RET_TRACE), (2, RET_TRACE)):
        for pointer in INSIDE:
            assert run(program, NUMBERS[name], arguments=(*before, flags), pointer=pointer) == inside
        for pointer in OUTSIDE:
            assert run(program, NUMBERS[name], arguments=(*before, flags), pointer=pointer) == RET_TRACE


STOPPING = (
    Stops.ALWAYS,
    Stops.READING,
    Stops.RETURNING,
    Stops.READING | Stops.RETURNING,
    Stops.ALWAYS | Stops.RETURNING,
)
ELSEWHERE = (
    SKIPPED - 1,
    SKIPPED + 1,
    SKIPPED + 5,
    SKIPPED + (1 << 32),
    SKIPPED & 0xFFFF_FFFF,
    *INSIDE,
    *OUTSIDE,
)


@pytest.mark.parametrize("name", ["open", "openat", "openat2", "stat"])
@pytest.mark.parametrize("stops", STOPPING)
def test_what_the_page_skips_passes_by_its_exact_instruction(stops: Stops, name: str) -> None:
    plain = seccomp.build({name: stops, "unlink": Stops.ALWAYS})
    testing = seccomp.build({name: stops | Stops.CONCERNED, "unlink": Stops.ALWAYS})
    for flags in (0, 1, 2, 0o200000):
        arguments = (flags,) * 3
        assert run(testing, NUMBERS[name], arguments=arguments, pointer=SKIPPED) == RET_ALLOW
        for pointer in ELSEWHERE:
            assert run(testing, NUMBERS[name], arguments=arguments, pointer=pointer) == run(
                plain, NUMBERS[name], arguments=arguments, pointer=pointer
            )
    assert run(testing, NUMBERS["unlink"], pointer=SKIPPED) == RET_TRACE


def test_what_a_rule_refuses_is_refused_also_where_the_page_skips() -> None:
    program = seccomp.build({"stat": Stops.REFUSED | Stops.CONCERNED})
    assert run(program, NUMBERS["stat"], pointer=SKIPPED) == RET_ERRNO | errno.ENOSYS


@given(st.dictionaries(st.sampled_from(sorted(NUMBERS)), st.integers(0, 31).map(Stops)), st.booleans())
def test_every_jump_leads_to_an_instruction(calls: dict[str, Stops], probing: bool) -> None:
    """The kernel checks that; here it is also that a jump has eight bits."""
    program = seccomp.build(calls, probing=probing)
    for at, (code, if_true, if_false, _) in enumerate(program):
        if code & 0x07 == 0x05:  # BPF_JMP
            assert 0 <= if_true <= 255
            assert 0 <= if_false <= 255
            assert at + 1 + max(if_true, if_false) < len(program)
    assert program[-1].code == 0x06


reasons = st.integers(0, 7).map(Stops) | st.integers(16, 23).map(Stops)


@given(reasons, reasons, st.sampled_from(["open", "openat", "openat2", "stat"]))
def test_a_filter_that_covers_another_stops_whatever_the_other_stops(
    known: Stops, wanted: Stops, name: str
) -> None:
    first, second = seccomp.build({name: known}), seccomp.build({name: wanted})
    stopped = [
        (run(program, NUMBERS[name], arguments=(flags,) * 3, pointer=pointer) == RET_TRACE)
        for program in (first, second)
        for flags in (0, 1)
        for pointer in (INSIDE[0], OUTSIDE[0])
    ]
    if covers(known, wanted):
        assert all(mine or not theirs for mine, theirs in zip(stopped[:4], stopped[4:], strict=True))


def test_a_retry_rule_adds_its_returns_to_what_other_rules_stop() -> None:
    retry = RetryRule("/sys", (Group.OPEN, Group.STAT, Group.CLOSE), exits=("openat", "stat"))
    assert kinds_of_stops(Rules(retries=(retry,))) == {"openat": Stops.RETURNING, "stat": Stops.RETURNING}
    assert kinds_of_stops(Rules(retries=(retry._replace(exits=()),))) == {}
