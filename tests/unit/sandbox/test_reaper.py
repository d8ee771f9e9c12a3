"""What is looked for on a machine after a run: names that only a sandbox of ours can have."""

from __future__ import annotations

import socket
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
    folder, life, owner = machine.new_workdir("here")
    made = [f"k3ssb-{folder.name}", f"k3ssb-{folder.name}-gw"]
    for name in made:
        (root / "run/netns" / name).touch()
    assert not [line for line in reaper.leftovers() if folder.name in line]
    life.release()
    machine.claim(folder, replace(owner, start=1))
    found = [line for line in reaper.leftovers() if folder.name in line]
    assert sorted(found) == [f"folder {folder}", *(f"network namespace {name}" for name in made)]
