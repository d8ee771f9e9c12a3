"""Processes that a test forks: they have copies of their parent's objects, and must not end them.

An object that has to be ended knows its :class:`Owner`, and ends only in that process. A descriptor
whose last copy keeps something alive (the channel to a sandbox, a lock) is closed in every child of
fork(2), by ``forked``; a program that a child becomes by execve(2) does not get it anyway (PEP 446).
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol

from pytest_k3s_sandbox.errors import ConfigError


class Owner:
    """The process that made something.

    Attributes:
        pid: Its id.
    """

    def __init__(self) -> None:
        """Take this process for the owner."""
        self.pid = os.getpid()

    @property
    def mine(self) -> bool:
        """Whether this process is the owner, and not one that was forked from it."""
        return os.getpid() == self.pid

    def check(self, what: str) -> None:
        """Refuse an action that only the owner can do.

        Args:
            what: The refused action, for the message.

        Raises:
            ConfigError: This process was forked from the owner.
        """
        if not self.mine:
            raise ConfigError(
                what,
                cause=f"this process ({os.getpid()}) was forked from its owner, process {self.pid}",
                remedy="do it in the process that the fixture was made in; kubectl, the client and "
                "`run` of a sandbox work in both",
            )


class Inherited(Protocol):
    """An object that a forked process gets a copy of."""

    def forked(self) -> None:
        """Release what the copy keeps alive; called in the child, which has one thread."""


_alive: weakref.WeakSet[Inherited] = weakref.WeakSet()
_foreign = False


def watch(thing: Inherited) -> None:
    """Have ``thing.forked()`` called in each process that is forked from this one from now on."""
    _alive.add(thing)


def forget(thing: Inherited) -> None:
    """Stop that: the thing has ended."""
    _alive.discard(thing)


def inherited() -> bool:
    """Tell whether this process was forked while its parent had something to end."""
    return _foreign


def _after_fork() -> None:
    global _foreign  # noqa: PLW0603 - it is a fact about the process
    errors: list[Exception] = []
    for thing in list(_alive):
        _foreign = True
        try:
            thing.forked()
        except Exception as error:  # noqa: BLE001 - the others must let go, too
            errors.append(error)
    _alive.clear()
    if errors:  # Python prints an error of a hook of fork(2), and goes on
        raise ExceptionGroup("a forked process could not release objects of its parent", errors)


os.register_at_fork(after_in_child=_after_fork)
