"""What rules say of a path, and what they trap."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.layers.interceptor.loading import load_preset, parse_rules
from pytest_k3s_sandbox.layers.interceptor.matching import (
    Decision,
    PathRules,
    below,
    literal,
    names_a_folder,
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
    StatfsRule,
    StatxRule,
    reads_only,
    trapped_calls,
)
from pytest_k3s_sandbox.layers.interceptor.syscalls import NUMBERS, PATH_CALLS, STATFS_CALLS, Group, names

OPENS = {"open", "openat", "openat2", "creat"}
OPENAT, NEWFSTATAT = PATH_CALLS[257], PATH_CALLS[262]
CHANGES = {"mkdir", "mkdirat", "rmdir", "unlink", "unlinkat"}

paths = st.lists(st.sampled_from(["proc", "sys", "kernel", "x", ".", "..", ""]), max_size=8).map(
    lambda parts: ("/" + "/".join(parts)).encode()
)


@pytest.mark.parametrize(
    ("rules", "calls"),
    [
        (Rules(), set()),
        (Rules(statfs=(StatfsRule(1, 2),)), {"statfs", "fstatfs"}),
        (Rules(redirects=(RedirectRule("/a", "/b"),)), OPENS),
        (
            Rules(redirects=(RedirectRule("/a", "/b", groups=(Group.STAT, Group.ACCESS)),)),
            {"stat", "lstat", "newfstatat", "statx", "access", "faccessat", "faccessat2"},
        ),
        (Rules(mounts=(MountRule("9p"),)), OPENS),
        (Rules(masks=(MaskRule("/sys"),)), OPENS | CHANGES),
        (Rules(masks=(MaskRule("/sys", (Group.CLOSE,)),)), OPENS | {"close"}),
        (Rules(faults=(FaultRule("/a", 5, groups=(Group.READLINK,)),)), {"readlink", "readlinkat"}),
        (Rules(faults=(FaultRule("/a", 5, groups=(Group.STATFS,)),)), {"statfs"}),
        (Rules(retries=(RetryRule("/a", (Group.STAT, Group.LIST)),)), set()),
        (
            Rules(retries=(RetryRule("/a", (Group.LIST,), exits=("getdents64", "stat")),)),
            {"getdents64", "stat"},
        ),
        (Rules(statx=(StatxRule("/sys"),)), {"statx"}),
        (load_preset("exp04").with_tree(None), set()),
        (load_preset("exp04").with_tree("/tree"), OPENS),
        (load_preset("exp06").with_tree("/tree"), OPENS | {"statfs", "fstatfs"}),
        (
            load_preset("exp08").with_tree("/tree"),
            OPENS | CHANGES | {"statfs", "fstatfs", "statx", "access", "faccessat", "faccessat2"},
        ),
    ],
)
def test_rules_decide_what_is_trapped(rules: Rules, calls: set[str]) -> None:
    assert trapped_calls(rules) == calls


def test_the_numbers_are_libseccomps() -> None:
    pyseccomp = pytest.importorskip("pyseccomp")
    for name, number in NUMBERS.items():
        assert pyseccomp.resolve_syscall(pyseccomp.Arch.X86_64, name) == number


def test_each_name_is_there_once() -> None:
    assert len(names(*Group) | set(STATFS_CALLS.values())) == len(NUMBERS) == len(PATH_CALLS) + 4


REDIRECTS = Rules(
    redirects=(
        RedirectRule("/proc/diskstats", "{tree}/proc/diskstats"),
        RedirectRule("/proc/sys", "{tree}/proc/sys", PREFIX),
    )
).with_tree("/t")


@pytest.mark.parametrize(
    ("path", "target"),
    [
        (b"/proc/diskstats", b"/t/proc/diskstats"),
        (b"/proc/diskstats/", b"/t/proc/diskstats"),
        (b"/proc/diskstatsx", None),
        (b"/proc/diskstats/x", None),
        (b"/proc/sys", b"/t/proc/sys"),
        (b"/proc/sys/kernel/panic", b"/t/proc/sys/kernel/panic"),
        (b"/proc/sysx", None),
        (b"/proc/./sys//kernel/../vm/x", b"/t/proc/sys/vm/x"),
        (b"//proc/sys/a", b"/t/proc/sys/a"),
        (b"/proc/sys/../x", None),
        (b"/proc/self/mountinfo", None),
        (b"/proc/sys/\xff", b"/t/proc/sys/\xff"),
        (b"/", None),
    ],
)
def test_redirects(path: bytes, target: bytes | None) -> None:
    decided = PathRules(REDIRECTS).decide(path, OPENAT).redirect
    assert (decided[1] if decided else None) == target
    assert PathRules(REDIRECTS).decide(path, NEWFSTATAT) == Decision()


@pytest.mark.parametrize(
    ("path", "folder"),
    [(b"/a", False), (b"/a/", True), (b"/a/.", True), (b"/a/..", True), (b"/a.", False), (b"/a/...", False)],
)
def test_paths_that_only_name_folders(path: bytes, folder: bool) -> None:
    assert names_a_folder(path) is folder


@given(paths)
def test_the_cheap_test_excludes_nothing_that_matters(path: bytes) -> None:
    rules = PathRules(load_preset("exp08").with_tree("/t"))
    if not rules.may_concern(path):
        assert rules.decide(path, OPENAT) == Decision()


@given(paths)
def test_normal_paths_are_normpaths(path: bytes) -> None:
    assert normal(path) == posixpath.normpath(path).replace(b"//", b"/")


@pytest.mark.parametrize(
    ("path", "table"),
    [
        (b"/proc/mounts", True),
        (b"/proc/self/mounts", True),
        (b"/proc/self/mountinfo", True),
        (b"/proc/thread-self/mountinfo", True),
        (b"/proc/17/task/18/mountinfo", True),
        (b"/proc/17/mountinfo", True),
        (b"/proc//self/mountinfo", True),
        (b"/proc/self/mountstats", True),
        (b"/proc/self/task/18/mounts", True),
        (b"/proc/thread-self/task/18/mounts", False),
        (b"/proc/mountinfo", False),
        (b"/proc/self/mountinfox", False),
        (b"/proc/x/mountinfo", False),
        (b"/x/proc/self/mountinfo", False),
    ],
)
def test_mount_tables(path: bytes, table: bool) -> None:
    rules = PathRules(Rules(mounts=(MountRule("9p"),)))
    assert rules.decide(path, OPENAT).mount_table is table
    assert not rules.decide(path, NEWFSTATAT).mount_table
    assert not PathRules(REDIRECTS).decide(path, OPENAT).mount_table


def test_masks_are_for_opens_and_changes_below_the_folder() -> None:
    mask = MaskRule("/sys/fs/cgroup")
    rules = PathRules(Rules(masks=(mask,)))
    assert rules.decide(b"/sys/fs/cgroup/memory/a", OPENAT).mask is mask
    assert rules.decide(b"/sys/fs/cgroup", PATH_CALLS[83]).mask is mask
    assert rules.decide(b"/sys/fs/cgroupx", OPENAT).mask is None
    assert rules.decide(b"/sys/fs/cgroup", NEWFSTATAT).mask is None


def test_a_prefix_that_covers_another_is_tested_alone() -> None:
    rules = Rules(
        redirects=REDIRECTS.redirects, mounts=(MountRule("9p"),), masks=(MaskRule("/sys/fs/cgroup"),)
    )
    assert PathRules(rules).roots == (b"/proc/", b"/sys/fs/cgroup")


def test_without_a_tree_only_redirects_into_it_are_left_out() -> None:
    stays = RedirectRule("/a", "/b")
    assert Rules(redirects=(stays, RedirectRule("/c", "{tree}/c"))).with_tree(None).redirects == (stays,)


def test_below() -> None:
    assert below("/a/b", b"/a")
    assert below(b"/a", "/a")
    assert below("/a", "/")
    assert not below("/ab", "/a")


# Patterns.


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("/proc/*/stat", b"/proc/17/stat", True),
        ("/proc/*/stat", b"/proc/17/task/stat", False),
        ("/proc/**/stat", b"/proc/17/task/18/stat", True),
        ("/a?c", b"/abc", True),
        ("/a?c", b"/a/c", False),
        ("/a[bc]d", b"/acd", True),
        ("/a[!b]d", b"/abd", False),
        ("/a[!b]d", b"/a/d", False),
        ("/a[", b"/a[", True),
        ("/a.b", b"/axb", False),
        ("/a\\d", b"/a1", False),
        ("/*", b"/\n\xff", True),
    ],
)
def test_patterns(pattern: str, path: bytes, fits: bool) -> None:
    assert wildcard(pattern)(path) is fits


@given(st.text("ab*?[/]!-^", max_size=8), st.text("ab/]", max_size=8))
def test_what_a_pattern_fits_begins_with_its_literal_part(pattern: str, path: str) -> None:
    try:
        test = wildcard(pattern)
    except ValueError:  # a range that runs backwards
        return
    if test(path.encode()):
        assert path.startswith(literal(pattern))


def test_a_pattern_leads_to_one_file_or_keeps_the_path() -> None:
    rules = Rules(
        redirects=(
            RedirectRule("/proc/*/limits", "/t/limits", PATTERN),
            RedirectRule("/proc/*/stat*", "{tree}{path}", PATTERN),
        )
    ).with_tree("/t")
    redirects = PathRules(rules)
    assert redirects.roots == (b"/proc/",)
    for path, target in ((b"/proc/1/limits", b"/t/limits"), (b"/proc/1/statm", b"/t/proc/1/statm")):
        decided = redirects.decide(path, OPENAT).redirect
        assert decided is not None
        assert decided[1] == target


def test_a_fault_counts_before_a_redirect_and_a_mask_with_both() -> None:
    fault, mask = FaultRule("/a", 5, PREFIX), MaskRule("/a")
    decision = PathRules(
        Rules(redirects=(RedirectRule("/a/b", "/c"),), masks=(mask,), faults=(fault,))
    ).decide(b"/a/b", OPENAT)
    assert (decision.fault, decision.mask) == (fault, mask)


def test_redirected_links_have_their_old_name() -> None:
    groups = (Group.OPEN, Group.READLINK)
    rules = PathRules(
        Rules(
            redirects=(
                RedirectRule("/proc/sys", "/t/proc/sys", PREFIX, groups),
                RedirectRule("/proc/x", "/t/x", groups=groups),
                RedirectRule("/y", "/t/y"),
            )
        )
    )
    assert rules.original(b"/t/proc/sys/a") == b"/proc/sys/a"
    assert rules.original(b"/t/x") == b"/proc/x"
    assert rules.original(b"/t/y") is None
    assert rules.original(b"/t/proc/sysx") is None


def test_why_a_path_is_left_alone() -> None:
    rules = PathRules(Rules(redirects=(RedirectRule("/a", "/b"),)))
    assert rules.explain(b"/x", Group.OPEN) == "no rule's path fits"
    assert rules.explain(b"/a", Group.STAT) == "redirect /a is for open, and this is stat"
    assert rules.explain(b"/a/b", Group.OPEN) == "redirect /a is for that path alone, not for what is below"


def test_only_the_named_calls_are_watched_for_a_mount_table() -> None:
    rules = Rules(mounts=(MountRule("9p", only=("openat",)),), statfs=(StatfsRule(1, 2, only=("statfs",)),))
    assert trapped_calls(rules) == {"openat", "statfs"}
    assert PathRules(rules).decide(b"/proc/mounts", OPENAT).mount_table
    assert not PathRules(rules).decide(b"/proc/mounts", PATH_CALLS[437]).mount_table


def test_folders_are_opened_unseen_where_only_mount_tables_are_wanted() -> None:
    mounts = Rules(mounts=(MountRule("9p"),))
    assert reads_only(mounts) == OPENS
    assert reads_only(mounts._replace(masks=(MaskRule("/sys"),))) == set()
    assert reads_only(mounts._replace(masks=(MaskRule("/sys", (Group.CHANGE,)),))) == OPENS


def test_retries_stop_nothing() -> None:
    rule = RetryRule("/sys", (Group.OPEN, Group.STATFS))
    rules = Rules(retries=(rule,))
    assert trapped_calls(rules) == set()
    assert PathRules(rules).retries(b"/sys/./a", Group.OPEN) is rule
    assert PathRules(rules).retries(b"/sys/./a", Group.STATFS) is rule
    assert PathRules(rules).retries(b"/sys/a", Group.CLOSE) is None
    assert PathRules(rules).retries(b"/sysx", Group.OPEN) is None
    assert PathRules(rules).retries(b"/sys/a", Group.OPEN, exit_of="openat2") is None
    watched = RetryRule("/sys/fs", (Group.OPEN,), exits=("openat2",))
    paths = PathRules(Rules(retries=(rule, watched)))
    for written in (b"/sys/fs/a", b"/sys/./fs/a", b"//sys//fs/a", b"/sys/x/../fs"):
        assert paths.retries(written, Group.OPEN, exit_of="openat2") is watched
    assert paths.retries(b"/sys/fs/a", Group.OPEN, exit_of="openat2") is watched
    assert paths.retries(b"/sys/fs/a", Group.OPEN, exit_of="openat") is None
    assert paths.retries(b"/sys/a", Group.OPEN, exit_of="openat2") is None
    assert trapped_calls(Rules(retries=(rule, watched))) == {"openat2"}


# Programs.


@pytest.mark.parametrize(
    ("programs", "paths", "wanted"),
    [
        (("runc",), (b"/usr/bin/runc", b"runc"), True),
        (("runc",), (b"/memfd:x (deleted)", b"runc"), True),
        (("runc",), (b"/usr/bin/runcx",), False),
        (("runc",), (b"/runc/x",), False),
        (("kube*", "runc"), (b"/usr/bin/kubelet",), True),
        (("/usr/bin/*",), (b"/usr/bin/kubelet",), True),
        (("/usr/bin/*",), (b"/opt/usr/bin/kubelet",), False),
        (("runc",), (), False),
    ],
)
def test_programs(programs: tuple[str, ...], paths: tuple[bytes, ...], wanted: bool) -> None:
    assert program_test(programs)(paths) is wanted


def test_rules_for_some_programs_are_no_rules_for_others() -> None:
    everyones, runcs = StatfsRule(1, 2), MaskRule("/sys", programs=("runc",))
    rules = Rules(statfs=(everyones,), masks=(runcs,), statx=(StatxRule("/sys", ("runc",)),))
    assert rules.only(lambda programs: not programs) == Rules(statfs=(everyones,))
    assert trapped_calls(rules) == OPENS | CHANGES | {"statfs", "fstatfs", "statx"}


@pytest.mark.parametrize(
    ("pattern", "fits", "not_fits"),
    [
        ("/[-a]", ["/-", "/a"], ["/b"]),
        ("/[a-]", ["/a", "/-"], ["/b"]),
        ("/[!--0]", ["/a"], ["/-", "/."]),
        ("/[a&&b]", ["/a", "/&", "/b"], ["/c"]),
        ("/[[a]", ["/[", "/a"], ["/b"]),
    ],
)
def test_a_bracket_has_what_a_shell_reads_in_it(pattern: str, fits: list[str], not_fits: list[str]) -> None:
    matches = wildcard(pattern)
    assert [path for path in fits if not matches(path.encode())] == []
    assert [path for path in not_fits if matches(path.encode())] == []


def test_each_rule_has_a_name_in_the_statistics() -> None:
    rules = parse_rules(
        """
        [[statfs]]
        original = 0x1021997
        replacement = 0xEF53
        [[statfs]]
        under = "/a"
        replacement = 0xEF53
        [[redirect]]
        prefix = "/b"
        target = "/c"
        [[redirect]]
        path = "/d"
        content = "e"
        [[mount]]
        type = "fuse*"
        under = "/f"
        new_type = "cgroup"
        [[mask]]
        under = "/g"
        [[retry]]
        under = "/h"
        [[statx]]
        under = "/j"
        [[fault]]
        prefix = "/i"
        errno = "EIO"
        """,
        "rules.toml",
    )
    assert [rule.label for rule in rules.every()] == [
        "statfs 0x1021997 -> 0xef53",
        "statfs any -> 0xef53",
        "redirect /b/**",
        "redirect /d",
        "mount fuse* under /f",
        "mask /g",
        "fault 5 /i/**",
        "retry /h",
        "statx /j",
    ]
