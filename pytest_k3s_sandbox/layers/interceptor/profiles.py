"""Which rules are for which program."""

from __future__ import annotations

import errno
from typing import Final

from pytest_k3s_sandbox.layers.interceptor import filter as seccomp
from pytest_k3s_sandbox.layers.interceptor import procfs, repeating
from pytest_k3s_sandbox.layers.interceptor.filter import Stops
from pytest_k3s_sandbox.layers.interceptor.matching import PathRules, program_test
from pytest_k3s_sandbox.layers.interceptor.rules import NO_RULES, Rules, reads_only, trapped_calls
from pytest_k3s_sandbox.layers.interceptor.syscalls import NUMBERS, Group, returning


class Profile:
    """The rules of one program, prepared.

    Attributes:
        rules: The rules.
        paths: Those that concern paths.
        places: The folders of statfs rules; None: there is a rule for every path.
        reads_links: Whether links to redirected files have to look like the original.
        masks_close: Whether descriptors of masked paths are to be remembered.
        retries: Whether interrupted calls are looked at.
        exits: Whether some of them are looked at when they return.
        repeated: The numbers of the calls that are made again inside a Go program; see :mod:`.repeating`.
        filter: What has to be loaded into such a program, as BPF; empty: nothing beyond
            what every program has.
    """

    __slots__ = (
        *("exits", "filter", "masks_close", "paths", "places", "reads_links", "repeated", "retries", "rules"),
    )

    def __init__(self, rules: Rules, everyones: Rules | None) -> None:
        """Prepare; ``everyones`` are the rules whose filter every program has, this one among them."""
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
        self.filter = b""
        if everyones is not None:
            mine, known = kinds_of_stops(rules), kinds_of_stops(everyones)
            if not all(covers(known.get(name, Stops(0)), kind) for name, kind in mine.items()):
                self.filter = filter_of(rules)

    def repeats(self, pointer: int, number: int) -> bool:
        """Tell whether code inside the program makes a call again; ``pointer`` is behind its instruction."""
        return repeating.inside(pointer) and number in self.repeated


def covers(known: Stops, wanted: Stops) -> bool:
    """Tell whether a filter that stops a call for one reason stops it for the other, too."""
    return Stops.ALWAYS in known or wanted in known


def repeated_calls(rules: Rules) -> frozenset[int]:
    """Return the numbers of the calls that are made again inside a Go program.

    These are all calls of a retry rule that watches returns, but those that another rule lets fail with
    EINTR: the program has to see that.
    """
    groups = (group for rule in rules.retries if rule.exits for group in rule.groups)
    failing = (rule.calls for rule in rules.faults if rule.errno == errno.EINTR)
    return frozenset(NUMBERS[name] for name in returning(*groups).difference(*failing))


def kinds_of_stops(rules: Rules) -> dict[str, Stops]:
    """Return when each call has to stop for rules; calls that are not named never stop."""
    others = rules._replace(retries=())
    reading = reads_only(others)
    always = trapped_calls(others) - reading
    exits = frozenset[str]().union(*(rule.exits for rule in rules.retries))
    return {
        name: (Stops.ALWAYS if name in always else Stops(0))
        | (Stops.READING if name in reading else Stops(0))
        | (Stops.RETURNING if name in exits else Stops(0))
        for name in trapped_calls(rules)
    }


def filter_of(rules: Rules, *, probing: bool = False) -> bytes:
    """Return the filter for rules; ``probing`` as for :func:`.filter.build`."""
    return seccomp.packed(seccomp.build(kinds_of_stops(rules), probing=probing))


class Profiles:
    """Finds the profile of a process.

    Attributes:
        everyones: The rules for every program.
        selective: Whether there are rules for some programs only.
        retries: Whether there is a rule that has to do with signals.
        exits: Whether some rule watches the return of calls.
    """

    def __init__(self, rules: Rules) -> None:
        """Prepare; ``rules`` must have its tree filled in."""
        self._rules = rules
        self.everyones = rules.only(lambda programs: not programs)
        self.retries = bool(rules.retries)
        self.exits = any(rule.exits for rule in rules.retries)
        self._tests = {
            programs: program_test(programs) for programs in {rule.programs for rule in rules.every()} - {()}
        }
        self.selective = bool(self._tests)
        self._everyone = Profile(self.everyones, None)
        self._nobody: Final = Profile(NO_RULES, None)
        self._known: dict[frozenset[tuple[str, ...]], Profile] = {frozenset(): self._everyone}
        self._root = procfs.root_identity()

    def of(self, tid: int) -> Profile:
        """Return the profile of the program that a thread executes.

        A program in another root than ours, a container's own process, has none of the rules.
        """
        wanted: frozenset[tuple[str, ...]] = frozenset()
        if self._tests:
            paths = procfs.program_paths(tid)
            wanted = frozenset(programs for programs, test in self._tests.items() if test(paths))
        if not wanted and self.everyones == NO_RULES:
            return self._nobody
        if procfs.root_identity(tid) not in {None, self._root}:
            return self._nobody
        profile = self._known.get(wanted)
        if profile is None:
            rules = self._rules.only(lambda programs: not programs or programs in wanted)
            profile = self._known[wanted] = Profile(rules, self.everyones)
        return profile
