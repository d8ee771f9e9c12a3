"""Nothing of a sandbox remains, however it ends; each test looks only at the sandboxes that it started."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import ConfigError, StartError
from pytest_k3s_sandbox.sandbox import locks, machine, network, reaper
from pytest_k3s_sandbox.sandbox.base import Bind
from pytest_k3s_sandbox.sandbox.gvisor import GvisorSandbox
from pytest_k3s_sandbox.sandbox.host import HostSandbox, cgroup_mounts
from pytest_k3s_sandbox.sandbox.processes import start_time
from pytest_k3s_sandbox.sandbox.started import StartedSandbox
from support import held
from support.held import freeze, naming, wait_until
from support.installed import installed

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="sandboxes need root")

ENDS_BY_ITSELF = 5.0
"""Seconds that a sandbox may outlive a pytest that was killed."""

HOLDER = """
import sys, time
from pathlib import Path
from pytest_k3s_sandbox.sandbox.gvisor import GvisorSandbox
from pytest_k3s_sandbox.sandbox.host import HostSandbox
kind, runsc = sys.argv[1:]
with (GvisorSandbox(Path(runsc)) if kind == "gvisor" else HostSandbox()) as sandbox:
    sandbox.spawn(["sleep", "1000"], name="sleep")
    sandbox.spawn(["sh", "-c", "trap '' TERM; while :; do sleep 1; done"], name="stubborn")
    sandbox.run(["sh", "-c", "(setsid sleep 1000 >/dev/null 2>&1 &)"])
    print(sandbox.workdir.name, flush=True)
    time.sleep(1000)
"""

Start = Callable[..., StartedSandbox]
Member = tuple[int, int | None]


@dataclass(frozen=True)
class Maker:
    """How sandboxes of one kind are made, by a call or by a process of their own."""

    kind: str
    runsc: Path

    def __call__(self, *, binds: Sequence[Bind] = (), programs: Sequence[Path] = ()) -> StartedSandbox:
        """Start one."""
        if self.kind == "gvisor":
            return GvisorSandbox(self.runsc, binds=binds, programs=programs)
        return HostSandbox(binds=binds, programs=programs)

    @contextlib.contextmanager
    def held_elsewhere(self) -> Iterator[tuple[subprocess.Popen[str], str]]:
        """Give a Python process that holds a sandbox, and the sandbox's key."""
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, self.kind, str(self.runsc)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with holder:
            try:
                assert holder.stdout is not None
                key = holder.stdout.readline().strip()
                assert key, holder.stderr and holder.stderr.read()
                yield holder, key
            finally:
                holder.kill()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "a home"  # with a space, which mountinfo escapes
    monkeypatch.setenv("K3S_SANDBOX_HOME", str(folder))
    yield folder
    with machine.lock():  # what a failed test left, whoever owns it
        for left in (folder / "sandboxes").glob("*"):
            owner = machine.read_owner(left)
            if owner is not None:
                reaper.dispose(left, owner)


@pytest.fixture(params=["gvisor", "host"])
def make(request: pytest.FixtureRequest) -> Maker:
    runsc = installed("runsc").path if request.param == "gvisor" else Path("/nonexistent")
    return Maker(request.param, runsc)


def members(key: str) -> set[Member]:
    """Return (pid, start time) of every process of a sandbox: in its netns, or naming it."""
    return {(pid, start_time(pid)) for pid in held.members(key)}


def alive(processes: set[Member]) -> set[Member]:
    return {(pid, start) for pid, start in processes if start is not None and start_time(pid) == start}


def on_disk_and_in_kernel(key: str, home: Path) -> list[str]:
    """Return what exists of a sandbox besides processes."""
    folders = [str(path) for path in (home / "sandboxes").glob("*")]
    mountinfo = Path("/proc/self/mountinfo").read_text()
    mounts = [line for line in mountinfo.splitlines() if key in line]
    netns = [str(path) for path in Path("/run/netns").glob(f"*{key}*")]
    links = [name for _, name in socket.if_nameindex() if key in name]
    groups = [str(path) for point in cgroup_mounts(mountinfo) for path in Path(point).glob(f"*{key}*")]
    return [*folders, *mounts, *netns, *links, *groups]


