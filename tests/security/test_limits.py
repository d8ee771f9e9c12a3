"""What a sandbox takes of the machine ends at its limits: the machine lives; the error names the limit."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_k3s_sandbox.daemon import process as daemon
from pytest_k3s_sandbox.daemon import registry
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import SandboxError, StartError
from pytest_k3s_sandbox.node.session import open_session
from pytest_k3s_sandbox.node.spec import NodeSpec
from pytest_k3s_sandbox.report.records import read_run
from pytest_k3s_sandbox.sandbox import groups, reaper, rotation, watch
from pytest_k3s_sandbox.sandbox.gvisor import GvisorSandbox
from pytest_k3s_sandbox.sandbox.host import HostSandbox
from pytest_k3s_sandbox.sandbox.limits import Wanted
from pytest_k3s_sandbox.sandbox.started import ENDED, StartedSandbox
from pytest_k3s_sandbox.toolchain import Toolchain

KINDS = ["host", pytest.param("gvisor", marks=pytest.mark.k3s_requires("gvisor"))]
ENDS_SECONDS = 30.0
"""How long an attack may go on: under 3 s on a machine that has nothing else to do."""

FILL_MEMORY = "kept = []\nwhile True: kept.append(bytearray(b'x' * (1 << 20)))"
FORK = """
import os, time
while True:
    try:
        if os.fork() == 0:
            time.sleep(1000)
    except OSError:
        time.sleep(0.1)
"""
CHATTER = """
import os, time
for number in range(10**9):
    # One write a line: a rotation comes between two writes, and so never within a line.
    os.write(1, b"%d %s\\n" % (number, b"x" * 10000))
    time.sleep(0.004)
