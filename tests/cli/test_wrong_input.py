"""What a user gets wrong: one clear message, exit code 2, and nothing is left behind."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_k3s_sandbox.cli import main as command_line
from pytest_k3s_sandbox.report.records import Environment, Machine, RunWriter

Done = subprocess.CompletedProcess[str]
Refused = Callable[..., str]

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="it is refused for want of root before; run as root"
)

NO_DEVICES = """
mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/urandom c 1 9 && exec "$@"
"""
"""A machine without /dev/fuse, in a mount namespace of its own."""


@pytest.fixture
def no_fuse() -> list[str]:
    """Give the command prefix under which there is no /dev/fuse."""
    wrap = ["unshare", "--mount", "sh", "-c", NO_DEVICES, "sh"]
    if os.geteuid() != 0 or subprocess.run([*wrap, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a mount namespace cannot be made here: run as root")
    return wrap


@pytest.fixture
def nobody() -> Iterator[tuple[list[str], dict[str, str], Path]]:
    """Give a command prefix that drops root, its environment, and a folder that it can write."""
    wrap = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("root cannot be dropped here: run as root, with util-linux")
    folder = Path(tempfile.mkdtemp(prefix="k3s-nobody-"))  # pytest's own folders are root's alone
    os.chown(folder, 65534, 65534)
    env = {
        "HOME": str(folder),
        "K3S_SANDBOX_HOME": str(folder / "state"),
        "K3S_SANDBOX_CACHE": str(folder / "cache"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    probe = [*wrap, sys.executable, "-c", "import pytest_k3s_sandbox, typer"]
    try:
        if subprocess.run(
            probe, cwd=folder, env=os.environ | env, capture_output=True, check=False
        ).returncode:
            pytest.skip(
                "not applicable: another user cannot read this Python environment: install it outside /root"
            )
        yield wrap, env, folder
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fly"], ["No such command", "fly"]),
        (["up", "--wings"], ["No such option", "--wings"]),
        (["run"], ["Missing argument"]),
        (["report"], ["Missing argument"]),
        (["up", "--sandbox", "docker"], ["--sandbox", "docker", "gvisor", "host"]),
        (["up", "--api-port", "70000"], ["--api-port", "'70000' is not a TCP port (1 to 65535)"]),
        (["up", "--api-port", "0"], ["--api-port", "'0' is not a TCP port (1 to 65535)"]),
        (["run", "exp08", "--api-port", "http"], ["--api-port", "'http' is not a TCP port"]),
        (["bench", "-n", "1"], ["'-n'", "2"]),
        (
            ["up", "--layers", "workaround,fake_cni"],
            ["unknown layer 'workaround'", "known are workarounds, ", "Remedy: did you mean 'workarounds'?"],
        ),
        (
            ["run", "exp08", "--layers", "ptrace"],
            [
                "unknown layer 'ptrace'",
                "known are workarounds, ",
                "Remedy: did you mean 'ptrace_interceptor'?",
            ],
        ),
        (["run", "exp8"], ["unknown experiment 'exp8'", "known are ", "Remedy: did you mean 'exp08'?"]),
        (["run", "../exp08"], ["unknown experiment", "Remedy: "]),
        (["run", "exp08", "--duration", "soon"], ["--duration", "'soon'", "90s, 5m or 1h"]),
        (["run", "exp08", "--duration", "-5m"], ["--duration", "'-5m'"]),
        (["run", "exp08", "--duration", "nan"], ["--duration", "'nan'"]),
        (["bench", "speed"], ["unknown benchmark 'speed'", "coldstart"]),
        (["run", "exp08", "--json", "none/f.json"], ["--json none/f.json", "No such file", "Remedy: "]),
        (["run", "exp08", "--json", "."], ["--json .", "Is a directory", "Remedy: "]),
        (["run", "exp08", "--json", "/proc/f.json"], ["--json /proc/f.json", "Remedy: "]),
        (["bench", "--json", "none/f.json"], ["--json none/f.json", "No such file", "Remedy: "]),
        (["provision", "kubernetes"], ["unknown program 'kubernetes'", "Remedy: known are: ", "kubelet"]),
        (["up", "--name", "Mine"], ["the name 'Mine'", "small letters, digits and dashes"]),
        (["up", "--quiet", "--verbose"], ["--quiet and --verbose", "exclude each other", "Remedy: drop one"]),
        (["up", "--json", "none/f.json"], ["--json none/f.json", "No such file", "Remedy: "]),
        (["shell", "true"], ["no cluster is up", "/kept", "Remedy: start one with `k3s-sandbox up`"]),
        (["shell", "--name", "x", "true"], ["no cluster is up", "Remedy: start one with"]),
        (["kubectl", "--", "get", "pods"], ["no cluster is up", "Remedy: start one with"]),
        (["kubectl", "--name", "Mine"], ["the name 'Mine'"]),
        (["load", "image.tar"], ["no cluster is up", "Remedy: start one with"]),
        (["load"], ["Missing argument"]),
        (["down"], ["no cluster is up", "/kept", "Remedy: start one with `k3s-sandbox up`"]),
        (["stop", "x"], ["no cluster is up", "Remedy: start one with"]),
        (["stop"], ["which cluster is to end", "either names or --all", "Remedy: see the names"]),
        (["stop", "x", "--all"], ["which cluster is to end", "either names or --all"]),
        (["report", "nothing"], ["run nothing", "No such file", "Remedy: name a folder"]),
        (["report", "."], ["run .", "records.jsonl", "No such file", "Remedy: name a folder"]),
        (["intercept"], ["no program to run", "Remedy: name it after --"]),
        (["intercept", "--preset", "exp99", "--", "true"], ["preset 'exp99'", "unknown", "exp08"]),
        (["intercept", "--rules", "none.toml", "--", "true"], ["none.toml", "No such file", "Remedy: "]),
        (["intercept", "--rules", ".", "--", "true"], ["rule file .", "Is a directory", "Remedy: "]),
        (["intercept", "--tree", "none", "--", "true"], ["tree none", "not a folder", "Remedy: "]),
        (["intercept", "--wings", "--", "true"], ["unrecognized arguments", "--wings"]),
        (
            ["cgroupfs", "m", "--controllers", "cpu,warp"],
            ["controllers warp", "unknown", "Remedy: Choose from", "memory"],
        ),
        (["cgroupfs", "m", "--controllers", ","], ["controllers (none)", "at least one", "Remedy: "]),
    ],
    ids=lambda value: " ".join(value) if value and isinstance(value[0], str) else None,
)
def test_refused_before_anything_starts(refused: Refused, arguments: list[str], words: list[str]) -> None:
    refused(*arguments, words=words)


@needs_root
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["up", "--report", "/proc/reports"], ["--report /proc/reports", "Remedy: name a folder"]),
        (
            ["run", "exp08", "--report", "/dev/null/x"],
            ["--report /dev/null/x", "Not a directory", "Remedy: "],
        ),
    ],
)
def test_report_folder_that_cannot_be(refused: Refused, arguments: list[str], words: list[str]) -> None:
    refused(*arguments, words=words)


@needs_root
@pytest.mark.parametrize("command", [["up"], ["run", "exp08"], ["provision"]])
@pytest.mark.parametrize(
    ("file", "cause"), [("none", "there is no such file"), ("plain", "it cannot be executed")]
)
def test_variable_that_names_no_program(
    refused: Refused, tmp_path: Path, command: list[str], file: str, cause: str
) -> None:
    (tmp_path / "plain").write_text("no program")
    path = str(tmp_path / file)
    words = [f"K3S_SANDBOX_KUBELET={path}: {cause}", "Remedy: name an executable kubelet"]
    refused(*command, words=words, env={"K3S_SANDBOX_KUBELET": path})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("statfs = [", ["rules.toml", "Invalid value"]),
        ("[[statfs]]\noriginal = 1\nreplacement = 2\ncolour = 3\n", ["line 4", "'colour'", "unknown field"]),
        ("[[redirects]]\n", ["rules.toml", "'redirects'", "unknown table; known: statfs, redirect"]),
        ("[[statfs]]\noriginal = 'ext4'\nreplacement = 2\n", ["line 2", "'original'", "not of type int"]),
    ],
)
def test_rules_that_are_none(refused: Refused, tmp_path: Path, text: str, words: list[str]) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(text)
    refused("intercept", "--rules", str(rules), "--", "true", words=words)


def test_rules_in_no_text(refused: Refused, tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_bytes(b"\xff\xfe")
    refused("intercept", "--rules", str(rules), "--", "true", words=["rules.toml", "Remedy: "])


@pytest.mark.k3s_requires("ptrace")
def test_intercepted_program_that_does_not_exist(refused: Refused) -> None:
    words = ["interceptor: no-such-program: No such file or directory"]
    refused("intercept", "--preset", "exp06", "--", "no-such-program", words=words, code=127)


@pytest.mark.k3s_requires("ptrace")
def test_intercepted_program_that_cannot_be_executed(refused: Refused, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("no program")
    words = [f"interceptor: {plain}: Permission denied"]
    refused("intercept", "--preset", "exp06", "--", str(plain), words=words, code=126)


@pytest.mark.k3s_requires("root", "fuse")
def test_cgroupfs_below_a_file(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused("cgroupfs", "file/m", words=["FUSE mount on", "file/m", "Not a directory"])


def test_cgroupfs_without_fuse(refused: Refused, no_fuse: list[str]) -> None:
    words = ["cgroupfs", "no /dev/fuse", "Remedy: Load the module: modprobe fuse"]
    refused("cgroupfs", "m", words=words, wrap=no_fuse)


def test_doctor_without_fuse(cli: Callable[..., Done], no_fuse: list[str]) -> None:
    done = cli("doctor", wrap=no_fuse)
    assert done.returncode == 1
    (line,) = (line for line in done.stdout.splitlines() if "/dev/fuse" in line.split()[1:2])
    assert line.startswith("FAIL")
    assert "No such file or directory -> modprobe fuse" in line


@pytest.mark.parametrize("command", [["up"], ["run", "exp08"], ["bench"], ["cgroupfs", "m"]])
def test_without_root(
    cli: Callable[..., Done], nobody: tuple[list[str], dict[str, str], Path], command: list[str]
) -> None:
    wrap, env, folder = nobody
    done = cli(*command, wrap=wrap, env=env, cwd=folder)
    assert done.returncode == 2
    assert "not root" in done.stderr
    assert "Remedy: " in done.stderr
    assert "Traceback" not in done.stderr
    assert list(folder.iterdir()) == []


def test_doctor_without_root(
    cli: Callable[..., Done], nobody: tuple[list[str], dict[str, str], Path]
) -> None:
    wrap, env, folder = nobody
    done = cli("doctor", wrap=wrap, env=env, cwd=folder)
    assert done.returncode == 1
    assert "FAIL  root" in done.stdout
    assert "uid 65534 -> run it as root" in done.stdout
    assert "Traceback" not in done.stderr
    # `go version`, asked where there is a Go, puts its telemetry's mode below .config.
    assert {path.name for path in folder.iterdir()} <= {".config"}


def test_experiment_without_root_is_skipped(nobody: tuple[list[str], dict[str, str], Path]) -> None:
    wrap, env, folder = nobody
    (folder / "test_it.py").write_text("def test_it(k3s_node): pass\n")
    done = subprocess.run(
        [*wrap, sys.executable, "-m", "pytest", "-rs", "-pno:cacheprovider", "-c/dev/null", "test_it.py"],
        cwd=folder,
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    assert "1 skipped" in done.stdout
    assert "root" in done.stdout
    assert "Remedy: " in done.stdout


@needs_root
@pytest.mark.parametrize("command", [["provision"], ["up"], ["run", "exp08"]])
def test_architecture_that_is_not_supported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    monkeypatch.setattr(sys, "argv", ["k3s-sandbox", *command])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert "architecture riscv64 is not supported" in message
    assert "Remedy: use an x86_64 machine" in message
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
set -e
mount -t tmpfs none /run
mkdir {home}
mount -t tmpfs -o size={size},nr_inodes={inodes},mode=700 none {home}
set +e
"$@"
code=$?
# Whatever else runs on the machine: this network and this /run are the test's own.
ip netns list
ls /run/netns 2>/dev/null
ip -o link show | grep -v ' lo:'
cd {home} && find . -mindepth 1 ! -path ./lock ! -path ./sandboxes ! -path ./partial ! -path ./kept
exit $code
"""


