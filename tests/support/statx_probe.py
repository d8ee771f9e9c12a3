"""A program that calls statx(2) in every way, and prints what it is answered.

It takes the paths of :data:`KINDS` as words, and needs nothing but the standard library.
Its output is JSON: for each kind, way and flags the answers, and for each of them the masks that get it.

Each answer is in words that are the same on every machine.
Some fields have values of their own on each machine, and are compared with what stat(2) says of the file: the
number of links, inode, size, times and device.
(In gVisor a file has a size of 8192, and 0 in the kernel: docs/cgroupfs.md.)
The id of the mount is compared with /proc/self/mountinfo.
Two fields are left out. stx_attributes_mask says which attributes a kernel knows, and kernels differ.
gVisor knows none, so that its stx_attributes is 0. Linux has STATX_ATTR_MOUNT_ROOT there.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

STATX = 332
AT_FDCWD = -100
NOFOLLOW, NO_AUTOMOUNT, EMPTY_PATH, FORCE_SYNC, DONT_SYNC = 0x100, 0x800, 0x1000, 0x2000, 0x4000
"""Flags of statx: linux/fcntl.h (uapi)."""
FLAGS = {"NOFOLLOW": NOFOLLOW, "NO_AUTOMOUNT": NO_AUTOMOUNT, "EMPTY": EMPTY_PATH}
SYNCS = {"": 0, "FORCE": FORCE_SYNC, "DONT": DONT_SYNC, "BOTH": FORCE_SYNC | DONT_SYNC}
UNKNOWN_FLAG = 0x8000
BASIC, ALL, MNT_ID, UNIQUE, RESERVED = 0x7FF, 0xFFF, 0x1000, 0x4000, 1 << 31
"""Masks of statx: linux/stat.h (uapi)."""
CRUNS = 0x21B
"""STATX_TYPE, MODE, SIZE, UID and GID, which crun asks for together."""
MASKS = (
    0,
    *(1 << bit for bit in range(32)),
    BASIC,
    ALL,
    CRUNS,
    BASIC | MNT_ID,
    RESERVED - 1,
    RESERVED | BASIC,
)
FEW_MASKS = (0, 1, 0x200, BASIC, UNIQUE, RESERVED)
FEW_FLAGS = {"", *FLAGS, *SYNCS, "EMPTY|DONT", "NOFOLLOW|DONT", "UNKNOWN"}
"""For kinds and ways that add little: a call costs up to a millisecond under the interceptor in gVisor."""
MAIN_KINDS, MAIN_WAYS = {"group", "file", "link"}, {"absolute", "below", "O_PATH", "opened", "missing"}
"""What is combined with every mask and every flag."""
SIZE = 256
HEAD, TIMES, TAIL = struct.Struct("<IIQIIIHHQQQQ"), struct.Struct("<qIIqIIqIIqII"), struct.Struct("<IIIIQ")
"""struct statx of linux/stat.h, to stx_mnt_id; after it come fields for direct I/O."""
KINDS = ("root", "group", "file", "readonly", "writeonly", "link", "to")
"""A hierarchy's root, a group, three files of it, a symbolic link, and one that leads to a root."""

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, *[ctypes.c_ulong] * 3)
page = mmap.mmap(-1, 2 * mmap.PAGESIZE)
BASE = ctypes.addressof(ctypes.c_char.from_buffer(page))
END = BASE + mmap.PAGESIZE
"""Behind it nothing is mapped."""
FIRST_UNIQUE_ID = 1 << 31


def combined() -> Iterator[tuple[str, int]]:
    """Yield every combination of flags, with its name."""
    for number in range(1 << len(FLAGS)):
        chosen = [name for at, name in enumerate(FLAGS) if number >> at & 1]
        for sync, value in SYNCS.items():
            yield "|".join([*chosen, *filter(None, [sync])]), value + sum(FLAGS[name] for name in chosen)
    yield "UNKNOWN", UNKNOWN_FLAG


def statx(folder: int, path: bytes | int | None, flags: int, mask: int, buffer: int) -> int:
    """Make the call; return 0 or the errno."""
    where = ctypes.c_char_p(path) if isinstance(path, bytes) else ctypes.c_void_p(path)
    pointer = ctypes.cast(where, ctypes.c_void_p)
    return ctypes.get_errno() if libc.syscall(STATX, folder, pointer, flags, mask, buffer) else 0


def mount_of(path: str) -> int:
    """Return the id of the mount that a path without symbolic links is on."""
    found = {}
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        number, _, _, _, target, _ = line.split(" ", 5)
        if target == "/" or f"{path}/".startswith(f"{target}/"):
            found[len(target)] = int(number)  # the last one lies on top
    return found[max(found)]


class Place:
    """What a file should be answered as: what the other calls say of it."""

    def __init__(self, path: str, *, follow: bool) -> None:
        """Ask them."""
        # gVisor keeps a directory's number of links until a call with this flag.
        statx(AT_FDCWD, path.encode(), FORCE_SYNC, BASIC, BASE)
        self.stat = Path(path).stat(follow_symlinks=follow)
        head, tail = os.path.split(path)
        self.mount = mount_of(os.path.realpath(path) if follow else f"{os.path.realpath(head)}/{tail}")


