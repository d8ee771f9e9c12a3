"""Shared parts of controllers: hooks that do nothing, and files that keep a number."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Generic, TypeVar

from pytest_k3s_sandbox.layers.cgroupfs.group import File, Group, HierarchyView
from pytest_k3s_sandbox.layers.cgroupfs.sample import Change, Process
from pytest_k3s_sandbox.layers.cgroupfs.values import fail, parse_s64, parse_u64

S = TypeVar("S")


class Passive(Generic[S]):
    """Hooks for a controller that accepts every process and accounts nothing."""

    def attach(self, group: Group[S], process: Process) -> None:
        """Accept the process."""

    def removed(self, group: Group[S]) -> None:
        """Do nothing."""

    def sampled(self, hierarchy: HierarchyView[S], change: Change) -> None:
        """Account nothing."""


def kept(
    attribute: str,
    *,
    valid: Callable[[int], bool] = lambda _: True,
    signed: bool = False,
    on_root: bool = True,
    on_child: bool = True,
    error: int = errno.EINVAL,
) -> File[S]:
    """Return a file that reads and writes one integer of a group's state.

    Args:
        attribute: The state's attribute.
        valid: Tells whether the kernel takes a value.
        signed: Whether it may be negative.
        on_root: Whether the root has the file.
        on_child: Whether other groups have it.
        error: The errno for a value that is not valid.
    """
    parse = parse_s64 if signed else parse_u64

    def write(group: Group[S], text: str) -> None:
        value = parse(text)
        if not valid(value):
            fail(error)
        setattr(group.state, attribute, value)

    return File(lambda g: f"{int(getattr(g.state, attribute))}\n", write, on_root, on_child)


def flag(attribute: str, *, on_child: bool = True) -> File[S]:
    """Return a file for a flag of a group's state; numbers other than 0 set it."""

    def write(group: Group[S], text: str) -> None:
        setattr(group.state, attribute, bool(parse_u64(text)))

    return File(lambda g: f"{int(getattr(g.state, attribute))}\n", write, on_child=on_child)


def constant(text: str, *, on_root: bool = True, on_child: bool = True) -> File[S]:
    """Return a read-only file with constant content."""
    return File(lambda _: text, None, on_root, on_child)


def ignore(_group: Group[S], _text: str) -> None:
    """Accept a write, and change nothing."""
