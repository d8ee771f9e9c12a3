"""A cgroup filesystem that is served in a mount namespace of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pytest_k3s_sandbox.layers.cgroupfs.mounts import parse_mountinfo

MODULE = "pytest_k3s_sandbox.layers.cgroupfs"


class Namespace:
    """A mount namespace of its own, looked into from outside through /proc/PID/root."""

    def __init__(self, folder: Path) -> None:
        """Make it; nothing is served yet."""
        self.holder = subprocess.Popen(["unshare", "-m", "--propagation", "private", "sleep", "600"])
        self.mountpoint = folder / "tree"
        self.at = folder / "at"
        self.log = folder / "log"
        self.started: list[subprocess.Popen[bytes]] = []
        wait_until(
            lambda: Path(f"/proc/{self.holder.pid}/ns/mnt").readlink() != Path("/proc/self/ns/mnt").readlink()
        )

    def inside(self, path: Path) -> Path:
        """Return the way from outside to a path."""
        return Path(f"/proc/{self.holder.pid}/root{path}")

    def serve(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a server and wait until it is ready, or has ended."""
        argv = [
            "nsenter",
            "-t",
            str(self.holder.pid),
            "-m",
            sys.executable,
            "-m",
            MODULE,
            str(self.mountpoint),
        ]
        with self.log.open("wb") as log:
            server = subprocess.Popen([*argv, *arguments], stderr=log, cwd="/")
        self.started.append(server)
        wait_until(lambda: "ready" in self.log.read_text() or server.poll() is not None)
        return server

    def fuse_mounts(self) -> list[str]:
        """Return where FUSE is mounted below our folder."""
        lines = Path(f"/proc/{self.holder.pid}/mountinfo").read_text()
        ours = str(self.mountpoint.parent)
        return [m.target for m in parse_mountinfo(lines) if m.kind == "fuse" and m.target.startswith(ours)]

    def close(self) -> None:
        """End everything."""
        for process in [*self.started, self.holder]:
            process.kill()
            process.wait()


def wait_until(condition: Callable[[], object], seconds: float = 15) -> None:
    """Wait for a condition, a while."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


@contextlib.contextmanager
def namespace_in(folder: Path) -> Iterator[Namespace]:
    """Make a namespace, end it, and look whether it let anything out."""
    made = Namespace(folder)
    try:
        yield made
    finally:
        made.close()
    assert str(folder) not in Path("/proc/self/mountinfo").read_text(), "a mount leaked out"
    assert all(process.poll() is not None for process in made.started)
