"""Extended attributes of nodes, kept as kernfs keeps them (``fs/kernfs/inode.c``, setxattr(2))."""

from __future__ import annotations

import errno

from pytest_k3s_sandbox.layers.cgroupfs.values import fail

_CREATE, _REPLACE = 1, 2
_PREFIXES = (b"user.", b"trusted.", b"security.")
_MAX_COUNT = 128  # KERNFS_MAX_USER_XATTRS
_MAX_VALUE = 65536  # XATTR_SIZE_MAX


class Xattrs:
    """The attributes of all nodes.

    Attributes:
        of: The attributes of each node that has any.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.of: dict[int, dict[bytes, bytes]] = {}

    def put(self, node: int, name: bytes, value: bytes, flags: int) -> None:
        """Set an attribute.

        Raises:
            OSError: EEXIST or ENODATA by the flags, EOPNOTSUPP for an unknown prefix, ENOSPC for too many
                attributes, E2BIG for too long a value.
        """
        known = self.of.get(node, {})
        if not name.startswith(_PREFIXES):
            fail(errno.EOPNOTSUPP)
        if len(value) > _MAX_VALUE:
            fail(errno.E2BIG)
        if flags == _CREATE and name in known:
            fail(errno.EEXIST)
        if flags == _REPLACE and name not in known:
            fail(errno.ENODATA)
        if name not in known and len(known) >= _MAX_COUNT:
            fail(errno.ENOSPC)
        self.of.setdefault(node, {})[name] = value

    def get(self, node: int, name: bytes) -> bytes:
        """Return an attribute.

        Raises:
            OSError: ENODATA.
        """
        value = self.of.get(node, {}).get(name)
        if value is None:
            fail(errno.ENODATA)
        return value

    def names(self, node: int) -> list[bytes]:
        """Return the names of a node's attributes."""
        return list(self.of.get(node, {}))

    def remove(self, node: int, name: bytes) -> None:
        """Remove an attribute.

        Raises:
            OSError: ENODATA.
        """
        self.get(node, name)
        del self.of[node][name]
