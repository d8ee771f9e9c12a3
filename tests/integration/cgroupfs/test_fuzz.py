"""Programs that do what they like with the mounted filesystem: it stays up and right, and answers at once."""
# ruff: noqa: PTH101, PTH102, PTH104, PTH106, PTH108, PTH115, PTH116, PTH118, PTH208, PTH211  # pathlib refuses names as bytes

from __future__ import annotations

import errno
import os
import random
import signal
import stat
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.cgroupfs_served import namespace_in

pytestmark = pytest.mark.k3s_requires("root", "fuse")

SLOW = 5.0  # seconds that no single operation may take, on whatever machine
NUMBERS = [b"0", b"1", b"-1", b"2", b"1024", b"9223372036854771712", b"18446744073709551616", b"4G", b"16M\n"]
WORDS = [
    b"0-1",
    b"0,1",
    b"a",
    b"a *:* rwm",
    b"c 1:3 rwm",
    b"b *:* r",
    b"FROZEN",
    b"THAWED",
    b"8:0 1000",
    b"max",
]
NOISE = [b"", b"\n", b" 1 ", b"\0", b"1\0x", b"\xff\xfe", b"x" * 4096, b"x" * 4097, b"7" * 40_000]
TEXTS = [*NUMBERS, *WORDS, *NOISE]
NAMES = [
    b"a",
    b"b",
    b"c d",
    b"e\xff",
    b"f\n",
    b"-",
    b".",
    b"tasks",
    b"g" * 255,
    b"h" * 256,
    b"i" * 2000,
    "ü".encode(),
]
POSSIBLE = {"ok", "refused by Python", "EACCES", "EBADF", "EBUSY", "EEXIST", "EINVAL", "EISDIR"} | {
    *("ENAMETOOLONG", "ENODEV", "ENODATA", "ENOENT", "ENOSPC", "ENOTDIR", "ENOTEMPTY", "ENOTTY", "ENXIO"),
    *("EOPNOTSUPP", "EOVERFLOW", "EPERM", "ERANGE", "ESRCH", "E2BIG", "EXDEV", "ELOOP"),
}


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    """Serve everything, and hand out the way to it."""
    with namespace_in(tmp_path) as namespace:
        server = namespace.serve()
        yield namespace.inside(namespace.mountpoint)
        assert server.poll() is None, namespace.log.read_text()
        server.send_signal(signal.SIGTERM)
        assert server.wait(10) == 0
        assert "defect" not in namespace.log.read_text()


