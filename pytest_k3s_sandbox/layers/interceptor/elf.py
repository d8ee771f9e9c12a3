"""Headers of ELF files (elf(5)), and auxiliary vectors (getauxval(3))."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

PT_LOAD: Final = 1
PF_X: Final = 1
AT_ENTRY: Final = 9
"""AT_ENTRY: the program's entry address."""
AT_SYSINFO_EHDR: Final = 33
"""AT_SYSINFO_EHDR: the vDSO's address."""

HEADER: Final = 64
"""The size of a 64-bit file's header."""
_SEGMENT: Final = "<IIQQQQ"
_SEGMENT_SIZE: Final = 56


class Segment(NamedTuple):
    """One program header.

    Attributes:
        kind: The segment's type, p_type.
        flags: The segment's permissions, p_flags.
        offset: The segment's offset in the file, p_offset.
        address: The segment's virtual address, p_vaddr.
        length: The segment's size in the file, p_filesz.
    """

    kind: int
    flags: int
    offset: int
    address: int
    length: int


def segments(head: bytes) -> Iterator[Segment]:
    """Yield the program headers of a 64-bit file that its first bytes contain."""
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
    """Return a value of an auxiliary vector; None if it has no entry of that kind."""
    for found, value in struct.iter_unpack("=QQ", vector[: len(vector) // 16 * 16]):
        if found == kind:
            return int(value)
    return None
