"""Small programs that ask a kernel something, built on this machine and cached by source and flags."""

from __future__ import annotations

import functools
import hashlib
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pytest_k3s_sandbox.errors import MissingCapability, ProvisionError
from pytest_k3s_sandbox.toolchain import Toolchain, golang, packages

SOURCES = Path(__file__).parent / "sources"
GO_VERSION = (1, 21)
"""The oldest Go that the programs here can be built with."""


@dataclass(frozen=True)
class Recipe:
    """How a program is built.

    Attributes:
        source: Its only source file; the suffix tells the language.
        flags: Further words of the compiler's command line.
    """

    source: Path
    flags: tuple[str, ...] = ()


RECIPES = {
    "calls": Recipe(SOURCES / "calls.c", ("-static",)),
    "nothing": Recipe(SOURCES / "nothing.c", ("-static",)),
    "probe-static": Recipe(SOURCES / "probe.c", ("-static", "-pthread")),
    "probe-glibc": Recipe(SOURCES / "probe.c", ("-pthread",)),
    "probe-go": Recipe(SOURCES / "probe.go"),
    "storm": Recipe(SOURCES / "storm.go"),
}
"""The programs, by name."""


def find_go(toolchain: Toolchain) -> golang.Go:
    """Return a Go toolchain that is on this machine.

    Raises:
        MissingCapability: It was not found.
    """
    go = golang.find_go(toolchain.pins.go, GO_VERSION, toolchain.cache, toolchain.environ)
    if go is None:
        raise MissingCapability(
            "no Go toolchain on this machine", remedy="run `k3s-sandbox provision`, or put go on PATH"
        )
    return go


def build(name: str, toolchain: Toolchain | None = None) -> Path:
    """Return one of :data:`RECIPES` as an executable.

    Args:
        name: Which.
        toolchain: Where the cache and Go are; by default the usual ones.

    Raises:
        MissingCapability: There is no compiler for it.
        ProvisionError: It cannot be built; the message has the compiler's words.
    """
    return compiled(name, RECIPES[name], toolchain or Toolchain())


def compiled(name: str, recipe: Recipe, toolchain: Toolchain) -> Path:
    """Return a program as an executable, from the cache if it was built before; see :func:`build`."""
    cache = toolchain.cache
    digest = hashlib.sha256(repr(recipe.flags).encode() + recipe.source.read_bytes()).hexdigest()
    key = f"program-{name}-{digest[:16]}"
    with cache.lock(key):
        entry = cache.lookup(key, name)
        if entry is None:
            compile_it = _compile_go if recipe.source.suffix == ".go" else _compile_c
            fill: Callable[[Path, Path], None] = functools.partial(compile_it, toolchain, name, recipe)
            entry = cache.create(key, fill, version=digest[:16], origin="build", what=f"building {name}")
    return entry.folder / name


def _compile_c(toolchain: Toolchain, name: str, recipe: Recipe, content: Path, _scratch: Path) -> None:
    compiler = packages.which("gcc", toolchain.environ)
    if compiler is None:
        remedy = packages.install_command([packages.COMPILER])
        raise MissingCapability(f"cannot build {name}", cause="no C compiler", remedy=remedy)
    strict = ["-O2", "-Wall", "-Wextra", "-Werror"]
    output = ["-o", str(content / name), str(recipe.source)]
    _run(name, [compiler, *strict, *output, *recipe.flags], toolchain.environ)


def _compile_go(toolchain: Toolchain, name: str, recipe: Recipe, content: Path, scratch: Path) -> None:
    go = find_go(toolchain)
    environment = golang.environment(go, toolchain.cache, toolchain.environ, scratch, cgo=False)
    source = scratch / recipe.source.name
    shutil.copy(recipe.source, source)  # a file that is named alone needs no module
    words = ["build", "-trimpath", "-buildvcs=false", *recipe.flags, "-o", str(content / name), str(source)]
    _run(name, [str(go.path), *words], environment)


def _run(name: str, argv: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise ProvisionError(f"building {name}", cause=done.stderr.strip() or f"exit code {done.returncode}")
