"""Calls to FUSE files under a storm of signals: none fails that the interceptor keeps from failing.

gVisor ends a FUSE request with EINTR whenever a signal comes, and Go sends itself signals all the time. Each
test first makes the calls without the interceptor: where nothing failed, nothing would have been shown.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from interceptor_tools import MODULE
from outside import outside

from pytest_k3s_sandbox.bench.programs import build
from pytest_k3s_sandbox.errors import MissingCapability
from pytest_k3s_sandbox.layers.cgroupfs.layer import FuseCgroupfs
from pytest_k3s_sandbox.sandbox.base import BIN_DIR, STATE_DIR
from pytest_k3s_sandbox.sandbox.gvisor import GvisorSandbox
from pytest_k3s_sandbox.toolchain import Toolchain

pytestmark = [
    pytest.mark.k3s_requires("fuse", "ptrace"),
    pytest.mark.skipif(os.geteuid() != 0, reason="sandboxes need root"),
]

GROUPS = "/sys/fs/cgroup"
FILES = [f"{GROUPS}/{name}" for name in ("cpu/cpu.shares", "memory/memory.limit_in_bytes", "pids/tasks")]
FOLDERS = [f"{GROUPS}/{name}" for name in ("cpu", "memory", "pids")]
STATS = f"{STATE_DIR}/storm-stats.json"
RULES = f"{STATE_DIR}/storm.toml"
WORKERS = 4
FUSE_MAGIC, CGROUP_MAGIC = 0x65735546, 0x27E0EB  # linux/magic.h


WEATHERS = ("quiet", "storm", "process", "children", "timers", "garbage")
SHIPPED = [
    *(("exp08", kind) for kind in ("open", "openat2", "statfs", "fstatfs", "fresh", "mkdir")),
    # Go makes an interrupted openat again by itself (os.Open), so it is not stopped for runc.
    *(("exp08-containerd", kind) for kind in ("openat2", "statfs", "fstatfs", "mkdir")),
]
"""The presets, and the calls of which they let none fail."""
PROGRAMS = {"exp08": "storm", "exp08-containerd": "runc"}
"""The name under which the program has each preset's rules."""


class Storm:
    """The program that makes the calls and the signals, in gVisor beside the FUSE cgroupfs."""

    def __init__(self, sandbox: GvisorSandbox) -> None:
        """Keep the sandbox, and write the rules."""
        outside(sandbox, RULES).write_text(
            f'[[mask]]\nunder = "{GROUPS}"\n'
            f'[[retry]]\nunder = "{GROUPS}"\ncalls = ["statfs"]\n'
            f"[[statfs]]\noriginal = {FUSE_MAGIC}\nreplacement = {CGROUP_MAGIC}\n"
        )
        self._sandbox = sandbox

    def run(self, kind: str, count: int, *, intercepted: bool, weather: str = "storm") -> dict[str, Any]:
        """Return what the program counted."""
        targets = FOLDERS if kind == "mkdir" else FILES
        wrap = [sys.executable, "-m", MODULE, "--rules", RULES, "--stats", STATS, "--"]
        words = [f"{BIN_DIR}/storm", kind, str(count), str(WORKERS), weather, *targets]
        done = self._sandbox.run([*(wrap if intercepted else []), *words], timeout=200)
        assert done.stderr == ""
        found: dict[str, Any] = json.loads(done.stdout)
        calls = 2 * count if kind == "mkdir" else count  # closes come on top of opens that succeeded
        assert found["done"] >= calls
        assert weather == "quiet" or found["signals"] > count / 10, "there was no storm"
        return found

    def shipped(self, preset: str, kind: str, count: int, weather: str) -> dict[str, Any]:
        """Return what the program counted with the rules of a preset, or with none if it is empty."""
        wrap = [sys.executable, "-m", MODULE, "--preset", preset, "--"] if preset else []
        targets = FOLDERS if kind in {"mkdir", "fresh"} else FILES
        program = f"{BIN_DIR}/{PROGRAMS.get(preset, 'storm')}"
        words = [program, kind, str(count), str(WORKERS), weather, *targets]
        done = self._sandbox.run([*wrap, *words], timeout=550)
        assert done.stderr == ""
        found: dict[str, Any] = json.loads(done.stdout)
        assert found["done"] >= count
        assert weather == "quiet" or found["signals"] > 0, "there was no storm"
        return found

    def stats(self) -> dict[str, Any]:
        """Return what the interceptor counted."""
        counts: dict[str, Any] = json.loads(outside(self._sandbox, STATS).read_text())
        return counts


@pytest.fixture(scope="module")
def storm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storm]:
    """The program, ready to run."""
    found = Toolchain().find("runsc")
    if found is None:
        pytest.skip("no runsc on this machine: run `k3s-sandbox provision`")
    try:
        program = build("storm")
    except MissingCapability as error:
        pytest.skip(str(error))
    runc = tmp_path_factory.mktemp("programs") / "runc"
    shutil.copy2(program, runc)
    # As other FUSE filesystems do: ours lets programs read without an open, which nothing interrupts.
    with GvisorSandbox(found.path, programs=[program, runc]) as sandbox, FuseCgroupfs(sandbox, opens=True):
        yield Storm(sandbox)


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """Replace the check after each test: the sandbox ends with the module."""


@pytest.mark.timeout(120)
def test_without_the_interceptor_opens_fail(storm: Storm) -> None:
    assert storm.run("open", 1000, intercepted=False)["failures"].get("open EINTR", 0) > 0


@pytest.mark.timeout(120)
def test_opens_do_not_fail(storm: Storm) -> None:
    assert storm.run("open", 1000, intercepted=True)["failures"] == {}
    applied = storm.stats()["applied"]
    assert applied.get(f"mask {GROUPS}", 0) >= 1000, applied


@pytest.mark.timeout(120)
def test_folders_are_made_and_removed_once(storm: Storm) -> None:
    assert storm.run("mkdir", 200, intercepted=True)["failures"] == {}


@pytest.mark.timeout(120)
def test_statfs_does_not_fail(storm: Storm) -> None:
    assert storm.run("statfs", 1000, intercepted=False)["failures"].get("statfs EINTR", 0) > 0
    assert storm.run("statfs", 1000, intercepted=True)["failures"] == {}
    stats = storm.stats()
    assert stats["applied"].get(f"retry {GROUPS}", 0) > 0
    rule = f"statfs {FUSE_MAGIC:#x} -> {CGROUP_MAGIC:#x}"
    assert stats["applied"][rule] == 1000


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["statfs", "open"])
def test_signals_to_the_process_interrupt_calls_without_rules(storm: Storm, kind: str) -> None:
    assert storm.shipped("", kind, 2000, "process")["failures"].get(f"{kind} EINTR", 0) > 0


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("preset", "kind"), SHIPPED)
def test_presets_as_shipped_under_signals_to_the_process(storm: Storm, preset: str, kind: str) -> None:
    assert storm.shipped(preset, kind, 1000, "process")["failures"] == {}


@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.parametrize("weather", WEATHERS)
@pytest.mark.parametrize(("preset", "kind"), SHIPPED)
def test_presets_as_shipped_for_long(storm: Storm, preset: str, kind: str, weather: str) -> None:
    assert storm.shipped(preset, kind, 20_000, weather)["failures"] == {}


@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", range(20))
@pytest.mark.parametrize(("kind", "count"), [("open", 20_000), ("statfs", 20_000), ("mkdir", 2_000)])
def test_long_storms(storm: Storm, kind: str, count: int, number: int) -> None:
    found = storm.run(kind, count, intercepted=True)
    assert found["failures"] == {}, number
