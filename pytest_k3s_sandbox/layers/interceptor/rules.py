"""The rules: which results change, and which calls stop for that.

The types are named tuples, because the import of ``dataclasses`` takes a tenth of a tracer's start in a
sandbox.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final, NamedTuple

from pytest_k3s_sandbox.layers.interceptor.syscalls import STATFS_CALLS, Group, names

TREE: Final = "{tree}"
"""The placeholder in a redirect's target for the folder given at run time."""

PATH: Final = "{path}"
"""The placeholder in the target of a pattern's redirect for the path that the program named."""

REDIRECTABLE: Final = (Group.OPEN, Group.STAT, Group.ACCESS, Group.READLINK)
MASKABLE: Final = (Group.OPEN, Group.CHANGE, Group.CLOSE)
RETRIABLE: Final = (*REDIRECTABLE, Group.STATFS, Group.LIST, Group.CLOSE)
FAILABLE: Final = (*REDIRECTABLE, Group.CHANGE, Group.STATFS, Group.UMOUNT)

Content = str | Callable[[int, str], str]
"""Text, or a function of the thread's id and the path that returns it."""


class RuleKind(NamedTuple):
    """The kind of a rule's path: itself, a folder, or a pattern."""

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
    """Redirects calls on a path to another path, if that exists, or to generated content.

    Attributes:
        path: The path, the folder of a prefix, or a pattern of shell wildcards, where ``*`` and ``?`` stop at
            a slash and ``**`` does not.
        target: The other path or folder, which may start with ``{tree}`` and, for a pattern, contain
            ``{path}``. None for a rule with ``content``.
        kind: What ``path`` is.
        groups: The groups of calls that the rule redirects.
        content: The generated content of the file.
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
    """Changes lines of mount tables; fields that are None keep the kernel's value.

    Attributes:
        type: The file system type, as a pattern of shell wildcards.
        under: The mountpoint, or a folder above it.
        new_type: The file system type that programs see.
        source: The mount source.
        device: ``major:minor``, in mountinfo only.
        options: The super options; ``{controller}`` is the mountpoint's last component.
        root: The path within the file system, in mountinfo only.
        programs: Only in these programs; see :class:`Rules`.
        only: The names of the calls that may open a table; empty for all that open a file.
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


class CgroupsRule(NamedTuple):
    """Adds the hierarchies of a FUSE cgroupfs to the cgroup tables: /proc/cgroups and /proc/PID/cgroup.

    The kernel's tables name its own hierarchies only (cgroups(7)).

    Attributes:
        served: The mountpoint of the file system's tree, which has the file ``pid.PID`` for each process.
        programs: Only in these programs; see :class:`Rules`.
        only: The names of the calls that may open a table; empty for all that open a file.
    """

    served: str
    programs: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The rule's name in statistics."""
        return f"cgroups {self.served}"

    @property
    def calls(self) -> frozenset[str]:
        """The calls that have to stop for it."""
        return frozenset(self.only) or names(Group.OPEN)


class SubstituteRule(NamedTuple):
    """Changes the text of a file for programs that open it to read.

    With ``folder_option`` it changes the file itself, once, when such a program starts: no call stops.

    Attributes:
        path: As in :class:`RedirectRule`; with ``folder_option`` the file's name.
        find: The text to look for, a regular expression of :mod:`re`.
        replacement: The text in its place, at its first occurrence; as for :func:`re.sub`.
        kind: What ``path`` is.
        programs: Only in these programs; see :class:`Rules`.
        only: The names of the calls that may open the file; empty for all that open a file.
        folder_option: The option of the command line that names the file's folder, like ``--bundle``.
    """

    path: str
    find: str
    replacement: str
    kind: RuleKind = EXACT
    programs: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    folder_option: str | None = None

    @property
    def label(self) -> str:
        """The rule's name in statistics."""
        return f"substitute {self.path}{self.kind.suffix}"

    @property
    def calls(self) -> frozenset[str]:
        """The calls that have to stop for it."""
        return frozenset() if self.folder_option is not None else frozenset(self.only) or names(Group.OPEN)


class RefuseRule(NamedTuple):
    """Refuses calls as a kernel does that lacks them (ENOSYS), without a stop.

    Descendants of such a program, whatever they execute, inherit this.

    Attributes:
        refused: The names of the calls.
        programs: Only in these programs; see :class:`Rules`.
    """

    refused: tuple[str, ...]
    programs: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The rule's name in statistics."""
        return f"refuse {', '.join(self.refused)}"

    @property
    def calls(self) -> frozenset[str]:
        """No call has to stop for it."""
        return frozenset()


