"""A hierarchy of the kernel's below the served one, which gets the same operations.

gVisor has controllers with few files. They account and enforce what a FUSE server cannot: pids.max stops
forks, cpuacct.usage includes every process that was in a group, and a child starts in its parent's group.
``/proc/PID/cgroup`` is also right then.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress


class Backing:
    """The kernel's hierarchy, by the same paths. The model alone keeps what the kernel refuses.

    Args:
        directory: A descriptor of its root directory, which :meth:`close` closes.
    """

    def __init__(self, directory: int) -> None:
        """Keep the descriptor."""
        self._directory = directory

    @classmethod
    def at(cls, path: str) -> Backing | None:
        """Open the mountpoint of a hierarchy; later mounts may cover it.

        Returns:
            The hierarchy; None for one with all files of Linux, which is the machine's and not a sandbox's.

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
        """Remove a group, and return whether it is gone; False while it is in use."""
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
        """Return a file's content; None if it does not exist."""
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
        """Return the numbers in a file; None if it does not exist."""
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
        """Close the root directory."""
        os.close(self._directory)


def _relative(path: str) -> str:
    return path.strip("/") or "."
