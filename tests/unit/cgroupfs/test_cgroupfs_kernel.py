"""Our files next to those of this machine's kernel, which has cgroup v1 or the test is skipped."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest

from pytest_k3s_sandbox.layers.cgroupfs.accounting import ProcAccounting
from pytest_k3s_sandbox.layers.cgroupfs.controllers import CONTROLLERS
from pytest_k3s_sandbox.layers.cgroupfs.mounts import mounted
from pytest_k3s_sandbox.layers.cgroupfs.tree import Tree

OPTIONAL = {
    # Made by a kernel with CONFIG_BFQ_CGROUP, CONFIG_RT_GROUP_SCHED, or newer than some that are in use.
    *(f"blkio.bfq.{name}{end}" for name in ("io_serviced", "io_service_bytes") for end in ("", "_recursive")),
    "cpu.rt_period_us",
    "cpu.rt_runtime_us",
    "cpu.cfs_burst_us",
    "cpu.idle",
    "cpu.stat.local",
    "pids.peak",
}
"""Files of ours that a kernel may lack."""


def kernel(name: str) -> Path:
    for mount in mounted():
        if mount.kind == "cgroup" and name in mount.options and mount.root == "/":
            return Path(mount.target)
    pytest.skip(f"not applicable: this machine has no cgroup v1 mount of {name}")


def shape(text: str) -> list[str]:
    """Return the lines with numbers as N, and what depends on the number of something once."""
    lines = re.sub(r"-?\b[0-9]+\b", "N", text).splitlines()
    return list(dict.fromkeys(re.sub(r"(?:N ){2,}", "N ", line) for line in lines))


@pytest.mark.parametrize("name", CONTROLLERS)
def test_the_root_group_has_the_kernels_files(name: str) -> None:
    folder = kernel(name)
    theirs = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir() if path.is_file()}
    group = Tree(ProcAccounting(), [name]).hierarchies[name].root
    ours = {file: found.mode for file in group.files() if (found := group.file(file)) is not None}
    assert {file: ours.get(file) for file in theirs} == theirs
    assert ours.keys() - theirs.keys() <= OPTIONAL


@pytest.mark.parametrize("name", CONTROLLERS)
def test_contents_have_the_kernels_form(name: str) -> None:
    folder = kernel(name)
    group = Tree(ProcAccounting(), [name]).hierarchies[name].root
    for file in group.files():
        theirs: str | int | None
        ours: str | int | None
        if not (folder / file).exists():
            continue
        try:
            theirs = (folder / file).read_text()
        except OSError as error:
            theirs = error.errno
        try:
            ours = group.read(file)
        except OSError as error:
            ours = error.errno
        if isinstance(theirs, str) and isinstance(ours, str):
            assert shape(ours) == shape(theirs), file
        else:
            assert ours == theirs, file


def test_files_of_other_groups() -> None:
    """The kernel's only groups that may be looked at are those that somebody else has made."""
    folder = kernel("memory")
    group = next((path for path in folder.iterdir() if path.is_dir()), None)
    if group is None:
        pytest.skip("not applicable: no group but the root's")
    tree = Tree(ProcAccounting(), ["memory"])
    tree.mkdir("/memory/g")
    assert {path.name for path in group.iterdir() if path.is_file()} == set(
        tree.hierarchies["memory"].root.children["g"].files()
    )


def test_numbers_are_the_kernels_within_reason() -> None:
    folder = kernel("cpuacct")
    theirs = int((folder / "cpuacct.usage").read_text())
    ours = int(Tree(ProcAccounting(), ["cpuacct"]).hierarchies["cpuacct"].root.read("cpuacct.usage"))
    assert ours == pytest.approx(theirs, rel=0.3)