class MaskRule(NamedTuple):
    """Blocks signals during calls on paths at or below a folder, and on files opened there.

    Attributes:
        under: The folder.
        groups: open, change, or close. close includes open, which creates the descriptor.
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
        """The calls that stop for the rule, with the opens that create descriptors."""
        return names(*self.groups) | (names(Group.OPEN) if Group.CLOSE in self.groups else frozenset())


class RetryRule(NamedTuple):
    """Repeats interrupted calls on paths at or below a folder that change nothing.

    At a signal-delivery-stop the tracer makes the tracee repeat the interrupted call, without a stop more. A
    signal to the process can interrupt one thread and be delivered to another. For that case, the calls in
    ``exits`` also stop when they return. In Go programs code of :mod:`.repeating` repeats all calls of the
    groups but close, on any path.

    Attributes:
        under: The folder.
        groups: open, stat, access, readlink; statfs, with fstatfs; list, which is getdents; or close, of any
            descriptor: an interrupted close has closed it (close(2)).
        programs: Only in these programs; see :class:`Rules`.
        exits: The names of the calls that stop at their return in programs other than Go's.
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
    """Makes calls on a path fail before they start.

    Attributes:
        path: As in :class:`RedirectRule`.
        errno: The errno.
        kind: What ``path`` is.
        groups: The groups of calls that fail.
        skip: The number of calls that succeed first.
        times: The number of calls that fail then; None for all.
        programs: Only in these programs; see :class:`Rules`.
        unmounted: Only if the path is not a mountpoint in the program's mount namespace.
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


class StatxRule(NamedTuple):
    """Completes the answers of statx about FUSE files that gVisor leaves incomplete; see :mod:`.answers`.

    Attributes:
        under: Only for paths at or below this one.
        programs: Only in these programs; see :class:`Rules`.
    """

    under: str
    programs: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The rule's name in statistics."""
        return f"statx {self.under}"

    @property
    def calls(self) -> frozenset[str]:
        """The calls that have to stop for it."""
        return frozenset({"statx"})


Rule = (
    StatfsRule
    | RedirectRule
    | MountRule
    | CgroupsRule
    | SubstituteRule
    | MaskRule
    | FaultRule
    | RetryRule
    | StatxRule
    | RefuseRule
)


class Rules(NamedTuple):
    """A rule set; in each list, the first matching rule applies.

    A rule's ``programs`` are names (the last component of the executable or of ``argv[0]``) or, with a slash,
    whole paths; both with shell wildcards. Calls of other programs do not stop for it, except in descendants
    of such a program, which inherit its filter. The rule does not apply to these calls either.
    """

    statfs: tuple[StatfsRule, ...] = ()
    redirects: tuple[RedirectRule, ...] = ()
    mounts: tuple[MountRule, ...] = ()
    masks: tuple[MaskRule, ...] = ()
    faults: tuple[FaultRule, ...] = ()
    retries: tuple[RetryRule, ...] = ()
    statx: tuple[StatxRule, ...] = ()
    cgroups: tuple[CgroupsRule, ...] = ()
    substitutes: tuple[SubstituteRule, ...] = ()
    refusals: tuple[RefuseRule, ...] = ()

    def every(self) -> tuple[Rule, ...]:
        """Return all rules."""
        return tuple(itertools.chain.from_iterable(self))

    def only(self, wanted: Callable[[tuple[str, ...]], bool]) -> Rules:
        """Return the rules whose ``programs`` pass a test."""
        return Rules._make(tuple(rule for rule in kind if wanted(rule.programs)) for kind in self)

    def with_tree(self, tree: str | None) -> Rules:
        """Return the rules with ``{tree}`` filled in; without a tree, omit redirects that contain it."""
        kept = []
        for rule in self.redirects:
            if rule.target is None or TREE not in rule.target:
                kept.append(rule)
            elif tree is not None:
                kept.append(rule._replace(target=rule.target.replace(TREE, tree)))
        return self._replace(redirects=tuple(kept))


NO_RULES: Final = Rules()


def trapped_calls(rules: Rules) -> frozenset[str]:
    """Return the names of the calls that stop for these rules."""
    return frozenset[str]().union(*(rule.calls for rule in rules.every()))


def reads_only(rules: Rules) -> frozenset[str]:
    """Return the trapped calls that stop only for the content of files, so only for opens to read."""
    others = rules._replace(mounts=(), cgroups=(), substitutes=())
    return trapped_calls(rules) - trapped_calls(others)
