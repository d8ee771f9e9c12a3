"""Which answers are changed: a typed rule set, and what has to be trapped for it.

The types are named tuples: a tracer starts with its program, inside a sandbox whose
files are slow, and ``dataclasses`` alone would be a tenth of that start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from pytest_k3s_sandbox.layers.interceptor.syscalls import STATFS_CALLS, Group, names

TREE: Final = "{tree}"
"""In a redirect's target: the root folder given at run time."""

PATH: Final = "{path}"
"""In the target of a redirect by pattern: the path that the program named."""

REDIRECTABLE: Final = (Group.OPEN, Group.STAT, Group.ACCESS, Group.READLINK)
MASKABLE: Final = (Group.OPEN, Group.CHANGE, Group.CLOSE)
RETRIABLE: Final = (*REDIRECTABLE, Group.STATFS, Group.LIST, Group.CLOSE)
FAILABLE: Final = (*REDIRECTABLE, Group.CHANGE, Group.STATFS, Group.UMOUNT)

Content = str | Callable[[int, str], str]
"""Text, or what returns it when called with the thread's id and the path."""


class RuleKind(NamedTuple):
    """How a rule's path is meant, for its label."""

    name: str
    suffix: str = ""


EXACT: Final = RuleKind("path")
PREFIX: Final = RuleKind("prefix", "/**")
PATTERN: Final = RuleKind("pattern")
KINDS: Final = {kind.name: kind for kind in (EXACT, PREFIX, PATTERN)}


class StatfsRule(NamedTuple):
    """Changes ``f_type`` in the answers of statfs and fstatfs.

    Attributes:
        original: The f_type the kernel answers; None: any.
        replacement: The f_type the program sees.
        under: Only for paths at or below this one; None: everywhere.
        programs: Only in these programs; see :class:`Rules`.
        only: The names of the calls; none: both.
    """

    original: int | None
    replacement: int
    under: str | None = None
    programs: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The rule's name in statistics."""
        original = "any" if self.original is None else f"{self.original:#x}"
        return f"statfs {original} -> {self.replacement:#x}"

    @property
    def calls(self) -> frozenset[str]:
        """The calls that have to stop for it."""
        return frozenset(self.only or STATFS_CALLS.values())


class RedirectRule(NamedTuple):
    """Leads calls on a path to another one, if that exists, or to generated content.

    Attributes:
        path: The path; or the folder of a prefix; or a pattern of shell wildcards, where
            ``*`` and ``?`` stop at a slash and ``**`` does not.
        target: The other path or folder; may start with ``{tree}``, and contain ``{path}``
            for a pattern. None: there is ``content``.
        kind: What ``path`` is.
        groups: The calls that are led there.
        content: What the file contains instead.
        programs: Only in these programs; see :class:`Rules`.
    """

    path: str
    target: str | None = None
    kind: RuleKind = EXACT
    groups: tuple[Group, ...] = (Group.OPEN,)
    content: Content | None = None
    programs: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The rule's name in statistics."""
        return f"redirect {self.path}{self.kind.suffix}"

    @property
    def calls(self) -> frozenset[str]:
        """The calls that have to stop for it."""
        return names(*self.groups)


class MountRule(NamedTuple):
    """Changes lines of mount tables; what is None stays as the kernel says it.

    Attributes:
        type: The file system type, as a pattern of shell wildcards.
        under: The mountpoint, or a folder above it.
        new_type: The type that programs see.
        source: The mount source.
        device: ``major:minor``, in mountinfo only.
        options: The super options; ``{controller}`` is the mountpoint's last component.
        root: The path within the file system, in mountinfo only.
        programs: Only in these programs; see :class:`Rules`.
        only: The names of the calls that are watched for a table; none: all that open a file.
    """

    type: str
    under: str = "/"
    new_type: str | None = None
    source: str | None = None
    device: str | None = None
    options: str | None = None
    root: str | None = None
    programs: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The rule's name in statistics."""
        return f"mount {self.type} under {self.under}"

    @property
    def calls(self) -> frozenset[str]:
        """The calls that have to stop for it."""
        return frozenset(self.only) or names(Group.OPEN)


class MaskRule(NamedTuple):
    """Blocks signals during calls on paths at or below one, and on what was opened there.

    Attributes:
        under: The folder.
        groups: The calls: open, change; or close, which includes open, where a descriptor is learnt of.
        programs: Only in these programs; see :class:`Rules`.
    """

    under: str
    groups: tuple[Group, ...] = (Group.OPEN, Group.CHANGE)
    programs: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The rule's name in statistics."""
        return f"mask {self.under}"

    @property
    def calls(self) -> frozenset[str]:
        """The calls that have to stop for it: a descriptor is known from its open."""
        return names(*self.groups) | (names(Group.OPEN) if Group.CLOSE in self.groups else frozenset())


