"""What rules say of a path, statement by statement: what would be another program is told from it."""

from __future__ import annotations

import pytest

from pytest_k3s_sandbox.layers.interceptor.matching import (
    Decision,
    PathRules,
    below,
    is_mount_table,
    literal,
    normal,
    program_test,
    wildcard,
)
from pytest_k3s_sandbox.layers.interceptor.rules import (
    PATTERN,
    PREFIX,
    FaultRule,
    MaskRule,
    MountRule,
    RedirectRule,
    RetryRule,
    Rules,
)
from pytest_k3s_sandbox.layers.interceptor.syscalls import PATH_CALLS, Group

OPENAT = PATH_CALLS[257]


@pytest.mark.parametrize(
    ("path", "table"),
    [
        (b"/proc/self/xask/18/mounts", False),
        (b"/proc/self/task/x/mounts", False),
        (b"/proc/x/task/18/mounts", False),
        (b"/proc/self/task/18/x/mounts", False),
        (b"/proc/self/task/mounts", False),
        (b"/proc/self/task/18/stat", False),
        (b"/proc/self/stat", False),
        (b"/xproc/self/mounts", False),
        (b"/proc/17/task/18/mountstats", True),
        (b"/proc/thread-self/mounts", True),
        (b"/proc", False),
        (b"/", False),
    ],
)
def test_mount_tables_by_their_names_alone(path: bytes, table: bool) -> None:
    assert is_mount_table(path) is table


@pytest.mark.parametrize(
    ("path", "short"),
    [
        (b"/a", b"/a"),
        (b"/a/", b"/a"),
        (b"//a", b"/a"),
        (b"/a//b", b"/a/b"),
        (b"/a/./b", b"/a/b"),
        (b"/a/../b", b"/b"),
        (b"/a/.b", b"/a/.b"),
        (b"//", b"/"),
        (b"///a", b"/a"),
    ],
)
def test_normal_paths_by_example(path: bytes, short: bytes) -> None:
    assert normal(path) == short


def test_below_takes_text_and_bytes_of_any_kind() -> None:
    assert below("/a\udcff/b", b"/a\xff")
    assert below(b"/a\xff/b", "/a\udcff")
    assert below(b"/a/b", b"/a/")
    assert not below(b"/a", b"/a/")
    assert not below(b"/", b"/a")


@pytest.mark.parametrize(
    ("pattern", "fits", "not_fits"),
    [
        ("/a*", ["/a", "/ab", "/abc"], ["/a/", "/a/b", "/b", "x/a"]),
        ("/a**", ["/a", "/ab", "/a/b/c"], ["/b"]),
        ("/***x", ["/x", "/a/bx", "/a/x"], ["/xa"]),
        ("/**b*", ["/b", "/a/bc"], ["/a/b/c"]),
        ("/?", ["/a"], ["/", "/ab", "//"]),
        ("/[^ab]c", ["/cc", "/^c"], ["/ac", "/bc", "//c"]),
        ("/[!ab]c", ["/cc"], ["/ac", "/bc", "//c"]),
        ("/[a!]c", ["/ac", "/!c"], ["/bc"]),
        ("/[a^]c", ["/ac", "/^c"], ["/bc"]),
        ("/[]]c", ["/]c"], ["/[]]c", "/c"]),
        ("/[]a]c", ["/]c", "/ac"], ["/bc"]),
        ("/[!]a]c", ["/bc"], ["/]c", "/ac"]),
        ("/[^]a]c", ["/bc"], ["/]c", "/ac"]),
        ("/[ab]X", ["/aX"], ["/XX"]),
        ("/[!ab]X", ["/XX"], ["/aX"]),
        ("/[X]", ["/X"], ["/a"]),
        ("/[]", ["/[]"], ["/]"]),
        ("/[!]", ["/[!]"], ["/a"]),
        ("/[]x", ["/[]x"], ["/x"]),
        ("[a]b", ["ab"], ["[a]b", "b"]),
        ("/[a-c]x", ["/ax", "/bx", "/cx"], ["/dx", "/-x"]),
        ("/[a-cx-z]", ["/b", "/y"], ["/d", "/-"]),
        ("/[-c]x", ["/-x", "/cx"], ["/ax"]),
        ("/[c-]x", ["/-x", "/cx"], ["/ax"]),
        ("/[a-c-e]", ["/a", "/b", "/c", "/-", "/e"], ["/d"]),
        ("/[ab-d]", ["/a", "/b", "/c", "/d"], ["/-", "/e"]),
        ("/[.-0]", ["/.", "/0"], ["//", "/1"]),
        ("/[\\]", ["/\\"], ["/]"]),
        ("/a[bc]d[ef]g", ["/abdeg", "/acdfg"], ["/abdg", "/a[bc]deg"]),
    ],
)
def test_patterns_by_what_they_fit(pattern: str, fits: list[str], not_fits: list[str]) -> None:
    matches = wildcard(pattern)
    assert [path for path in fits if matches(path.encode()) is not True] == []
    assert [path for path in not_fits if matches(path.encode()) is not False] == []


