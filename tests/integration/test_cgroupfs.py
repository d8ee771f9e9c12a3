"""The cgroup filesystem through real FUSE: on this machine in a mount namespace, and in gVisor."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pytest_k3s_sandbox.layers.cgroupfs.layer import FuseCgroupfs
from pytest_k3s_sandbox.sandbox.gvisor import GvisorSandbox
from support.cgroupfs_served import Namespace, namespace_in, wait_until
from support.installed import installed

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/dev/fuse", os.W_OK), reason="needs root and /dev/fuse"
)


@pytest.fixture
def namespace(tmp_path: Path) -> Iterator[Namespace]:
    with namespace_in(tmp_path) as made:
        yield made


def test_a_day_in_the_life(namespace: Namespace) -> None:
    server = namespace.serve("--at", str(namespace.at))
    tree, at = namespace.inside(namespace.mountpoint), namespace.inside(namespace.at)
    assert {path.name for path in tree.iterdir()} == {path.name for path in at.iterdir()}
    group = at / "cpuacct" / "g"
    group.mkdir()
    assert (tree / "cpuacct" / "g" / "tasks").read_text() == ""
    burn = "import time\nend = time.process_time() + 0.6\nwhile time.process_time() < end: pass\ninput()"
    with subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE) as child:
        (group / "cgroup.procs").write_text(f"{child.pid}\n")
        assert (group / "tasks").read_text() == f"{child.pid}\n"
        with pytest.raises(OSError, match="busy"):
            group.rmdir()
        wait_until(lambda: int((group / "cpuacct.usage").read_text()) >= 500_000_000)
        child.communicate(b"\n")
    assert (group / "tasks").read_text() == ""
    assert int((group / "cpuacct.usage").read_text()) >= 500_000_000
    group.rmdir()
    assert not (tree / "cpuacct" / "g").exists()
    server.send_signal(signal.SIGTERM)
    assert server.wait(10) == 0
    assert namespace.fuse_mounts() == []


def test_files_that_come_and_go_with_groups(namespace: Namespace) -> None:
    namespace.serve("--controllers", "cpu")
    group = namespace.inside(namespace.mountpoint) / "cpu" / "g"
    for number in range(2, 30):
        assert not group.exists()
        group.mkdir()
        (group / "cpu.shares").write_text(str(number))
        assert (group / "cpu.shares").read_text() == f"{number}\n"
        group.rmdir()
        with pytest.raises(FileNotFoundError):
            (group / "cpu.shares").read_text()


def test_reads_of_any_kind_get_everything(namespace: Namespace) -> None:
    namespace.serve("--controllers", "devices")
    group = namespace.inside(namespace.mountpoint) / "devices" / "g"
    group.mkdir()
    (group / "devices.deny").write_text("a")
    wanted = "".join(f"c {n}:* rwm\n" for n in range(20_000))
    with (group / "devices.allow").open("wb", buffering=0) as file:
        for line in wanted.splitlines():
            file.write(line.encode())
    assert (group / "devices.list").read_text() == wanted
    fd = os.open(group / "devices.list", os.O_RDONLY)
    parts = []
    while part := os.read(fd, 512):
        parts.append(part)
    assert b"".join(parts).decode() == wanted
    assert os.pread(fd, 10, len(wanted) - 10) == wanted[-10:].encode()
    os.close(fd)
    assert (
        subprocess.run(["cat", str(group / "devices.list")], capture_output=True, check=True).stdout.decode()
        == wanted
    )


def test_errors_and_modes_come_through(namespace: Namespace) -> None:
    namespace.serve("--controllers", "cpu,memory")
    root = namespace.inside(namespace.mountpoint)
    for path, number in (("cpu/cpu.shares", errno.EINVAL), ("memory/cgroup.procs", errno.ESRCH)):
        with pytest.raises(OSError) as caught:  # noqa: PT011  # the errno is looked at
            (root / path).write_text("2147483647")
        assert caught.value.errno == number
    with pytest.raises(OSError, match="Permission denied"):
        (root / "cpu" / "new").write_text("")
    with pytest.raises(OSError, match="not permitted"):
        (root / "new").mkdir()
    assert (root / "memory" / "memory.stat").stat().st_mode & 0o777 == 0o444
    assert (root / "memory" / "memory.stat").stat().st_size == 0


def test_many_readers_at_once(namespace: Namespace) -> None:
    namespace.serve()
    root = namespace.inside(namespace.mountpoint)

    def work(number: int) -> int:
        group = root / "memory" / f"g{number}"
        for _ in range(20):
            group.mkdir()
            assert len((group / "memory.stat").read_text().splitlines()) == 42
            assert (root / "cpuacct" / "cpuacct.usage_percpu").read_text().endswith("\n")
            group.rmdir()
        return number

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(work, range(8))) == list(range(8))


def test_a_killed_run_leaves_a_dead_mount_that_the_next_one_clears(namespace: Namespace) -> None:
    first = namespace.serve("--at", str(namespace.at), "--controllers", "cpu,pids")
    assert (namespace.inside(namespace.at) / "cpu" / "cpu.shares").read_text() == "1024\n"
    pid = int(
        subprocess.run(
            ["pgrep", "-f", str(namespace.mountpoint)], capture_output=True, check=True
        ).stdout.split()[0]
    )
    assert pid == first.pid
    first.kill()
    first.wait()
    with pytest.raises(OSError, match="not connected"):
        list(namespace.inside(namespace.mountpoint).iterdir())
    second = namespace.serve("--at", str(namespace.at), "--controllers", "cpu,pids")
    assert (namespace.inside(namespace.at) / "cpu" / "cpu.shares").read_text() == "1024\n"
    assert len(namespace.fuse_mounts()) == 3
    second.send_signal(signal.SIGINT)
    assert second.wait(10) == 0
    assert namespace.fuse_mounts() == []


def test_statistics(namespace: Namespace, tmp_path: Path) -> None:
    server = namespace.serve("--controllers", "cpu", "--stats", str(tmp_path / "stats.json"))
    (namespace.inside(namespace.mountpoint) / "cpu" / "cpu.shares").read_text()
    server.terminate()
    assert server.wait(10) == 0
    assert json.loads((tmp_path / "stats.json").read_text())["operations"]["read"] >= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--controllers", "cpu,nonsense"], "nonsense"), (["--controllers", ""], "(none)")],
)
def test_wrong_input_is_one_message(namespace: Namespace, arguments: list[str], message: str) -> None:
    server = namespace.serve(*arguments)
    assert server.wait(10) == 2
    assert message in namespace.log.read_text()
    assert "Traceback" not in namespace.log.read_text()


def test_a_mountpoint_that_cannot_be(namespace: Namespace) -> None:
    namespace.mountpoint.write_text("a file")
    server = namespace.serve()
    assert server.wait(10) == 2
    assert str(namespace.mountpoint) in namespace.log.read_text()
    assert namespace.fuse_mounts() == []


def test_a_place_that_cannot_be_bound_leaves_nothing(namespace: Namespace) -> None:
    namespace.at.mkdir()
    (namespace.at / "pids").write_text("a file")
    server = namespace.serve("--at", str(namespace.at), "--controllers", "cpu,pids")
    assert server.wait(10) == 2
    assert "pids" in namespace.log.read_text()
    assert namespace.fuse_mounts() == []


def test_the_layer_in_a_genuine_sandbox() -> None:
    sandbox = GvisorSandbox(installed("runsc").path)
    try:
        with FuseCgroupfs(sandbox) as layer:
            health = layer.check()
            assert health.ok
            assert health.details["f_type"].startswith("0x65735546 (FUSE")
            shell = "cat /sys/fs/cgroup/memory/memory.stat | wc -l; grep -c ' - cgroup ' /proc/self/mountinfo"
            # Six of gVisor's controllers are ours, and its job is below our freezer.
            assert sandbox.run(["sh", "-c", shell]).stdout.split() == ["42", "7"]
            once = sandbox.run(["cat", "/sys/fs/cgroup/memory/memory.stat"]).stdout
        left = sandbox.run(["grep", "-c", "cgroup", "/proc/self/mountinfo"], check=False)
        assert left.stdout.strip() == "0"
        with FuseCgroupfs(sandbox) as layer:  # its log still has the first one's words
            assert layer.check().ok
            again = sandbox.run(["cat", "/sys/fs/cgroup/memory/memory.stat"]).stdout
        assert again.splitlines()[-1].split()[0] == once.splitlines()[-1].split()[0]
    finally:
        sandbox.close()