def row(place: Place) -> str:
    """Return the answer that lies in the buffer, in words that are the same on every machine."""
    data = page[:SIZE]
    mask, blksize, _, nlink, uid, gid, mode, pad, ino, size, blocks, _ = HEAD.unpack_from(data)
    times = TIMES.unpack_from(data, HEAD.size)
    atime, btime, ctime, mtime = (times[at] * 10**9 + times[at + 1] for at in range(0, len(times), 3))
    rdev_major, rdev_minor, dev_major, dev_minor, mount = TAIL.unpack_from(data, HEAD.size + TIMES.size)
    rest = data[HEAD.size + TIMES.size + TAIL.size :]
    stat = place.stat
    as_stat = {
        "nlink": nlink == stat.st_nlink,
        "ino": ino == stat.st_ino != 0,
        "size": size == stat.st_size,
        "atime": atime == stat.st_atime_ns,
        "mtime": mtime == stat.st_mtime_ns,
        "ctime": ctime == stat.st_ctime_ns,
        "dev": os.makedev(dev_major, dev_minor) == stat.st_dev,
        "mount": mount > FIRST_UNIQUE_ID if mask & UNIQUE else mount == place.mount,
        "zeros": not any((pad, btime, *times[2::3], *rest)),
    }
    wrong = [name for name, right in as_stat.items() if not right]
    return (
        f"mask {mask:#x} mode {mode:o} owner {uid}:{gid} blocks {blocks} of {blksize}"
        f" rdev {rdev_major}:{rdev_minor}" + (f" wrong: {' '.join(wrong)}" if wrong else "")
    )


def answer(folder: int, path: bytes | int | None, flags: int, mask: int, place: Place) -> str:
    """Return what a call is answered, its error's name or the answer itself."""
    page[:SIZE] = b"\xee" * SIZE
    failed = statx(folder, path, flags, mask, BASE)
    if failed:
        touched = "" if page[:SIZE] == b"\xee" * SIZE else " and wrote"
        return errno.errorcode[failed] + touched
    return row(place)


Way = tuple[int, bytes | int | None, Place]


def ways(kind: str, path: str) -> Iterator[tuple[str, Way]]:
    """Yield the ways to name a file: a descriptor, a path or an address, and what is found so."""
    folder, name = os.path.split(path)
    above = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    place = Place(path, follow=kind != "link")
    yield "absolute", (AT_FDCWD, path.encode(), place)
    yield "below", (above, name.encode(), place)
    yield "dots", (above, f"./../{Path(folder).name}/{name}".encode(), place)
    seen = os.open(path, os.O_PATH | (os.O_NOFOLLOW if kind == "link" else 0))
    yield "O_PATH", (seen, b"", place)
    if kind != "link":
        opened = os.open(path, os.O_WRONLY if kind == "writeonly" else os.O_RDONLY)
        yield "opened", (opened, b"", place)
    if kind not in {"group", "file"}:
        return
    yield "missing", (above, b"missing", place)
    yield "missing below", (AT_FDCWD, f"{path}/missing".encode(), place)
    yield "bad descriptor", (777, b"x", place)


def at(folder: int, path: bytes, flags: int) -> Iterator[tuple[str, str]]:
    """Yield what calls with wrong pointers are answered, a good path's and a missing one's."""
    for mask in (0, 1, BASIC, MNT_ID, RESERVED):
        for shown, named in (("", path), (" missing", path + b"missing")):
            for what, buffer in {"null": 0, "low": 16, "end": END, "high": 1 << 63}.items():
                yield f"buffer {what}{shown} {mask:#x}", _name(statx(folder, named, flags, mask, buffer))
            for fit in (0, 4, 64, 0x90, 0x98, 255):
                found = statx(folder, named, flags, mask, END - fit)
                yield f"buffer of {fit}{shown} {mask:#x}", _name(found)
        for what, pointer in {"low": 16, "end": END, "high": 1 << 63}.items():
            yield f"path {what} {mask:#x}", _name(statx(folder, pointer, flags, mask, BASE))


def _name(number: int) -> str:
    return errno.errorcode.get(number, "ok")


def table(paths: dict[str, str]) -> dict[str, dict[str, list[str]]]:
    """Return all answers, and the masks that get each."""
    found: dict[str, dict[str, list[str]]] = {}
    for kind, path in paths.items():
        for way, (folder, named, place) in ways(kind, path):
            for shown, flags in combined():
                # Of a link itself, and of what one leads to, are two kinds.
                if named and (kind == "link") != bool(flags & NOFOLLOW) and kind in {"link", "to"}:
                    continue
                usual = bool(flags & EMPTY_PATH) != bool(named)
                every = usual and kind in MAIN_KINDS and way in MAIN_WAYS
                if not every and shown not in FEW_FLAGS:
                    continue
                answers = found[f"{kind} {way} {shown}"] = {}
                for mask in MASKS if every else FEW_MASKS:
                    answers.setdefault(answer(folder, named, flags, mask, place), []).append(f"{mask:#x}")
    ctypes.CDLL(None).munmap(ctypes.c_void_p(END), ctypes.c_size_t(mmap.PAGESIZE))
    for kind in ("group", "file"):
        whole = paths[kind].encode()
        for way, folder, text in (("", AT_FDCWD, whole), ("EMPTY", os.open(whole, os.O_PATH), b"")):
            for what, said in at(folder, text, EMPTY_PATH if way else 0):
                found.setdefault(f"{kind} {way} pointers", {}).setdefault(said, []).append(what)
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(table(dict(zip(KINDS, sys.argv[1:], strict=True)))))
    sys.stdout.flush()
    os._exit(0)  # the mapping has a hole
