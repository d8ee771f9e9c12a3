"""Cgroup trees of machines that this one is not, and the recipe for entering."""

from __future__ import annotations

import json
from pathlib import Path

from pytest_k3s_sandbox.sandbox import here, layout
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
    assert here.cgroup_mounts(V1) == v1
    assert here.cgroup_mounts(HYBRID) == v1
    assert here.cgroup_mounts(V2) == ["/sys/fs/cgroup"]
    assert here.cgroup_mounts(CONTAINER) == ["/sys/fs/cgroup/pids"]
    assert here.cgroup_mounts(GVISOR) == []
    assert here.cgroup_mounts("") == []


def test_the_mount_table_of_this_machine_can_be_read() -> None:
    text = Path("/proc/self/mountinfo").read_text()
    points = here.cgroup_mounts(text)
    assert bool(points) == (" /sys/fs/cgroup" in text and (" - cgroup" in text))
    for point in points:
        assert Path(point, "cgroup.procs").exists()


def test_a_recipe_is_json_and_says_everything(tmp_path: Path) -> None:
    plan = layout.Layout(
        tmp_path / "rootfs", (Bind(Path("/usr"), "/usr"), Bind(tmp_path, "/var", writable=True))
    )
    recipe = here.enter_recipe(plan, hostname="name", groups=["/sys/fs/cgroup/pids/name"])
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
    here.make_cgroup(parent / "group")  # a plain folder has no files of its own: none are made up
    assert list((parent / "group").iterdir()) == []
