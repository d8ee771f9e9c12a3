"""The notation of the kernel's mount tables, proc_pid_mountinfo(5)."""

from __future__ import annotations

import re

_ESCAPED = re.compile(r"\\([0-7]{3})")


def unescape(field: str) -> str:
    r"""Return a field with its octal escapes decoded, such as ``\040`` for a space.

    Args:
        field: The field; a byte that is not ASCII becomes a surrogate, as :func:`os.fsdecode` has it.
    """
    return _ESCAPED.sub(
        lambda match: bytes((int(match[1], 8) & 0xFF,)).decode("ascii", "surrogateescape"), field
    )
