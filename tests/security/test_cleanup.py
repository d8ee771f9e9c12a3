"""The clean-up touches nothing that is not ours, whatever a record or a state file says.

Each test leaves a sandbox as a killed run, a reboot, another container or a forger would, puts something
of another owner beside it, and runs the next command of ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_k3s_sandbox.sandbox.reaper import remove_cgroup
from support.held import Held, held, next_command, running, wait_until
from support.installed import installed

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="sandboxes need root"), pytest.mark.timeout(120)]

HUNG = """#!/bin/sh
case "$*" in
    KEYS) exec sleep 20 ;;
esac
exec RM "$@"
"""
"""An rm(1) that hangs where it is to remove some sandboxes."""
NEW_PIDS = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
WITNESS = (
    *("sh", "-c"),
    'sleep 1000 & "$@"; code=$?; grep -q "^State:.S" /proc/$!/status || exit 97; kill $!; exit $code',
    "sh",
)
"""Runs a command beside another process, and ends with 97 if that one was killed meanwhile."""
ANOTHER_NETWORK = ("unshare", "--net")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "home"
    for private in (folder, folder / "sandboxes"):
        private.mkdir(mode=0o700)
    yield folder
    next_command(folder)  # what a test left of sandboxes whose holder it killed at its end
    for netns in [Path("/run/netns", f"k3ssb-{left.name}") for left in (folder / "sandboxes").glob("*")]:
        if netns.exists():
            subprocess.run(["ip", "netns", "delete", netns.name], check=True)
    subprocess.run(["umount", "-R", folder], check=False, capture_output=True)


@pytest.fixture
def runsc() -> Path:
    return installed("runsc").path


@pytest.fixture
def bystander() -> Iterator[int]:
    """A process of another owner."""
    with another_process() as process:
        yield process.pid
        assert process.poll() is None, "a bystander was killed"


@contextlib.contextmanager
def another_process(*prefix: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([*prefix, "sleep", "1000"]) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def killed(kind: str, home: Path, runsc: Path = Path("/nonexistent")) -> Iterator[Held]:
    with held(kind, runsc, home) as sandbox:
        sandbox.kill()
        yield sandbox


def test_what_a_killed_run_left_goes(home: Path, runsc: Path) -> None:
    """The other tests prove something only if the next command removes what is ours."""
    with killed("gvisor", home, runsc) as one, killed("host", home) as other:
        next_command(home)
        assert not one.folder.exists()
        assert not other.folder.exists()
        assert not Path(f"/run/netns/k3ssb-{one.key}").exists()


@pytest.mark.parametrize("forged", ["another process", "everything"])
def test_process_ids_in_a_state_file_of_runsc(home: Path, runsc: Path, bystander: int, forged: str) -> None:
    with held("gvisor", runsc, home) as sandbox:
        (file,) = (sandbox.folder / "runsc").glob("*.state")
        state = json.loads(file.read_text())
        sandbox.kill()
        everything = forged == "everything"
        state["goferPid"] = state["sandbox"]["pid"] = -1 if everything else bystander
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(state))
        file.with_suffix(".lock").touch()
        # kill(-1) reaches every process there is: that one is tried in a pid namespace of its own.
        next_command(home, *((*NEW_PIDS, *WITNESS) if everything else ()))
        assert running(bystander)


def test_a_signal_for_everything_would_be_seen() -> None:
    """What the test before proves of the process id -1 hangs on this."""
    for number, code in ((0, 0), (int(signal.SIGKILL), 97)):
        kills = f"import os; os.kill(-1, {number})"
        done = subprocess.run([*NEW_PIDS, *WITNESS, sys.executable, "-c", kills], check=False)
        assert done.returncode == code


def test_after_a_reboot_no_process_is_signalled(home: Path, runsc: Path) -> None:
    """The record is of another boot; what has the numbers and the names now is another owner's."""
    with held("gvisor", runsc, home) as sandbox:
        groups = sandbox.record["cgroups"]
        others = sandbox.freeze_and_kill()
        assert len(others) >= 3
        sandbox.rewrite(boot="00000000-0000-0000-0000-000000000000")
        next_command(home)
        assert [pid for pid in others if not running(pid)] == []
        assert Path(f"/run/netns/k3ssb-{sandbox.key}").exists()
        assert not sandbox.folder.exists()  # the folder bears our mark
        for pid in others:
            with contextlib.suppress(ProcessLookupError):  # it ended with one before it
                os.kill(pid, signal.SIGKILL)
        for name in (f"k3ssb-{sandbox.key}", f"k3ssb-{sandbox.key}-gw"):  # the interface goes with the latter
            subprocess.run(["ip", "netns", "delete", name], check=True)
    for group in groups:
        remove_cgroup(Path(group))


