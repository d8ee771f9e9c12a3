"""Official releases: downloaded, resumed, and checked against the publisher's checksum."""

from __future__ import annotations

import hashlib
import http.client
import re
import shutil
import socket
import tarfile
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

from pytest_k3s_sandbox.errors import ProvisionError
from pytest_k3s_sandbox.support import clock
from pytest_k3s_sandbox.toolchain.pins import Pin, Release
from pytest_k3s_sandbox.toolchain.progress import Work

PROBE_SECONDS = 3.0
READ_SECONDS = 15.0
CHUNK = 1 << 20
CHECKSUM_LIMIT = 1 << 20
SIZE_LIMIT = 512 << 20
"""Bytes of a release, and of a program in it; the largest, k3s, has 80 MB."""

MEMBERS = 10_000
"""Members of an archive."""

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
PARTIAL_CONTENT = 206
RANGE_NOT_SATISFIABLE = 416


class ChecksumError(ProvisionError):
    """The checksum of a download is wrong; no fallback is tried."""


class UnusableReleaseError(ProvisionError):
    """A release cannot be used; the program can still be built."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to addresses that are allowed."""

    def __init__(self, *, loopback: bool) -> None:
        self._loopback = loopback

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        _require_https(newurl, loopback=self._loopback)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _require_https(url: str, *, loopback: bool) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https" or (loopback and parts.scheme == "http" and parts.hostname in LOOPBACK):
        return
    raise UnusableReleaseError(
        f"{url} is not asked",
        cause="it is not https, so that any host on the way could change the answer",
        remedy="a mirror on this machine's loopback may use http with K3S_SANDBOX_HTTP_LOOPBACK=1",
    )


def open_url(
    url: str, *, headers: Mapping[str, str] | None = None, loopback: bool = False
) -> http.client.HTTPResponse:
    """Open an https address; redirects stay on https.

    Args:
        url: The address.
        headers: The headers of the request.
        loopback: Whether http to this machine's loopback is allowed.

    Raises:
        UnusableReleaseError: The address, or one that it leads to, is not https.
        OSError: The network failed.
    """
    _require_https(url, loopback=loopback)
    request = urllib.request.Request(url, headers=dict(headers or {}))  # noqa: S310 - checked in the line above
    opener = urllib.request.build_opener(_Redirects(loopback=loopback))
    response: http.client.HTTPResponse = opener.open(request, timeout=READ_SECONDS)
    return response


class Hosts:
    """Which hosts of releases can be reached; asked once a run, all at the same time.

    A machine without network so loses ``seconds`` once and not once a program. Where
    the environment names a proxy, the proxy has to be reachable.

    Args:
        urls: Addresses on all hosts that may be asked for.
        seconds: How long an answer may take.
    """

    def __init__(self, urls: Iterable[str], seconds: float = PROBE_SECONDS) -> None:
        """Keep the arguments; nothing is asked yet."""
        self._targets = {self._target(url) for url in urls}
        self._seconds = seconds
        self._answers: dict[tuple[str, int], str | None] | None = None

    @staticmethod
    def _target(url: str) -> tuple[str, int]:
        parts = urllib.parse.urlsplit(url)
        proxy = urllib.request.getproxies().get(parts.scheme)
        if proxy and not urllib.request.proxy_bypass(parts.netloc):
            parts = urllib.parse.urlsplit(proxy if "//" in proxy else f"http://{proxy}")
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)

    def _ask(self) -> dict[tuple[str, int], str | None]:
        answers: dict[tuple[str, int], str | None] = {}

        def connect(target: tuple[str, int]) -> None:
            try:
                socket.create_connection(target, self._seconds).close()
                answers[target] = None
            except OSError as error:
                answers[target] = str(error)

        # Daemon threads: a name server that does not answer must not hold us up.
        threads = [threading.Thread(target=connect, args=(each,), daemon=True) for each in self._targets]
        for thread in threads:
            thread.start()
        end = clock.monotonic() + self._seconds
        for thread in threads:
            thread.join(max(0.0, end - clock.monotonic()))
        return {each: answers.get(each, f"no answer in {self._seconds:g} s") for each in self._targets}

    def problem(self, url: str) -> str | None:
        """Return why the host of a URL cannot be reached, or None if it can."""
        if self._answers is None:
            self._answers = self._ask()
        target = self._target(url)
        cause = self._answers.get(target)
        return f"{target[0]} cannot be reached ({cause})" if cause else None

    def failed(self, url: str, cause: str) -> None:
        """Remember that a host which seemed reachable is not."""
        if self._answers is not None:
            self._answers[self._target(url)] = cause


def checksum_in(text: str, filename: str, algorithm: str) -> str | None:
    """Return the checksum of a file as a publisher's checksum file states it.

    Understands a bare checksum and the lines of ``sha256sum``, text or binary mode.

    Args:
        text: The checksum file.
        filename: The file whose checksum is wanted.
        algorithm: A name of :mod:`hashlib`, for the length.
    """
    digits = hashlib.new(algorithm).digest_size * 2
    bare = re.fullmatch(rf"\s*([0-9a-fA-F]{{{digits}}})\s*", text)
    if bare:
        return bare.group(1).lower()
    for line in text.splitlines():
        found = re.fullmatch(rf"\s*([0-9a-fA-F]{{{digits}}})\s+\*?(\S+)\s*", line)
        if found and found.group(2).rpartition("/")[2] == filename:
            return found.group(1).lower()
    return None


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _too_large(url: str, size: int) -> UnusableReleaseError:
    return UnusableReleaseError(
        f"{url} is not used",
        cause=f"it has {size} bytes or more, the limit is {SIZE_LIMIT}",
        remedy="check that the address leads to a release of the program, and not to another file; "
        "name another version if it does",
    )


