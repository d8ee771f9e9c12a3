"""What the commands do when everything is right, each with the real thing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_k3s_sandbox import __version__

Done = subprocess.CompletedProcess[str]
Cli = Callable[..., Done]

COMMANDS = [
    "doctor", "provision", "up", "shell", "ps", "stop", "down", "run", "intercept", "cgroupfs", "bench",
    "report",
]  # fmt: skip
HEAVY = ("pytest", "kubernetes", "pydantic", "cryptography", "fuse", "ptrace", "jinja2", "yaml", "tenacity")

WHAT_HELP_IMPORTS = f"""
import sys
from pytest_k3s_sandbox.cli import main as cli
sys.argv = ["k3s-sandbox", *sys.argv[1:]]
try:
    cli.main()
except SystemExit as ended:
    assert not ended.code, ended.code
print("imported:", *[name for name in {HEAVY!r} if name in sys.modules])
"""

LISTEN = "import time; print('ready', flush=True); time.sleep(100)"


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(argument: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WHAT_HELP_IMPORTS, argument],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported:"


@pytest.mark.k3s_requires("ptrace")
def test_program_inside_keeps_its_own_help(cli: Cli) -> None:
    done = cli("intercept", "--preset", "exp06", "--", "ls", "--help")
    assert done.returncode == 0
    assert "Usage: ls " in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_needs_no_root(cli: Cli, command: str) -> None:
    drop = ["setpriv", "--reuid=65534", "--clear-groups", "--"]
    probe = [*drop, sys.executable, "-c", "import pytest_k3s_sandbox, typer"]
    able = os.geteuid() == 0 and subprocess.run(probe, capture_output=True, check=False).returncode == 0
    done = cli(command, "--help", wrap=drop if able else (), cwd=Path("/"))
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout.lower()
    assert "--help" in done.stdout


def test_help_names_every_command(cli: Cli) -> None:
    done = cli("--help")
    assert [name for name in COMMANDS if name not in done.stdout] == []


def test_version(cli: Cli) -> None:
    done = cli("--version")
    assert (done.returncode, done.stdout) == (0, f"{__version__}\n")


def test_doctor_says_a_line_each_and_exits_accordingly(cli: Cli) -> None:
    done = cli("doctor")
    lines = done.stdout.splitlines()
    assert {line[:4] for line in lines} <= {"ok  ", "FAIL", "note"}
    subjects = " ".join(lines)
    for subject in ("architecture", "root", "/dev/fuse", "ptrace", "kubelet", "runsc", "disk space"):
        assert subject in subjects
    assert [line for line in lines if line.startswith("FAIL") and " -> " not in line] == []
    assert done.returncode == int(any(line.startswith("FAIL") for line in lines))


@pytest.mark.k3s_requires("root")
def test_provision_takes_the_program_that_a_variable_names(cli: Cli, tmp_path: Path) -> None:
    mine = tmp_path / "runc"
    mine.write_text("#!/bin/sh\necho runc version 1.2.3-mine\n")
    mine.chmod(0o755)
    done = cli("provision", "runc", env={"K3S_SANDBOX_RUNC": str(mine)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("runc 1.2.3")
    assert done.stdout.endswith(f"(env): {mine}\n")


@pytest.mark.k3s_requires("ptrace")
@pytest.mark.parametrize(("program", "code"), [("true", 0), ("false", 1), ("exit 42", 42)])
def test_intercept_passes_the_exit_code_on(cli: Cli, program: str, code: int) -> None:
    done = cli("intercept", "--preset", "exp06", "--", "sh", "-c", program)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.mark.k3s_requires("ptrace")
def test_intercept_ends_by_the_signal_that_ended_the_program(cli: Cli) -> None:
    done = cli("intercept", "--preset", "exp06", "--", "sh", "-c", "kill -USR2 $$")
    assert done.returncode == -signal.SIGUSR2


@pytest.mark.k3s_requires("ptrace")
def test_intercept_forwards_a_signal(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "pytest_k3s_sandbox.cli", "intercept", "--preset", "exp06", "--"]
    with subprocess.Popen(
        [*argv, sys.executable, "-c", LISTEN], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait(timeout=30) == -signal.SIGTERM
        assert process.stdout.read() == ""  # the program has ended, too: no process holds the pipe


@pytest.mark.k3s_requires("ptrace")
def test_intercept_changes_what_the_program_sees_and_counts(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("the other one\n")
    rules = tmp_path / "rules.toml"
    rules.write_text(f'[[redirect]]\npath = "/proc/version"\ntarget = "{tmp_path}/other"\n')
    done = cli("intercept", "--rules", "rules.toml", "--stats", "stats.json", "--", "cat", "/proc/version")
    assert (done.returncode, done.stdout) == (0, "the other one\n"), done.stderr
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert "openat" in json.dumps(stats)


@pytest.mark.k3s_requires("root", "fuse")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_cgroupfs_serves_until_a_signal_and_unmounts(tmp_path: Path, number: signal.Signals) -> None:
    mountpoint = tmp_path / "m"
    with subprocess.Popen(
        [sys.executable, "-m", "pytest_k3s_sandbox.cli", "cgroupfs", "m", "--controllers", "cpuacct,pids"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            assert any(line.startswith("ready") for line in process.stderr)  # after what it sees of itself
            assert sorted(path.name for path in mountpoint.iterdir()) == ["cpuacct", "pids"]
            group = mountpoint / "pids" / "mine"
            group.mkdir()
            (group / "pids.max").write_text("7\n")
            assert (group / "pids.max").read_text() == "7\n"
            assert len((mountpoint / "cpuacct" / "cpuacct.usage_percpu").read_text().split()) > 0
        finally:
            process.send_signal(number)
            code = process.wait(timeout=30)
    assert code == 0
    assert str(mountpoint) not in Path("/proc/self/mountinfo").read_text()
    assert not mountpoint.exists()  # it made the folder, and takes it away


def test_report_of_the_published_run(cli: Cli, tmp_path: Path) -> None:
    published = sorted((Path(__file__).parents[2] / "reports").glob("*/records.jsonl"))
    if not published:
        pytest.skip("no run is kept in reports/: this is not a checkout")
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(published[0], folder)
    done = cli("report", "run", "--out", "page")
    assert (done.returncode, done.stdout) == (0, "page/index.html\n"), done.stderr
    assert "Ready" in (tmp_path / "page" / "index.html").read_text()


def test_run_shows_what_pytest_refuses(cli: Cli, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("it is refused for want of root before; run as root")
    done = cli("run", "exp08", env={"PYTEST_ADDOPTS": "--no-such-option"})
    assert done.returncode == 2
    assert "pytest refused to run exp08: " in done.stderr
    assert "--no-such-option" in done.stderr
    assert "PYTEST_ADDOPTS" in done.stderr
    assert f"Details: {tmp_path}/reports/exp08.log" in done.stderr
    assert done.stdout == ""
