"""What the tracer remembers between the stops of one call."""

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
    """A call whose exit stop is awaited.

    Attributes:
        finish: What to do there; returns the call that is awaited next, if there is one.
        number: The call's number.
        at_entry: Whether an entry stop comes before.
        of: What the call does with its path.
        path: The path, absolute, where it is known.
        saved: Registers of the original call, when it is run again.
        restore: Registers by index that get their old value back.
        slot: The scratch memory in use.
        mask: The signal mask to restore.
        masked_by: The rule that it was changed for.
        fault: The rule that makes it fail.
        tries: How often it was interrupted already.
        label: The rule to whose account its stops go.
    """

    __slots__ = (
        *("at_entry", "fault", "finish", "label", "mask", "masked_by", "number", "of"),
        *("path", "restore", "saved", "slot", "tries"),
    )

    def __init__(
        self, finish: Callable[[int, Call], Call | None], number: int, at_entry: bool, of: PathCall = NO_PATH
    ) -> None:
        """Await the exit of call ``number``."""
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