class RetryRule(NamedTuple):
    """Makes calls on paths at or below one again that a signal interrupted, and that change nothing.

    At the delivery of a signal the tracer makes the interrupted call again, which costs no stop.
    A signal to the whole process can interrupt one thread and be delivered to another; then the
    first has no delivery. The calls in ``exits`` are also looked at when they return. In Go programs all
    calls of the groups but close are, on any path, and by code of their own; see :mod:`.repeating`.

    Attributes:
        under: The folder.
        groups: open, stat, access, readlink; statfs, with fstatfs; list, which is getdents; or close, of
            whatever descriptor: an interrupted close has closed it (close(2)).
        programs: Only in these programs; see :class:`Rules`.
        exits: The names of the calls that stop when they return in other programs.
    """

    under: str
    groups: tuple[Group, ...] = (Group.OPEN,)
    programs: tuple[str, ...] = ()
    exits: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The rule's name in statistics."""
        return f"retry {self.under}"

    @property
    def calls(self) -> frozenset[str]:
        """The calls that have to stop for it."""
        return frozenset(self.exits)


class FaultRule(NamedTuple):
    """Makes calls on a path fail, without carrying them out.

    Attributes:
        path: As in :class:`RedirectRule`.
        errno: The error's number.
        kind: What ``path`` is.
        groups: The calls that fail.
        skip: So many of them succeed first.
        times: So many fail then, and later ones succeed; None: all.
        programs: Only in these programs; see :class:`Rules`.
        unmounted: Only where nothing is mounted at the path, in the program's mount namespace.
    """

    path: str
    errno: int
    kind: RuleKind = EXACT
    groups: tuple[Group, ...] = (Group.OPEN,)
    skip: int = 0
    times: int | None = None
    programs: tuple[str, ...] = ()
    unmounted: bool = False

    @property
    def label(self) -> str:
        """The rule's name in statistics."""
        return f"fault {self.errno} {self.path}{self.kind.suffix}"

    @property
    def calls(self) -> frozenset[str]:
        """The calls that have to stop for it."""
        return names(*self.groups)


Rule = StatfsRule | RedirectRule | MountRule | MaskRule | FaultRule | RetryRule


class Rules(NamedTuple):
    """A rule set; in each list the first rule that fits is the one that counts.

    A rule's ``programs`` are names that programs are called by (the last component of the executable or
    of ``argv[0]``), or with a slash whole paths, with shell wildcards. Calls of other programs
    do not stop for it, unless such a program started them; and even then the rule is not applied.
    """

    statfs: tuple[StatfsRule, ...] = ()
    redirects: tuple[RedirectRule, ...] = ()
    mounts: tuple[MountRule, ...] = ()
    masks: tuple[MaskRule, ...] = ()
    faults: tuple[FaultRule, ...] = ()
    retries: tuple[RetryRule, ...] = ()

    def every(self) -> tuple[Rule, ...]:
        """Return all rules."""
        return (*self.statfs, *self.redirects, *self.mounts, *self.masks, *self.faults, *self.retries)

    def only(self, wanted: Callable[[tuple[str, ...]], bool]) -> Rules:
        """Return the rules whose ``programs`` are wanted."""
        return Rules(
            tuple(rule for rule in self.statfs if wanted(rule.programs)),
            tuple(rule for rule in self.redirects if wanted(rule.programs)),
            tuple(rule for rule in self.mounts if wanted(rule.programs)),
            tuple(rule for rule in self.masks if wanted(rule.programs)),
            tuple(rule for rule in self.faults if wanted(rule.programs)),
            tuple(rule for rule in self.retries if wanted(rule.programs)),
        )

    def with_tree(self, tree: str | None) -> Rules:
        """Return the rules with ``{tree}`` filled in; without a tree such redirects are left out."""
        kept = []
        for rule in self.redirects:
            if rule.target is None or TREE not in rule.target:
                kept.append(rule)
            elif tree is not None:
                kept.append(rule._replace(target=rule.target.replace(TREE, tree)))
        return self._replace(redirects=tuple(kept))


NO_RULES: Final = Rules()


def trapped_calls(rules: Rules) -> frozenset[str]:
    """Return the names of the calls that have to stop for these rules, and no others."""
    return frozenset[str]().union(*(rule.calls for rule in rules.every()))


def reads_only(rules: Rules) -> frozenset[str]:
    """Return the trapped calls that need not stop unless they open to read: mount tables are wanted alone."""
    others = rules._replace(mounts=())
    return trapped_calls(rules) - trapped_calls(others)