@pytest.mark.parametrize("kind", ["gvisor", "host"])
def test_a_live_sandbox_of_another_pid_namespace(home: Path, runsc: Path, kind: str) -> None:
    """Two containers share the home, but neither their processes nor /run."""
    container = 'mount -t tmpfs tmpfs /run && mkdir -p /run/lock && exec "$@"'
    with held(kind, runsc, home) as sandbox:
        next_command(home, *NEW_PIDS, "--mount", "--net", "sh", "-c", container, "sh")
        assert sandbox.folder.exists()
        assert sandbox.says("alive") == "alive"
        next_command(home, *NEW_PIDS)  # the same /run
        assert sandbox.says("still alive") == "still alive"


def test_another_container_removes_what_is_in_the_folder_only(home: Path) -> None:
    with killed("host", home) as sandbox:
        next_command(home, *NEW_PIDS)
        assert {path.name for path in sandbox.folder.iterdir()} == {"owner.json", "life.lock"}
        next_command(home)  # in the pid namespace that it belongs to
        assert not sandbox.folder.exists()
        assert not Path(f"/run/netns/k3ssb-{sandbox.key}").exists()


def test_files_and_folders_of_a_user(home: Path) -> None:
    theirs = home / "sandboxes"
    (theirs / "notes").mkdir()
    (theirs / "0123abcd").mkdir()
    files = [
        theirs / "thesis.txt",
        theirs / "notes" / "one",
        theirs / "0123abcd" / "two",
        theirs / "ffffffff",
    ]
    for file in files:
        file.write_text("mine")
    (theirs / "abcdabcd").symlink_to(theirs / "notes")
    next_command(home)
    assert [file.read_text() for file in files] == ["mine"] * 4
    assert (theirs / "abcdabcd").is_symlink()


def test_another_namespace_of_that_name(home: Path) -> None:
    with killed("host", home) as sandbox:
        name = f"k3ssb-{sandbox.key}"
        before = Path(f"/run/netns/{name}").stat().st_ino
        with another_process(*ANOTHER_NETWORK) as first, another_process(*ANOTHER_NETWORK) as second:
            subprocess.run(["ip", "netns", "delete", name], check=True)
            processes = (first, second)
            inodes = [Path(f"/proc/{process.pid}/ns/net").stat().st_ino for process in processes]
            theirs = processes[0] if inodes[0] != before else processes[1]  # numbers are used again
            subprocess.run(["ip", "netns", "attach", name, str(theirs.pid)], check=True)
            next_command(home)
            assert theirs.poll() is None
            assert Path(f"/run/netns/{name}").exists()
            assert not sandbox.folder.exists()
            subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.mark.parametrize("what", ["namespace", "cgroup"])
def test_a_record_that_names_what_is_anothers(home: Path, what: str) -> None:
    group = Path("/sys/fs/cgroup/pids" if Path("/sys/fs/cgroup/pids").is_dir() else "/sys/fs/cgroup")
    theirs = group / "k3s-sandbox-bystander"
    with killed("host", home) as sandbox, another_process(*ANOTHER_NETWORK) as process:
        record = sandbox.record
        if what == "namespace":
            subprocess.run(["ip", "netns", "attach", "bystander", str(process.pid)], check=True)
            sandbox.rewrite(network={**record["network"], "netns": "bystander"})
        else:
            if not os.access(group, os.W_OK) or not wait_until(lambda: _made(theirs), 1):
                pytest.skip("no cgroup can be made here")
            sandbox.rewrite(cgroups=[*record["cgroups"], str(theirs)])
        try:
            next_command(home)
            assert process.poll() is None
            assert what == "namespace" or theirs.is_dir()
            assert what == "cgroup" or Path("/run/netns/bystander").exists()
        finally:
            (sandbox.folder / "owner.json").write_text(json.dumps(record))
            if what == "cgroup":
                theirs.rmdir()
            else:
                subprocess.run(["ip", "netns", "delete", "bystander"], check=True)
        next_command(home)
        assert not sandbox.folder.exists()


