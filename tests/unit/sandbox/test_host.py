"""Cgroup trees of machines that this one is not, and the recipe for entering."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_k3s_sandbox.errors import StartError
from pytest_k3s_sandbox.sandbox import host, layout
from pytest_k3s_sandbox.sandbox.base import Bind

# Lines as in proc(5) and cgroups(7), from machines of each kind.
V1 = """\
22 28 0:21 / /proc rw,nosuid shared:12 - proc proc rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
"""
HYBRID = V1 + "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"
V2 = """\
22 28 0:21 / /proc rw,nosuid shared:12 - proc proc rw
30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate
"""
CONTAINER = "35 31 0:32 /docker/abc /sys/fs/cgroup/pids ro,relatime master:11 - cgroup cgroup rw,pids\n"
GVISOR = "16 15 0:18 / / ro - 9p none ro,trans=fd\n25 16 0:26 / /proc rw - proc none rw\n"


def test_hierarchies_with_a_controller_are_found() -> None:
    v1 = ["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/memory"]
    assert host.cgroup_mounts(V1) == v1
    assert host.cgroup_mounts(HYBRID) == v1
    assert host.cgroup_mounts(V2) == ["/sys/fs/cgroup"]
    assert host.cgroup_mounts(CONTAINER) == ["/sys/fs/cgroup/pids"]
    assert host.cgroup_mounts(GVISOR) == []
    assert host.cgroup_mounts("") == []


def test_the_mount_table_of_this_machine_can_be_read() -> None:
    text = Path("/proc/self/mountinfo").read_text()
    points = host.cgroup_mounts(text)
    assert bool(points) == (" /sys/fs/cgroup" in text and (" - cgroup" in text))
    for point in points:
        assert Path(point, "cgroup.procs").exists()


def test_a_recipe_is_json_and_says_everything(tmp_path: Path) -> None:
    plan = layout.Layout(
        tmp_path / "rootfs", (Bind(Path("/usr"), "/usr"), Bind(tmp_path, "/var", writable=True))
    )
    recipe = host.enter_recipe(plan, hostname="name", groups=["/sys/fs/cgroup/pids/name"])
    assert json.loads(json.dumps(recipe)) == {
        "hostname": "name",
        "rootfs": str(tmp_path / "rootfs"),
        "binds": [["/usr", "/usr", False], [str(tmp_path), "/var", True]],
        "tmpfs": list(layout.TMPFS),
        "groups": ["/sys/fs/cgroup/pids/name"],
    }


def test_a_cpuset_group_inherits_what_tasks_need(tmp_path: Path) -> None:
    parent = tmp_path / "cpuset"
    parent.mkdir()
    (parent / "cpuset.cpus").write_text("0-1\n")
    host.make_cgroup(parent / "group")  # a plain folder has no files of its own: none are made up
    assert list((parent / "group").iterdir()) == []


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a sandbox's network namespace, and without a process."""
    monkeypatch.setattr(host, "Path", lambda path: tmp_path / str(path).removeprefix("/"))
    (tmp_path / "run/netns").mkdir(parents=True)
    (tmp_path / "run/netns/k3ssb-1").touch()
    (tmp_path / "proc").mkdir()
    (tmp_path / "other").touch()
    return tmp_path


def process(machine: Path, pid: int, numbers: str | None, *, ours: bool = True) -> None:
    """Put a process into the machine's /proc (proc_pid_status(5), NSpid)."""
    folder = machine / f"proc/{pid}"
    (folder / "ns").mkdir(parents=True)
    os.link(machine / ("run/netns/k3ssb-1" if ours else "other"), folder / "ns/net")
    line = "" if numbers is None else f"NSpid:\t{numbers}\n"
    (folder / "status").write_text(f"Name:\tx\nPid:\t{pid}\n{line}Threads:\t1\n")


def init_pid() -> int:
    sandbox: Any = host.HostSandbox.__new__(host.HostSandbox)
    sandbox.workdir = Path("/sandboxes/1")
    sandbox._record = SimpleNamespace(network=SimpleNamespace(netns="k3ssb-1"))
    return int(sandbox._init_pid())


def test_process_1_is_the_first_of_the_sandboxs_own_namespaces(machine: Path) -> None:
    process(machine, 10, "10")  # of the machine, but in the network: such as nsenter
    process(machine, 11, "11\t5")  # another one of the sandbox
    process(machine, 12, "12\t9\t1")  # a pod's process 1, in the host's network
    process(machine, 13, "13\t1", ours=False)  # another sandbox's process 1
    process(machine, 14, None)  # a kernel without NSpid
    process(machine, 15, "15\t11")
    (machine / "proc/16").mkdir()  # it has ended meanwhile
    (machine / "proc/sys").mkdir()
    with pytest.raises(StartError, match="the sandbox k3ssb-1 has ended"):
        init_pid()
    process(machine, 17, "17\t1")
    assert init_pid() == 17
