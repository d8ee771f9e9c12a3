"""Open files and directories, with the text or the names that their readers get."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Any, Protocol

from pytest_k3s_sandbox.layers.cgroupfs.group import Group
from pytest_k3s_sandbox.layers.cgroupfs.tree import Tree
from pytest_k3s_sandbox.layers.cgroupfs.values import fail

_READERS = 4  # of one file at a time; another reader may get a later text then
_FILES = 1024
_LISTINGS = 64

Entry = tuple[int, int, bytes]
"""Node, type and name of one thing in a directory."""


class OpenFile:
    """One open file.

    Args:
        group: The group it is in.
        name: Its name.
    """

    __slots__ = ("_ahead", "_content", "_group", "name")

    def __init__(self, group: Group[Any], name: str) -> None:
        """Keep the file's name; nothing is read yet."""
        self.name = name
        self._group = group
        self._content: bytes | None = None
        self._ahead = False

    @property
    def alive(self) -> bool:
        """Whether its group exists."""
        above = self._group.parent
        return above is None or above.children.get(self._group.name) is self._group

    def read_ahead(self) -> None:
        """Read the content now, for the first read.

        Raises:
            OSError: As :meth:`read`.
        """
        self.read(0)
        self._ahead = True

    def read(self, offset: int) -> bytes:
        """Return the whole content, rendered again for a read at offset 0.

        Raises:
            OSError: ENODEV when the group was removed, or what the file refuses with.
        """
        ahead, self._ahead = self._ahead, False
        if not (ahead or self.alive):
            fail(errno.ENODEV)
        if self._content is None or (offset == 0 and not ahead):
            self._content = self._group.read(self.name).encode("ascii", "surrogateescape")
        return self._content

    def write(self, data: bytes, thread: int) -> None:
        """Pass a write to the file.

        Raises:
            OSError: ENODEV when the group was removed, or what the file refuses with.
        """
        if not self.alive:
            fail(errno.ENODEV)
        self._group.write(self.name, data, writer=thread)


class OpenFiles:
    """All open files, by their handles."""

    def __init__(self) -> None:
        """Know none."""
        self._files: dict[int, OpenFile] = {}
        self._last = 0

    def open(self, group: Group[Any], name: str, *, ahead: bool) -> int:
        """Open a file and return its number.

        Args:
            group: The group it is in.
            name: Its name.
            ahead: Whether to read it now.

        Raises:
            OSError: It cannot be read.
        """
        file = OpenFile(group, name)
        if ahead:
            file.read_ahead()
        self._last += 1
        self._files[self._last] = file
        return self._last

    def get(self, number: int) -> OpenFile:
        """Return an open file.

        Raises:
            OSError: EBADF.
        """
        file = self._files.get(number)
        if file is None:
            fail(errno.EBADF)
        return file

    def outlives(self, number: int) -> bool:
        """Return whether a file of a removed group is open."""
        file = self._files.get(number)
        return file is not None and not file.alive

    def close(self, number: int) -> None:
        """Close a file."""
        self._files.pop(number, None)


class Readable(Protocol):
    """A file whose content is rendered when it is read."""

    def read(self, offset: int) -> bytes:
        """Return the whole content, rendered again for a read at offset 0."""


@dataclass(frozen=True, slots=True)
class ProcessFile:
    """The file with the memberships of one process.

    Attributes:
        tree: All hierarchies.
        pid: The process.
    """

    tree: Tree
    pid: int

    def read(self, offset: int) -> bytes:
        """Return the whole content; see :meth:`.Tree.memberships`."""
        del offset
        return self.tree.memberships(self.pid).encode()


class UnopenedReads:
    """Reads of files without an open, by node and reading thread."""

    def __init__(self) -> None:
        """Start without readers."""
        self._texts: dict[int, dict[int, bytes]] = {}

    def read(self, node: int, file: Readable, thread: int, offset: int) -> bytes:
        """Return the whole content, rendered again for a read at offset 0 of the thread.

        A reader that continues in another thread gets the newest text.

        Raises:
            OSError: As :meth:`OpenFile.read`.
        """
        texts = self._texts.get(node)
        goes_on = texts if offset else None
        content = (goes_on.get(thread) or next(reversed(goes_on.values()))) if goes_on else file.read(0)
        if offset >= len(content):  # the end; the reader does not continue
            if texts is not None:
                texts.pop(thread, None)
                if not texts:
                    del self._texts[node]
            return content
        if texts is None:
            while len(self._texts) >= _FILES:
                del self._texts[next(iter(self._texts))]
            texts = self._texts[node] = {}
        texts.pop(thread, None)
        texts[thread] = content
        while len(texts) > _READERS:
            del texts[next(iter(texts))]
        return content


class Listings:
    """The listings that readers of directories get, by handle.

    Only the newest are kept. After ENOSYS for FUSE_OPEN, gVisor sends no FUSE_RELEASEDIR either
    (``fileDescription.Release`` in ``fsimpl/fuse/file.go``), so listings would pile up.
    """

    def __init__(self) -> None:
        """Know none."""
        self._entries: dict[int, list[Entry]] = {}
        self._last = 0

    def __len__(self) -> int:
        """Return the number of listings."""
        return len(self._entries)

    def open(self) -> int:
        """Return a handle for a directory; the listing follows at the first read."""
        self._last += 1
        return self._last

    def keep(self, number: int, entries: list[Entry]) -> None:
        """Keep a listing, so that its reader gets each name once."""
        self._entries.pop(number, None)
        self._entries[number] = entries
        while len(self._entries) > _LISTINGS:
            del self._entries[next(iter(self._entries))]

    def get(self, number: int) -> list[Entry] | None:
        """Return a listing; None for one that is not kept."""
        return self._entries.get(number)

    def close(self, number: int) -> None:
        """Drop a listing."""
        self._entries.pop(number, None)