def assert_gone(key: str, processes: set[Member], home: Path) -> None:
    assert alive(processes) == set()
    assert naming(key) == set()
    assert on_disk_and_in_kernel(key, home) == []


def test_the_search_for_leftovers_finds_a_running_sandbox(make: Maker, home: Path) -> None:
    with make() as sandbox:
        key = sandbox.workdir.name
        sandbox.spawn(["sleep", "1000"], name="sleep")
        found = "\n".join(on_disk_and_in_kernel(key, home))
        assert str(sandbox.workdir) in found
        assert f"/run/netns/k3ssb-{key}" in found
        assert f"\nk3s{key}" in found
        if make.kind == "host" and cgroup_mounts(Path("/proc/self/mountinfo").read_text()):
            assert f"/k3ssb-{key}" in found.partition(f"\nk3s{key}")[2]
        assert len(alive(members(key))) >= 2
        assert naming(key)


def test_close_leaves_nothing(make: Maker, home: Path) -> None:
    sandbox = make()
    sandbox.spawn(["sleep", "1000"], name="sleep")
    sandbox.run(["sh", "-c", "(setsid sleep 1000 >/dev/null 2>&1 &)"])
    processes = members(sandbox.workdir.name)
    sandbox.close()
    assert_gone(sandbox.workdir.name, processes, home)
    sandbox.close()  # it does nothing the second time


def test_an_ignored_sigterm_does_not_outlive_close(make: Maker, home: Path) -> None:
    sandbox = make()
    stubborn = sandbox.spawn(
        ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done"], name="stubborn"
    )
    assert wait_until(lambda: "up" in stubborn.log.read_text(), 5)
    processes = members(sandbox.workdir.name)
    sandbox.close()
    assert_gone(sandbox.workdir.name, processes, home)


def test_mounts_and_cgroups_made_inside_go_with_it(make: Maker, home: Path) -> None:
    sandbox = make()
    sandbox.run(
        [
            "sh",
            "-c",
            "mkdir /run/m && mount -t tmpfs none /run/m && mount --bind /run/m /mnt 2>/dev/null || :",
        ]
    )
    if make.kind == "host":
        sandbox.run(["sh", "-c", "for c in /sys/fs/cgroup/*/; do mkdir -p $c/a/b 2>/dev/null; done; :"])
        sandbox.spawn(
            ["sh", "-c", "echo 0 > /sys/fs/cgroup/pids/a/b/cgroup.procs; exec sleep 1000"], name="in-a-group"
        )
    processes = members(sandbox.workdir.name)
    sandbox.close()
    assert_gone(sandbox.workdir.name, processes, home)