def test_a_range_that_runs_backwards_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^'/\[b-a\]': bad character range b-a"):
        wildcard("/[b-a]")


@pytest.mark.parametrize(
    ("pattern", "begin"),
    [
        ("/X", "/X"),
        ("/a", "/a"),
        ("/a*b", "/a"),
        ("/a?b*", "/a"),
        ("/a*[b]?", "/a"),
        ("/a[b]", "/a"),
        ("", ""),
        ("*", ""),
    ],
)
def test_the_literal_part_of_a_pattern(pattern: str, begin: str) -> None:
    assert literal(pattern) == begin


def test_a_program_is_one_of_several_by_its_name_or_its_path() -> None:
    test = program_test(("a", "/b/*"))
    assert test((b"/x/c", b"/b/c")) is True
    assert test((b"/x/a/b", b"/y/b/c")) is False
    assert test((b"a",)) is True


@pytest.mark.parametrize(
    ("path", "concerns"),
    [
        (b"/a", True),
        (b"/ab", True),
        (b"/b", False),
        (b"a", True),
        (b"", True),
        (b"/b//a", True),
        (b"/b/../a", True),
        (b"/b/", False),
        (b"//a", True),
        (b"b/c", True),
        (b"/b.", False),
    ],
)
def test_what_the_cheap_test_lets_through(path: bytes, concerns: bool) -> None:
    assert PathRules(Rules(redirects=(RedirectRule("/a", "/b"),))).may_concern(path) is concerns


def test_where_rules_begin() -> None:
    redirects = (RedirectRule("/a/b", "/x"), RedirectRule("/a/b/c", "/x", PREFIX), RedirectRule("/e", "/x"))
    faults = (FaultRule("/d/*", 5, PATTERN), FaultRule("/c/[a]", 5))
    rules = Rules(redirects=redirects, faults=faults, masks=(MaskRule("/m"),), retries=(RetryRule("/r"),))
    assert PathRules(rules).roots == (b"/a/b", b"/c/[a]", b"/d/", b"/e", b"/m")
    assert PathRules(Rules()).roots == ()
    assert PathRules(Rules()).decide(b"/a", OPENAT) == Decision()


def test_the_first_rule_that_fits_counts() -> None:
    masks = (MaskRule("/a", (Group.CHANGE,)), MaskRule("/a"), MaskRule("/a/b"))
    faults = (
        FaultRule("/a", 1, PREFIX, groups=(Group.STAT,)),
        FaultRule("/a", 2, PREFIX),
        FaultRule("/a/b", 3),
    )
    redirects = (
        RedirectRule("/a/b", "/s", groups=(Group.STAT,)),
        RedirectRule("/a/b", "/1"),
        RedirectRule("/a/b", "/2"),
    )
    decided = PathRules(Rules(masks=masks, faults=faults, redirects=redirects)).decide(b"/a/b", OPENAT)
    assert decided == Decision((redirects[1], b"/1"), mask=masks[1], fault=faults[1])
    assert decided.fault is faults[1]
    assert decided.mask is masks[1]


