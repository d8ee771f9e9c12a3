"""Numbers and sets as the kernel parses them from writes to cgroup files, with its errno.

Sources: ``lib/kstrtox.c`` (kstrtoull, kstrtoll), ``lib/cmdline.c`` (memparse), ``mm/page_counter.c``,
``lib/bitmap-str.c`` (bitmap_parselist, the list format of cpuset(7)), ``lib/string_helpers.c`` (strim).
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
"""The value of an unlimited memory limit (``include/linux/page_counter.h``)."""

U64_MAX = 2**64 - 1
U32_MAX = 2**32 - 1

SPACE = " \t\n\v\f\r\udca0"
"""The characters of the kernel's isspace(); the last is byte 0xa0."""

_DIGITS = {8: re.compile("[0-7]*"), 10: re.compile("[0-9]*"), 16: re.compile("[0-9a-fA-F]*")}
_HEXADECIMAL = re.compile("0[xX][0-9a-fA-F]")
_UNITS = "kmgtpe"


def fail(number: int) -> NoReturn:
    """Refuse an operation.

    Args:
        number: The errno that the kernel gives.

    Raises:
        OSError: Always, with that errno.
    """
    raise OSError(number, os.strerror(number))


def strip(text: str) -> str:
    """Return a text without white space around it, as ``strstrip`` does."""
    return text.strip(SPACE)


def digits(text: str, base: int = 0) -> tuple[int | None, str]:
    """Parse the number at the start of a text, of any size, as ``_parse_integer`` does.

    Args:
        text: The text.
        base: 8, 10, 16, or 0 for C notation.

    Returns:
        The number, or None without one, and the rest of the text.
    """
    if base == 0:
        base = 10
        if text.startswith("0"):
            base = 8
            if _HEXADECIMAL.match(text):
                base, text = 16, text[2:]
    found = _DIGITS[base].match(text)
    length = found.end() if found else 0
    return (int(text[:length], base) if length else None), text[length:]


def _magnitude(text: str) -> int:
    value, rest = digits(text)
    if value is None:
        fail(errno.EINVAL)
    if value > U64_MAX:
        fail(errno.ERANGE)
    if rest not in {"", "\n"}:
        fail(errno.EINVAL)
    return value


def parse_u64(text: str) -> int:
    """Parse an unsigned number as ``kstrtoull(text, 0)`` does: in C notation, with one final newline.

    Raises:
        OSError: EINVAL for a malformed number, ERANGE for more than 64 bits.
    """
    return _magnitude(text.removeprefix("+"))


def parse_s64(text: str) -> int:
    """Parse a signed number as ``kstrtoll(text, 0)`` does.

    Raises:
        OSError: EINVAL for a malformed number, ERANGE for more than 63 bits.
    """
    negative = text.startswith("-")
    value = _magnitude(text[1:]) if negative else parse_u64(text)
    if value > 2**63 - 1 + negative:
        fail(errno.ERANGE)
    return -value if negative else value


def parse_memory(text: str) -> int:
    """Parse a limit as ``page_counter_memparse(text, "-1")`` does; an empty text is 0.

    Args:
        text: Bytes with an optional suffix K to E, or ``-1`` for no limit.

    Returns:
        Bytes, rounded down to a page, at most :data:`PAGE_COUNTER_MAX`. Numbers wrap at 64 bits, as in the
        kernel.

    Raises:
        OSError: EINVAL for anything else.
    """
    text = strip(text)
    if text == "-1":
        return PAGE_COUNTER_MAX
    value, rest = digits(text)
    value = (value or 0) & U64_MAX
    if rest and rest[0].lower() in _UNITS:
        value = value << 10 * (_UNITS.index(rest[0].lower()) + 1) & U64_MAX
        rest = rest[1:]
    if rest:
        fail(errno.EINVAL)
    return min(value // PAGE_SIZE * PAGE_SIZE, PAGE_COUNTER_MAX)


class _List:
    """A parser of the list format, with the steps of ``lib/bitmap-str.c``."""

    def __init__(self, text: str, limit: int) -> None:
        self._rest = text
        self._limit = limit

    def number(self) -> int:
        """Take a number, or ``N`` for the last one possible."""
        if self._take("N"):
            return self._limit
        value, self._rest = digits(self._rest, 10)
        if value is None:
            fail(errno.EINVAL)
        if value > U32_MAX:
            fail(errno.EOVERFLOW)
        return value

    def region(self) -> Iterable[int]:
        """Take one region: a number, or a range or ``all`` with an optional stride."""
        used = group = 0
        if self._rest[:3].lower() == "all":
            self._rest = self._rest[3:]
            first, last = 0, self._limit
        else:
            first = last = self.number()
            if self._ended():
                return self._checked(first, last, last + 1, last + 1)
            self._expect("-")
            last = self.number()
        if self._ended():
            return self._checked(first, last, last + 1, last + 1)
        self._expect(":")
        used = self.number()
        self._expect("/")
        group = self.number()
        return self._checked(first, last, used, group)

    def more(self) -> bool:
        """Skip separators, and return whether another region follows."""
        self._rest = self._rest.lstrip(SPACE + ",")
        return bool(self._rest)

    def _checked(self, first: int, last: int, used: int, group: int) -> Iterable[int]:
        if first > last or group == 0 or used > group:
            fail(errno.EINVAL)
        if last > self._limit:
            fail(errno.ERANGE)
        return (number for number in range(first, last + 1) if (number - first) % group < used)

    def _ended(self) -> bool:
        return not self._rest or self._rest[0] in SPACE + ","

    def _expect(self, character: str) -> None:
        if not self._take(character):
            fail(errno.EINVAL)

    def _take(self, character: str) -> bool:
        found = self._rest.startswith(character)
        if found:
            self._rest = self._rest[1:]
        return found


def parse_list(text: str, *, possible: Iterable[int]) -> frozenset[int]:
    """Parse a CPU or memory node list, the "List format" of cpuset(7).

    Args:
        text: For example ``0-3,8``; also with strides, ``0-31:1/2``; empty for none.
        possible: The machine's possible numbers; the largest bounds the list.

    Returns:
        The numbers.

    Raises:
        OSError: EINVAL for a malformed list, ERANGE beyond the largest possible number,
            EOVERFLOW for more than 32 bits.
    """
    result: set[int] = set()
    regions = _List(strip(text), max(possible, default=0))
    while regions.more():
        result.update(regions.region())
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
