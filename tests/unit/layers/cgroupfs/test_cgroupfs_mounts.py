"""The mount table, and the small helpers around it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_k3s_sandbox.layers.cgroupfs.mounts import (
    clear_dead,
    is_dead,
    make_directory,
    mounted,
    parse_mountinfo,
)

LINES = """\
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:9 master:1 - cgroup cgroup rw,cpu
34 33 0:32 /cpu /with\\040blank rw,nosuid,nodev - fuse none rw,allow_other
"""


def test_mountinfo() -> None:
    cpu, fuse = parse_mountinfo(LINES)
    assert (cpu.target, cpu.root, cpu.kind, cpu.options) == (
        "/sys/fs/cgroup/cpu",
        "/",
        "cgroup",
        ("rw", "cpu"),
    )
    assert (fuse.target, fuse.root, fuse.kind, fuse.source) == ("/with blank", "/cpu", "fuse", "none")


@pytest.mark.parametrize("line", ["x", "1 2 0:1 / / rw fuse none rw", "1 2 0:1 / / rw - fuse"])
def test_other_text_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="mountinfo"):
        parse_mountinfo(line)


def test_this_machine_has_a_root() -> None:
    assert "/" in {mount.target for mount in mounted()}


def test_directories(tmp_path: Path) -> None:
    assert make_directory(str(tmp_path / "a" / "b")) is False
    assert make_directory(str(tmp_path / "a" / "b")) is False
    assert (tmp_path / "a" / "b").is_dir()


def test_a_plain_directory_is_not_a_dead_mount(tmp_path: Path) -> None:
    assert not is_dead(str(tmp_path))
    assert not is_dead(str(tmp_path / "missing"))
    assert clear_dead(str(tmp_path)) == 0
