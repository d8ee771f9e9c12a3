"""The pins: which version of which program, and how it is obtained (pure data)."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pytest_k3s_sandbox.errors import ConfigError

PINS = Path(__file__).with_name("programs.toml")
MODULES = Path(__file__).with_name("go")


@dataclass(frozen=True)
class Build:
    """How a group is built from a pinned Go module.

    Attributes:
        module: The folder with ``go.mod``, ``go.sum`` and small mains.
        modfile: The file in it that pins the modules; its sums are beside it with suffix ``.sum``.
        packages: What ``go build`` is asked for.
        cgo: Whether a C compiler and the C library's headers are needed.
        tags: Build tags.
        ldflags: The linker's flags; they set the version that a program reports.
        output: The one executable that every program of the group is, or None when
            each package yields its own.
    """

    module: Path
    packages: tuple[str, ...]
    modfile: str = "go.mod"
    cgo: bool = False
    tags: tuple[str, ...] = ()
    ldflags: str = ""
    output: str | None = None


@dataclass(frozen=True)
class Release:
    """An official release of one program, or of an archive with several.

    Attributes:
        url: The file.
        checksum_url: Its checksum as the publisher states it, or None if the publisher states none.
        algorithm: That checksum's algorithm, a name of :mod:`hashlib`.
        version: The release's version.
        archive: Each program's member in the tar archive; empty when the file is the program.
        sha256: The pinned hash of the file, in hexadecimal; None until it was reviewed.
    """

    url: str
    checksum_url: str | None
    algorithm: str
    version: str
    archive: Mapping[str, str] = field(default_factory=dict)
    sha256: str | None = None


@dataclass(frozen=True)
class Pin:
    """One program.

    Attributes:
        name: The program's name.
        group: The group of programs that are built or released together.
        version: The pinned version.
        siblings: All programs of the group, this one too.
        version_args: The arguments that make it print its version.
        version_regex: Finds the version in its output, as group 1.
        minimum: The least version that is accepted from PATH, numbers and dots; None demands equality.
        optional: Whether a cluster can do without it.
        build: How it is built, or None.
        release: Where it is released, or None.
        package: The package of Debian and Ubuntu that has it, for a machine without the release, or None.
    """

    name: str
    group: str
    version: str
    siblings: tuple[str, ...]
    version_args: tuple[str, ...]
    version_regex: re.Pattern[str]
    minimum: str | None = None
    optional: bool = False
    build: Build | None = None
    release: Release | None = None
    package: str | None = None

    @property
    def variable(self) -> str:
        """The environment variable that names the program's file."""
        return "K3S_SANDBOX_" + self.name.upper().replace("-", "_")

    @property
    def wanted(self) -> str:
        """The accepted versions, in words."""
        return self.version if self.minimum is None else f"{self.minimum} or later"

    def version_in(self, output: str) -> str | None:
        """Return the version that a program states in its output, or None."""
        found = self.version_regex.search(output)
        return found.group(1) if found else None

    def accepts(self, version: str) -> bool:
        """Tell whether a version found on PATH is as good as the pinned one."""
        if self.minimum is None:
            return version == self.version
        return bool(found := numbers(version)) and found >= numbers(self.minimum)


@dataclass(frozen=True)
class GoPin:
    """The Go toolchain that is installed on a machine without one.

    Attributes:
        package: The Python package that holds it.
        version: Its version.
        sha256: The hash of its wheel.
        executable: The ``go`` command, relative to where the package is installed.
    """

    package: str
    version: str
    sha256: str
    executable: str