@pytest.mark.k3s_requires("root", "gvisor")
@pytest.mark.parametrize(("size", "inodes"), [("1m", "8"), ("4k", "1000")], ids=["inodes", "bytes"])
def test_full_disk(cli: Callable[..., Done], home: Path, tmp_path: Path, size: str, inodes: str) -> None:
    script = FULL_DISK.format(home=shlex.quote(str(home)), size=size, inodes=inodes)
    wrap = ["unshare", "--mount", "--net", "sh", "-c", script, "sh"]
    done = cli("up", "--report", str(tmp_path / "reports"), wrap=wrap)
    assert done.returncode == 2, done.stderr
    assert "No space left on device" in done.stderr
    assert "Remedy: " in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    home.rmdir()  # it held nothing outside that mount namespace


def environment() -> Environment:
    return Environment(
        experiment="exp08",
        sandbox="gvisor",
        root_magic=0x01021997,
        kernel="4.19.0-gvisor",
        programs={},
        pins={},
        layers=("fake_cni",),
        python="3.11",
        project_version="0",
        started="2026-01-01T00:00:00+00:00",
        argv=(),
        machine=Machine(cores=2, memory_bytes=1),
    )


def test_report_of_a_run_that_was_cut_off(cli: Callable[..., Done], tmp_path: Path) -> None:
    run = tmp_path / "run"
    with RunWriter(run) as writer:
        writer.append(environment())
        with writer.phase("sandbox"):
            pass
    records = run / "records.jsonl"
    records.write_bytes(records.read_bytes()[:-20])
    done = cli("report", "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "run/index.html"
    assert "its last line is half-written" in (run / "index.html").read_text()


def test_report_of_something_else(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "records.jsonl").write_text('{"type":"song"}\n')
    refused("report", "run", words=["run/records.jsonl", "not the header of a run", "Remedy: "])


def test_report_where_nothing_can_be_written(refused: Refused, tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run") as writer:
        writer.append(environment())
    refused("report", "run", "--out", "/proc/page", words=["/proc/page"])
