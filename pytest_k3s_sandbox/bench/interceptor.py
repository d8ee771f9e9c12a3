"""The cost of the interceptor beside that of other tracers: calls, processes, a build, a node.

Every tracer runs the same program (``sources/calls.c``), which times itself, so that a
tracer's own start is in no figure. The tracers take turns within every repetition, and
a ratio divides a tracer's figure by the native figure of the same repetition.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_k3s_sandbox.bench import Result, Say, interceptor_node
from pytest_k3s_sandbox.bench.interceptor_figures import (
    FILTER,
    NATIVE,
    OTHERS,
    OURS,
    Reading,
    records,
    summary,
    table,
)
from pytest_k3s_sandbox.errors import SandboxError, StartError, missing_extra
from pytest_k3s_sandbox.lab.programs import build, find_go
from pytest_k3s_sandbox.layers.interceptor.rules import RedirectRule, Rules, StatfsRule, trapped_calls
from pytest_k3s_sandbox.sandbox.base import BIN_DIR, STATE_DIR, Bind
from pytest_k3s_sandbox.sandbox.gvisor import GvisorSandbox
from pytest_k3s_sandbox.sandbox.host import HostSandbox
from pytest_k3s_sandbox.sandbox.started import StartedSandbox
from pytest_k3s_sandbox.toolchain import Toolchain, ensure_system_packages
from pytest_k3s_sandbox.toolchain.packages import TRACERS

SECONDS = 0.15
"""About how long each case is repeated within one reading."""

CALLS_SECONDS = 40
BUILD_SECONDS = 120
"""After these a reading counts as one that does not end."""

BUILDS = 3
"""How many readings there are of a call for one of a build: it takes so much longer."""

WHOLE = (NATIVE, FILTER, OURS, "strace --seccomp-bpf")
"""Under which the whole build is tried: the others take minutes for it."""

FOLDER = f"{STATE_DIR}/bench"
SHARED = "/srv/bench"
SPOOFED = 0x1CE  # an f_type that no file system has
MODULE = "pytest_k3s_sandbox.layers.interceptor"

GO_ENVIRONMENT = {"GOTOOLCHAIN": "local", "GOTELEMETRY": "off", "CGO_ENABLED": "0"}
HELLO = """package main

import "fmt"

