"""Whatever is killed at whatever moment: nothing of ours remains, and nothing of another owner is touched."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pytest_k3s_sandbox.sandbox.host import cgroup_mounts
from pytest_k3s_sandbox.toolchain import Toolchain
from support.held import running, wait_until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="sandboxes need root"),
    pytest.mark.k3s_requires("gvisor"),
]

ENDS_BY_ITSELF = 15.0  # the median is under 0.1 s; a machine with both cores busy takes longer now and then
"""Seconds that a sandbox may outlive the process that owned it."""

NEXT_SECONDS = 2.0
"""How long the next command may take, at the median of the kills: the machine may be busy."""

VICTIMS = ("pytest", "daemon", "sandbox", "gofer", "launcher", "agent")
KIND = {"sandbox": "gvisor", "gofer": "gvisor", "agent": "host"}
"""The kind of sandbox that has such a process."""

MOMENTS = {"pytest": (0.3, 3.0)} | dict.fromkeys(VICTIMS[1:], (0.0, 1.0))
"""From when until when a process is killed, in seconds after it was first seen: before, during and after
its sandbox."""

TRIES = 10
"""How often a victim may have ended before its moment."""

STRANGERS = 4
"""How many things of another owner lie among the sandboxes' folders."""

TEST = """
import time

def test_it(k3s_sandbox):
    k3s_sandbox.spawn(["sleep", "1000"], name="sleep")
    k3s_sandbox.run(["true"])
    time.sleep(0.5)
"""

HAND_OVER = """
import sys
from pathlib import Path
from pytest_k3s_sandbox.daemon import process as daemon
from pytest_k3s_sandbox.daemon import registry as kept
from pytest_k3s_sandbox.sandbox.gvisor import GvisorSandbox
from pytest_k3s_sandbox.sandbox.host import HostSandbox
kind, runsc = sys.argv[1:]
with (GvisorSandbox(Path(runsc)) if kind == "gvisor" else HostSandbox()) as sandbox:
    name = sandbox.workdir.name
    fields = {"name": name, "origin": "a test", "folder": "/none", "kubeconfig": "/none", "node": "n"}
    fields |= {"sandbox": name, "kind": kind, "address": sandbox.address, "shell": [], "api_port": 1}
    fields |= {"layers": [], "processes": {}, "zero": 0.0}

    def receive(channel):
        order = daemon.Hold(fields, str(sandbox.workdir), channel, sandbox.lock_fd)
        process = daemon.launch(order, Path("/dev/null"))
        kept.wait_for(lambda: kept.read_state(name) is not None or process.poll() is not None, 30)
        if kept.read_state(name) is None:
            sys.exit("it was killed")
        daemon.disown(process)

    sandbox.hand_over(receive)
"""


@dataclass
class Bystanders:
    """What belongs to another owner, beside our sandboxes.

    Attributes:
        process: A process in a network namespace of its own.
        namespace: The name of that namespace, as one of ours is called.
        folders: Folders and a file of a user in the folder of sandboxes, by their content.
        mount: A mount there.
        groups: Empty cgroups beside ours.
    """

    process: subprocess.Popen[bytes]
    namespace: str
    folders: dict[Path, str]
    mount: Path
    groups: list[Path]

    def touched(self) -> list[str]:
        """Return what is not as it was."""
        found = [] if self.process.poll() is None else ["process"]
        if not Path("/run/netns", self.namespace).exists():
            found.append("namespace")
        found += [f"folder {path}" for path, text in self.folders.items() if not _holds(path, text)]
        if f" {self.mount} " not in Path("/proc/self/mountinfo").read_text():
            found.append("mount")
        return found + [f"cgroup {group}" for group in self.groups if not group.is_dir()]


def _holds(path: Path, text: str) -> bool:
    with contextlib.suppress(OSError):
        return path.read_text() == text
    return False


@contextlib.contextmanager
def bystanders(home: Path) -> Iterator[Bystanders]:
    """Put them there."""
    there = home / "sandboxes"
    home.mkdir(mode=0o700)
    there.mkdir(mode=0o700)
    (there / "notes").mkdir()
    (there / "0123abcd").mkdir()
    folders = {there / "notes" / "one": "1", there / "0123abcd" / "two": "2", there / "thesis.txt": "3"}
    for path, text in folders.items():
        path.write_text(text)
    mount = there / "mounted"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", mount], check=True)
    groups = []
    for point in cgroup_mounts(Path("/proc/self/mountinfo").read_text()):
        with contextlib.suppress(OSError):
            Path(point, f"bystander-{os.getpid()}").mkdir()
            groups.append(Path(point, f"bystander-{os.getpid()}"))
    namespace = f"k3ssb-bystander-{os.getpid()}"
    with subprocess.Popen(["unshare", "--net", "sleep", "100000"]) as process:
        try:
            own = Path("/proc/self/ns/net").stat().st_ino
            assert wait_until(lambda: Path(f"/proc/{process.pid}/ns/net").stat().st_ino != own, 5)
            subprocess.run(["ip", "netns", "attach", namespace, str(process.pid)], check=True)
            yield Bystanders(process, namespace, folders, mount, groups)
        finally:
            subprocess.run(["ip", "netns", "delete", namespace], check=False)
            process.kill()
            subprocess.run(["umount", mount], check=False)
            for group in groups:
                group.rmdir()


