"""A hierarchy of the kernel's own below ours, in which everything is done as well.

gVisor has controllers, though with few files, and they count and enforce what we cannot: its pids.max stops
forks, its cpuacct.usage has every process that ever was in a group, and a child is in its parent's group
from its first moment on. ``/proc/PID/cgroup`` is right then, too.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress


class Backing:
    """The kernel's hierarchy, by the paths that ours have. What it refuses is left to ours alone.

    Args:
        directory: A descriptor of its root directory; it is closed with this.
    """

    def __init__(self, directory: int) -> None:
        """Keep the descriptor."""
        self._directory = directory

    @classmethod
    def at(cls, path: str) -> Backing | None:
        """Open a directory on which such a hierarchy is mounted; it may be mounted over afterwards.

        Returns:
            The hierarchy; None for one that has all of Linux' files: where the kernel has those, it
            is no sandbox of ours, and its groups are not ours to make.

        Raises:
            OSError: It cannot be opened.
        """
        if os.path.exists(f"{path}/notify_on_release"):
            return None
        return cls(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    def groups(self) -> list[str]:
        """Return the paths of all groups but the root."""
        found: list[str] = []
        for folder, names, _files, _fd in os.fwalk(".", dir_fd=self._directory):
            found += [f"{folder[1:]}/{name}" for name in names]
        return found

    def make(self, group: str) -> None:
        """Make a group."""
        with suppress(OSError):
            os.mkdir(_relative(group), dir_fd=self._directory)

    def remove(self, group: str) -> bool:
        """Remove a group; returns whether it is gone, and not still in use."""
        try:
            os.rmdir(_relative(group), dir_fd=self._directory)
        except OSError as error:
            return error.errno not in {errno.EBUSY, errno.ENOTEMPTY}
        return True

    def rename(self, old: str, new: str) -> None:
        """Rename a group."""
        with suppress(OSError):
            os.rename(_relative(old), _relative(new), src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def read(self, group: str, name: str) -> str | None:
        """Return what a file says, None where there is none."""
        try:
            fd = os.open(_relative(f"{group}/{name}"), os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
        except OSError:
            return None
        try:
            parts = []
            while part := os.read(fd, 65536):
                parts.append(part)
            return b"".join(parts).decode("ascii", "replace")
        except OSError:
            return None
        finally:
            os.close(fd)

    def numbers(self, group: str, name: str) -> list[int] | None:
        """Return the numbers in a file, None where it has no such file."""
        text = self.read(group, name)
        return None if text is None else [int(word) for word in text.split() if word.isdigit()]

    def write(self, group: str, name: str, text: str) -> None:
        """Write to a file."""
        with suppress(OSError):
            fd = os.open(_relative(f"{group}/{name}"), os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._directory)
            try:
                os.write(fd, text.encode())
            finally:
                os.close(fd)

    def close(self) -> None:
        """Let go of the hierarchy."""
        os.close(self._directory)


def _relative(path: str) -> str:
    return path.strip("/") or "."
