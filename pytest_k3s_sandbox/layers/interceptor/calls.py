"""The state that the tracer keeps between the stops of one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pytest_k3s_sandbox.layers.interceptor.rules import FaultRule, MaskRule
from pytest_k3s_sandbox.layers.interceptor.syscalls import Group, PathCall

NO_PATH: Final = PathCall("", Group.STAT, 0, None)


class Space:
    """Scratch memory in one process.

    Attributes:
        free: The addresses of free slots.
        usable: Whether the process could map memory.
    """

    __slots__ = ("free", "usable")

    def __init__(self) -> None:
        """Begin without memory."""
        self.free: list[int] = []
        self.usable = True


class Call:
    """A system call between its entry and its exit stop.

    Attributes:
        finish: Handles the exit stop; returns the next call to wait for, or None.
        number: The call's number.
        at_entry: Whether an entry stop comes first.
        of: How the call uses its path.
        path: The absolute path, where it is known.
        saved: Registers of the original call, when it is run again.
        restore: The old values of changed registers, by index.
        slot: The scratch memory in use.
        mask: The signal mask to restore.
        masked_by: The rule that the mask was changed for.
        fault: The rule that makes the call fail.
        tries: The number of interruptions so far.
        label: The rule that statistics attribute the stops to.
    """

    __slots__ = (
        *("at_entry", "fault", "finish", "label", "mask", "masked_by", "number", "of"),
        *("path", "restore", "saved", "slot", "tries"),
    )

    def __init__(
        self, finish: Callable[[int, Call], Call | None], number: int, at_entry: bool, of: PathCall = NO_PATH
    ) -> None:
        """Wait for the exit of call ``number``."""
        self.finish = finish
        self.number = number
        self.at_entry = at_entry
        self.of = of
        self.path = b""
        self.saved = b""
        self.restore: tuple[tuple[int, int], ...] = ()
        self.slot: tuple[Space, int] | None = None
        self.mask: int | None = None
        self.masked_by: MaskRule | None = None
        self.fault: FaultRule | None = None
        self.tries = 0
        self.label = ""
