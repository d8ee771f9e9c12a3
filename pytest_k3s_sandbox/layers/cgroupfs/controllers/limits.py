"""Files of a page counter, for memory and hugetlb: a limit, and numbers that a write resets.

Source: ``mm/page_counter.c``, ``include/linux/page_counter.h``.
"""

from __future__ import annotations

import errno
from typing import TypeVar

from pytest_k3s_sandbox.layers.cgroupfs.controllers.base import ignore
from pytest_k3s_sandbox.layers.cgroupfs.group import File, Group
from pytest_k3s_sandbox.layers.cgroupfs.values import fail, parse_memory

S = TypeVar("S")


def zero() -> File[S]:
    """Return a file that reads 0 and accepts any write, which resets it."""
    return File(lambda _: "0\n", ignore)


def limit_for_children(group: Group[S], text: str) -> int:
    """Parse a limit; the root refuses one (EINVAL)."""
    value = parse_memory(text)
    if group.parent is None:
        fail(errno.EINVAL)
    return value