func main() { fmt.Println("hello, number %d") }
"""


@dataclass(frozen=True)
class Tracer:
    """A way to run a program.

    Attributes:
        name: Its name in the table.
        words: The words before the program's own command line.
        f_type: Whether it makes statfs answer something else.
        redirects: Whether it leads an open to another file.
    """

    name: str
    words: tuple[str, ...] = ()
    f_type: bool = False
    redirects: bool = False


def tracers(magic: int) -> tuple[list[Tracer], dict[str, str]]:
    """Return everything that is compared, and the rule files for ours by their names.

    Args:
        magic: ``f_type`` of the sandbox's root, which ours changes.
    """
    source, target = f"{FOLDER}/source", f"{FOLDER}/target"
    rules = {
        name: f"[[statfs]]\noriginal = {magic}\nreplacement = {SPOOFED}\n{whose}"
        f'[[redirect]]\npath = "{source}"\ntarget = "{target}"\n{whose}'
        for name, whose in {"rules.toml": "", "others.toml": 'programs = ["another"]\n'}.items()
    }
    same = Rules((StatfsRule(magic, SPOOFED),), (RedirectRule(source, target),))
    strace = ("strace", "-f", "-q", "-o", "/dev/null", "-e", "trace=" + ",".join(sorted(trapped_calls(same))))
    ours, for_others = ((sys.executable, "-m", MODULE, "--rules", f"{FOLDER}/{name}", "--") for name in rules)
    return [
        Tracer(NATIVE),
        Tracer(FILTER, (sys.executable, "-m", "pytest_k3s_sandbox.bench.allow_all")),
        Tracer(OTHERS, for_others),
        Tracer(OURS, ours, f_type=True, redirects=True),
        Tracer("strace --seccomp-bpf", (*strace, "--seccomp-bpf")),
        Tracer("strace", strace),
        Tracer("proot", ("proot", "-b", f"{target}:{source}"), redirects=True),
        Tracer("python-ptrace", (sys.executable, "-m", "pytest_k3s_sandbox.bench.every_call")),
    ], rules


@contextlib.contextmanager
def place(kind: str, toolchain: Toolchain, shared: Path) -> Iterator[StartedSandbox]:
    """Start a sandbox with the measured programs, and nothing of Kubernetes."""
    programs = [build("calls", toolchain), build("nothing", toolchain)]
    go_root = find_go(toolchain).path.resolve().parents[1]
    binds = [Bind(shared, SHARED, writable=True), Bind(go_root, str(go_root))]
    sandbox: StartedSandbox
    if kind == "host":
        sandbox = HostSandbox(programs=programs, binds=binds)
    else:
        sandbox = GvisorSandbox(toolchain.get("runsc").path, programs=programs, binds=binds)
    with sandbox:
        yield sandbox


def read_calls(sandbox: StartedSandbox, tracer: Tracer, magic: int, *, spawn: bool = True) -> dict[str, Any]:
    """Return one reading of every call: seconds by case, and the tracer's processor time.

    Args:
        sandbox: Where.
        tracer: The tracer that the program runs under.
        magic: ``f_type`` of the root.
        spawn: Whether to start programs, too; some tracer hangs then.

    Raises:
        StartError: The program failed under the tracer, or got a wrong answer.
    """
    files = [f"{FOLDER}/{name}" for name in ("miss", "source")]
    program = [f"{BIN_DIR}/calls", str(SECONDS), "/", *files, f"{BIN_DIR}/nothing" if spawn else "-"]
    lines = _run(sandbox, tracer, program, timeout=CALLS_SECONDS)
    seen = next(line for line in lines if "f_type" in line)
    expected = {"f_type": SPOOFED if tracer.f_type else magic, "byte": "T" if tracer.redirects else "S"}
    if seen != expected:
        raise StartError(f"{tracer.name} in {sandbox.kind}", cause=f"a program saw {seen}, not {expected}")
    return _reading(lines)


def read_build(
    sandbox: StartedSandbox, tracer: Tracer, go: Path, number: int, *, whole: bool = False
) -> dict[str, Any]:
    """Return one reading of ``go build`` of a file that was never built before.

    Args:
        sandbox: Where.
        tracer: The tracer that the program runs under.
        go: The Go command.
        number: Which of the files.
        whole: Whether all packages are built, too.
    """
    flags = ["-a"] if whole else []
    words = [str(go), "build", *flags, "-o", f"{FOLDER}/hello", f"{SHARED}/hello-{number}.go"]
    found = _reading(_run(sandbox, tracer, [f"{BIN_DIR}/calls", "once", *words], timeout=BUILD_SECONDS))
    return found | {"cases": {"whole": found["cases"]["once"]}} if whole else found


def _run(sandbox: StartedSandbox, tracer: Tracer, program: list[str], *, timeout: float) -> list[Any]:
    environment = {**GO_ENVIRONMENT, "GOCACHE": f"{SHARED}/cache"}
    done = sandbox.run([*tracer.words, *program], timeout=timeout, env=environment)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _reading(lines: list[Any]) -> dict[str, Any]:
    parent = next(line["parent"] for line in lines if "parent" in line)
    cases = {line["case"]: line["seconds"] / line["count"] for line in lines if "case" in line}
    return {"cases": cases, "rss_kib": parent["rss_kib"]}


def measure(kind: str, count: int, toolchain: Toolchain, say: Say) -> list[Reading]:
    """Measure everything but the node in one kind of sandbox.

    Args:
        kind: ``host`` or ``gvisor``.
        count: How many readings of each.
        toolchain: Where runsc and Go are.
        say: Told how it goes.
    """
    readings: list[Reading] = []
    builds = max(2, count // BUILDS)
    go = find_go(toolchain).path.resolve()
    with tempfile.TemporaryDirectory() as folder:
        warm(Path(folder), go, builds * (len(tracers(0)[0]) + len(WHOLE)))
        with place(kind, toolchain, Path(folder)) as sandbox:
            magic = sandbox.root_magic()
            compared, rules = tracers(magic)
            put_files(sandbox, rules)
            hung: set[str] = set()  # the cases that did not end once; they are not tried again
            for number in range(count):
                for tracer in turned(compared, number):
                    read = functools.partial(
                        read_calls, sandbox, tracer, magic, spawn=tracer.name not in hung
                    )
                    readings.append(attempt(kind, tracer, number, read))
                    if readings[-1].failure is not None:
                        hung.add(tracer.name)
                say(f"{kind}: calls {number + 1}/{count}")
            files = itertools.count()
            for number, whole in itertools.product(range(builds), (False, True)):
                for tracer in turned(compared, number):
                    if tracer.name in hung or (whole and tracer.name not in WHOLE):
                        continue
                    read = functools.partial(read_build, sandbox, tracer, go, next(files), whole=whole)
                    readings.append(attempt(kind, tracer, number, read))
                    if readings[-1].failure is not None:
                        hung.add(tracer.name)
                say(f"{kind}: go build{' -a' if whole else ''} {number + 1}/{builds}")
    return readings


def put_files(sandbox: StartedSandbox, rules: Mapping[str, str]) -> None:
    """Write the rules, and the files that are opened."""
    sandbox.files.mkdir(FOLDER)
    for name, text in {**rules, "source": "S", "target": "T", "miss": "M"}.items():
        sandbox.files.write(f"{FOLDER}/{name}", text)


def turned(compared: Sequence[Tracer], number: int) -> list[Tracer]:
    """Return the tracers in another order for each repetition, so that none always comes first."""
    at = number % len(compared)
    return [*compared[at:], *compared[:at]]


def attempt(kind: str, tracer: Tracer, number: int, read: Callable[[], dict[str, Any]]) -> Reading:
    """Return a reading; where a tracer cannot run, the reading has the reason and no figures."""
    try:
        return Reading(kind, tracer.name, number, **read())
    except SandboxError as error:
        return Reading(kind, tracer.name, number, failure=str(error))


def warm(shared: Path, go: Path, files: int) -> None:
    """Write the files that are built, and fill Go's cache with the packages that they need."""
    for number in range(files):
        (shared / f"hello-{number}.go").write_text(HELLO % number)
    (shared / "warm.go").write_text(HELLO % files)
    environment = {**os.environ, **GO_ENVIRONMENT, "GOCACHE": str(shared / "cache")}
    argv = [str(go), "build", "-o", os.devnull, str(shared / "warm.go")]
    subprocess.run(argv, check=True, capture_output=True, env=environment)


def bench(count: int, say: Say) -> Result:
    """Compare the tracers in both kinds of sandbox, then measure a node; see the module.

    Raises:
        MissingCapability: python-ptrace is not installed.
    """
    if importlib.util.find_spec("ptrace") is None:
        raise missing_extra("benchmark interceptor", "python-ptrace", "bench")
    toolchain = Toolchain()
    toolchain.provision()
    ensure_system_packages(TRACERS, progress=toolchain.progress)
    readings = [reading for kind in ("host", "gvisor") for reading in measure(kind, count, toolchain, say)]
    node = interceptor_node.measure(toolchain, say)
    result = summary(readings, node)
    failed = [reading for reading in readings if reading.tracer in {NATIVE, OURS} and reading.failure]
    return Result(result, table(result), ok=not failed, records=records(readings, node))
