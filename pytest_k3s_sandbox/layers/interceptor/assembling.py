"""Puts machine code together from instructions and labels: the little that :mod:`.repeating` needs."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Label(NamedTuple):
    """A name for the place of the next instruction.

    Attributes:
        name: The name.
    """

    name: str


class To(NamedTuple):
    """An instruction that ends with the distance of a label from its own end, in 32 bits.

    Both jumps and accesses to memory by the instruction pointer have this form: Intel's manual, volume 2,
    "Jcc" and 2.2.1.6.

    Attributes:
        opcode: The instruction without the distance.
        label: The label's name.
    """

    opcode: bytes
    label: str


Piece = bytes | Label | To
"""An instruction, or a label."""

_DISTANCE = 4


def assembled(pieces: Iterable[Piece], places: Mapping[str, int]) -> tuple[bytes, dict[str, int]]:
    """Put instructions together.

    Args:
        pieces: The instructions and labels.
        places: The offsets of labels elsewhere.

    Returns:
        The code, and the offset of each label.

    Raises:
        KeyError: An instruction names a label that is not there.
    """
    pieces = tuple(pieces)
    labels, at = dict(places), 0
    for piece in pieces:
        if isinstance(piece, Label):
            labels[piece.name] = at
        else:
            at += _length(piece)
    code = b""
    for piece in pieces:
        if isinstance(piece, To):
            distance = labels[piece.label] - len(code) - _length(piece)
            code += piece.opcode + struct.pack("<i", distance)
        elif isinstance(piece, bytes):
            code += piece
    return code, labels


def _length(piece: bytes | To) -> int:
    return len(piece.opcode) + _DISTANCE if isinstance(piece, To) else len(piece)
