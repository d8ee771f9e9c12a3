"""The watcher of the disk: when it measures, and what it finds."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from pytest_k3s_sandbox.sandbox import watch
from pytest_k3s_sandbox.sandbox.limits import Limits
from pytest_k3s_sandbox.sandbox.watch import Disk, Free, Watcher, unlinked, used

GIB = 1 << 30
MIB = 1 << 20


class World:
    """A disk, what a sandbox has on it, and a clock."""

    def __init__(self) -> None:
        """Be a disk with 100 GiB free."""
        self.free = Free(100 * GIB, 1_000_000)
        self.used: int | None = 0
        self.time = 0.0
        self.took = 0.0
        self.measured = 0

    def disk(self, limit: int | None = 10 * GIB) -> Disk:
        """Begin to watch."""
        return Disk(
            Path("/it"), limit, free=lambda _folder: self.free, measure=self.measure, now=lambda: self.time
        )

    def measure(self, _folder: Path) -> int | None:
        """Take as long as it takes."""
        self.measured += 1
        self.time += self.took
        return self.used


@pytest.fixture
def world() -> World:
    """Give a disk."""
    return World()


def test_what_fills_the_disk_is_found_at_once(world: World) -> None:
    disk = world.disk()
    assert disk.exceeded() is None
    world.time, world.free, world.used = 1, Free(85 * GIB, None), 15 * GIB
    assert disk.exceeded() == "it took 15 GiB of the disk, and its limit is 10 GiB"
    assert world.measured == 1


def test_little_is_measured_while_little_is_written(world: World) -> None:
    disk = world.disk()
    for second in range(60):
        world.time = second
        assert disk.exceeded() is None
    assert world.measured == 1


def test_what_others_remove_meanwhile_hides_nothing_for_long(world: World) -> None:
    disk = world.disk()
    world.used = 15 * GIB  # and there is room for it
    found = []
    for second in range(40):
        world.time = second
        found.append(disk.exceeded())
    assert any(found)


def test_what_others_write_is_not_the_sandboxs(world: World) -> None:
    disk = world.disk()
    world.free, world.used = Free(20 * GIB, None), 1 * GIB
    assert disk.exceeded() is None
    assert (disk.exceeded(), world.measured) == (None, 1)  # what is free now is the new beginning


def test_a_long_measurement_is_not_repeated_at_once(world: World) -> None:
    disk = world.disk()
    world.took = 5.0
    world.used = 1 * GIB
    for second in range(20):
        world.free = Free(world.free.size - 11 * GIB if second < 5 else world.free.size, None)
        world.time += 1
        assert disk.exceeded() is None
    assert world.measured == 1


def test_where_no_measurement_ends_what_is_free_tells(world: World) -> None:
    disk = world.disk()
    world.used, world.free = None, Free(80 * GIB, None)
    assert disk.exceeded() == "it took 20 GiB of the disk, and its limit is 10 GiB"


@pytest.mark.parametrize("limit", [None, 90 * GIB])
def test_a_disk_that_is_nearly_full_ends_who_took_part_in_it(world: World, limit: int | None) -> None:
    disk = world.disk(limit)
    world.free, world.used = Free(100 * MIB, None), 40 * GIB
    assert disk.exceeded() == "the disk of /it is nearly full (100 MiB free), of which it took 40 GiB"
    disk = world.disk(limit)
    world.used = 1 * MIB
    assert disk.exceeded() is None


def test_files_without_content_fill_a_disk_too(world: World) -> None:
    disk = world.disk()
    world.free, world.used = Free(90 * GIB, 100), 1 * GIB
    assert "100 inodes free" in (disk.exceeded() or "")


def test_a_folder_is_measured_without_following_links(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_bytes(b"x" * (4 * MIB))
    folder = tmp_path / "it"
    folder.mkdir()
    (folder / "link").symlink_to(elsewhere)
    (folder / "one").write_bytes(b"x" * (2 * MIB))
    (folder / "two").hardlink_to(folder / "one")
    with (folder / "holes").open("wb") as file:
        file.truncate(GIB)
    found = used(folder)
    assert found is not None
    assert 2 * MIB <= found < 3 * MIB
    assert used(tmp_path / "none") is None


def test_a_folder_that_is_nested_deeper_than_a_path_may_be_is_measured(tmp_path: Path) -> None:
    where = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("deep", dir_fd=where)
        inner = os.open("deep", os.O_RDONLY, dir_fd=where)
        os.close(where)
        where = inner
    file = os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=where)
    os.write(file, b"x" * MIB)
    os.close(file)
    os.close(where)
    assert (used(tmp_path) or 0) >= MIB
    subprocess.run(["rm", "-rf", tmp_path / "deep"], check=True)


def test_files_that_have_lost_their_names_count(tmp_path: Path) -> None:
    with (tmp_path / "gone").open("wb") as file:
        file.write(b"x" * MIB)
        file.flush()
        assert unlinked([os.getpid()], tmp_path) < MIB
        (tmp_path / "gone").unlink()
        assert unlinked([os.getpid(), os.getpid(), 2**30], tmp_path) >= MIB
        assert unlinked([], tmp_path) == 0


def test_the_thread_ends_the_sandbox_once_and_names_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.01)
    (tmp_path / "var").mkdir()
    group = tmp_path / "group"
    group.mkdir()
    said: list[str] = []
    ended = threading.Event()

    def end(why: str) -> None:
        said.append(why)
        ended.set()

    watcher = Watcher(tmp_path, Limits(64 * MIB, None, 500), (str(group),), list, end)
    watcher.start()
    time.sleep(0.05)
    assert said == []
    (group / "pids.current").write_text("500")
    assert ended.wait(10)
    time.sleep(0.05)
    assert len(said) == 1
    assert "--k3s-processes" in said[0]
    watcher.stop()


def test_a_watch_that_breaks_ends_the_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one the disk would have no limit from then on."""
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.01)
    (tmp_path / "var").mkdir()
    said: list[str] = []
    watcher = Watcher(tmp_path, Limits(None, GIB, None), (), list, said.append)
    monkeypatch.setattr(watcher._disk, "exceeded", lambda: 1 // 0)
    watcher.start()
    watcher._thread.join(10)
    watcher.stop()
    assert len(said) == 1
    assert "ZeroDivisionError" in said[0]