@dataclass
class Figures:
    """What the kills came to.

    Attributes:
        kills: How often each kind of victim was killed.
        ended: Seconds until no process of ours ran any more, after the owner's kill.
        cleaned: Seconds that the next command took.
        removed: How often there was something for it to remove.
        seen: How often a sandbox was seen before the kill.
    """

    kills: dict[str, int] = field(default_factory=dict)
    ended: list[float] = field(default_factory=list)
    cleaned: list[float] = field(default_factory=list)
    removed: int = 0
    seen: int = 0

    def __str__(self) -> str:
        """Return them in one line."""
        ended, cleaned = sorted(self.ended), sorted(self.cleaned)
        return (
            f"{sum(self.kills.values())} kills ({self.kills}); after the owner's kill no process of ours "
            f"within {statistics.median(ended or [0]):.2f} s (median), {max(ended, default=0):.2f} s (most); "
            f"the next command took {statistics.median(cleaned):.2f} s (median), {cleaned[-1]:.2f} s (most), "
            f"and had something to remove {self.removed} times"
        )


def command_line(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    return []


OTHERS: set[str] = set()
"""Network namespaces and interfaces that were there before: of sandboxes that other tests still have."""


def networks() -> set[str]:
    """Return the names of all sandboxes' network namespaces and interfaces."""
    namespaces = {path.name for path in Path("/run/netns").glob("k3ssb-*")}
    return namespaces | {name for _, name in socket.if_nameindex() if name.startswith("k3s")}


def ours(home: Path) -> dict[int, list[str]]:
    """Return the processes of ours and their command lines, by the home and the environment."""
    own = f"K3S_SANDBOX_HOME={home}".encode()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        with contextlib.suppress(OSError):
            words = command_line(pid)
            named = any(f"{home}/sandboxes/" in word for word in words)
            if pid != os.getpid() and (named or own in (folder / "environ").read_bytes()):
                found[pid] = words
    for path in Path("/run/netns").glob("k3ssb-*"):
        if "bystander" not in path.name and path.name not in OTHERS:
            done = subprocess.run(
                ["ip", "netns", "pids", path.name], capture_output=True, text=True, check=False
            )
            found |= {int(pid): command_line(int(pid)) for pid in done.stdout.split()}
    return {pid: words for pid, words in found.items() if running(pid)}


def victim_of(what: str, processes: dict[int, list[str]]) -> int | None:
    """Return the process that is to be killed, if there is one at this moment."""
    for pid, words in processes.items():
        found = {
            "daemon": "pytest_k3s_sandbox.daemon.process" in words,
            "sandbox": words[:1] == ["runsc-sandbox"],
            "gofer": words[:1] == ["runsc-gofer"],
            "launcher": words[0].endswith("/runsc") or words[0] == "unshare",
            "agent": words[-2:-1] != [] and words[-2].endswith("agent.py"),
        }.get(what, False)
        if found:
            return pid
    return None


def left(home: Path, beside: Bystanders, keys: set[str]) -> list[str]:
    """Return what there is of ours besides processes.

    Cgroups have no namespace here: only those of sandboxes that were seen count.
    """
    theirs = {path.name for path in beside.folders} | {"notes", "0123abcd", "mounted"}
    found = [str(path) for path in (home / "sandboxes").iterdir() if path.name not in theirs]
    for name in ("kept", "partial", "shared"):
        found += [str(path) for path in (home / name).glob("*")]
    found += sorted(networks() - OTHERS - {beside.namespace})
    mountinfo = Path("/proc/self/mountinfo").read_text()
    found += [
        line for line in mountinfo.splitlines() if f"{home}/" in line and f" {beside.mount} " not in line
    ]
    for point in cgroup_mounts(mountinfo):
        found += [str(path) for path in Path(point).glob("k3ssb-*") if path.name[-8:] in keys]
    return found


class Harness:
    """Kills, looks, and runs the next command.

    Args:
        folder: A folder of its own.
        seed: What the random moments follow from.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        """Write the project whose pytest is killed."""
        OTHERS.clear()
        OTHERS.update(networks())
        self.home = folder / "home"
        self.project = folder / "project"
        self.said = folder / "said"
        self.project.mkdir(parents=True)
        (self.project / "test_it.py").write_text(textwrap.dedent(TEST))
        (self.project / "pytest.ini").write_text("[pytest]\n")
        self.runsc = Toolchain().get("runsc").path
        self.random = random.Random(seed)  # noqa: S311 - moments, no secrets
        self.figures = Figures()
        self.env = {**os.environ, "K3S_SANDBOX_HOME": str(self.home)}
        for name in ("PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST", "PYTEST_XDIST_WORKER"):
            self.env.pop(name, None)

    def start(self, what: str, kind: str) -> subprocess.Popen[bytes]:
        """Start a run: pytest with a sandbox, or a process that hands one over to a daemon."""
        if what == "daemon":
            argv = [sys.executable, "-c", HAND_OVER, kind, str(self.runsc)]
        else:
            argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--k3s-sandbox={kind}"]
        with self.said.open("wb") as said:
            return subprocess.Popen(
                argv,
                cwd=self.project,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    def keys_until(self, until: float) -> set[str]:
        """Wait; return the keys of the sandboxes that were seen meanwhile."""
        keys: set[str] = set()
        while True:
            for parent in ("partial", "sandboxes"):
                keys |= {path.name for path in (self.home / parent).glob("????????")}
            if time.monotonic() >= until:
                return keys
            time.sleep(0.02)

    def choose(self, what: str, run: subprocess.Popen[bytes]) -> tuple[int | None, float, set[str]]:
        """Wait for a random moment in the life of a victim.

        Returns:
            The process, if it still lives then; the seconds since the run began; the keys of the
            sandboxes that were seen.
        """
        began = time.monotonic()
        keys: set[str] = set()
        if what != "pytest":
            while run.poll() is None and victim_of(what, ours(self.home)) is None:
                keys |= self.keys_until(0)
        keys |= self.keys_until(time.monotonic() + self.random.uniform(*MOMENTS[what]))
        victim = run.pid if what == "pytest" else victim_of(what, ours(self.home))
        return (victim if run.poll() is None or what == "daemon" else None), time.monotonic() - began, keys

    def kill_one(self, what: str, beside: Bystanders) -> bool:
        """Kill one process at a random moment of a run, and see what becomes of all others.

        Returns:
            Whether one was killed: it may have ended before its moment.
        """
        kind = (
            self.random.choice(("gvisor", "host")) if what in {"pytest", "daemon", "launcher"} else KIND[what]
        )
        with self.start(what, kind) as run:
            victim, moment, keys = self.choose(what, run)
            said = f"{what} of {kind} killed after {moment:.3f} s"
            owned = what == "pytest" or run.poll() is not None  # else the run itself goes on, and ends it
            if victim is not None:
                os.kill(victim, signal.SIGKILL)
            began = time.monotonic()
            run.wait(timeout=60)  # if it was not the victim, it notices
            daemon = victim_of("daemon", ours(self.home))
            if daemon is not None:  # the sandbox had been handed over just before; it would stay for ever
                os.kill(daemon, signal.SIGKILL)
                began = time.monotonic()
            assert wait_until(lambda: not ours(self.home), ENDS_BY_ITSELF), (said, ours(self.home))
            if what in {"pytest", "daemon"} and victim is not None and owned:
                self.figures.ended.append(time.monotonic() - began)
        sys.stdout.write(f"{said}{'' if victim else ': it had ended'}\n")
        self.look(said, keys | self.keys_until(0), beside)
        self.figures.seen += bool(keys)
        if victim is not None:
            self.figures.kills[what] = self.figures.kills.get(what, 0) + 1
        return victim is not None

    def look(self, said: str, keys: set[str], beside: Bystanders) -> None:
        """Run the next command; what is ours has gone then, and nothing else."""
        assert beside.touched() == [], said
        self.figures.removed += bool(left(self.home, beside, keys))
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "pytest_k3s_sandbox.cli", "ps"],
            env=self.env, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        self.figures.cleaned.append(time.monotonic() - began)
        assert done.returncode == 0, (said, done.stderr)
        assert "no sandbox runs" in done.stdout, (said, done.stdout)
        assert done.stdout.count("not ours, and left alone") == STRANGERS, (said, done.stdout)
        assert left(self.home, beside, keys) == [], said
        assert beside.touched() == [], said


def kill_many(count: int, folder: Path, seed: int) -> Figures:
    """Kill so many processes, one after the other."""
    harness = Harness(folder, seed)
    with bystanders(harness.home) as beside:
        for number in range(count):
            tries = iter(range(TRIES))
            while not harness.kill_one(VICTIMS[number % len(VICTIMS)], beside):
                assert next(tries, None) is not None, harness.said.read_text()
    assert harness.figures.seen >= count / 2, harness.said.read_text()
    return harness.figures


@pytest.mark.timeout(180)
def test_six_kills(tmp_path: Path) -> None:
    figures = kill_many(6, tmp_path, seed=6)
    sys.stdout.write(f"{figures}\n")
    assert statistics.median(figures.cleaned) < NEXT_SECONDS, figures


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_two_hundred_kills(tmp_path: Path) -> None:
    """``K3S_SANDBOX_KILLS`` and ``K3S_SANDBOX_KILLS_SEED`` take another count and other moments."""
    count = int(os.environ.get("K3S_SANDBOX_KILLS", "200"))
    seed = int(os.environ.get("K3S_SANDBOX_KILLS_SEED", str(time.time_ns())))
    sys.stdout.write(f"seed {seed}\n")
    figures = kill_many(count, tmp_path, seed)
    sys.stdout.write(f"{figures}\n")
    assert statistics.median(figures.cleaned) < NEXT_SECONDS, figures
