"""The test of paths in Go programs, held against what the tracer does."""

from __future__ import annotations

import errno
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_k3s_sandbox.layers.interceptor import repeating, requests, skipping
from pytest_k3s_sandbox.layers.interceptor.loading import load_preset, preset_names
from pytest_k3s_sandbox.layers.interceptor.matching import NOTHING
from pytest_k3s_sandbox.layers.interceptor.memory import Memory
from pytest_k3s_sandbox.layers.interceptor.overlays import Overlays
from pytest_k3s_sandbox.layers.interceptor.profiles import Profile, kinds_of_stops
from pytest_k3s_sandbox.layers.interceptor.repeating import content
from pytest_k3s_sandbox.layers.interceptor.requests import ORIG_RAX, RIP, Registers
from pytest_k3s_sandbox.layers.interceptor.rules import (
    EXACT,
    FAILABLE,
    MASKABLE,
    PATTERN,
    PREFIX,
    REDIRECTABLE,
    RETRIABLE,
    CgroupsRule,
    FaultRule,
    MaskRule,
    MountRule,
    RedirectRule,
    RefuseRule,
    RetryRule,
    Rules,
    StatfsRule,
    StatxRule,
    SubstituteRule,
)
from pytest_k3s_sandbox.layers.interceptor.stats import Stats
from pytest_k3s_sandbox.layers.interceptor.syscalls import NUMBERS, PATH_CALLS, Group, returning
from pytest_k3s_sandbox.layers.interceptor.trapped import TrappedCalls
from support.go_page import Page, is_far, processor, skips


def page_of(profile: Profile) -> Page:
    return Page(profile.page or content((), {}))


def prefixes_of(profile: Profile, name: str) -> tuple[bytes, ...] | None:
    """Return the prefixes of a call with a test."""
    return skipping.prefixes(profile.rules, profile.paths, profile.repeated).get(NUMBERS[name])


# Rules: what the tracer would do with a call that was skipped.


class FakeRegisters(Registers):
    """Registers of no tracee."""

    def load(self, tid: int) -> None:
        """Leave them as they are."""

    def store(self, tid: int) -> None:
        """Fail: the call would have been changed."""
        raise AssertionError(tid)


class FakeMemory(Memory):
    """Memory with one path."""

    def __init__(self, path: bytes) -> None:
        """Keep the path."""
        self.path = path

    def read_path(self, _tid: int, _address: int) -> bytes | None:
        """Return the path."""
        return self.path


def is_left_alone(profile: Profile, number: int, path: bytes) -> bool:
    """Return whether the tracer leaves a call alone that a Go program makes."""
    registers = FakeRegisters()
    registers.words[ORIG_RAX], registers.words[RIP] = number, repeating.SKIPPED
    calls = TrappedCalls(
        Stats(), cast("Overlays", None), registers, FakeMemory(path), lambda tid: tid, entry_first=False
    )
    call = PATH_CALLS[number]
    return profile.paths.decide(path, call) is NOTHING and calls.at_call(1, profile) is None


