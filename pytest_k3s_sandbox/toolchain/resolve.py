"""Finding or getting each program, in one order of preference."""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.error import HTTPError

import platformdirs

from pytest_k3s_sandbox.errors import ConfigError, MissingCapability, ProvisionError
from pytest_k3s_sandbox.toolchain import golang, keys, packages, pins, release
from pytest_k3s_sandbox.toolchain.attempts import Attempts
from pytest_k3s_sandbox.toolchain.cache import Cache, CacheEntry, CorruptEntryError, no_space
from pytest_k3s_sandbox.toolchain.packages import which
from pytest_k3s_sandbox.toolchain.progress import Progress, Work, for_terminal

Origin = Literal["env", "path", "cache", "release", "package", "build"]
VERSION_SECONDS = 20.0
APPLICATION = "pytest-k3s-sandbox"


@dataclass(frozen=True)
class Program:
    """A program that is ready to be used.

    Attributes:
        name: Its name.
        path: Its file.
        version: Its version, ``unknown`` if an environment variable names something that does not say.
        origin: Where it comes from: ``env``, ``path``, ``cache``, or, just now, ``release``, ``package`` (the
            distribution's, so that it is on PATH from then on) or ``build``.
    """

    name: str
    path: Path
    version: str
    origin: Origin


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Return where programs are cached: ``K3S_SANDBOX_CACHE``, else the user's cache folder."""
    named = environ.get("K3S_SANDBOX_CACHE")
    return Path(named).absolute() if named else platformdirs.user_cache_path(APPLICATION)


