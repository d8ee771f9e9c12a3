"""The doctor's answers, and the progress of long work."""

from __future__ import annotations

import io
import platform
import re

import pytest

from pytest_k3s_sandbox.cli import doctor
from pytest_k3s_sandbox.cli.doctor import Check, checks, failed, render
from pytest_k3s_sandbox.support import clock
from pytest_k3s_sandbox.toolchain import packages, probes
from pytest_k3s_sandbox.toolchain.progress import LiveProgress, PlainProgress, Work
from support.machines import Machine

TOOL, OTHER = "k3sfake-tool", "k3sfake-other"


def test_render_is_a_line_a_check() -> None:
    lines = render(
        [
            Check("good", ok=True, required=True, detail="fine", remedy="unused"),
            Check("a bad one", ok=False, required=True, detail="gone", remedy="repair it"),
            Check("hint", ok=False, required=False, detail="later"),
        ]
    ).splitlines()
    assert lines == ["ok    good       fine", "FAIL  a bad one  gone -> repair it", "note  hint       later"]


def test_only_required_checks_fail() -> None:
    bad = Check("x", ok=False, required=True, detail="")
    assert failed([bad, Check("y", ok=False, required=False, detail="")]) == [bad]
    assert render([]) == ""


def test_every_answer_that_is_not_ok_has_a_remedy(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "SYSTEM_FOLDERS", "/nonexistent")
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    monkeypatch.setattr(probes, "can_unshare", lambda _: False)
    monkeypatch.setattr(probes, "can_open", lambda _: "no such device")
    machine.environ["PATH"] = str(machine.home / "bin")
    machine.put(TOOL, machine.program("0.1"))
    answers = {check.name: check for check in checks(machine.toolchain())}
    for name in ("architecture", "/dev/fuse", "network namespace", "ip", "iptables", "static busybox"):
        assert not answers[name].ok, name
        assert answers[name].required, name
    assert "riscv64" in answers["architecture"].detail
    assert "is version 0.1" in answers[TOOL].detail
    assert "k3sfake-go" in answers["Go"].remedy
    assert all(check.ok or check.remedy for check in answers.values())
    assert not machine.cache.exists()


def test_programs_that_are_there(machine: Machine) -> None:
    for name in (TOOL, OTHER):
        machine.put(name, machine.program())
    answers = {check.name: check for check in checks(machine.toolchain())}
    assert answers[TOOL].ok
    assert "1.2.3 from path" in answers[TOOL].detail
    assert "1 GB wanted" in answers["disk space"].detail


def test_program_that_a_variable_names_wrongly(machine: Machine) -> None:
    machine.environ["K3S_SANDBOX_K3SFAKE_TOOL"] = "/nonexistent"
    answers = {check.name: check for check in checks(machine.toolchain())}
    assert answers[TOOL] in failed(answers.values())


def test_disk_that_is_too_small_to_build(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "free_bytes", lambda _: doctor.BUILD_BYTES - 1)
    answers = {check.name: check for check in checks(machine.toolchain())}
    assert not answers["disk space"].ok


@pytest.mark.parametrize(
    ("mounts", "mode"),
    [
        ("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", "v2"),
        ("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n", "v1"),
        ("c /sys/fs/cgroup/unified cgroup2 rw 0 0\nc /sys/fs/cgroup/cpu cgroup rw 0 0\n", "hybrid"),
        ("proc /proc proc rw 0 0\n\n", "none"),
    ],
)
def test_cgroup_mode(mounts: str, mode: str) -> None:
    assert probes.cgroup_mode(mounts) == mode


def test_filesystem_of_a_path(tmp_path: object) -> None:
    assert probes.filesystem_magic("/proc") == 0x9FA0
    with pytest.raises(FileNotFoundError):
        probes.filesystem_magic(f"{tmp_path}/none")


def test_device_that_cannot_be_opened() -> None:
    assert probes.can_open("/dev/null") is None
    assert probes.can_open("/dev/k3sfake") == "No such file or directory"


def test_plain_progress_is_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(clock, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with Work(PlainProgress(stream, interval=10), "building x") as work:
        for _ in range(25):
            now[0] += 1
            work.update("package y")
    assert stream.getvalue().splitlines() == [
        "k3s-sandbox: building x ...",
        "k3s-sandbox: building x: 10 s, package y",
        "k3s-sandbox: building x: 20 s, package y",
        "k3s-sandbox: building x: 25.0 s",
    ]


@pytest.mark.parametrize(
    ("error", "ending"), [(ValueError, ", failed"), (KeyboardInterrupt, ", interrupted")]
)
def test_work_that_does_not_succeed_says_so(error: type[BaseException], ending: str) -> None:
    stream = io.StringIO()
    with pytest.raises(error), Work(PlainProgress(stream), "building x"):
        raise error
    assert f"building x{ending}: " in stream.getvalue()


def test_live_progress_ends_with_a_line_that_stays(capsys: pytest.CaptureFixture[str]) -> None:
    with Work(LiveProgress(), "building [x]") as work:
        work.update("package [y]")
    assert re.search(r"^building \[x\]: \d+\.\d s$", capsys.readouterr().err, re.MULTILINE)
