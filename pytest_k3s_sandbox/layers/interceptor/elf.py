"""What an ELF file says in its headers (elf(5)), and what the kernel tells a program (getauxval(3))."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

PT_LOAD: Final = 1
PF_X: Final = 1
AT_ENTRY: Final = 9
"""The program's entry in the auxiliary vector."""
AT_SYSINFO_EHDR: Final = 33
"""The vDSO's address in the auxiliary vector."""

HEADER: Final = 64
"""The size of a 64-bit file's header."""
_SEGMENT: Final = "<IIQQQQ"
_SEGMENT_SIZE: Final = 56


class Segment(NamedTuple):
    """One program header.

    Attributes:
        kind: What it is: p_type.
        flags: What it may be used for: p_flags.
        offset: Where it is in the file.
        address: Where it wants to lie.
        length: Its bytes in the file.
    """

    kind: int
    flags: int
    offset: int
    address: int
    length: int


def segments(head: bytes) -> Iterator[Segment]:
    """Yield the program headers of a 64-bit file, as far as its beginning has them."""
    if len(head) < HEADER:
        return
    table, size, count = struct.unpack_from("<Q14xHH", head, 32)
    if size != _SEGMENT_SIZE:
        return
    for at in range(table, table + size * count, size):
        if at + size > len(head):
            return
        kind, flags, offset, address, _, length = struct.unpack_from(_SEGMENT, head, at)
        yield Segment(kind, flags, offset, address, length)


def auxiliary_value(vector: bytes, kind: int) -> int | None:
    """Return a value of an auxiliary vector; None if it has none of that kind."""
    for found, value in struct.iter_unpack("=QQ", vector[: len(vector) // 16 * 16]):
        if found == kind:
            return int(value)
    return None