def _made(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        folder.mkdir(exist_ok=True)
    return folder.is_dir()


def test_mounts_beside_and_data_mounted_below(home: Path, tmp_path: Path) -> None:
    with killed("host", home) as sandbox:
        data = tmp_path / "data"
        beside = sandbox.folder.with_name(f"{sandbox.key}-beside")
        below = sandbox.folder / "var" / "below"
        for folder in (data, beside, below):
            folder.mkdir()
        (data / "file").write_text("mine")
        for point in (beside, below):
            subprocess.run(["mount", "--bind", data, point], check=True)
        next_command(home)
        assert (data / "file").read_text() == "mine"
        assert (beside / "file").read_text() == "mine"
        assert f" {beside} " in Path("/proc/self/mountinfo").read_text()
        assert not sandbox.folder.exists()
        subprocess.run(["umount", beside], check=True)


def test_records_of_the_version_before(home: Path, bystander: int) -> None:
    """They tell neither the boot nor the pid namespace, so that nothing by them can be verified."""
    with another_process(*ANOTHER_NETWORK) as process:
        key = "0123abcd"
        subprocess.run(["ip", "netns", "attach", f"k3ssb-{key}", str(process.pid)], check=True)
        folder = home / "sandboxes" / key
        (folder / "runsc").mkdir(parents=True)
        net = {"netns": f"k3ssb-{key}", "veth": f"k3s{key}", "gateway": "10.213.0.1", "address": "10.213.0.2"}
        before = {"pid": bystander, "start": 1, "kind": "gvisor", "network": net, "cgroups": []}
        (folder / "owner.json").write_text(json.dumps({**before, "runsc": "/bin/false"}))
        next_command(home)
        assert process.poll() is None
        assert Path(f"/run/netns/k3ssb-{key}").exists()
        assert (folder / "owner.json").exists()


def test_sandboxes_that_hang_do_not_keep_the_next_start(home: Path, runsc: Path, tmp_path: Path) -> None:
    """One after the other, or under a lock, they would take a minute."""
    hung = tmp_path / "hung" / "rm"
    hung.parent.mkdir()
    with contextlib.ExitStack() as stack:
        sandboxes = [stack.enter_context(held("gvisor", runsc, home)) for _ in range(3)]
        for sandbox in sandboxes:  # when all are there: each start removes what was killed before
            sandbox.kill()
        keys = "|".join(f"*{sandbox.key}*" for sandbox in sandboxes)
        hung.write_text(HUNG.replace("KEYS", keys).replace("RM", str(shutil.which("rm"))))
        hung.chmod(0o755)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", f"{hung.parent}:{os.environ['PATH']}")
            assert next_command(home) < 10
        assert all(sandbox.folder.exists() for sandbox in sandboxes)  # so they did hang


def test_a_state_of_an_impossible_process(home: Path, bystander: int) -> None:
    """``stop --all`` of a forged state: process -1 that began at no time was alive, and is everybody."""
    kept = home / "kept"
    kept.mkdir(mode=0o700)
    fields = {"name": "up", "origin": "k3s-sandbox up", "pid": -1, "start": None, "folder": "/", "node": "n"}
    fields |= {"kubeconfig": "/none", "shell": [], "sandbox": "x", "kind": "host", "address": "1"}
    fields |= {"api_port": 1, "layers": [], "processes": {}, "zero": 0.0}
    fields |= {"boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip()}
    fields |= {"pid_namespace": str(Path("/proc/self/ns/pid").readlink())}
    code = (
        "from pytest_k3s_sandbox.daemon import registry; registry.END_SECONDS = 1; "
        "[registry.end(state) for state in registry.states()]"
    )
    for left_out in ((), ("boot", "pid_namespace")):
        (kept / "up.json").write_text(json.dumps({k: v for k, v in fields.items() if k not in left_out}))
        # In a pid namespace of its own: kill(-1) would reach every process there is.
        inside = f"sleep 100 & {sys.executable} -c '{code}'; kill -0 $! && echo spared"
        done = subprocess.run(
            [*NEW_PIDS, "sh", "-c", inside],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "K3S_SANDBOX_HOME": str(home)},
        )
        assert done.stdout == "spared\n", done.stderr
    assert running(bystander)