def test_a_second_interrupt_during_close_leaves_nothing(
    make: Maker, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = make()
    sandbox.spawn(["sleep", "1000"], name="sleep")
    processes = members(sandbox.workdir.name)
    client = sandbox._client
    assert client is not None

    def interrupted(_deadline: Deadline) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(client, "end", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sandbox.close()
    client.end(Deadline.after(10))  # takes in the launcher, which is ours to wait for
    assert_gone(sandbox.workdir.name, processes, home)


def test_a_launcher_that_was_killed_leaves_nothing(make: Maker, home: Path) -> None:
    sandbox = make()
    process = sandbox.spawn(["sleep", "1000"], name="sleep")
    processes = members(sandbox.workdir.name)
    assert sandbox._client is not None
    sandbox._client._launcher.kill()  # as the kernel does when memory runs out
    if make.kind == "host":
        assert process.wait(Deadline.after(5)) == -signal.SIGKILL
        with pytest.raises(StartError):
            sandbox.run(["true"])
    sandbox.close()
    assert_gone(sandbox.workdir.name, processes, home)


def test_an_exception_in_the_body_leaves_nothing(make: Maker, home: Path) -> None:
    seen: list[tuple[str, set[Member]]] = []

    def body() -> None:
        with make() as sandbox:
            sandbox.spawn(["sleep", "1000"], name="sleep")
            seen.append((sandbox.workdir.name, members(sandbox.workdir.name)))
            raise LookupError

    with pytest.raises(LookupError):
        body()
    assert_gone(*seen[0], home)


class Names:
    """The keys of the sandboxes that were begun."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Listen to the choice of names."""
        self.keys: list[str] = []
        new_workdir = machine.new_workdir

        def listen(kind: str, runsc: str | None = None) -> tuple[Path, locks.Lock, machine.Owner]:
            made = new_workdir(kind, runsc)
            self.keys.append(made[0].name)
            return made

        monkeypatch.setattr(machine, "new_workdir", listen)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return Names(monkeypatch).keys


def test_a_missing_source_of_a_bind(make: Maker, home: Path, begun: list[str]) -> None:
    with pytest.raises(ConfigError, match="/no/such/folder does not exist"):
        make(binds=[Bind(Path("/no/such/folder"), "/srv/data")])
    assert_gone(begun[0], set(), home)


def test_a_missing_program(make: Maker, home: Path, begun: list[str]) -> None:
    with pytest.raises(ConfigError, match="/no/such/kubelet"):
        make(programs=[Path("/no/such/kubelet")])
    assert_gone(begun[0], set(), home)


def test_a_bind_on_a_folder_that_the_machine_lacks(
    make: Maker, home: Path, begun: list[str], tmp_path: Path
) -> None:
    (tmp_path / "shown").mkdir()
    with pytest.raises(ConfigError, match="shown/below/usr does not exist"):
        make(binds=[Bind(tmp_path / "shown", "/srv"), Bind(Path("/usr"), "/srv/below/usr")])
    assert list((tmp_path / "shown").iterdir()) == []  # nothing was made on the machine
    assert_gone(begun[0], set(), home)


@pytest.mark.parametrize("program", ["/bin/false", "/bin/true", "/bin/cat", "/etc/passwd", "/no/such/runsc"])
def test_a_runsc_that_is_not_runsc(program: str, home: Path, begun: list[str]) -> None:
    with pytest.raises(StartError):
        GvisorSandbox(Path(program))
    assert_gone(begun[0], set(), home)


@pytest.mark.parametrize("step", ["choose", "create"])
def test_a_network_that_cannot_be_made(
    step: str, make: Maker, home: Path, begun: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = network._ip

    def refuse(*words: str, batch: Sequence[str] = ()) -> str:
        if any(line.startswith({"choose": "address show", "create": "address add"}[step]) for line in batch):
            raise StartError("`ip` failed", cause="as the test wants it")
        return genuine(*words, batch=batch)

    monkeypatch.setattr(network, "_ip", refuse)
    with pytest.raises(StartError, match="as the test wants it"):
        make()
    assert_gone(begun[0], set(), home)


def test_an_interrupt_during_the_start(
    make: Maker, home: Path, begun: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    processes: set[Member] = set()

    def interrupted(self: StartedSandbox) -> None:
        processes.update(members(self.workdir.name))
        raise KeyboardInterrupt

    monkeypatch.setattr(GvisorSandbox, "_assert_genuine", interrupted)
    monkeypatch.setattr(HostSandbox, "_assert_genuine", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make()
    assert alive(processes) == set()
    assert len(processes) >= 2
    assert_gone(begun[0], processes, home)


def test_sigint_of_the_process_that_holds_it(make: Maker, home: Path) -> None:
    with make.held_elsewhere() as (holder, key):
        processes = members(key)
        assert len(processes) >= 2
        holder.send_signal(signal.SIGINT)
        assert holder.wait(timeout=20) == -signal.SIGINT  # what Python makes of KeyboardInterrupt
        assert_gone(key, processes, home)


def test_sigkill_of_the_process_that_holds_it(make: Maker, home: Path) -> None:
    with make.held_elsewhere() as (holder, key):
        processes = members(key)
        holder.kill()
        holder.wait()
    assert wait_until(lambda: not alive(processes), ENDS_BY_ITSELF), naming(key)
    assert (home / "sandboxes" / key).exists()  # until the next start:
    with make() as other:
        left = [path for path in on_disk_and_in_kernel(key, home) if other.workdir.name not in path]
        assert left == []
    assert_gone(key, processes, home)


def test_reaping_ends_what_still_runs(make: Maker, home: Path) -> None:
    """The next start may come before a sandbox has noticed the end of its owner."""
    with make.held_elsewhere() as (holder, key):
        assert reaper.reap() == []  # the owner is alive
        stopped = freeze(lambda: held.members(key))  # they notice nothing any more
        processes = {(pid, start_time(pid)) for pid in stopped}
        assert processes
        holder.kill()
        holder.wait()
        assert alive(processes) == processes
        assert reaper.reap() == [key]
        assert_gone(key, processes, home)


def test_a_folder_with_a_broken_owner_file_is_left_alone_and_named(make: Maker, home: Path) -> None:
    with make.held_elsewhere() as (holder, key):
        processes = members(key)
        folder = home / "sandboxes" / key
        record = (folder / machine.OWNER_FILE).read_text()
        (folder / machine.OWNER_FILE).write_text("{")
        holder.kill()
        holder.wait()
    assert wait_until(lambda: not alive(processes), ENDS_BY_ITSELF)
    assert reaper.reap() == []
    assert list(machine.strangers()) == [folder]
    assert "is broken or forged" in machine.strangers()[folder]
    (folder / machine.OWNER_FILE).write_text(record)
    assert reaper.reap() == [key]
    assert_gone(key, processes, home)


def test_a_home_behind_a_link(
    make: Maker, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(home)
    home.mkdir(mode=0o700)
    monkeypatch.setenv("K3S_SANDBOX_HOME", str(tmp_path / "link"))
    sandbox = make()
    processes = members(sandbox.workdir.name)
    sandbox.close()
    assert_gone(sandbox.workdir.name, processes, home)


def test_two_homes_at_once_get_two_networks(make: Maker, tmp_path: Path) -> None:
    """Processes with homes of their own start sandboxes at the same moment."""
    program = textwrap.dedent(
        f"""
        import sys
        sys.argv[1:] = [{make.kind!r}, {str(make.runsc)!r}]
        """
    ) + HOLDER.replace("print(sandbox.workdir.name", "print(sandbox.workdir.name, sandbox.address").replace(
        "time.sleep(1000)", "sys.stdin.read()"
    )
    holders = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, "K3S_SANDBOX_HOME": str(tmp_path / f"home-{number}")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    try:
        lines = [holder.stdout.readline().split() for holder in holders if holder.stdout]
    finally:
        for holder in holders:
            holder.communicate(timeout=30)
    addresses = [address for _key, address in lines]
    assert len(set(addresses)) == 3
    assert [holder.returncode for holder in holders] == [0, 0, 0]
    for number, (key, _address) in enumerate(lines):
        assert_gone(key, set(), tmp_path / f"home-{number}")


FULL_DISK = """
import subprocess, sys
from pathlib import Path
from pytest_k3s_sandbox.errors import StartError
from pytest_k3s_sandbox.sandbox.gvisor import GvisorSandbox
from pytest_k3s_sandbox.sandbox.host import HostSandbox
home, size, kind, runsc = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", home], check=True)
try:
    GvisorSandbox(Path(runsc)) if kind == "gvisor" else HostSandbox()
except StartError as error:
    print(error)
print("LEFT", [str(path) for path in Path(home).glob("sandboxes/*")])
"""


@pytest.mark.parametrize("size", ["8k", "64k"])
def test_a_full_disk(size: str, make: Maker, home: Path) -> None:
    home.mkdir()
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", FULL_DISK, str(home), size, make.kind, str(make.runsc)],
        check=True,
        capture_output=True,
        text=True,
    )
    before = set(re.findall(r"sandboxes/([0-9a-f]{8})/", done.stdout))
    message, _, left = done.stdout.partition("LEFT ")
    assert "No space left on device" in message
    assert "Remedy: free space below" in message
    assert "Traceback" not in done.stderr
    assert left.strip() == "[]"
    assert len(before) == 1
    assert_gone(before.pop(), set(), home)