class Fuzz:
    """Does random operations below a folder, each with bytes, offsets and sizes of all kinds."""

    def __init__(self, root: bytes, seed: int) -> None:
        """Find the files that there are."""
        self.root = root
        self.random = random.Random(seed)  # noqa: S311  # reproducible, not secret
        self.seen: Counter[str] = Counter()
        self.files = [
            os.path.join(folder, name)[len(root) + 1 :]
            for folder, _, names in os.walk(root)
            for name in names
        ]

    def path(self) -> bytes:
        """Return a file, a group or nothing, from any hierarchy, in a group that may or may not be there."""
        known = self.random.choice(self.files).split(b"/")
        groups = [self.random.choice(NAMES) for _ in range(self.random.choice([0, 0, 1, 1, 1, 2, 3]))]
        last = self.random.choice([known[-1:], known[-1:], [], [self.random.choice([*NAMES, b".."])]])
        return b"/".join([self.root, known[0], *groups, *last])

    def group(self) -> bytes:
        """Return the path of a group below a controller's root, so that nothing but groups can go."""
        controller = self.random.choice(self.files).split(b"/")[0]
        return b"/".join(
            [self.root, controller, *self.random.choices(NAMES, k=self.random.choice([1, 1, 2]))]
        )

    def once(self) -> None:
        """Do one operation."""
        name = self.random.choice(sorted(name for name in dir(self) if name.startswith("_do_")))
        begun = time.monotonic()
        try:
            getattr(self, name)()
            result = "ok"
        except OSError as error:
            result = errno.errorcode[error.errno or 0]
        except ValueError:  # Python's own: a NUL in a path
            result = "refused by Python"
        assert result in POSSIBLE or (name, result) == (
            "_do_rename",
            "EIO",
        )  # cgroup v1's word for another parent
        took = time.monotonic() - begun
        assert took < SLOW, f"{name} took {took:.1f} s"
        self.seen[f"{name} {result}"] += 1

    def _do_mkdir(self) -> None:
        os.mkdir(self.group(), self.random.choice([0o755, 0o700, 0o777]))

    def _do_rmdir(self) -> None:
        os.rmdir(self.group())

    def _do_rename(self) -> None:
        os.rename(self.group(), self.group())

    def _do_read(self) -> None:
        fd = os.open(self.path(), os.O_RDONLY)
        try:
            whole = b""
            while part := os.read(
                fd, self.random.choice([1, 7, 512, 4096, 65536, 1 << 20]) if whole else 4096
            ):
                whole += part
                assert len(whole) < 1 << 22, "it does not end"
            offset = self.random.choice(
                [0, 1, len(whole), len(whole) + 1, 1 << 40, self.random.randrange(9999)]
            )
            size = self.random.choice([0, 1, 100, 4096, 1 << 20])
            part = os.pread(fd, size, offset)
            assert offset == 0 or part == whole[offset : offset + size]
        finally:
            os.close(fd)

    def _do_write(self) -> None:
        path = self.path()
        if path.endswith((b"/tasks", b"/cgroup.procs", b"/release_agent")):
            return  # it would move, or run, what is not this test's
        flags = self.random.choice([0, os.O_TRUNC, os.O_APPEND, os.O_CREAT, os.O_TRUNC | os.O_CREAT])
        fd = os.open(path, self.random.choice([os.O_WRONLY, os.O_RDWR]) | flags)
        try:
            data = self.random.choice(TEXTS)
            assert os.pwrite(fd, data, self.random.choice([0, 0, 1, 4096, 1 << 40])) == len(data)
        finally:
            os.close(fd)

    def _do_stat(self) -> None:
        path = self.path()
        kind = stat.S_IFMT(os.stat(path).st_mode)
        assert kind in {stat.S_IFDIR, stat.S_IFREG}
        is_file = path.rpartition(b"/")[2] in {file.rpartition(b"/")[2] for file in self.files}
        assert (kind == stat.S_IFREG) == is_file, "a wrong type"

    def _do_list(self) -> None:
        names = os.listdir(self.path())
        assert len(names) == len(set(names))

    def _do_chmod(self) -> None:
        os.chmod(self.group(), self.random.choice([0o700, 0o755]))

    def _do_other(self) -> None:
        path = self.path()
        kind = self.random.randrange(7)
        if kind == 0:
            os.unlink(path)
        elif kind == 1:
            os.symlink("x", path)
        elif kind == 2:
            os.truncate(path, self.random.choice([0, 10, 1 << 30]))
        elif kind == 3:
            os.mkfifo(path)
        elif kind == 4:
            os.readlink(path)
        elif kind == 5:
            os.setxattr(path, b"user.x", self.random.choice(TEXTS))
        else:
            os.listxattr(path)


def run(mountpoint: Path, seed: int, count: int) -> Counter[str]:
    fuzz = Fuzz(os.fsencode(mountpoint), seed)
    for _ in range(count):
        fuzz.once()
    # It is as good as new: what was there is there, groups can be made, used and removed.
    group = mountpoint / "cpu" / "after"
    group.mkdir()
    (group / "cpu.shares").write_text("77")
    assert (group / "cpu.shares").read_text() == "77\n"
    group.rmdir()
    for file in fuzz.files:
        assert (mountpoint / os.fsdecode(file)).is_file()
    assert fuzz.seen["_do_mkdir ok"] > count / 200
    assert fuzz.seen["_do_read ok"] > count / 100
    assert fuzz.seen["_do_write ok"] > count / 200
    return fuzz.seen


def test_fuzz(mountpoint: Path) -> None:
    run(mountpoint, seed=7, count=5_000)


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_fuzz_for_long(mountpoint: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}: {dict(run(mountpoint, seed, 100_000))}")  # noqa: T201  # pytest shows it with -s or -rP
