"""Calls of a Go program that no rule concerns: they do not stop, and all others do what rules say."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_k3s_sandbox.errors import MissingCapability
from pytest_k3s_sandbox.lab.programs import Recipe
from pytest_k3s_sandbox.lab.programs import compiled as built
from pytest_k3s_sandbox.layers.interceptor.repeating import _LABELS, ADDRESS, FUNCTION, after_fault
from pytest_k3s_sandbox.sandbox.base import BIN_DIR, STATE_DIR
from pytest_k3s_sandbox.sandbox.started import StartedSandbox
from pytest_k3s_sandbox.toolchain import Toolchain
from support.installed import maker
from support.interceptor_tools import MODULE, compiled, redirect, run
from support.outside import outside

pytestmark = [
    pytest.mark.k3s_requires("ptrace"),
    pytest.mark.skipif(os.geteuid() != 0, reason="sandboxes need root"),
    pytest.mark.timeout(120),
]

FOLDER = f"{STATE_DIR}/skipping"
TREE = f"{FOLDER}/tree"
REDIRECT = redirect("/proc/sys", TREE, "prefix") + 'calls = ["open", "stat", "access"]\n'
RETRY = '[[retry]]\nunder = "/sys/fs/cgroup"\ncalls = ["open", "stat"]\nexits = ["openat", "newfstatat"]\n'
EFAULT = "bad address"


class Scene:
    """The program, natively or in gVisor."""

    def __init__(self, sandbox: StartedSandbox) -> None:
        """Make the files that the program opens."""
        self._sandbox = sandbox
        self._folder = outside(sandbox, FOLDER)
        tree = outside(sandbox, TREE)
        (tree / "kernel").mkdir(parents=True)
        (tree / "kernel" / "ostype").write_text("other\n")
        sandbox.run(["ln", "-s", "/proc", "/run/link"])
        sandbox.run(["mkfifo", "/run/fifo"])

    def run(self, rules: str, *words: str) -> tuple[list[str], dict[str, Any]]:
        """Return the lines that the program prints, and what the interceptor counted."""
        (self._folder / "rules.toml").write_text(rules)
        wrap = [sys.executable, "-m", MODULE, "--rules", f"{FOLDER}/rules.toml"]
        done = self._sandbox.run([*wrap, "--stats", f"{FOLDER}/stats", "--", f"{BIN_DIR}/paths", *words])
        assert done.stderr == ""
        stats: dict[str, Any] = json.loads((self._folder / "stats").read_text())
        return done.stdout.splitlines(), stats

    def without_rules(self, *words: str) -> list[str]:
        """Return the lines that the program prints without the interceptor."""
        return self._sandbox.run([f"{BIN_DIR}/paths", *words]).stdout.splitlines()


@pytest.fixture(scope="module", params=["host", "gvisor"])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    """The program where it runs natively, and in gVisor."""
    try:
        program = built("paths", Recipe(Path(__file__).with_name("paths.go")), Toolchain())
    except MissingCapability as error:
        pytest.skip(str(error))
    with maker(request.param)(programs=[program]) as sandbox:
        yield Scene(sandbox)


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """Replace the check after each test: the sandbox ends with the module."""


@pytest.mark.parametrize("rules", [REDIRECT, REDIRECT + RETRY], ids=["alone", "with returns"])
def test_calls_far_from_every_rule_do_not_stop(scene: Scene, rules: str) -> None:
    few, before = scene.run(rules, "many=0=/etc/passwd")
    made, after = scene.run(rules, "many=200=/etc/passwd")
    assert few == made == ["ok"]
    # Go's runtime opens some files at its start, by its own function.
    assert after["calls"] == before["calls"]
    assert after["stops"].get("seccomp", 0) == before["stops"].get("seccomp", 0) <= 10
    # The same calls where a rule is.
    near, counted = scene.run(rules, "many=200=/proc/sys/kernel/ostype")
    assert near == ["ok"]
    assert counted["applied"] == {"redirect /proc/sys/**": 600}


def test_a_path_leads_elsewhere_however_it_is_written(scene: Scene) -> None:
    name = "/proc/sys/kernel/ostype"
    words = (
        f"read={name}",
        "read=/proc/../proc/sys/kernel/ostype",
        "read=//proc/sys/kernel/ostype",
        "read=/proc//sys/kernel/ostype",
        "read=/proc/./sys/kernel/ostype",
        "read=/proc/sys/kernel/./ostype",
        "read=/etc/../proc/sys/kernel/ostype",
        "at=/proc=sys/kernel/ostype",
        "at=/proc/sys=kernel/ostype",
        f"at=/etc={name}",
        "cd=/proc",
        "read=sys/kernel/ostype",
        "read=./sys/kernel/ostype",
        "cd=/etc",
        "read=../proc/sys/kernel/ostype",
    )
    lines, stats = scene.run(REDIRECT, *words)
    assert lines == ["<nil>" if word.startswith("cd=") else "other" for word in words]
    assert stats["applied"]["redirect /proc/sys/**"] >= 13
    # Rules follow no symbolic link, and neither does the code: the kernel's own file.
    assert scene.run(REDIRECT, "read=/run/link/sys/kernel/ostype")[0] == ["Linux"]


def test_a_bad_pointer_is_answered_as_the_kernel_does(scene: Scene) -> None:
    words = ("nil", "low", "gone", "ends", "far", "file")
    lines, stats = scene.run(REDIRECT, *words, "read=/proc/sys/kernel/ostype", "panic", "gone")
    assert lines[:-3] == [EFAULT] * len(words)
    assert lines[-3] == "other"
    assert "nil pointer" in lines[-2]
    assert lines[-1] == EFAULT
    assert stats["stops"]["signal"] >= 5


def test_a_signal_during_a_call_that_does_not_stop(scene: Scene) -> None:
    fifo = "fifo=/run/fifo"
    before = scene.run(REDIRECT)[1]["calls"].get("openat", 0)
    # gVisor ends an open of a FIFO; Linux makes it again.
    for rules, seen in ((REDIRECT, scene.without_rules(fifo)), (REDIRECT + RETRY, ["<nil>"])):
        lines, stats = scene.run(rules, fifo)
        assert lines == seen
        assert stats["calls"].get("openat", 0) == before


CRASHING = f"""
    .globl _start
    .text
    _start:
        xor %eax, %eax
        mov (%rax), %al
        .rept 300
        nop
        .endr
        xor %edi, %edi
        mov $231, %eax
        syscall
    function:
        .byte {", ".join(f"{byte:#x}" for byte in FUNCTION)}
        ret
        nop
"""


def test_a_program_with_its_own_code_there_gets_its_signal(tmp_path: Path) -> None:
    where = (f"-Wl,-Ttext-segment={ADDRESS:#x}", "-Wl,-z,noseparate-code", "-Wl,--build-id=none")
    program = compiled(CRASHING, tmp_path, "-nostdlib", "-static", *where)
    entry = int.from_bytes(program.read_bytes()[24:32], "little")
    assert after_fault(entry + 2) == ADDRESS + _LABELS["call"], "the program is elsewhere"
    assert run(REDIRECT, tmp_path, str(program)).returncode == -11