"""
SCRIPTS = {
    "memory": [sys.executable, "-I", "-S", "-c", FILL_MEMORY],
    "a file in memory": ["dd", "if=/dev/zero", "of=/tmp/file", "bs=1M"],
    "processes": [sys.executable, "-I", "-S", "-c", FORK],
    "a file": ["dd", "if=/dev/zero", "of=/var/file", "bs=1M", "count=3000"],
    "a file without a name": [
        "sh",
        "-c",
        # It goes on afterwards: a disk can take all that in less than a second, between two looks.
        "exec 3>/var/file; rm /var/file; dd if=/dev/zero bs=1M count=3000 >&3; sleep 1000",
    ],
}
WANTED = Wanted(memory="400Mi", disk="300Mi", processes="400")
MUCH = Wanted(memory="3Gi", disk="300Mi", processes="400")
"""For the attack by processes, each of which takes memory, too."""
MEMORY = "it took more than its 400 MiB of memory, and was ended; give it more by --k3s-memory"
DISK = "of the disk, and its limit is 300 MiB, and was ended; give it more by --k3s-disk"
SAID = {
    "memory": MEMORY,
    "a file in memory": MEMORY,
    "processes": "it had 400 processes and threads on the machine, which is its limit, and was ended; "
    "give it more by --k3s-processes",
    "a file": DISK,
    "a file without a name": DISK,
}
NEEDS = {"memory": "memory", "a file in memory": "memory", "processes": "pids"}
"""The controller that each attack is stopped by."""

pytestmark = [pytest.mark.k3s_requires("root"), pytest.mark.timeout(240)]


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the machine that has nothing to do with a sandbox."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def started(kind: str, limits: Wanted) -> StartedSandbox:
    if kind == "host":
        return HostSandbox(limits=limits)
    return GvisorSandbox(Toolchain().get("runsc").path, limits=limits)


def need(sandbox: StartedSandbox, attack: str) -> None:
    if NEEDS.get(attack) in sandbox.unlimited:
        pytest.skip(f"not applicable: {sandbox.unlimited}")


def left(sandbox: StartedSandbox) -> list[str]:
    return [line for line in reaper.leftovers() if sandbox.workdir.name in line]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attack", SCRIPTS)
def test_who_takes_all_of_the_machine_ends_its_sandbox_only(
    kind: str, attack: str, bystander: subprocess.Popen[bytes]
) -> None:
    with started(kind, MUCH if attack == "processes" else WANTED) as sandbox:
        need(sandbox, attack)
        known = len(ENDED)
        sleeper = sandbox.spawn(["sleep", "1000"], name="sleeper")
        sandbox.spawn(SCRIPTS[attack], name="attack")
        assert sleeper.wait(Deadline.after(ENDS_SECONDS)) is not None, "it goes on"
        # What a test does next fails with the reason.
        with pytest.raises(StartError) as caught:
            sandbox.run(["true"])
        assert SAID[attack] in str(caught.value)
        assert SAID[attack] in (sandbox.ended or "")
        assert ENDED[known:] == [sandbox.ended]
        assert bystander.poll() is None
    assert not sandbox.workdir.exists()
    assert left(sandbox) == []
    # What was charged to its groups has been given back with them.
    assert not any(Path(group).exists() for group in sandbox._record.cgroups)
    # The machine can do it again.
    with started(kind, WANTED) as another:
        assert another.run(["echo", "here I am"]).stdout == "here I am\n"


@pytest.mark.parametrize("kind", KINDS)
def test_what_stays_within_its_limits_goes_on(kind: str) -> None:
    with started(kind, WANTED) as sandbox:
        sandbox.run(["dd", "if=/dev/zero", "of=/var/file", "bs=1M", "count=200"])
        sandbox.run(["dd", "if=/dev/zero", "of=/tmp/file", "bs=1M", "count=100"])
        time.sleep(2.5)  # the watcher has looked
        assert sandbox.run(["echo", "still here"]).stdout == "still here\n"
        assert sandbox.ended is None
        folders = [Path(group) for group in sandbox._record.cgroups]
        assert all(folder.name == sandbox.name for folder in folders)
        if not sandbox.unlimited:
            names = {name.name for folder in folders for name in folder.iterdir()}
            assert "pids.max" in names
            assert "memory.limit_in_bytes" in names or "memory.max" in names
    assert not any(folder.exists() for folder in folders)
    assert left(sandbox) == []


def test_without_control_groups_of_the_machine_it_starts_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk has a limit there, too."""
    monkeypatch.setattr(groups, "find", lambda: groups.Places((), {"memory": "none", "pids": "none"}))
    with started("gvisor", WANTED) as sandbox:
        assert sandbox.unlimited == {"memory": "none", "pids": "none"}
        assert sandbox._record.cgroups == ()
        process = sandbox.spawn(SCRIPTS["a file"], name="attack")
        process.wait(Deadline.after(ENDS_SECONDS))
        with pytest.raises(StartError, match="its limit is 300 MiB"):
            sandbox.run(["sleep", "10"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_log_without_an_end_stays_small(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program that writes it goes on, also where the log is served over 9p."""
    monkeypatch.setattr(rotation, "LOG_BYTES", 1 << 20)
    monkeypatch.setattr(watch, "ROTATE_SECONDS", 0.5)
    with started(kind, WANTED) as sandbox:
        process = sandbox.spawn([sys.executable, "-u", "-I", "-S", "-c", CHATTER], name="chatter")
        older = f"{rotation.FOLDER}/chatter.log.1"
        until = Deadline.after(ENDS_SECONDS)
        while not sandbox.files.exists(older) and not until.expired:
            time.sleep(0.1)
        before = last(process.log.read_bytes() or sandbox.files.read(older))
        time.sleep(2.5)
        assert process.poll() is None
        assert process.log.size() < 8 << 20
        assert b"\0" not in process.log.read_bytes()  # it goes on at the new beginning
        assert sandbox.files.size(older) <= 1 << 20
        time.sleep(0.3)
        assert last(process.log.read_bytes() or sandbox.files.read(older)) > before


def last(log: bytes) -> int:
    """Return the number of the last whole line of a log."""
    return int(log.split(b"\n")[-2].split()[0])


@pytest.mark.parametrize("kind", KINDS)
def test_who_takes_a_sandbox_over_watches_it(kind: str, tmp_path: Path) -> None:
    with started(kind, Wanted(disk="100Mi")) as sandbox:
        name = sandbox.workdir.name
        fields: dict[str, Any] = {"name": name, "sandbox": name, "kind": kind, "address": sandbox.address}
        fields |= {"origin": "a test", "folder": str(tmp_path), "kubeconfig": "/none", "node": "n"}
        fields |= {"shell": [], "api_port": 1, "layers": [], "processes": {}, "zero": 0.0}
        limits = {"disk_bytes": sandbox.limits.disk_bytes}
        sandbox.spawn(
            ["sh", "-c", "sleep 3; exec dd if=/dev/zero of=/var/file bs=1M count=2000"], name="attack"
        )

        def receive(channel: int) -> None:
            order = daemon.Hold(fields, str(sandbox.workdir), channel, sandbox.lock_fd, limits)
            process = daemon.launch(order, tmp_path / "log")
            daemon.disown(process)
            assert registry.wait_for(lambda: registry.read_state(name) is not None, 30), (
                tmp_path / "log"
            ).read_text()

        sandbox.hand_over(receive)
    assert registry.wait_for(lambda: not sandbox.workdir.exists(), ENDS_SECONDS)
    assert "its limit is 100 MiB" in (tmp_path / "keeper.log").read_text()
    assert registry.wait_for(lambda: registry.read_state(name) is None, 5)
    assert left(sandbox) == []


PODS = {
    "memory": (
        "awk 'BEGIN { s = \"x\"; while (1) s = s s }'",
        Wanted(memory="2Gi", disk="12Gi", processes="6000"),
        "--k3s-memory",
    ),
    "a volume": ("dd if=/dev/zero of=/volume/file bs=1M", Wanted("6Gi", "1Gi", "6000"), "--k3s-disk"),
    # gVisor keeps what a pod writes to its own root in memory.
    "a file": ("dd if=/dev/zero of=/file bs=1M", Wanted("3Gi", "12Gi", "6000"), "--k3s-memory"),
    "processes": ("f() { f | f & f; }; f", Wanted("6Gi", "12Gi", "1500"), "--k3s-processes"),
}


@pytest.mark.k3s_requires("gvisor")
@pytest.mark.parametrize(
    "attack",
    [
        "memory",
        "a volume",
        *(pytest.param(name, marks=pytest.mark.nightly) for name in ("a file", "processes")),
    ],
)
def test_a_pod_that_takes_all_ends_its_cluster_only(
    attack: str, tmp_path: Path, bystander: subprocess.Popen[bytes]
) -> None:
    script, wanted, option = PODS[attack]
    spec = NodeSpec(memory=wanted.memory, disk=wanted.disk, processes=wanted.processes)
    with open_session(spec, toolchain=Toolchain(), folder=tmp_path / "run", experiment="test") as up:
        up.cluster.node.wait_ready(120)
        sandbox = up.stack.sandbox
        assert isinstance(sandbox, StartedSandbox)
        need(sandbox, attack)
        assert sandbox.ended is None
        up.cluster.wait_usable("default", Deadline.after(30))
        container = {
            "name": "attack",
            "image": "busybox:1.36",
            "command": ["sh", "-c", script],
            "volumeMounts": [{"name": "volume", "mountPath": "/volume"}],
        }
        pod = {"containers": [container], "volumes": [{"name": "volume", "emptyDir": {}}]}
        up.cluster.core.create_namespaced_pod("default", {"metadata": {"name": "attack"}, "spec": pod})
        with pytest.raises(SandboxError) as caught:
            up.cluster.wait(lambda: False, "the end", Deadline.after(60))
        assert option in str(caught.value)
        assert option in (sandbox.ended or "")
    assert bystander.poll() is None
    assert left(sandbox) == []
    limits = read_run(tmp_path / "run").environment
    assert limits is not None
    assert limits.limits is not None
    assert limits.limits.startswith(f"memory {wanted.memory.replace('Gi', ' GiB')}, disk ")
