"""What the tracer remembers between the stops of one call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pytest_k3s_sandbox.layers.interceptor.syscalls import Group, PathCall

if TYPE_CHECKING:
    from collections.abc import Callable

NO_PATH: Final = PathCall("", Group.STAT, 0, None)


@dataclass(slots=True)
class Space:
    """Scratch memory in one process: the addresses of free slots."""

    free: list[int] = field(default_factory=list)
    usable: bool = True


@dataclass(slots=True)
class Call:
    """A call whose exit stop is awaited.

    Attributes:
        finish: What to do there.
        number: The call's number.
        at_entry: Whether an entry stop comes before.
        of: What the call does with its path.
        saved: Registers of the original call, when it is run again.
        restore: Registers by index that get their old value back.
        slot: The scratch memory in use.
        mask: The signal mask to restore.
        tries: How often it was interrupted already.
    """

    finish: Callable[[int, Call], None]
    number: int
    at_entry: bool
    of: PathCall = NO_PATH
    saved: bytes = b""
    restore: tuple[tuple[int, int], ...] = ()
    slot: tuple[Space, int] | None = None
    mask: int | None = None
    tries: int = 0