def test_a_mask_or_a_fault_alone_is_a_decision() -> None:
    mask, fault = MaskRule("/a"), FaultRule("/b", 5)
    rules = PathRules(Rules(masks=(mask,), faults=(fault,)))
    assert rules.decide(b"/a", OPENAT) == Decision(mask=mask)
    assert rules.decide(b"/b", OPENAT) == Decision(fault=fault)
    assert rules.decide(b"/ab", OPENAT) is rules.decide(b"/c", OPENAT)


def test_a_mask_for_close_is_one_for_the_open_before_it() -> None:
    mask = MaskRule("/a", (Group.CLOSE,))
    rules = PathRules(Rules(masks=(mask,)))
    assert rules.decide(b"/a", OPENAT).mask is mask
    assert rules.decide(b"/a", PATH_CALLS[83]).mask is None
    assert PathRules(Rules(masks=(MaskRule("/a", (Group.CHANGE,)),))).decide(b"/a", OPENAT).mask is None


def test_a_mount_table_has_its_mask_and_its_fault() -> None:
    mask, fault = MaskRule("/proc"), FaultRule("/proc/mounts", 5)
    rules = Rules(
        mounts=(MountRule("9p"),),
        masks=(mask,),
        faults=(fault,),
        redirects=(RedirectRule("/proc/mounts", "/x"),),
    )
    assert PathRules(rules).decide(b"/proc/mounts", OPENAT) == Decision(
        mount_table=True, mask=mask, fault=fault
    )


def test_targets() -> None:
    exact = RedirectRule("/e", "/x/{path}")
    rules = PathRules(Rules(redirects=(exact, RedirectRule("/c", None, content="text"))))
    assert rules.decide(b"/e", OPENAT).redirect == (exact, b"/x/{path}")
    redirect = rules.decide(b"/c", OPENAT).redirect
    assert redirect is not None
    assert redirect[1] == b""


def test_retries_of_a_calls_return_need_the_folder() -> None:
    first, second = RetryRule("/a", exits=("openat",)), RetryRule("/b", exits=("getdents64",))
    rules = PathRules(Rules(retries=(first, second)))
    assert rules.retries(b"/a/x", Group.OPEN, exit_of="openat") is first
    assert rules.retries(b"/a/./x", Group.OPEN) is first
    assert rules.retries(b"/b", Group.OPEN) is second
    assert rules.retries(b"/b", Group.OPEN, exit_of="openat") is None
    assert rules.retries(b"/c//../a", Group.OPEN, exit_of="openat") is first
    assert rules.retries(b"/c/../a", Group.OPEN, exit_of="openat") is first
    assert rules.retries(b"/c", Group.OPEN, exit_of="openat") is None
    assert rules.retries(b"/c", Group.OPEN) is None


def test_the_old_names_are_those_of_redirects_that_have_a_target() -> None:
    groups = (Group.OPEN, Group.READLINK)
    redirects = (
        RedirectRule("/c", None, groups=groups, content="text"),
        RedirectRule("/n", "/t"),
        RedirectRule("/p*", "/t", PATTERN, groups),
        RedirectRule("/e", "/t", groups=groups),
        RedirectRule("/f", "/t/f", PREFIX, groups),
        RedirectRule("/g", "/t", groups=groups),
    )
    rules = PathRules(Rules(redirects=redirects))
    assert rules.original(b"/t") == b"/e"
    assert rules.original(b"/t/f") == b"/f"
    assert rules.original(b"/t/f/a") == b"/f/a"
    assert rules.original(b"/t/x") is None


def test_each_reason_why_a_path_is_left_alone() -> None:
    rules = PathRules(
        Rules(
            redirects=(
                RedirectRule("/a", "/x", groups=(Group.OPEN, Group.STAT)),
                RedirectRule("/p", "/x", PREFIX),
            ),
            faults=(FaultRule("/f", 5),),
        )
    )
    assert rules.explain(b"/a/", Group.ACCESS) == "redirect /a is for open, stat, and this is access"
    assert rules.explain(b"/p/x", Group.STAT) == "redirect /p/** is for open, and this is stat"
    assert rules.explain(b"/f/x", Group.OPEN) == "fault 5 /f is for that path alone, not for what is below"
    assert rules.explain(b"/a", Group.OPEN) == rules.explain(b"/px", Group.OPEN) == "no rule's path fits"
