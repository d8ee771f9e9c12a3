"""Reads /proc about tracees: proc_pid(5). A tracee that is ending yields no value."""

from __future__ import annotations

import os

from pytest_k3s_sandbox.layers.interceptor.syscalls import AT_FDCWD


def _beginning(path: str) -> bytes:
    """Return the first page of a file, or nothing; a file object makes five more system calls."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, 4096)
    except OSError:
        return b""
    finally:
        os.close(fd)


def thread_group(tid: int) -> int | None:
    """Return the id of the process that a thread belongs to."""
    status = _beginning(f"/proc/{tid}/status")
    at = status.find(b"\nTgid:")
    return int(status[at + 6 : status.index(b"\n", at + 1)]) if at >= 0 else None


def root_identity(tid: int | None = None) -> tuple[int, int] | None:
    """Return device and inode of a tracee's root directory, by default of our own."""
    try:
        root = os.stat("/" if tid is None else f"/proc/{tid}/root")
    except OSError:
        return None
    return root.st_dev, root.st_ino


def pid_namespace(tid: int | str) -> str | None:
    """Return the name of a tracee's PID namespace: pid_namespaces(7)."""
    try:
        return os.readlink(f"/proc/{tid}/ns/pid")
    except OSError:
        return None


def program_paths(tid: int) -> tuple[bytes, ...]:
    """Return the paths of a tracee's program: the executable and ``argv[0]``."""
    try:
        executable = os.readlink(b"/proc/%d/exe" % tid)
    except OSError:
        return ()
    return executable, _beginning(f"/proc/{tid}/cmdline").partition(b"\0")[0]


def command_line(tid: int) -> list[bytes]:
    """Return a tracee's command line as words, from its first 4096 bytes."""
    return _beginning(f"/proc/{tid}/cmdline").split(b"\0")


def auxiliary(tid: int | str) -> bytes:
    """Return a tracee's auxiliary vector, getauxval(3)."""
    return _beginning(f"/proc/{tid}/auxv")


def reaches(tid: int, path: bytes) -> bool:
    """Return whether an absolute path exists in a tracee's root and mount namespace."""
    try:
        os.stat(b"/proc/%d/root%s" % (tid, path))
    except OSError:
        return False
    return True


def nothing_mounted(tid: int, path: bytes) -> bool:
    """Return whether an absolute path exists and is not a mountpoint in a tracee's mount namespace.

    Args:
        tid: A tracee with the root of this process.
        path: The path; symbolic links are followed.

    Returns:
        Also False if the mount table is unreadable.
    """
    real = os.path.realpath(path)
    if not os.path.lexists(real):
        return False
    for char in b"\\ \t\n":  # proc_pid_mountinfo(5): written as octal numbers
        real = real.replace(b"%c" % char, b"\\%03o" % char)
    try:
        with open(f"/proc/{tid}/mountinfo", "rb") as table:
            return all(line.split(b" ", 5)[4] != real for line in table)
    except OSError:
        return False


def descriptor_path(tid: int, descriptor: int) -> bytes | None:
    """Return the absolute path of an open file, or of the working directory for AT_FDCWD.

    Args:
        tid: The tracee.
        descriptor: The register's value; the descriptor is in its lower 32 bits.
    """
    number = descriptor & 0xFFFF_FFFF
    number -= (number >> 31) << 32
    where = b"cwd" if number == AT_FDCWD else b"fd/%d" % number
    try:
        path = os.readlink(b"/proc/%d/%s" % (tid, where))
    except OSError:
        return None
    return path if path[:1] == b"/" else None


def same_pid_namespace(tid: int) -> bool:
    """Return whether a tracee is in the pid namespace of this process."""
    try:
        return os.readlink(f"/proc/{tid}/ns/pid") == os.readlink("/proc/self/ns/pid")
    except OSError:
        return True
