"""Numbers and sets as the kernel parses them from writes to cgroup files, with its errno.

Sources: ``lib/kstrtox.c`` (kstrtoull, kstrtoll), ``lib/cmdline.c`` (memparse),
``lib/bitmap-str.c`` (bitmap_parselist, the list format of cpuset(7)).
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from typing import NoReturn

PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
"""Bytes in a page of memory; limits are rounded down to it."""

PAGE_COUNTER_MAX = (2**63 - 1) // PAGE_SIZE * PAGE_SIZE
"""What an unlimited memory limit reads as (``include/linux/page_counter.h``)."""

_INTEGER = re.compile(r"(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)\n?\Z")
_MEMORY = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9]+)([kKmMgGtTpPeE]?)\Z")
_RANGE = re.compile(r"([0-9]+)(?:-([0-9]+)(?::([0-9]+)/([0-9]+))?)?\Z")


def fail(number: int) -> NoReturn:
    """Refuse an operation.

    Args:
        number: The errno that the kernel gives.

    Raises:
        OSError: Always, with that errno.
    """
    raise OSError(number, os.strerror(number))


def _magnitude(text: str) -> int:
    found = _INTEGER.match(text)
    if found is None:
        fail(errno.EINVAL)
    digits = found[1].lower()
    if digits.startswith("0x"):
        return int(digits, 16)
    return int(digits, 8) if digits.startswith("0") else int(digits)


def parse_u64(text: str) -> int:
    """Parse an unsigned number as ``kstrtoull(text, 0)`` does: any C base, one final newline.

    Raises:
        OSError: EINVAL for what is no number, ERANGE for more than 64 bits.
    """
    value = _magnitude(text.removeprefix("+"))
    if value >= 2**64:
        fail(errno.ERANGE)
    return value


def parse_s64(text: str) -> int:
    """Parse a signed number as ``kstrtoll(text, 0)`` does.

    Raises:
        OSError: EINVAL for what is no number, ERANGE for more than 63 bits.
    """
    negative = text.startswith("-")
    value = _magnitude(text.removeprefix("-") if negative else text.removeprefix("+"))
    if value > 2**63 - 1 + negative:
        fail(errno.ERANGE)
    return -value if negative else value


def parse_memory(text: str) -> int:
    """Parse a memory limit as ``page_counter_memparse(text, "-1")`` does.

    Args:
        text: Bytes with an optional suffix K to E, or ``-1`` for no limit.

    Returns:
        Bytes, rounded down to a page, at most :data:`PAGE_COUNTER_MAX`.

    Raises:
        OSError: EINVAL for anything else.
    """
    text = text.strip()
    if text == "-1":
        return PAGE_COUNTER_MAX
    found = _MEMORY.match(text)
    if found is None:
        fail(errno.EINVAL)
    digits = found[1]
    if digits[:2] in {"0x", "0X"}:
        base = 16
    else:
        base = 8 if digits.startswith("0") and re.fullmatch("[0-7]+", digits) else 10
    value = int(digits, base) << (10 * (" kmgtpe".index(found[2].lower()) if found[2] else 0))
    return min(value // PAGE_SIZE * PAGE_SIZE, PAGE_COUNTER_MAX)


def parse_list(text: str, *, possible: Iterable[int]) -> frozenset[int]:
    """Parse a CPU or memory node list, the "List format" of cpuset(7).

    Args:
        text: For example ``0-3,8``; also with strides, ``0-31:1/2``; empty for none.
        possible: Numbers that the machine can have; its largest bounds the list.

    Returns:
        The numbers.

    Raises:
        OSError: EINVAL for what is no list, ERANGE beyond the largest possible number.
    """
    limit = max(possible, default=0)
    result: set[int] = set()
    for part in re.split(r"[,\s]+", text.strip()):
        if not part:
            continue
        if part == "all":
            result.update(range(limit + 1))
            continue
        found = _RANGE.match(part)
        if found is None:
            fail(errno.EINVAL)
        first = int(found[1])
        last = int(found[2]) if found[2] else first
        used, group = (int(found[3]), int(found[4])) if found[3] else (1, 1)
        if last < first or group == 0 or used > group:
            fail(errno.EINVAL)
        if last > limit:
            fail(errno.ERANGE)
        result.update(number for number in range(first, last + 1) if (number - first) % group < used)
    return frozenset(result)


def format_list(numbers: Iterable[int]) -> str:
    """Return numbers in the "List format" of cpuset(7), ``0-3,8``; empty for none."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
