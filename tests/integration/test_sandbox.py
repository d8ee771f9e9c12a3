"""What a sandbox of each kind does for the layers and the cluster, on the real thing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_k3s_sandbox.cluster.components import ClusterSettings
from pytest_k3s_sandbox.cluster.embedded import assert_ports_free
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import ClusterError, StartError
from pytest_k3s_sandbox.sandbox.base import BIN_DIR, STATE_DIR, V9FS_MAGIC, Bind, Process
from pytest_k3s_sandbox.sandbox.host import cgroup_mounts
from pytest_k3s_sandbox.sandbox.layout import TMPFS
from pytest_k3s_sandbox.sandbox.started import StartedSandbox
from support.installed import Make, maker
from support.outside import outside

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="sandboxes need root")

START_SECONDS = 2.0
"""How long a start may take (the issue's figure)."""

MARKER = "k3s-sandbox-test-secret"

SERVE = """
import http.server, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"from inside")
http.server.HTTPServer((sys.argv[1], int(sys.argv[2])), Answer).serve_forever()
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("K3S_SANDBOX_HOME", str(folder))
        patch.setenv("K3S_TEST_SECRET", MARKER)
        yield folder


@pytest.fixture(scope="module", params=["gvisor", "host"])
def make(request: pytest.FixtureRequest, home: Path) -> Make:
    assert home.exists()
    return maker(request.param)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    (folder / "file").write_text("from outside")
    return folder


@pytest.fixture(scope="module")
def sandbox(make: Make, shared: Path) -> Iterator[StartedSandbox]:
    """One sandbox for all tests that leave it as it was."""
    began = time.monotonic()
    programs = [Path("/usr/bin/id"), Path("/usr/bin/cat")]
    binds = [
        Bind(shared, "/srv/ro"),
        Bind(shared, "/srv/rw", writable=True),
        Bind(shared / "file", "/srv/file"),
    ]
    with make(programs=programs, binds=binds) as started:
        assert time.monotonic() - began < START_SECONDS
        yield started


def shell(sandbox: StartedSandbox, command: str) -> str:
    return sandbox.run(["sh", "-c", command]).stdout


def wait_for_text(process: Process, text: str, seconds: float = 10.0) -> None:
    deadline = Deadline.after(seconds)
    while text not in (process.log.read_text() if process.log.exists() else ""):
        assert not deadline.expired, f"{process.log} does not say {text!r}"
        time.sleep(0.02)


# What it is.


def test_the_root_of_a_gvisor_sandbox_is_9p_to_the_system_call_and_the_mount_table(
    sandbox: StartedSandbox,
) -> None:
    if sandbox.kind != "gvisor":
        pytest.skip("not applicable: only a gVisor sandbox of ours has to have a 9p root")
    paths = ("/", "/usr", "/etc", STATE_DIR, BIN_DIR, "/srv/rw")
    assert {path: sandbox.statfs_magic(path) for path in paths} == dict.fromkeys(paths, V9FS_MAGIC)
    root = next(
        line for line in shell(sandbox, "cat /proc/self/mountinfo").splitlines() if line.split()[4] == "/"
    )
    assert root.partition(" - ")[2].split()[:2] == ["9p", "none"]
    assert "gvisor" in shell(sandbox, "uname -r").lower()


def test_its_host_name_is_its_name_and_the_machine_keeps_its_own(sandbox: StartedSandbox) -> None:
    before = os.uname().nodename
    assert shell(sandbox, "uname -n; cat /etc/hostname").split() == [sandbox.name, sandbox.name]
    sandbox.run(["hostname", "changed-inside"])
    assert os.uname().nodename == before
    sandbox.run(["hostname", sandbox.name])


def test_process_1_is_the_agent_and_no_process_of_the_machine_is_seen(sandbox: StartedSandbox) -> None:
    assert "agent.py" in shell(sandbox, "tr '\\0' ' ' < /proc/1/cmdline")
    pids = {int(word) for word in shell(sandbox, "ls /proc | grep '^[0-9]'").split()}
    assert len(pids) < 10
    assert os.getpid() not in pids or os.getpid() < 10


def test_shell_argv_leads_inside(sandbox: StartedSandbox) -> None:
    done = subprocess.run(
        sandbox.shell_argv(["sh", "-c", "uname -n; command -v id; echo $PATH"]),
        capture_output=True,
        text=True,
        check=True,
    )
    name, found, path = done.stdout.split()
    assert name == sandbox.name
    assert found == f"{BIN_DIR}/id"
    assert path.startswith(BIN_DIR)


# Processes.


def test_run_gives_both_outputs_and_the_exit_code(sandbox: StartedSandbox) -> None:
    done = sandbox.run(["sh", "-c", "echo out; echo err >&2; exit 3"], check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")


def test_run_leaves_no_files(sandbox: StartedSandbox) -> None:
    before = sorted(sandbox.logs.iterdir())
    sandbox.run(["echo", "x"])
    assert sorted(sandbox.logs.iterdir()) == before


def test_run_with_check_names_the_command_the_code_and_the_words(sandbox: StartedSandbox) -> None:
    with pytest.raises(StartError, match=r"(?s)`sh -c .*` in k3ssb-.* failed with exit code 5.*no luck"):
        sandbox.run(["sh", "-c", "echo no luck >&2; exit 5"])


def test_a_signal_shows_as_a_negative_exit_code(sandbox: StartedSandbox) -> None:
    assert sandbox.run(["sh", "-c", "kill -9 $$"], check=False).returncode == -signal.SIGKILL


def test_environment_and_large_output(sandbox: StartedSandbox) -> None:
    assert sandbox.run(["sh", "-c", 'printf %s "$X"'], env={"X": "ä b\n$c"}).stdout == "ä b\n$c"
    assert len(sandbox.run(["head", "-c", "3000000", "/dev/zero"]).stdout) == 3_000_000
    long = "x" * 100_000  # below MAX_ARG_STRLEN (execve(2)), above a pipe's 64 KiB
    assert sandbox.run(["sh", "-c", 'printf %s "${#0}"', long]).stdout == "100000"


def test_run_kills_what_takes_too_long_with_its_children(sandbox: StartedSandbox) -> None:
    began = time.monotonic()
    with pytest.raises(StartError, match=r"ran longer than 0\.5 s and was killed"):
        sandbox.run(["sh", "-c", "sleep 876 & sleep 876"], timeout=0.5)
    assert time.monotonic() - began < 5
    assert "sleep 876" not in shell(sandbox, "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '").replace(
        "cat", ""
    )


def test_a_missing_program_is_a_start_error(sandbox: StartedSandbox) -> None:
    with pytest.raises(StartError, match=r"cannot start /no/such/program .*No such file"):
        sandbox.run(["/no/such/program"])
    with pytest.raises(StartError, match="cannot start /etc/passwd"):
        sandbox.spawn(["/etc/passwd"], name="not-executable")
    assert shell(sandbox, "echo still there") == "still there\n"


def test_a_log_can_be_read_on_the_machine_while_the_process_runs(sandbox: StartedSandbox) -> None:
    process = sandbox.spawn(["sh", "-c", "echo first; echo second >&2; exec sleep 1000"], name="talks")
    assert process.log == sandbox.workdir / f"var/lib/k3s-sandbox/logs/{process.name}.log"
    wait_for_text(process, "second")
    assert process.log.read_text() == "first\nsecond\n"
    assert process.poll() is None
    assert process.stop() == -signal.SIGTERM
    assert process.poll() == -signal.SIGTERM


def test_stop_insists(sandbox: StartedSandbox) -> None:
    process = sandbox.spawn(
        ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done"], name="insists"
    )
    wait_for_text(process, "up")
    assert process.wait(Deadline.after(0.1)) is None
    assert process.stop(grace=0.3) == -signal.SIGKILL
    process.signal(signal.SIGTERM)  # after its end: nothing happens


def test_signals_arrive(sandbox: StartedSandbox) -> None:
    process = sandbox.spawn(
        ["sh", "-c", "trap 'exit 7' USR1; echo up; while :; do sleep 0.05; done"], name="hears"
    )
    wait_for_text(process, "up")
    process.signal(signal.SIGUSR1)
    assert process.wait(Deadline.after(5)) == 7


def test_many_short_processes_from_many_threads(sandbox: StartedSandbox) -> None:
    codes: list[int] = []

    def work(number: int) -> None:
        codes.extend(sandbox.run(["sh", "-c", f"exit {number}"], check=False).returncode for _ in range(10))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == sorted(list(range(8)) * 10)


def test_orphans_are_reaped(sandbox: StartedSandbox) -> None:
    shell(sandbox, "for i in 1 2 3; do (setsid sh -c 'sleep 0.1' >/dev/null 2>&1 &); done")
    deadline = Deadline.after(8)
    while "Z" in shell(sandbox, "cat /proc/[0-9]*/status 2>/dev/null | grep ^State | cut -f2"):
        assert not deadline.expired
        time.sleep(0.1)


# Files.


@pytest.mark.parametrize("folder", ["/", "/usr", "/usr/bin", "/etc", "/bin", BIN_DIR, "/srv/ro"])
def test_the_system_cannot_be_written(sandbox: StartedSandbox, folder: str) -> None:
    done = sandbox.run(["touch", f"{folder}/k3s-sandbox-test"], check=False)
    assert done.returncode == 1
    assert "Read-only file system" in done.stderr
    assert not Path(folder, "k3s-sandbox-test").exists()


@pytest.mark.parametrize("folder", [*TMPFS, "/var", "/var/lib", STATE_DIR])
def test_what_must_be_written_can_be_and_stays_off_the_machine(sandbox: StartedSandbox, folder: str) -> None:
    name = f"{folder}/written-inside"
    shell(sandbox, f"echo x > {name}; test -s {name}; rm {name}; mkdir {name}; rmdir {name}; : > {name}")
    assert not Path(name).exists()
    shell(sandbox, f"rm {name}")


def test_binds_are_shown_as_asked(sandbox: StartedSandbox, shared: Path) -> None:
    assert shell(sandbox, "cat /srv/ro/file /srv/file") == "from outside" * 2
    shell(sandbox, "echo from inside > /srv/rw/new")
    assert (shared / "new").read_text() == "from inside\n"
    (shared / "late").write_text("later")
    assert shell(sandbox, "cat /srv/ro/late") == "later"
    assert sandbox.run(["sh", "-c", "echo x > /srv/file"], check=False).returncode != 0


def test_homes_and_secrets_are_not_visible(sandbox: StartedSandbox) -> None:
    """/root may show the folder of this Python, and the way to it, and nothing else."""
    assert sandbox.run(["ls", "/home"], check=False).returncode != 0
    for place in ("/root", "/work"):
        allowed = {path for path in (sys.base_prefix, sys.prefix) if path.startswith(place)}
        for name in shell(sandbox, f"ls -A {place} 2>/dev/null || :").split():
            assert any(path.startswith(f"{place}/{name}") for path in allowed) or name == "main", name
    for path in (
        "/etc/shadow",
        "/etc/ssh",
        "/root/.ssh",
        "/root/.cache",
        "/root/.bash_history",
        "/boot",
        "/mnt",
    ):
        assert sandbox.run(["ls", path], check=False).returncode != 0, path


def test_the_environment_of_no_process_inside_tells_the_secrets_of_ours(sandbox: StartedSandbox) -> None:
    assert os.environ["K3S_TEST_SECRET"] == MARKER
    everything = shell(sandbox, "env; cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'")
    assert "PATH=" in everything
    assert MARKER not in everything


def test_programs_are_executable_and_read_only(sandbox: StartedSandbox) -> None:
    assert shell(sandbox, f"ls {BIN_DIR}").split() == ["cat", "id"]
    assert sandbox.run([f"{BIN_DIR}/id", "-u"]).stdout == "0\n"
    assert shell(sandbox, "command -v id").strip() == f"{BIN_DIR}/id"
    assert sandbox.run(["sh", "-c", f"echo x >> {BIN_DIR}/id"], check=False).returncode != 0
    assert sandbox.run(["chmod", "000", f"{BIN_DIR}/id"], check=False).returncode != 0
    assert os.access("/usr/bin/id", os.X_OK)


def test_host_path_is_the_same_file_seen_from_outside(sandbox: StartedSandbox) -> None:
    shell(sandbox, f"echo inside > {STATE_DIR}/word")
    seen = outside(sandbox, f"{STATE_DIR}/word")
    assert seen.read_text() == "inside\n"
    seen.write_text("outside\n")
    assert shell(sandbox, f"cat {STATE_DIR}/word") == "outside\n"
    for path in ("/etc/passwd", "/variable", "var/lib", "/var/../etc/passwd"):
        with pytest.raises(ValueError, match="not below /var"):
            outside(sandbox, path)


def test_the_project_itself_runs_inside(sandbox: StartedSandbox) -> None:
    program = "import pytest_k3s_sandbox.layers.base, yaml, json; print('imported')"
    assert sandbox.run([sys.executable, "-c", program]).stdout == "imported\n"


# Network.


def test_the_machine_reaches_a_server_inside(sandbox: StartedSandbox) -> None:
    server = sandbox.spawn([sys.executable, "-c", SERVE, "0.0.0.0", "8123"], name="server")  # noqa: S104 - inside
    deadline = Deadline.after(10)
    while True:
        try:
            with urllib.request.urlopen(f"http://{sandbox.address}:8123/", timeout=2) as answer:
                assert answer.read() == b"from inside"
                break
        except OSError:
            assert not deadline.expired, server.log.read_text()
            time.sleep(0.05)
    server.stop()


def test_its_interfaces_are_its_own(sandbox: StartedSandbox) -> None:
    addresses = shell(sandbox, "ip -4 -o address show")
    assert {line.split()[1] for line in addresses.splitlines()} == {"lo", "eth0"}
    assert f"inet {sandbox.address}/30" in addresses


def test_two_at_once_have_networks_files_and_names_of_their_own(make: Make, sandbox: StartedSandbox) -> None:
    with make() as other:
        assert len({sandbox.name, other.name}) == 2
        assert len({sandbox.network.gateway, sandbox.address, other.network.gateway, other.address}) == 4
        shell(other, f"echo x > {STATE_DIR}/only-in-other; echo x > /tmp/only-in-other")
        look = ["ls", f"{STATE_DIR}/only-in-other", f"{TMPFS[0]}/only-in-other"]
        assert sandbox.run(look, check=False).stdout == ""
        workdir = other.workdir
        other.close()
        assert not workdir.exists()
        with pytest.raises(StartError, match="has ended"):
            other.run(["true"])
    assert shell(sandbox, "echo untouched") == "untouched\n"


def test_a_process_of_a_sandbox_that_has_ended_counts_as_killed(make: Make) -> None:
    with make() as other:
        process = other.spawn(["sleep", "1000"], name="sleeper")
    assert process.poll() is not None
    assert process.wait(Deadline.after(0)) is not None
    assert process.stop() != 0


@pytest.mark.parametrize(
    ("part", "port"), [("kube-apiserver", 16443), ("kubelet", 10250), ("kube-scheduler", 10259)]
)
def test_an_occupied_port_is_named_with_the_part_that_needs_it(
    sandbox: StartedSandbox, part: str, port: int
) -> None:
    settings = ClusterSettings(node="n", address=sandbox.address, api_port=16443)
    assert_ports_free(sandbox, settings)
    listener = sandbox.spawn(
        [
            sys.executable,
            "-c",
            SERVE,
            "127.0.0.1",
            str(port),
        ],
        name=f"listener-{port}",
    )
    try:
        deadline = Deadline.after(10)
        while f":{port:04X} " not in shell(sandbox, "cat /proc/net/tcp"):
            assert not deadline.expired, listener.log.read_text()
            time.sleep(0.05)
        with pytest.raises(ClusterError, match=rf"port {port} .* occupied: {part} needs it"):
            assert_ports_free(sandbox, settings)
    finally:
        listener.stop()


# The machine is left as it was.


def test_here_cannot_change_the_machines_tunables(sandbox: StartedSandbox) -> None:
    if sandbox.kind != "host":
        pytest.skip("not applicable: a gVisor sandbox has a kernel of its own")
    for name in ("kernel/panic", "vm/overcommit_memory", "kernel/hostname", "net/ipv4/ip_forward"):
        same = f"value=$(cat /proc/sys/{name}) && echo $value > /proc/sys/{name}"  # harmless where it works
        done = sandbox.run(["sh", "-c", same], check=False)
        assert "Read-only file system" in done.stderr or "cannot create" in done.stderr, name


def test_mounts_inside_do_not_reach_the_machine(sandbox: StartedSandbox) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    shell(sandbox, "mkdir -p /run/point && mount -t tmpfs none /run/point && mount --make-rshared /run/point")
    assert Path("/proc/self/mountinfo").read_text().count(str(sandbox.workdir)) == before.count(
        str(sandbox.workdir)
    )
    assert "/run/point" not in Path("/proc/self/mountinfo").read_text()
    shell(sandbox, "umount /run/point")


def test_here_sees_only_its_own_cgroups(sandbox: StartedSandbox) -> None:
    points = cgroup_mounts(Path("/proc/self/mountinfo").read_text())
    if sandbox.kind != "host" or not points:
        pytest.skip("not applicable: needs a sandbox of kind host on a machine with cgroups")
    for point in points:
        inside = "/sys/fs/cgroup" if point == "/sys/fs/cgroup" else f"/sys/fs/cgroup/{Path(point).name}"
        shell(sandbox, f"mkdir {inside}/made-inside")
        assert Path(point, sandbox.name, "made-inside").is_dir()
        assert not Path(point, "made-inside").exists()
        shell(sandbox, f"rmdir {inside}/made-inside")


def test_a_start_without_root_says_so(home: Path) -> None:
    program = (
        "from pytest_k3s_sandbox.errors import MissingCapability\n"
        "from pytest_k3s_sandbox.sandbox.host import HostSandbox\n"
        "import os; os.setuid(65534)\n"
        "try: HostSandbox()\n"
        "except MissingCapability as error: print(error)\n"
    )
    before = list(home.rglob("*"))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "needs root" in done.stdout
    assert "Remedy: run as root" in done.stdout
    assert list(home.rglob("*")) == before