class Toolchain:
    """All programs under test: environment variable, PATH, cache, release, distribution's package, build.

    Args:
        cache: The cache folder; by default :func:`cache_folder`.
        environ: The environment; by default the process' own. ``K3S_SANDBOX_RELEASES=0``
            in it skips release downloads, so that programs are built; ``K3S_SANDBOX_RELEASES=unpinned`` also
            takes releases whose digest is not pinned, by their publishers' checksums.
            ``K3S_SANDBOX_HTTP_LOOPBACK=1`` takes releases by http from this machine's loopback.
        progress: Who is told about long work; by default a live line on a terminal, else lines.
        kubernetes: The version of Kubernetes, as :func:`.pins.pick` takes it; by default the pinned one.
        pinned: The pins, for tests.

    Raises:
        ConfigError: That version of Kubernetes is not pinned.
    """

    def __init__(
        self,
        cache: Path | None = None,
        environ: Mapping[str, str] | None = None,
        progress: Progress | None = None,
        *,
        kubernetes: str | None = None,
        pinned: pins.Pins | None = None,
    ) -> None:
        """Keep the arguments; nothing is looked for yet."""
        self.environ = dict(os.environ if environ is None else environ)
        self.cache = Cache(cache or cache_folder(self.environ))
        self.kubernetes = kubernetes
        self.pins = pinned or pins.load(kubernetes=kubernetes)
        self._progress = progress
        self._versions: dict[Path, str | None] = {}
        self._notes: dict[str, list[str]] = {}
        releases = [pin.release for pin in self.pins.programs.values() if pin.release]
        self._hosts = release.Hosts(each.url for each in releases if self._is_usable(each))

    @property
    def progress(self) -> Progress:
        """Who is told about long work."""
        if self._progress is None:
            self._progress = for_terminal()
        return self._progress

    @property
    def loopback(self) -> bool:
        """Whether releases may come by http from this machine's loopback."""
        return self.environ.get("K3S_SANDBOX_HTTP_LOOPBACK") == "1"

    def _is_usable(self, official: pins.Release) -> bool:
        unpinned = self.environ.get("K3S_SANDBOX_RELEASES") == "unpinned"
        return official.sha256 is not None or (unpinned and official.checksum_url is not None)

    @property
    def needed(self) -> list[str]:
        """The programs that the embedded cluster needs."""
        return [name for name, pin in self.pins.programs.items() if not pin.optional]

    def why(self, name: str) -> list[str]:
        """Return what the last search for a program passed over or tried in vain, and why."""
        return list(self._notes.get(name, ()))

    def find(self, name: str) -> Program | None:
        """Return a program that is there already; no network, no build.

        Raises:
            ConfigError: The program is unknown, or its environment variable names
                nothing that can be executed.
        """
        pin = self._pin(name)
        notes = self._notes[name] = []
        return self._from_environment(pin) or self._from_path(pin, notes) or self._from_cache(pin, notes)

    def get(self, name: str) -> Program:
        """Return a program, downloading, installing or building it if need be.

        Raises:
            ConfigError: As for :meth:`find`.
            MissingCapability: The architecture is not supported, or a system package is missing.
            ProvisionError: The program could not be obtained; the message lists the attempts.
        """
        program = self.try_get(name, again=True)
        if program is None:
            pin = self._pin(name)
            raise ProvisionError(
                f"{name} {pin.version} could not be obtained",
                cause="; ".join(self.why(name)),
                remedy=f"name an executable by {pin.variable}, or repeat with a network",
            )
        return program

    def try_get(self, name: str, *, again: bool = False) -> Program | None:
        """Return a program as :meth:`get` does, or None if it can be obtained nowhere; :meth:`why` says why.

        This is for a program that can be done without. What should not pass in silence is raised all the
        same: a wrong environment variable, a changed download, a full disk, a build that fails.

        Args:
            name: The program.
            again: Whether to try to install a package though that failed within the last hour.

        Raises:
            ConfigError: As for :meth:`find`.
            MissingCapability: The architecture is not supported, or the build lacks a system package.
            ProvisionError: A checksum is wrong, the cache cannot be written, or the build failed.
        """
        found = self.find(name)
        if found is not None:
            return found
        pin = self._pin(name)
        keys.architecture()
        notes = self._notes[name]
        return (
            self._from_release(pin, notes)
            or self._from_package(pin, notes, again=again)
            or self._from_build(pin, notes)
        )

    def get_or_why(self, name: str, *, again: bool = False) -> Program | str:
        """Return a program that can be done without, or in a line why there is none.

        A program that is built here is lacking on a machine without a network, for instance: what fails then
        is its build.

        Args:
            name: The program.
            again: As for :meth:`try_get`.

        Raises:
            SandboxError: As for :meth:`try_get`, except for a build.
        """
        try:
            return self.try_get(name, again=again) or "; ".join(self.why(name))
        except (MissingCapability, ProvisionError) as error:
            if self._pin(name).build is None:
                raise
            return " ".join(str(error).split())

    def provision(self, names: Iterable[str] | None = None, *, for_tests: bool = False) -> list[Program]:
        """Get system packages and programs.

        Args:
            names: The programs; by default all that the embedded cluster needs.
            for_tests: Whether to get the packages that only the project's own tests need, too.

        Raises:
            SandboxError: As for :meth:`get` and :func:`ensure_system_packages`.
        """
        wanted = [self._pin(name).name for name in (self.needed if names is None else names)]
        keys.architecture()
        self.cache.reap()
        self._ensure((*packages.RUN, *packages.TESTS) if for_tests else packages.RUN)
        return [self.get(name) for name in wanted]

    def _ensure(self, wanted: Iterable[packages.SystemPackage]) -> None:
        packages.ensure_system_packages(
            wanted, environ=self.environ, progress=self.progress, log=self.cache.root / "logs" / "apt.log"
        )

    def _pin(self, name: str) -> pins.Pin:
        try:
            return self.pins.programs[name]
        except KeyError:
            known = ", ".join(self.pins.programs)
            raise ConfigError(f"unknown program {name!r}", remedy=f"known are: {known}") from None

    def _version(self, pin: pins.Pin, path: Path) -> str | None:
        """Return the version that a program prints; it runs once."""
        if path not in self._versions:
            try:
                done = subprocess.run(
                    [path, *pin.version_args],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    timeout=VERSION_SECONDS,
                    check=False,
                    env={name: value for name, value in self.environ.items() if not name.startswith("CNI_")},
                )
                self._versions[path] = pin.version_in(done.stdout.decode(errors="replace"))
            except (OSError, subprocess.SubprocessError):
                self._versions[path] = None
        return self._versions[path]

    def _from_environment(self, pin: pins.Pin) -> Program | None:
        named = self.environ.get(pin.variable)
        if not named:
            return None
        path = Path(named).absolute()
        if not path.is_file() or not os.access(path, os.X_OK):
            cause = "it cannot be executed" if path.exists() else "there is no such file"
            raise ConfigError(
                f"{pin.variable}={named}",
                cause=cause,
                remedy=f"name an executable {pin.name}, or unset the variable",
            )
        return Program(pin.name, path, self._version(pin, path) or "unknown", "env")

    def _from_path(self, pin: pins.Pin, notes: list[str]) -> Program | None:
        found = which(pin.name, self.environ)
        if found is None:
            notes.append("not on PATH")
            return None
        path = Path(found)
        version = self._version(pin, path)
        if version is not None and pin.accepts(version):
            return Program(pin.name, path, version, "path")
        said = f"is version {version}" if version else "does not say a version that is known here"
        notes.append(f"{path} {said}, wanted {pin.wanted}")
        return None

    def _keys(self, pin: pins.Pin) -> Iterator[str]:
        if pin.release:
            yield keys.release_key(pin, pin.release)
        if pin.build:
            yield keys.build_key(pin, pin.build, keys.architecture())

    def _from_cache(self, pin: pins.Pin, notes: list[str]) -> Program | None:
        try:
            names = list(self._keys(pin))
        except MissingCapability as error:
            notes.append(error.what)
            return None
        entries = (self._lookup(key, pin, notes) for key in names)
        entry = next((entry for entry in entries if entry), None)
        if entry is None:
            notes.append(f"not in the cache ({self.cache.root})")
            return None
        return Program(pin.name, entry.folder / pin.name, entry.version, "cache")

    def _lookup(self, key: str, pin: pins.Pin, notes: list[str]) -> CacheEntry | None:
        try:
            return self.cache.lookup(key, pin.name)
        except CorruptEntryError as error:
            notes.append(f"{error.what}: {error.cause}")
            return None

    @contextlib.contextmanager
    def _working(self, key: str, what: str) -> Iterator[Work]:
        with (
            Work(self.progress, what) as work,
            self.cache.lock(key, lambda: work.update("another process is doing it")),
        ):
            yield work

    def _against_release(self, official: pins.Release | None) -> str | None:
        """Return why a release is not downloaded; None if it may be."""
        if official is None:
            return "no official release"
        if self.environ.get("K3S_SANDBOX_RELEASES") == "0":
            return "release not tried (K3S_SANDBOX_RELEASES=0)"
        if not self._is_usable(official):
            return f"release not used: the digest of {official.url} is not pinned in programs.toml " + (
                "(K3S_SANDBOX_RELEASES=unpinned trusts its publisher's checksum)"
                if official.checksum_url
                else "(and its publisher states none)"
            )
        problem = self._hosts.problem(official.url)
        return None if problem is None else f"release not downloaded: {problem}"

    def _from_release(self, pin: pins.Pin, notes: list[str]) -> Program | None:
        official = pin.release
        reason = self._against_release(official)
        if official is None or reason is not None:
            notes.append(reason or "no official release")
            return None
        key = keys.release_key(pin, official)
        what = f"downloading {pin.group if official.archive else pin.name} {official.version}"
        try:
            with self._working(key, what) as work:
                entry = self._lookup(key, pin, notes)
                if entry is None:
                    downloads = self.cache.root / "downloads"
                    self.cache.make(downloads)
                    part = release.download(official, downloads, work, loopback=self.loopback)
                    entry = self.cache.create(
                        key,
                        lambda content, _: release.unpack(pin, official, part, content),
                        version=official.version,
                        origin="release",
                        what=what,
                    )
                    part.unlink(missing_ok=True)
        except release.UnusableReleaseError as error:
            notes.append(f"release not used: {error}")
            return None
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise no_space(self.cache.root, what) from error
            if not isinstance(error, HTTPError):
                self._hosts.failed(official.url, str(error))
            notes.append(f"release not downloaded: {official.url}: {error}")
            return None
        return Program(pin.name, entry.folder / pin.name, entry.version, "release")

    def _from_package(self, pin: pins.Pin, notes: list[str], *, again: bool) -> Program | None:
        """Install the distribution's package; its program is on PATH then."""
        if pin.package is None:
            return None
        package = packages.of_program(pin.name, pin.package)
        if package.present(self.environ):  # of a version that is not accepted, as the notes say already
            notes.append(f"package {pin.package} not tried: there is a {pin.name} on PATH")
            return None
        attempts = Attempts(self.cache.root / "attempts")
        cause = attempts.failure(pin.package, lambda: self._ensure([package]), again=again)
        if cause is not None:
            notes.append(f"package {pin.package} not installed: {cause}")
            return None
        found = self._from_path(pin, notes)
        return replace(found, origin="package") if found else None

    def _from_build(self, pin: pins.Pin, notes: list[str]) -> Program | None:
        build = pin.build
        if build is None:
            notes.append("cannot be built: its source is in no public module proxy")
            return None
        least = golang.required(build)
        go = golang.find_go(self.pins.go, least, self.cache, self.environ)
        if go is None:
            go = golang.install_go(self.pins.go, self.cache, self.environ, self.progress)
            if go.version < least:
                raise ProvisionError(
                    f"building {pin.group}", cause=f"needs Go {'.'.join(map(str, least))}, there is only {go}"
                )
        self._ensure([packages.CERTIFICATES, packages.COMPILER] if build.cgo else [packages.CERTIFICATES])
        key = keys.build_key(pin, build, keys.architecture())
        what = f"building {pin.group} {pin.version}"
        with self._working(key, what) as work:
            entry = self._lookup(key, pin, notes) or self.cache.create(
                key,
                lambda content, scratch: golang.build_group(
                    pin,
                    build,
                    go=go,
                    cache=self.cache,
                    key=key,
                    environ=self.environ,
                    work=work,
                    content=content,
                    scratch=scratch,
                ),
                version=pin.version,
                origin="build",
                what=what,
            )
        return Program(pin.name, entry.folder / pin.name, entry.version, "build")
