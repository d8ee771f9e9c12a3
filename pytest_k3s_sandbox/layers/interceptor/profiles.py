"""Selects the rules of each program."""

from __future__ import annotations

import errno
from typing import Final

from pytest_k3s_sandbox.layers.interceptor import filter as seccomp
from pytest_k3s_sandbox.layers.interceptor import procfs, repeating, skipping
from pytest_k3s_sandbox.layers.interceptor.filter import Stops
from pytest_k3s_sandbox.layers.interceptor.matching import PathRules, program_test
from pytest_k3s_sandbox.layers.interceptor.rules import NO_RULES, Rules, reads_only, trapped_calls
from pytest_k3s_sandbox.layers.interceptor.syscalls import NUMBERS, Group, returning


class Profile:
    """The rules of one program, prepared.

    Attributes:
        rules: The rules.
        paths: The rules for paths.
        places: The folders of statfs rules; None if a rule applies to every path.
        reads_links: Whether readlink on redirected files returns the original path.
        masks_close: Whether the tracer tracks descriptors of masked paths.
        retries: Whether there is a retry rule.
        exits: Whether a retry rule watches the return of calls.
        repeated: The numbers of the calls that code inside a Go program repeats; see :mod:`.repeating`.
        page: The content of the page for a Go program; empty if it gets none. See :func:`.repeating.content`.
        filter: The BPF filter to load into the program; empty if the filter of every program is enough.
    """

    __slots__ = (
        *("exits", "filter", "masks_close", "page", "paths", "places", "reads_links", "repeated"),
        *("retries", "rules"),
    )

    def __init__(self, rules: Rules, everyones: Rules | None) -> None:
        """Prepare; ``everyones`` are the rules whose filter every program has, including this one."""
        self.rules = rules
        self.paths = PathRules(rules)
        self.places = None
        if all(rule.under is not None for rule in rules.statfs):
            self.places = tuple(
                {rule.under for rule in rules.statfs if rule.under is not None}
                | {rule.under for rule in rules.retries if rule.exits and Group.STATFS in rule.groups}
            )
        self.reads_links = any(
            Group.READLINK in rule.groups and rule.target is not None for rule in rules.redirects
        )
        self.masks_close = any(Group.CLOSE in rule.groups for rule in rules.masks)
        self.retries = bool(rules.retries)
        self.exits = any(rule.exits for rule in rules.retries)
        self.repeated = repeated_calls(rules)
        tests = skipping.prefixes(rules, self.paths, self.repeated)
        self.page = repeating.content(self.repeated, tests) if self.repeated or tests else b""
        self.filter = b""
        if everyones is not None:
            mine, known = kinds_of_stops(rules), kinds_of_stops(everyones)
            if not all(covers(known.get(name, Stops(0)), kind) for name, kind in mine.items()):
                self.filter = filter_of(rules)

    def repeats(self, pointer: int, number: int) -> bool:
        """Return whether code inside the program repeats a call; ``pointer`` is behind its instruction."""
        return repeating.inside(pointer) and number in self.repeated


def covers(known: Stops, wanted: Stops) -> bool:
    """Return whether one condition for a stop includes another.

    A program's page is made of all its rules, so any of its filters may pass what the page skips.
    """
    return Stops.ALWAYS in known or wanted & ~Stops.CONCERNED in known


def repeated_calls(rules: Rules) -> frozenset[int]:
    """Return the numbers of the calls that code inside a Go program repeats.

    These are all calls of a retry rule that watches returns, except calls that another rule makes fail with
    EINTR.
    """
    groups = (group for rule in rules.retries if rule.exits for group in rule.groups)
    failing = (rule.calls for rule in rules.faults if rule.errno == errno.EINTR)
    return frozenset(NUMBERS[name] for name in returning(*groups).difference(*failing))


def kinds_of_stops(rules: Rules) -> dict[str, Stops]:
    """Return the condition of each call's stop; other calls never stop."""
    others = rules._replace(retries=())
    reading = reads_only(others)
    always = trapped_calls(others) - reading
    exits = frozenset[str]().union(*(rule.exits for rule in rules.retries))
    refused = frozenset[str]().union(*(rule.refused for rule in rules.refusals))
    testable = skipping.testable(rules)
    return {
        name: (Stops.ALWAYS if name in always else Stops(0))
        | (Stops.READING if name in reading else Stops(0))
        | (Stops.RETURNING if name in exits else Stops(0))
        | (Stops.REFUSED if name in refused else Stops(0))
        | (Stops.CONCERNED if name in testable else Stops(0))
        for name in trapped_calls(rules) | refused
    }


def filter_of(rules: Rules, *, probing: bool = False) -> bytes:
    """Return the filter for rules; ``probing`` as for :func:`.filter.build`."""
    return seccomp.packed(seccomp.build(kinds_of_stops(rules), probing=probing))


class Profiles:
    """Finds the profile of a process.

    Attributes:
        everyones: The rules without ``programs``.
        selective: Whether there are rules for some programs only.
        retries: Whether a rule handles signals.
        paged: Whether code of ours comes into every Go program; see :mod:`.repeating`.
    """

    def __init__(self, rules: Rules) -> None:
        """Prepare; ``rules`` must have its tree filled in."""
        self._rules = rules
        self.everyones = rules.only(lambda programs: not programs)
        self.retries = bool(rules.retries)
        self._tests = {
            programs: program_test(programs) for programs in {rule.programs for rule in rules.every()} - {()}
        }
        self.selective = bool(self._tests)
        self._everyone = Profile(self.everyones, None)
        self.paged = bool(self._everyone.page)
        self._without_rules: Final = Profile(NO_RULES, None)
        self._known: dict[frozenset[tuple[str, ...]], Profile] = {frozenset(): self._everyone}
        self._root = procfs.root_identity()

    def of(self, tid: int) -> Profile:
        """Return the profile of the program that a thread executes.

        No rule applies to a program in another root, such as a container's process.
        """
        wanted: frozenset[tuple[str, ...]] = frozenset()
        if self._tests:
            paths = procfs.program_paths(tid)
            wanted = frozenset(programs for programs, test in self._tests.items() if test(paths))
        if not wanted and self.everyones == NO_RULES:
            return self._without_rules
        if procfs.root_identity(tid) not in {None, self._root}:
            return self._without_rules
        profile = self._known.get(wanted)
        if profile is None:
            rules = self._rules.only(lambda programs: not programs or programs in wanted)
            profile = self._known[wanted] = Profile(rules, self.everyones)
        return profile
