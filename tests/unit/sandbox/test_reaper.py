"""What is looked for on a machine after a run: names that only a sandbox of ours can have."""

from __future__ import annotations

import os
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_k3s_sandbox.sandbox import machine, processes, reaper

OURS = ("k3ssb-0011aabb", "k3ssb-0011aabb-gw", "k3ssb-ccdd2233-gw")
OTHERS = ("k3ssb-0011aabb-gw0", "k3ssb-gw", "k3ssb-0011aab-gw", "k3ssb-0011aabb-gw-gw", "k3ssb-0011AABB")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with namespaces of ours and of others, and with nothing else."""
    monkeypatch.setenv("K3S_SANDBOX_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(reaper, "Path", lambda path: tmp_path / str(path).removeprefix("/"))
    monkeypatch.setattr(processes, "every", list)
    monkeypatch.setattr(reaper, "mounts_below", lambda _folder: [])
    interfaces = ["lo", "k3s0011aabb", "k3s0011aabb-gw", "k3s0011aabbx", "eth0"]
    monkeypatch.setattr(socket, "if_nameindex", lambda: list(enumerate(interfaces, 1)))
    for folder in ("run/netns", "sys/fs/cgroup/pids"):
        (tmp_path / folder).mkdir(parents=True)
    machine.private_folder(machine.sandboxes())
    for name in (*OURS, *OTHERS):
        (tmp_path / "run/netns" / name).touch()
    return tmp_path


def test_both_namespaces_of_a_sandbox_without_a_folder_are_found(root: Path) -> None:
    (root / "sys/fs/cgroup/pids/k3ssb-0011aabb").mkdir()
    (root / "sys/fs/cgroup/pids/k3ssb-mine").mkdir()
    assert sorted(reaper.leftovers()) == [
        f"cgroup {root}/sys/fs/cgroup/pids/k3ssb-0011aabb",
        *("interface k3s0011aabb", "interface k3s0011aabb-gw"),
        *(f"network namespace {name}" for name in OURS),
    ]


def test_those_of_a_sandbox_that_lives_are_left_out(root: Path) -> None:
    folder, life, owner = machine.new_workdir("host")
    made = [f"k3ssb-{folder.name}", f"k3ssb-{folder.name}-gw"]
    for name in made:
        (root / "run/netns" / name).touch()
    assert not [line for line in reaper.leftovers() if folder.name in line]
    life.release()
    machine.claim(folder, replace(owner, start=1))
    found = [line for line in reaper.leftovers() if folder.name in line]
    assert sorted(found) == [f"folder {folder}", *(f"network namespace {name}" for name in made)]


def test_cgroups_that_the_inside_has_nested_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reaper, "MOST_GROUPS", 5)
    group, elsewhere = tmp_path / "group", tmp_path / "elsewhere"
    (elsewhere / "kept").mkdir(parents=True)
    for number in range(20):  # what is removed makes room
        (group / str(number) / "a" / "b").mkdir(parents=True)
    reaper.remove_cgroup(group)
    assert not group.exists()
    group.mkdir()
    (group / "link").symlink_to(elsewhere)
    reaper.remove_cgroup(group, seconds=0.1)
    assert (elsewhere / "kept").is_dir()
    assert capsys.readouterr().err == ""


def test_cgroups_at_a_great_depth_are_left_with_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    group, folder = tmp_path / "group", os.open(tmp_path, os.O_RDONLY)
    try:
        for name in ("group", *["x"] * 1500):  # deeper than Python's stack
            os.mkdir(name, dir_fd=folder)
            below = os.open(name, os.O_RDONLY, dir_fd=folder)
            os.close(folder)
            folder = below
        reaper.remove_cgroup(group, seconds=0.2)
        said = capsys.readouterr().err
    finally:  # pytest could not remove it
        os.close(folder)
        subprocess.run(["rm", "-rf", "--", str(group)], check=True)
    assert f"the cgroup {group} is left" in said
    assert "or one deeper than 64" in said
    assert "Remedy: find " in said
