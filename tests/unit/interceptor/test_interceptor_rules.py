"""What rules say of a path, and what they trap."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.layers.interceptor.loading import load_preset
from pytest_k3s_sandbox.layers.interceptor.rules import (
    Decision,
    MaskRule,
    MountRule,
    PathRules,
    RedirectRule,
    Rules,
    StatfsRule,
    below,
    normal,
    trapped_calls,
)
from pytest_k3s_sandbox.layers.interceptor.syscalls import PATH_CALLS, STATFS_CALLS, Group, names

OPENS = {"open", "openat", "openat2", "creat"}
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
        (load_preset("exp04").with_tree(None), set()),
        (load_preset("exp04").with_tree("/tree"), OPENS),
        (load_preset("exp06").with_tree("/tree"), OPENS | {"statfs", "fstatfs"}),
        (load_preset("exp08").with_tree("/tree"), OPENS | CHANGES | {"statfs", "fstatfs"}),
    ],
)
def test_rules_decide_what_is_trapped(rules: Rules, calls: set[str]) -> None:
    assert trapped_calls(rules) == calls


def test_the_numbers_are_libseccomps() -> None:
    pyseccomp = pytest.importorskip("pyseccomp")
    for number, name in [*((n, call.name) for n, call in PATH_CALLS.items()), *STATFS_CALLS.items()]:
        assert pyseccomp.resolve_syscall(pyseccomp.Arch.X86_64, name) == number


def test_each_name_is_there_once() -> None:
    assert len(names(*Group)) == len(PATH_CALLS)


REDIRECTS = Rules(
    redirects=(
        RedirectRule("/proc/diskstats", "{tree}/proc/diskstats"),
        RedirectRule("/proc/sys", "{tree}/proc/sys", prefix=True),
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
    decided = PathRules(REDIRECTS).decide(path, Group.OPEN).redirect
    assert (decided[1] if decided else None) == target
    assert PathRules(REDIRECTS).decide(path, Group.STAT) == Decision()


@given(paths)
def test_the_cheap_test_excludes_nothing_that_matters(path: bytes) -> None:
    rules = PathRules(load_preset("exp08").with_tree("/t"))
    if not rules.may_concern(path):
        assert rules.decide(path, Group.OPEN) == Decision()


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
        (b"/proc/self/mountstats", False),
        (b"/proc/self/mountinfox", False),
        (b"/proc/x/mountinfo", False),
        (b"/x/proc/self/mountinfo", False),
    ],
)
def test_mount_tables(path: bytes, table: bool) -> None:
    rules = PathRules(Rules(mounts=(MountRule("9p"),)))
    assert rules.decide(path, Group.OPEN).mount_table is table
    assert not rules.decide(path, Group.STAT).mount_table
    assert not PathRules(REDIRECTS).decide(path, Group.OPEN).mount_table


def test_masks_are_for_opens_and_changes_below_the_folder() -> None:
    mask = MaskRule("/sys/fs/cgroup")
    rules = PathRules(Rules(masks=(mask,)))
    assert rules.decide(b"/sys/fs/cgroup/memory/a", Group.OPEN).mask is mask
    assert rules.decide(b"/sys/fs/cgroup", Group.CHANGE).mask is mask
    assert rules.decide(b"/sys/fs/cgroupx", Group.OPEN).mask is None
    assert rules.decide(b"/sys/fs/cgroup", Group.STAT).mask is None


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