def _fetch(url: str, part: Path, work: Work, *, loopback: bool) -> None:
    have = part.stat().st_size if part.exists() else 0
    try:
        response = open_url(url, headers={"Range": f"bytes={have}-"} if have else None, loopback=loopback)
    except urllib.error.HTTPError as error:
        if error.code == RANGE_NOT_SATISFIABLE:  # it was complete already
            return
        raise
    with response, part.open("ab" if response.status == PARTIAL_CONTENT else "wb") as file:
        have = file.tell()
        length = response.headers.get("Content-Length")
        total = have + int(length) if length and length.isdecimal() else 0
        if total > SIZE_LIMIT:
            raise _too_large(url, total)
        while chunk := response.read(CHUNK):
            if have + len(chunk) > SIZE_LIMIT:
                raise _too_large(url, have + len(chunk))
            file.write(chunk)
            have += len(chunk)
            work.update(f"{have / 1e6:.0f} of {total / 1e6:.0f} MB" if total else f"{have / 1e6:.0f} MB")
        if have < total:
            raise http.client.IncompleteRead(b"", total - have)


def fetch(url: str, part: Path, work: Work, *, loopback: bool = False) -> None:
    """Download a file, whatever it is; a partial file and a lost connection are continued.

    Args:
        url: Its address.
        part: Where it goes.
        work: The observer of the progress.
        loopback: Whether http to this machine's loopback is allowed.

    Raises:
        UnusableReleaseError: The address is not https, or the file is too large.
        OSError: The network or the disk failed; the received part is kept.
    """
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return _fetch(url, part, work, loopback=loopback)
        except UnusableReleaseError:
            part.unlink(missing_ok=True)
            raise
        except (http.client.IncompleteRead, ConnectionError, TimeoutError):
            if not part.exists() or part.stat().st_size <= before:
                raise
            work.update("connection lost, continuing")


def download(release: Release, folder: Path, work: Work, *, loopback: bool = False) -> Path:
    """Download a release's file and verify it; a partial file is continued.

    Args:
        release: What to get.
        folder: Where the file and its partial form are kept.
        work: The observer of the progress.
        loopback: Whether http to this machine's loopback is allowed.

    Returns:
        The verified file.

    Raises:
        ChecksumError: The file's hash differs from the pinned one, or without a pin from the published one.
        UnusableReleaseError: The publisher does not state its checksum, an address is not https, or the file
            is too large.
        OSError: The network or the disk failed; the received part is kept.
    """
    filename = urllib.parse.unquote(release.url.rpartition("/")[2])
    algorithm, expected, source = "sha256", release.sha256, "pinned"
    if expected is None:
        algorithm, expected, source = release.algorithm, published(release, loopback=loopback), "published"
    folder.mkdir(parents=True, exist_ok=True)
    # Named by the checksum, so that a partial file of another version is never continued.
    part = folder / f"{expected[:16]}-{filename}.part"
    resumed = part.exists()
    fetch(release.url, part, work, loopback=loopback)
    actual = _digest(part, algorithm)
    if actual != expected and resumed:
        part.unlink()
        fetch(release.url, part, work, loopback=loopback)
        actual = _digest(part, algorithm)
    if actual != expected:
        part.unlink()
        raise ChecksumError(
            f"{release.url} is not what "
            + ("is pinned in programs.toml" if release.sha256 else "its publisher states"),
            cause=f"{algorithm} {actual}, {source} {expected}",
            remedy="something between here and the publisher changes downloads; nothing of it was kept",
        )
    return part


def published(release: Release, *, loopback: bool = False) -> str:
    """Return the checksum of a release as its publisher states it.

    Raises:
        UnusableReleaseError: It is not stated, or an address is not https.
        OSError: The network failed.
    """
    filename = urllib.parse.unquote(release.url.rpartition("/")[2])
    if release.checksum_url is None:
        raise UnusableReleaseError(f"no {release.algorithm} of {filename}", cause="its publisher states none")
    with open_url(release.checksum_url, loopback=loopback) as response:
        text = response.read(CHECKSUM_LIMIT).decode(errors="replace")
    expected = checksum_in(text, filename, release.algorithm)
    if expected is None:
        raise UnusableReleaseError(
            f"no {release.algorithm} of {filename}", cause=f"{release.checksum_url} does not state it"
        )
    return expected


def unpack(pin: Pin, release: Release, file: Path, content: Path) -> None:
    """Put the programs of a verified release into a folder.

    Raises:
        UnusableReleaseError: The archive lacks a program, or holds more than a release would.
    """
    if not release.archive:
        shutil.copyfile(file, content / pin.name)
        return
    with tarfile.open(file) as archive:
        # Members are looked up by name and copied by content: nothing else can be written.
        # A member's content is decompressed to get to the next one, so that the sum has a limit, too.
        members: dict[str, tarfile.TarInfo] = {}
        size = 0
        for number, member in enumerate(archive):
            size += max(0, member.size)
            if number >= MEMBERS or size > 2 * SIZE_LIMIT:
                raise UnusableReleaseError(
                    f"{release.url} is not unpacked", cause="it has too many members or too large ones"
                )
            if member.isreg() and not member.issparse():
                members[member.name.removeprefix("./")] = member
        for name, wanted in release.archive.items():
            source = archive.extractfile(members[wanted]) if wanted in members else None
            if source is None:
                raise UnusableReleaseError(f"{release.url} has no {wanted}")
            with source, (content / name).open("wb") as target:
                shutil.copyfileobj(source, target)
