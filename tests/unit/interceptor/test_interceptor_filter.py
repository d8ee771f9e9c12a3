"""The seccomp filter: what it does with every call, beside what libseccomp's does."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.layers.interceptor import filter as seccomp
from pytest_k3s_sandbox.layers.interceptor.filter import NOBODY, PROBING, RET_ALLOW, RET_TRACE
from pytest_k3s_sandbox.layers.interceptor.loading import load_preset, preset_names
from pytest_k3s_sandbox.layers.interceptor.rules import trapped_calls
from pytest_k3s_sandbox.layers.interceptor.syscalls import NUMBERS

X86_64, I386 = 0xC000_003E, 0x4000_0003
X32 = 0x4000_0000

calls_sets = st.frozensets(st.sampled_from(sorted(NUMBERS)))


def run(
    program: Iterable[tuple[int, int, int, int]],
    number: int,
    arch: int = X86_64,
    arguments: tuple[int, ...] = (),
) -> int:
    """Execute a filter as the kernel does, with the instructions that filters use (linux/bpf_common.h)."""
    padded = (*arguments, *(0,) * (6 - len(arguments)))
    data = struct.pack("=IIQ6Q", number & 0xFFFF_FFFF, arch, 0x1234, *padded)
    instructions = list(program)
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


@given(calls_sets, st.booleans())
def test_it_reports_what_it_is_to_report(calls: frozenset[str], probing: bool) -> None:
    program = seccomp.build(calls, probing=probing)
    wanted = {NUMBERS[name] for name in calls}
    for number in range(600):
        assert run(program, number) == (RET_TRACE if number in wanted else RET_ALLOW)
        assert run(program, number, I386) == RET_ALLOW
        assert run(program, number | X32) == RET_ALLOW
    assert run(program, 0xFFFF_FFFF) == RET_ALLOW
    assert run(program, PROBING, arguments=(NOBODY,)) == (RET_TRACE if probing else RET_ALLOW)


@given(calls_sets)
def test_it_agrees_with_libseccomps(calls: frozenset[str]) -> None:
    try:
        import pyseccomp  # noqa: PLC0415 - it looks for libseccomp when imported
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
    ours = seccomp.build(calls)
    for number in [*range(600), *(number | X32 for number in range(600)), 0xFFFF_FFFF]:
        for arch in (X86_64, I386):
            assert run(ours, number, arch) == run(theirs, number, arch)


@pytest.mark.parametrize("name", preset_names())
def test_a_call_that_is_not_trapped_costs_few_comparisons(name: str) -> None:
    program = seccomp.build(trapped_calls(load_preset(name).with_tree("/t")))
    assert len(program) <= 44


def test_it_is_laid_out_as_the_kernel_reads_it() -> None:
    program = seccomp.packed(seccomp.build({"open"}))
    assert len(program) == 14 * 8
    assert program[:8] == struct.pack("=HBBI", 0x20, 0, 0, 4)
    header = seccomp.with_header(program, 0x1000)
    assert struct.unpack("=H6xQ", header[:16]) == (14, 0x1010)
    assert header[16:] == program


def test_what_is_not_opened_to_be_read_can_be_opened_unseen() -> None:
    program = seccomp.build(
        {"open", "openat", "openat2", "creat", "close"}, reads_only={"open", "openat", "creat"}
    )
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