@dataclass(frozen=True)
class Pins:
    """Everything that is pinned.

    Attributes:
        programs: The programs by name, in the order of the file.
        go: The Go toolchain.
        kubernetes: The version of Kubernetes that was chosen.
    """

    programs: Mapping[str, Pin]
    go: GoPin
    kubernetes: str = ""


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, to compare it: those of ``1.8.1``; none if it has other parts."""
    parts = version.split(".")
    return tuple(int(part) for part in parts) if all(part.isdecimal() for part in parts) else ()


def minor_of(version: str) -> str:
    """Return the minor release of a version: ``1.34`` of ``1.34.4`` and of ``v1.34.1+k3s1``."""
    return ".".join(version.removeprefix("v").split(".")[:2])


def _pin(
    group: str,
    name: str,
    table: Mapping[str, Any],
    modules: Path,
    version: str,
    digests: Mapping[str, str],
) -> Pin:
    own: Mapping[str, Any] = table["programs"][name]

    def fill(text: str) -> str:
        minor = minor_of(version).partition(".")[2]
        return text.replace("{version}", version).replace("{minor}", minor).replace("{program}", name)

    build = release = None
    if raw := table.get("build"):
        build = Build(
            module=modules / raw["module"],
            packages=tuple(raw["packages"]),
            modfile="go.mod" if version == table["version"] else f"v{minor_of(version)}.mod",
            cgo=raw.get("cgo", False),
            tags=tuple(raw.get("tags", ())),
            ldflags=fill(raw.get("ldflags", "")),
            output=raw.get("output"),
        )
    if raw := table.get("release"):
        url = fill(raw["url"])
        release = Release(
            url=url,
            checksum_url=fill(raw["checksum_url"]) if "checksum_url" in raw else None,
            algorithm=raw.get("algorithm", "sha256"),
            version=raw.get("version", version),
            archive=raw.get("archive", {}),
            sha256=digests.get(url),
        )
    return Pin(
        name=name,
        group=group,
        version=version,
        siblings=tuple(table["programs"]),
        version_args=tuple(own.get("version_args", table["version_args"])),
        version_regex=re.compile(own.get("version_regex", table["version_regex"])),
        minimum=table.get("minimum"),
        optional=table.get("optional", False),
        build=build,
        release=release,
        package=table.get("package"),
    )


@cache
def load(path: Path = PINS, modules: Path = MODULES, kubernetes: str | None = None) -> Pins:
    """Read the pins.

    Args:
        path: The TOML file.
        modules: The folder with one Go module folder a group.
        kubernetes: The version of Kubernetes, as :func:`pick` takes it; by default the file's own.

    Returns:
        The pins, read once a process.

    Raises:
        ConfigError: That version of Kubernetes is not pinned.
    """
    raw = tomllib.loads(path.read_text(encoding="utf-8"))
    groups: Mapping[str, Mapping[str, Any]] = raw["groups"]
    chosen = {group: str(table["version"]) for group, table in groups.items()}
    if "kubernetes" in groups:
        chosen["kubernetes"] = pick(kubernetes, _known(groups["kubernetes"]))
    programs = {
        name: _pin(group, name, table, modules, chosen[group], raw.get("sha256", {}))
        for group, table in groups.items()
        for name in table["programs"]
    }
    return Pins(programs=programs, go=GoPin(**raw["go"]), kubernetes=chosen.get("kubernetes", ""))


def _known(table: Mapping[str, Any]) -> tuple[str, ...]:
    return (table["version"], *table.get("versions", ()))


def kubernetes_versions(path: Path = PINS) -> tuple[str, ...]:
    """Return the pinned versions of Kubernetes, the default first."""
    return _known(tomllib.loads(path.read_text(encoding="utf-8"))["groups"]["kubernetes"])


def pick(text: str | None, known: tuple[str, ...]) -> str:
    """Return the pinned version for a version that was asked for.

    Args:
        text: A version or a minor release, with or without ``v``: ``1.36``, ``v1.36``, ``1.36.3``.
            None and the empty text mean the default.
        known: The pinned versions, the default first.

    Raises:
        ConfigError: The version is not pinned.
    """
    if not text:
        return known[0]
    wanted = text.strip().removeprefix("v")
    for version in known:
        if wanted in {version, minor_of(version)}:
            return version
    raise ConfigError(
        f"Kubernetes version {text!r}",
        cause=f"pinned are {', '.join(known)}",
        remedy="ask for one of these; a minor release such as 1.36 will do",
    )
