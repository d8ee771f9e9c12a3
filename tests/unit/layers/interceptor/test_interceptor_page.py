"""The test of paths in Go programs, executed on this machine, and the lists that it reads."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_k3s_sandbox.layers.interceptor import repeating, skipping
from pytest_k3s_sandbox.layers.interceptor.assembling import Label, To, assembled
from pytest_k3s_sandbox.layers.interceptor.memory import PATH_MAX
from pytest_k3s_sandbox.layers.interceptor.repeating import content
from pytest_k3s_sandbox.layers.interceptor.syscalls import NUMBERS, PATH_CALLS
from support.go_page import Done, Page, is_far, processor, skips

OPEN, OPENAT = NUMBERS["open"], NUMBERS["openat"]
MADE, SKIPPED = Done(0, 1, 0), Done(0, 0, 1)
ROOTS = (b"/proc/", b"/sys/fs/cgroup", b"/a")


# The code alone.


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(content((), {OPEN: ROOTS, OPENAT: ROOTS, NUMBERS["stat"]: ()}))


@processor
@pytest.mark.parametrize(
    ("path", "skipped"),
    [
        (b"/", True),
        (b"/etc/resolv.conf", True),
        (b"/proc", True),
        (b"/proc/", False),
        (b"/proc/sys", False),
        (b"/procx", True),
        (b"/sys/fs/cgroup", False),
        (b"/sys/fs/cgroupx", False),
        (b"/sys/fs/cgrou", True),
        (b"/sys/fs/cgroup/cpu", False),
        (b"/a", False),
        (b"/ab", False),
        (b"/b/a", True),
        (b"/b/", True),
        (b"", False),
        (b"a", False),
        (b"etc/passwd", False),
        (b".", False),
        (b"//", False),
        (b"//proc/sys", False),
        (b"/b//c", False),
        (b"/b//", False),
        (b"/.", False),
        (b"/..", False),
        (b"/b/.", False),
        (b"/b/../proc/sys", False),
        (b"/b/.hidden", False),
        (b"/b.c/d.", True),
        (b"/b/\xff\xfe\x80", True),
    ],
)
def test_the_code_tests_the_text_of_a_path(page: Page, path: bytes, skipped: bool) -> None:
    assert skips(page, OPENAT, path) is skipped
    assert skips(page, OPEN, path) is skipped


texts = st.text(alphabet="/.ab", max_size=12).map(str.encode) | st.binary(max_size=40).map(
    lambda text: text.replace(b"\0", b"/")
)


@processor
@settings(max_examples=300)
@given(
    st.lists(st.lists(texts.filter(len), max_size=5).map(tuple), min_size=1, max_size=3),
    st.lists(texts, max_size=20),
)
def test_the_code_finds_exactly_what_it_is_to_find(
    lists: list[tuple[bytes, ...]], paths: list[bytes]
) -> None:
    numbers = [OPEN, OPENAT, NUMBERS["statx"]][: len(lists)]
    page = Page(content((), dict(zip(numbers, lists, strict=True))))
    near = [root + end for roots in lists for root in roots for end in (b"", b"a", b"/")]
    near += [root[:-1] for roots in lists for root in roots]
    for number, roots in zip(numbers, lists, strict=True):
        for path in [*paths, *near, *(b"/" + path for path in near)]:
            assert skips(page, number, path) is is_far(path, roots)


@processor
@pytest.mark.parametrize(
    ("length", "skipped"), [(PATH_MAX - 2, True), (PATH_MAX - 1, True), (PATH_MAX, False)]
)
def test_a_path_that_is_too_long_is_not_skipped(page: Page, length: int, skipped: bool) -> None:
    assert skips(page, OPENAT, b"/".ljust(length, b"x")) is skipped


@processor
def test_a_path_without_an_end_is_read_no_farther_than_a_path_can_reach(page: Page) -> None:
    assert page.call(OPENAT, 0, page.path(b"/".ljust(PATH_MAX, b"x"))) == MADE


@processor
@pytest.mark.parametrize("pointer", [0, 1, 4095])
def test_no_memory_is_read_where_programs_have_none(page: Page, pointer: int) -> None:
    assert page.call(OPENAT, 0, pointer) == MADE
    assert page.call(OPEN, pointer) == MADE


@processor
@pytest.mark.parametrize("number", [0, 1, 256, 258, 511, 512, OPENAT + 512, OPENAT + (1 << 32), -1, -(2**63)])
def test_a_call_without_a_test_does_not_look(page: Page, number: int) -> None:
    # What would be the path is no address at all.
    assert page.call(number, 1 << 63, 1 << 63) == MADE


@processor
def test_a_call_whose_rules_have_no_path_is_skipped_with_every_plain_path(page: Page) -> None:
    assert skips(page, NUMBERS["stat"], b"/proc/x")
    assert not skips(page, NUMBERS["stat"], b"proc/x")


@processor
@pytest.mark.parametrize(("path", "where"), [(b"/etc/x", 2), (b"/proc/x", 1)])
def test_an_interrupted_call_is_made_again_in_its_own_place(path: bytes, where: int) -> None:
    page = Page(content({OPENAT}, {OPENAT: ROOTS}))
    at = page.path(path + b"\0")
    done = page.call(OPENAT, 5, at, answers=(-errno.EINTR, -errno.EINTR, 7))
    assert done == (7, *((3, 0) if where == 1 else (0, 3)))
    unrepeated = Page(content({OPEN}, {OPENAT: ROOTS}))
    done = unrepeated.call(OPENAT, 5, unrepeated.path(path + b"\0"), answers=(-errno.EINTR, 7))
    assert done == (-errno.EINTR, *((1, 0) if where == 1 else (0, 1)))


# The lists.


def test_calls_with_the_same_prefixes_share_a_list() -> None:
    one = skipping.table({OPEN: ROOTS}, 584, 3000)
    assert len(skipping.table({OPEN: ROOTS, OPENAT: ROOTS}, 584, 3000)) == len(one)


@processor
def test_a_call_whose_prefixes_do_not_fit_has_no_test() -> None:
    long = tuple(b"/%04d" % number + b"x" * 100 for number in range(30))
    tests = {OPEN: long, OPENAT: ROOTS, NUMBERS["stat"]: long, NUMBERS["lstat"]: (b"/c",)}
    page = Page(content((), tests))
    for number, skipped in (
        (OPEN, False),
        (NUMBERS["stat"], False),
        (OPENAT, True),
        (NUMBERS["lstat"], True),
    ):
        assert skips(page, number, b"/etc/passwd") is skipped
    assert not skips(page, NUMBERS["lstat"], b"/c")


@given(st.dictionaries(st.sampled_from(sorted(PATH_CALLS)), st.lists(texts.filter(len)).map(tuple)))
def test_whatever_prefixes_there_are_the_page_is_not_longer(tests: dict[int, tuple[bytes, ...]]) -> None:
    assert len(content(range(512), tests)) <= repeating.PAGE


def test_code_that_leads_nowhere_is_not_put_together() -> None:
    code, labels = assembled((Label("here"), To(b"\xe9", "here"), To(b"\xe9", "far")), {"far": 1000})
    assert code == b"\xe9\xfb\xff\xff\xff\xe9" + (1000 - 10).to_bytes(4, "little")
    assert labels == {"here": 0, "far": 1000}
    with pytest.raises(KeyError):
        assembled((To(b"\xe9", "nowhere"),), {})


def test_a_fault_is_the_codes_own_only_where_it_reads_paths() -> None:
    base, labels = repeating.ADDRESS, repeating._LABELS
    inside = range(base + labels["test"], base + labels["skip"])
    for pointer in (*range(base - 20, base + 600), 0, 1 << 63):
        assert repeating.after_fault(pointer) == (base + labels["call"] if pointer in inside else None)
    same = content((), {})
    assert repeating.is_ours(repeating.page(same, 0x401000).ljust(repeating.PAGE, b"\0"))
    assert not repeating.is_ours(same[1:])
    assert not repeating.is_ours(b"")
