"""Code in the tracee that makes an interrupted call again, without a stop of the tracer's.

For a signal to the process gVisor interrupts a request to a FUSE server, and another thread takes the signal.
Then the call has failed with EINTR, and there is no delivery at which the tracer could make it again.
A stop at the exit of every such call would show it, and would cost as much as the call itself.

So the tracer lets the call return to a few instructions of its own. They compare the result with -EINTR.
If it is that, they go back to the program's ``syscall`` instruction, where the call is trapped again.
Else they go on where the call would have returned. Their bytes lie in a page that the tracee maps.

The kernel repeats some interrupted calls itself by going back over the ``syscall`` instruction (ERESTARTSYS).
So the code begins with that instruction.
"""

from __future__ import annotations

import errno
import struct
from typing import Final

from pytest_k3s_sandbox.layers.interceptor.requests import SYSCALL, SYSCALL_LENGTH

PAGE: Final = 4096
MAP_ARGUMENTS: Final = (0, PAGE, 0x7, 0x22, (1 << 64) - 1, 0)
"""addr, length, PROT_READ|PROT_WRITE|PROT_EXEC, MAP_PRIVATE|MAP_ANONYMOUS, fd, offset: mmap(2)."""

SIZE: Final = 48
ENTRY: Final = SYSCALL_LENGTH
"""Where a call returns to: behind the ``syscall`` instruction."""


def code(number: int, back: int) -> bytes:
    """Return the instructions for one place of a program.

    Only rax, rcx, r11 and the flags may change in a system call (syscall(2)), and of these only the flags are
    changed here.

    Args:
        number: The call's number, which the ``syscall`` instruction expects in rax.
        back: The address behind the program's ``syscall`` instruction.
    """
    instructions = (
        SYSCALL,
        b"\x48\x83\xf8" + struct.pack("<b", -errno.EINTR),  # cmp rax, imm8
        b"\x74\x06",  # je over the next one
        b"\xff\x25\x0b\x00\x00\x00",  # jmp [rip + 11]: the first address below
        b"\xb8" + struct.pack("<I", number),  # mov eax, imm32
        b"\xff\x25\x08\x00\x00\x00",  # jmp [rip + 8]: the second one
        struct.pack("<QQ", back, back - SYSCALL_LENGTH),
    )
    return b"".join(instructions).ljust(SIZE, b"\x90")


class Page:
    """The page of one process.

    Attributes:
        address: Where it is; 0 before the process has mapped it.
        usable: Whether the process could map it.
        places: The code's entry by the call's number and the address behind its instruction.
    """

    __slots__ = ("address", "places", "usable")

    def __init__(self) -> None:
        """Begin without one."""
        self.address = 0
        self.usable = True
        self.places: dict[tuple[int, int], int] = {}

    def has(self, address: int) -> bool:
        """Tell whether an address lies in it."""
        return self.address <= address < self.address + PAGE if self.address else False

    def next(self) -> int | None:
        """Return where the next code goes; None when the page is full."""
        offset = len(self.places) * SIZE
        return self.address + offset if offset + SIZE <= PAGE else None
