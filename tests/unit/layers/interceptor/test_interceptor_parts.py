"""The small parts: memory, scratch files, statistics, forwarding, and the layer."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from pytest_k3s_sandbox.errors import ConfigError, LayerError, StartError
from pytest_k3s_sandbox.layers.interceptor import procfs
from pytest_k3s_sandbox.layers.interceptor.forward import Forwarder, ProgramEnded
from pytest_k3s_sandbox.layers.interceptor.layer import PtraceInterceptor
from pytest_k3s_sandbox.layers.interceptor.memory import Memory
from pytest_k3s_sandbox.layers.interceptor.scratch import Scratch
from pytest_k3s_sandbox.layers.interceptor.stats import Stats
from pytest_k3s_sandbox.sandbox.base import STATE_DIR, Completed, Sandbox

if TYPE_CHECKING:
    from collections.abc import Sequence

# Memory: of this very process, which needs no leave.


@pytest.fixture
def pages() -> tuple[mmap.mmap, int]:
    area = mmap.mmap(-1, 3 * mmap.PAGESIZE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(area))
    libc = ctypes.CDLL(None)
    libc.mprotect(ctypes.c_void_p(base + 2 * mmap.PAGESIZE), mmap.PAGESIZE, 0)  # PROT_NONE
    return area, base


@pytest.mark.parametrize("length", [0, 1, 255, 256, 257, 4095])
@pytest.mark.parametrize("from_end", [0, 1, 100])
def test_strings_up_to_the_end_of_memory(pages: tuple[mmap.mmap, int], length: int, from_end: int) -> None:
    area, base = pages
    text = b"x" * length + b"\0"
    offset = 2 * mmap.PAGESIZE - len(text) - from_end
    area[offset : offset + len(text)] = text
    assert Memory().read_path(os.getpid(), base + offset) == text[:-1]


def test_unreadable_strings(pages: tuple[mmap.mmap, int]) -> None:
    area, base = pages
    area[: 2 * mmap.PAGESIZE] = b"x" * 2 * mmap.PAGESIZE
    memory = Memory()
    assert memory.read_path(os.getpid(), base) is None  # longer than PATH_MAX
    assert memory.read_path(os.getpid(), base + 2 * mmap.PAGESIZE - 5) is None  # no end before the hole
    assert memory.read_path(os.getpid(), base + 2 * mmap.PAGESIZE) is None
    assert memory.read_path(os.getpid(), 0) is None
    assert memory.read_path(os.getpid(), (1 << 64) - 1) is None


def test_writing(pages: tuple[mmap.mmap, int]) -> None:
    area, base = pages
    memory = Memory()
    assert memory.write(os.getpid(), base + 10, b"hello")
    assert area[9:16] == b"\0hello\0"
    assert not memory.write(os.getpid(), base + 2 * mmap.PAGESIZE, b"hello")


# Scratch files.


def test_scratch_files_are_one_per_content_and_go_with_it(tmp_path: Path) -> None:
    scratch = Scratch(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    first = scratch.file(b"one")
    assert scratch.file(b"one") == first
    assert Path(scratch.file(b"two")).read_bytes() == b"two"
    mode = Path(first).stat().st_mode & 0o777
    assert mode == 0o444
    scratch.close()
    scratch.close()
    assert list(tmp_path.iterdir()) == []


def test_scratch_files_do_not_pile_up(tmp_path: Path) -> None:
    scratch = Scratch(str(tmp_path))
    for number in range(200):
        assert Path(scratch.file(b"%d" % number)).exists()
    assert len(list(Path(str(scratch.folder)).iterdir())) <= 65
    scratch.close()


def test_what_a_killed_tracer_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    code = (
        "import os, signal; from pytest_k3s_sandbox.layers.interceptor.scratch import Scratch;"
        f"Scratch({str(tmp_path)!r}).file(b'x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    living = Scratch(str(tmp_path))
    kept = living.file(b"y")
    other = Scratch(str(tmp_path))
    other.file(b"z")
    assert len(list(tmp_path.iterdir())) == 2
    assert Path(kept).exists()
    living.close()
    other.close()


# Statistics.


def test_stats_are_written_as_a_whole(tmp_path: Path) -> None:
    stats = Stats(("open",), entry_first=True)
    stats.applied["rule"] += 2
    stats.write(str(tmp_path / "stats"))
    written = json.loads((tmp_path / "stats").read_text())
    assert written["trapped"] == ["open"]
    assert written["entry_first"] is True
    assert written["applied"] == {"rule": 2}
    assert written["tracer_cpu_seconds"] > 0
    assert [file.name for file in tmp_path.iterdir()] == ["stats"]


# Forwarding.


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    monkeypatch.setattr(signal, "setitimer", lambda *_: None)
    return sent


def test_a_signal_that_the_program_did_not_get_is_forwarded(sent: list[tuple[int, int]]) -> None:
    forwarder = Forwarder(42)
    forwarder._received(signal.SIGTERM, None)
    forwarder._late(signal.SIGALRM, None)
    forwarder._late(signal.SIGALRM, None)
    assert sent == [(42, signal.SIGTERM)]


@pytest.mark.parametrize("program_first", [True, False])
def test_a_signal_that_it_got_by_itself_is_not(sent: list[tuple[int, int]], program_first: bool) -> None:
    forwarder = Forwarder(42)
    if program_first:
        forwarder.delivered(signal.SIGTERM)
    forwarder._received(signal.SIGTERM, None)
    if not program_first:
        forwarder.delivered(signal.SIGTERM)
    forwarder._late(signal.SIGALRM, None)
    assert sent == []


def test_after_the_programs_end_a_signal_is_for_the_tracer(
    sent: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    forwarder = Forwarder(42)
    removed: list[int] = []
    monkeypatch.setattr(signal, "signal", lambda number, _handler: removed.append(number))
    forwarder._received(signal.SIGINT, None)
    forwarder.delivered(signal.SIGINT)  # as one of the process group
    forwarder.ended()
    forwarder._late(signal.SIGALRM, None)
    assert removed == []
    with pytest.raises(ProgramEnded):
        forwarder._received(signal.SIGTERM, None)
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGALRM} <= set(removed)
    assert sent == []  # another process may have the id


def test_a_signal_that_the_program_did_not_live_to_get_is_for_the_tracer(
    sent: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    forwarder = Forwarder(42)
    forwarder._received(signal.SIGTERM, None)
    forwarder.ended()
    with pytest.raises(ProgramEnded):
        forwarder._late(signal.SIGALRM, None)
    assert sent == []


# The layer.

PLAIN = "16 15 0:18 / / rw - 9p none rw,trans=fd\n17 16 0:1 / /dev rw - tmpfs none rw\n"
CHANGED = "16 15 8:1 / / rw - ext4 /dev/root rw,trans=fd\n17 16 0:1 / /dev rw - tmpfs none rw\n"


class FakeSandbox:
    """Answers the probe as a gVisor sandbox would."""

    def __init__(self, workdir: Path, under: tuple[int, str] | None) -> None:
        """Take what a program under the interceptor is to see; None: it does not run."""
        self.workdir = workdir
        self.under = under

    def run(self, argv: Sequence[str], **_: object) -> Completed:
        """Answer one probe."""
        answer = (0x01021997, PLAIN)
        if "--preset" in argv:
            if self.under is None:
                raise StartError("probe", cause="no ptrace")
            answer = self.under
        return Completed(tuple(argv), 0, f"{answer[0]:x}\n{answer[1]}", "")


def layer(tmp_path: Path, under: tuple[int, str] | None, **options: str) -> PtraceInterceptor:
    return PtraceInterceptor(cast("Sandbox", FakeSandbox(tmp_path, under)), **options)


def test_each_role_gets_its_own_rules(tmp_path: Path) -> None:
    module = "pytest_k3s_sandbox.layers.interceptor"
    assert layer(tmp_path, None, tree="/tree").overrides.wrap == {
        role: (
            *(sys.executable, "-m", module, "--preset", preset, "--tree", "/tree"),
            *("--stats", f"{STATE_DIR}/stats-{role}.json", "--"),
        )
        for role, preset in (("kubelet", "exp08"), ("containerd", "exp08-containerd"))
    }


def test_a_preset_without_rules_for_containerd_counts_for_both(tmp_path: Path) -> None:
    wrap = layer(tmp_path, None, preset="exp06").overrides.wrap
    assert [wrap[role][4] for role in ("kubelet", "containerd")] == ["exp06", "exp06"]
    assert "--tree" not in wrap["kubelet"]


def test_a_probe_that_sees_what_the_rules_say_is_healthy(tmp_path: Path) -> None:
    with layer(tmp_path, (0xEF53, CHANGED)) as up:
        health = up.check()
    assert health.ok
    assert health.details["statfs /"] == "0x1021997 -> 0xef53"
    assert health.details["mountinfo"].endswith("ext4 /dev/root rw,trans=fd")


@pytest.mark.parametrize("under", [(0x01021997, CHANGED), (0xEF53, PLAIN), None])
def test_any_other_is_not(tmp_path: Path, under: tuple[int, str] | None) -> None:
    with pytest.raises(LayerError, match="ptrace_interceptor"), layer(tmp_path, under):
        pass
    assert not layer(tmp_path, under).check().ok


def test_an_unknown_preset_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exp99"):
        layer(tmp_path, None, preset="exp99")


def test_nothing_is_mounted_in_most_places(tmp_path: Path) -> None:
    tmp_path.joinpath("link").symlink_to("/proc")
    found = [
        procfs.nothing_mounted(os.getpid(), os.fsencode(path))
        for path in (tmp_path, "/proc", tmp_path / "link", tmp_path / "missing")
    ]
    assert found == [True, False, False, False]