@pytest.mark.parametrize(
    ("label", "ours", "fault", "handled"),
    [
        ("character", True, True, True),
        ("test", True, True, True),
        ("skip", True, True, False),
        ("character", False, True, False),
        ("character", True, False, False),
    ],
)
def test_only_a_fault_of_our_code_is_kept_from_the_program(
    label: str, ours: bool, fault: bool, handled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal of kill(2) may come while the code runs, and a program may lie where the page would."""

    class Stored(FakeRegisters):
        def store(self, tid: int) -> None:
            stored.append(tid)

    class Text(FakeMemory):
        def read(self, _tid: int, address: int, length: int) -> bytes:
            assert address == repeating.ADDRESS
            return (content((), {}) if ours else b"").ljust(length, b"\0")

    stored: list[int] = []
    monkeypatch.setattr(requests, "is_fault", lambda _tid: fault)
    registers = Stored()
    registers.words[RIP] = before = repeating.ADDRESS + repeating._LABELS[label]
    calls = TrappedCalls(
        Stats(), cast("Overlays", None), registers, Text(b""), lambda tid: tid, entry_first=False
    )
    assert calls.at_fault(7) is handled
    assert stored == [7] * handled
    assert registers.words[RIP] == (repeating.ADDRESS + repeating._LABELS["call"] if handled else before)


names = st.sampled_from(["a", "b", "ab", ".c", "proc", "self", "fd", "sys", "mounts", "cgroup", "5"])
places = st.lists(names, max_size=3).map(lambda parts: "/" + "/".join(parts))
rule_paths = st.builds(lambda place, slash: place + "/" * (slash and place != "/"), places, st.booleans())
patterns = st.builds(lambda place, end: place + end, places, st.sampled_from(["*", "/*", "/**", "?", "[ab]"]))
kinds = st.sampled_from([EXACT, PREFIX])


def some(groups: tuple[Group, ...]) -> st.SearchStrategy[tuple[Group, ...]]:
    return st.lists(st.sampled_from(groups), min_size=1, max_size=3, unique=True).map(tuple)


def calls(*groups: Group) -> st.SearchStrategy[tuple[str, ...]]:
    found = sorted(returning(*groups))
    return st.lists(st.sampled_from(found), max_size=3, unique=True).map(tuple)


def rules_for_paths(
    make: type[RedirectRule | FaultRule], groups: tuple[Group, ...], **fields: object
) -> st.SearchStrategy[object]:
    options = {name: st.just(value) for name, value in fields.items()}
    plain = st.builds(make, path=rule_paths, kind=kinds, groups=some(groups), **options)
    return plain | st.builds(make, path=patterns, kind=st.just(PATTERN), groups=some(groups), **options)


def few(rule: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(rule, max_size=2).map(tuple)


rule_sets = st.builds(
    Rules,
    statfs=few(
        st.builds(StatfsRule, st.just(None), st.just(1), under=rule_paths | st.none())
        | st.builds(StatfsRule, st.just(None), st.just(1), under=rule_paths)
    ),
    redirects=few(rules_for_paths(RedirectRule, REDIRECTABLE, target="/none")),
    mounts=few(st.builds(MountRule, st.just("9p"), only=calls(Group.OPEN))),
    masks=few(st.builds(MaskRule, rule_paths, some(MASKABLE))),
    faults=few(
        rules_for_paths(FaultRule, FAILABLE, errno=errno.EINTR)
        | rules_for_paths(FaultRule, FAILABLE, errno=errno.EIO)
    ),
    retries=few(st.builds(RetryRule, rule_paths, some(RETRIABLE), exits=calls(*REDIRECTABLE, Group.STATFS))),
    statx=few(st.builds(StatxRule, rule_paths)),
    cgroups=few(st.builds(CgroupsRule, st.just("/served"), only=calls(Group.OPEN))),
    substitutes=few(
        st.builds(SubstituteRule, rule_paths, st.just("x"), st.just("y"), kind=kinds, only=calls(Group.OPEN))
    ),
    refusals=few(st.builds(RefuseRule, calls(Group.OPEN, Group.STAT).filter(len))),
)
separators = st.sampled_from(["/"] * 8 + ["//", "/./", "/../"])
tables = st.sampled_from([b"/proc/mounts", b"/proc/self/mountinfo", b"/proc/cgroups", b"/proc/5/cgroup"])
program_paths = tables | st.builds(
    lambda parts, end: "".join(separator + name for separator, name in parts) + end,
    st.lists(st.tuples(separators, names), min_size=1, max_size=4),
    st.sampled_from(["", "", "", "/", "/.", "x"]),
).map(str.encode)


def test_a_call_whose_return_the_tracer_has_to_look_at_is_not_skipped() -> None:
    """The page repeats none that a rule lets fail with EINTR."""
    retry = RetryRule("/r", (Group.OPEN, Group.STATFS), exits=("openat",))
    failing = FaultRule("/f", errno.EINTR, groups=(Group.OPEN, Group.STATFS))
    for fault, prefixes in ((failing, (b"/f", b"/r")), (failing._replace(errno=errno.EIO), (b"/f",))):
        profile = Profile(Rules(retries=(retry,), faults=(fault,)), None)
        assert prefixes_of(profile, "openat") == prefixes_of(profile, "statfs") == prefixes


@processor
@settings(max_examples=250, deadline=None)
@given(rule_sets, st.lists(program_paths, min_size=5, max_size=20))
def test_no_call_is_skipped_that_the_tracer_does_something_with(rules: Rules, paths: list[bytes]) -> None:
    profile = Profile(rules, None)
    page = page_of(profile)
    stops = kinds_of_stops(rules)
    unrepeated = Profile(rules._replace(retries=()), None)
    for number, call in PATH_CALLS.items():
        if call.name not in stops:
            continue
        for path in paths:
            if skips(page, number, path):
                # Of what the page repeats itself, the tracer must not look at the return.
                left = unrepeated if number in profile.repeated else profile
                assert is_left_alone(left, number, path), (call.name, path)
            elif call.name in skipping.testable(rules):
                roots = prefixes_of(profile, call.name)
                assert roots is None or not is_far(path, roots), (call.name, path)


KUBELETS = (
    (b"/var/lib/kubelet/pods/5/volumes", ("openat", "openat2", "unlinkat", "mkdirat", "statx")),
    (b"/etc/resolv.conf", ("openat",)),
    (b"/var/log/pods", ("openat",)),
    (b"/dev/null", ("openat",)),
    (b"/sys/fs/cgroup/cpu/kubepods/pod5/cpu.shares", ("openat", "openat2")),
    (b"/proc", ("openat",)),
)
"""Most of what a kubelet calls while pods start and end, and no rule concerns."""
CONCERNED = (
    (b"/proc/sys/vm/overcommit_memory", "openat"),
    (b"/proc/self/mountinfo", "openat"),
    (b"/sys/fs/cgroup/cpu/kubepods", "mkdirat"),
    (b"/sys/fs/cgroup/cpu/kubepods", "unlinkat"),
    (b"/sys/fs/cgroup/cpu/kubepods", "statx"),
    (b"/sys/fs/cgroup", "statfs"),
    (b"/var/lib/kubelet", "statfs"),
)


@processor
def test_what_a_kubelet_does_most_of_the_time_is_skipped() -> None:
    page = page_of(Profile(load_preset("exp08").with_tree("/t"), None))
    for path, called in KUBELETS:
        assert all(skips(page, NUMBERS[name], path) for name in called), path
    for path, name in CONCERNED:
        assert not skips(page, NUMBERS[name], path), path


@processor
@pytest.mark.parametrize("name", preset_names())
def test_every_call_of_a_preset_that_can_have_a_test_has_one(name: str) -> None:
    profile = Profile(load_preset(name).with_tree("/t"), None)
    page = page_of(profile)
    for call in skipping.testable(profile.rules):
        assert skips(page, NUMBERS[call], b"/etc/resolv.conf"), call


def test_rules_for_every_path_leave_a_call_without_a_test() -> None:
    assert skipping.testable(Rules(statfs=(StatfsRule(1, 2),))) == frozenset()
    assert skipping.testable(Rules(statfs=(StatfsRule(1, 2, under="/a"),))) == {"statfs"}
    links = Rules(redirects=(RedirectRule("/a", "/b", groups=(Group.READLINK, Group.ACCESS)),))
    assert skipping.testable(links) == {"access", "faccessat", "faccessat2"}
    for path in ("/", "//"):
        rules = Rules(masks=(MaskRule(path),))
        assert skipping.prefixes(rules, Profile(rules, None).paths, frozenset()) == {}
    retry = RetryRule("/a", exits=("openat",))
    assert skipping.testable(Rules(retries=(retry,))) == frozenset()
