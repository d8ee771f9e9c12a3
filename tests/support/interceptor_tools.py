"""Running programs under the interceptor, and what they leave."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MODULE = "pytest_k3s_sandbox.layers.interceptor"

Popen = Callable[..., "subprocess.Popen[str]"]


def descendants(of: int) -> set[int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found = {of}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {of}


def ends(pid: int, seconds: float = 20) -> bool:
    """Tell whether a process ends; it closes its files a little before."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in {"Z", "X"}:
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def command(rules: str, tmp_path: Path, *argv: str, options: tuple[str, ...] = ()) -> list[str]:
    file = tmp_path / "rules.toml"
    file.write_text(rules)
    return [
        sys.executable,
        "-m",
        MODULE,
        "--rules",
        str(file),
        "--stats",
        str(tmp_path / "stats"),
        *options,
        "--",
        *argv,
    ]


def run(
    rules: str, tmp_path: Path, *argv: str, options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(rules, tmp_path, *argv, options=options),
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )


def stats(tmp_path: Path) -> dict[str, Any]:
    counts: dict[str, Any] = json.loads((tmp_path / "stats").read_text())
    return counts


def python(code: str) -> tuple[str, ...]:
    return sys.executable, "-I", "-S", "-c", textwrap.dedent(code)


def f_type(path: str) -> int:
    answer = (ctypes.c_long * 15)()
    assert ctypes.CDLL(None).statfs(path.encode(), answer) == 0
    return answer[0]


def redirect(path: object, target: object, key: str = "path") -> str:
    return f'[[redirect]]\n{key} = "{path}"\ntarget = "{target}"\n'


def compiled(source: str, tmp_path: Path, *options: str) -> Path:
    """Return a program made of C or of assembler (which begins with a dot)."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler on this machine: apt-get install gcc")
    file = tmp_path / ("program.S" if source.lstrip().startswith(".") else "program.c")
    file.write_text(textwrap.dedent(source))
    program = tmp_path / "program"
    subprocess.run([compiler, *options, "-o", str(program), str(file)], check=True)
    return program
