"""Attackers on the network, at the publisher or on the machine change a program that would run as root."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import re
import socket
import tarfile
import threading
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pytest_k3s_sandbox.cli.main import app
from pytest_k3s_sandbox.errors import ConfigError, ProvisionError
from pytest_k3s_sandbox.toolchain import Toolchain, pinning, pins, release
from pytest_k3s_sandbox.toolchain.pins import GoPin, Pin, Pins, Release
from pytest_k3s_sandbox.toolchain.progress import SilentProgress
from pytest_k3s_sandbox.toolchain.release import ChecksumError

TOOL = "k3sfake-tool"
DATA = b"#!/bin/sh\necho 'tool version 1.2.3'\n"
EVIL = b"#!/bin/sh\necho evil\n"
ELSE = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="not root: files of another user cannot be made")


@dataclass
class Mirror:
    """A mirror of releases on loopback."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    endless: bool = False

    def offer(self, data: bytes, name: str = TOOL) -> None:
        """Offer a file with its checksum, as a publisher does."""
        self.files[f"/{name}"] = data
        self.files[f"/{name}.sha256"] = hashlib.sha256(data).hexdigest().encode()


class Service(http.server.ThreadingHTTPServer):
    """A server of one mirror."""

    mirror: Mirror


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers for the mirror that its server has."""

    server: Service

    def do_GET(self) -> None:
        """Send a file, a redirect, or more than the limit."""
        mirror = self.server.mirror
        if self.path in mirror.redirects:
            self.send_response(302)
            self.send_header("Location", mirror.redirects[self.path])
            self.end_headers()
            return
        data = mirror.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        self.send_response(200)
        if mirror.length is not None and not self.path.endswith(".sha256"):
            self.send_header("Content-Length", str(mirror.length))
        self.end_headers()
        self.wfile.write(data)
        if mirror.endless and not self.path.endswith(".sha256"):
            try:
                while True:
                    self.wfile.write(bytes(1 << 16))
            except OSError:
                self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class' name
        """Say nothing."""


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    """A mirror that serves while the test goes on."""
    service = Service(("127.0.0.1", 0), Handler)
    service.mirror = made = Mirror(f"http://127.0.0.1:{service.server_port}")
    thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    service.shutdown()
    thread.join()
    service.server_close()


def toolchain(folder: Path, mirror: Mirror, **more: Any) -> Toolchain:  # noqa: ANN401 - fields of Release
    """Return a toolchain whose only program is released on the mirror and nowhere else."""
    variables = more.pop("variables", {})
    name = more.pop("name", TOOL)
    official = Release(f"{mirror.url}/{name}", f"{mirror.url}/{name}.sha256", "sha256", "1.2.3", **more)
    pin = Pin(
        TOOL, "k3sfake", "1.2.3", (TOOL,), ("--version",), re.compile(r"version (\S+)"), release=official
    )
    return Toolchain(
        environ={
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder),
            "K3S_SANDBOX_CACHE": str(folder / "cache"),
            "K3S_SANDBOX_HTTP_LOOPBACK": "1",
            **variables,
        },
        progress=SilentProgress(),
        pinned=Pins({TOOL: pin}, GoPin("k3sfake-go", "1.25.0", "0" * 64, "go/bin/go")),
    )


def kept(folder: Path) -> list[str]:
    """Return the files that the cache holds."""
    return [path.name for path in (folder / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]


PINNED = {"sha256": hashlib.sha256(DATA).hexdigest()}


def test_a_release_that_is_not_pinned_is_not_used_unless_it_is_asked_for(
    tmp_path: Path, mirror: Mirror
) -> None:
    mirror.offer(EVIL)  # with its checksum: the attacker changes both
    with pytest.raises(ProvisionError, match=r"is not pinned.*K3S_SANDBOX_RELEASES=unpinned"):
        toolchain(tmp_path, mirror).get(TOOL)
    assert kept(tmp_path) == []
    asked = toolchain(tmp_path, mirror, variables={"K3S_SANDBOX_RELEASES": "unpinned"})
    assert asked.get(TOOL).origin == "release"


def test_a_pinned_release_is_what_was_reviewed(tmp_path: Path, mirror: Mirror) -> None:
    mirror.offer(DATA)
    assert toolchain(tmp_path / "good", mirror, **PINNED).get(TOOL).path.read_bytes() == DATA
    mirror.offer(EVIL)
    with pytest.raises(ChecksumError, match="not what is pinned"):
        toolchain(tmp_path / "bad", mirror, **PINNED).get(TOOL)
    assert kept(tmp_path / "bad") == []


def test_what_was_fetched_unpinned_is_not_taken_for_what_is_pinned(tmp_path: Path, mirror: Mirror) -> None:
    mirror.offer(EVIL)
    toolchain(tmp_path, mirror, variables={"K3S_SANDBOX_RELEASES": "unpinned"}).get(TOOL)
    mirror.offer(DATA)
    assert toolchain(tmp_path, mirror, **PINNED).get(TOOL).path.read_bytes() == DATA


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("http://example.com:{port}/elsewhere", "http://example.com:{port}/elsewhere is not asked"),
        ("ftp://127.0.0.1/evil", "ftp://127.0.0.1/evil is not asked"),
        (
            "file:///etc/passwd",
            "Redirection to url 'file:///etc/passwd' is not allowed",
        ),  # urllib's own words
    ],
)
def test_a_redirect_away_from_https_is_refused(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch, target: str, said: str
) -> None:
    """The first one would give the right file if it were followed."""
    asked = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *words, **options: asked(
            "127.0.0.1" if host == "example.com" else host, *words, **options
        ),
    )
    mirror.offer(DATA)
    mirror.offer(DATA, "elsewhere")
    port = mirror.url.rpartition(":")[2]
    mirror.redirects[f"/{TOOL}"] = target.format(port=port)
    with pytest.raises(ProvisionError, match=re.escape(said.format(port=port))):
        toolchain(tmp_path, mirror, **PINNED).get(TOOL)
    assert kept(tmp_path) == []


def test_a_redirect_on_the_allowed_way_is_followed(tmp_path: Path, mirror: Mirror) -> None:
    mirror.offer(DATA, "elsewhere")
    mirror.redirects[f"/{TOOL}"] = f"{mirror.url}/elsewhere"
    assert toolchain(tmp_path, mirror, **PINNED).get(TOOL).path.read_bytes() == DATA


def test_http_on_loopback_is_an_option(tmp_path: Path, mirror: Mirror) -> None:
    mirror.offer(DATA)
    variables = {"K3S_SANDBOX_HTTP_LOOPBACK": ""}
    with pytest.raises(ProvisionError, match="it is not https"):
        toolchain(tmp_path, mirror, variables=variables, **PINNED).get(TOOL)


@pytest.mark.parametrize("said", [None, 1 << 40])
def test_a_body_without_an_end_is_cut_off(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch, said: int | None
) -> None:
    """Whether its length is told or not."""
    monkeypatch.setattr(release, "SIZE_LIMIT", 3 << 20)
    mirror.offer(DATA)
    mirror.endless, mirror.length = True, said
    with pytest.raises(ProvisionError, match="the limit is"):
        toolchain(tmp_path, mirror, **PINNED).get(TOOL)
    assert kept(tmp_path) == []


def packed(*members: tuple[str, bytes, bytes]) -> bytes:
    """Return an archive of names, types (as tarfile has them) and contents or targets."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type = kind
            if kind == tarfile.REGTYPE:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                member.linkname = content.decode()
                archive.addfile(member)
    return out.getvalue()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_an_archive_gives_regular_files_only(tmp_path: Path, mirror: Mirror, kind: bytes) -> None:
    data = packed(("../../escape", tarfile.REGTYPE, EVIL), ("bin/tool", kind, b"/etc/shadow"))
    mirror.offer(data)
    pinned = {"sha256": hashlib.sha256(data).hexdigest(), "archive": {TOOL: "bin/tool"}}
    with pytest.raises(ProvisionError, match="has no bin/tool"):
        toolchain(tmp_path, mirror, **pinned).get(TOOL)
    assert not any(path.name == "escape" for path in tmp_path.rglob("*"))


def test_an_archive_that_swells_is_not_unpacked(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = packed(("bin/tool", tarfile.REGTYPE, bytes(9 << 20)))
    assert len(data) < 1 << 20
    monkeypatch.setattr(release, "SIZE_LIMIT", 4 << 20)
    mirror.offer(data)
    pinned = {"sha256": hashlib.sha256(data).hexdigest(), "archive": {TOOL: "bin/tool"}}
    with pytest.raises(ProvisionError, match="too many members or too large"):
        toolchain(tmp_path, mirror, **pinned).get(TOOL)
    entries = tmp_path / "cache" / "entries"
    assert not entries.exists() or list(entries.iterdir()) == []


def test_pinning_fetches_checks_and_writes_the_digest(tmp_path: Path, mirror: Mirror) -> None:
    mirror.offer(DATA)
    digests = pinning.pin(toolchain(tmp_path, mirror))
    assert digests == {f"{mirror.url}/{TOOL}": PINNED["sha256"]}
    assert tomllib.loads(f"[sha256]\n{pinning.as_toml(digests)}") == {"sha256": digests}
    assert kept(tmp_path) == []
    mirror.files[f"/{TOOL}"] = EVIL  # not what the publisher states
    with pytest.raises(ChecksumError, match="publisher"):
        pinning.pin(toolchain(tmp_path, mirror))
    mirror.offer(EVIL)
    with pytest.raises(ChecksumError, match="changed since it was pinned"):
        pinning.pin(toolchain(tmp_path, mirror, **PINNED))
    with pytest.raises(ConfigError, match="no release"):
        pinning.pin(toolchain(tmp_path, mirror), ["other"])


def test_the_command_pins_from_a_mirror(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`provision --pin`, with a programs.toml whose addresses are the mirror's."""
    hosts = "https://(dl.k8s.io|github.com|storage.googleapis.com)"
    table = tmp_path / "programs.toml"
    table.write_text(re.sub(hosts, mirror.url, pins.PINS.read_text()))
    load, used = pins.load, pins.load(table)
    monkeypatch.setattr(pins, "load", lambda **_: used)
    monkeypatch.setenv("K3S_SANDBOX_HTTP_LOOPBACK", "1")
    monkeypatch.setenv("K3S_SANDBOX_CACHE", str(tmp_path / "cache"))
    official = used.programs["kubelet"].release
    assert official is not None
    path = official.url.removeprefix(mirror.url)
    mirror.files |= {path: DATA, f"{path}.sha256": PINNED["sha256"].encode()}
    file = tmp_path / "pins"
    done = CliRunner().invoke(app, ["provision", "--pin", "--pin-to", str(file), "-q", "kubelet"])
    assert done.exit_code == 0, done.output
    table.write_text(table.read_text() + file.read_text())
    pinned = load(table, kubernetes=used.kubernetes).programs["kubelet"].release
    assert pinned is not None
    assert pinned.sha256 == PINNED["sha256"]
    printed = CliRunner().invoke(app, ["provision", "--pin", "-q", "kubelet"])
    assert file.read_text().strip() in printed.output


@pytest.fixture
def filled(tmp_path: Path, mirror: Mirror) -> Path:
    """A cache with a program."""
    mirror.offer(DATA)
    return toolchain(tmp_path, mirror, **PINNED).get(TOOL).path


def test_a_cache_is_made_for_its_owner_alone_whatever_the_umask(tmp_path: Path, mirror: Mirror) -> None:
    mirror.offer(DATA)
    before = os.umask(0)
    try:
        path = toolchain(tmp_path, mirror, **PINNED).get(TOOL).path
    finally:
        os.umask(before)
    for each in (path, path.with_name("manifest.json"), *path.parents[:4]):
        if each.is_relative_to(tmp_path / "cache"):
            assert each.stat().st_mode & 0o022 == 0, each
    assert toolchain(tmp_path, mirror, **PINNED).get(TOOL).origin == "cache"


@pytest.mark.parametrize("place", ["cache", "entries"])
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_a_cache_that_others_can_write_is_refused(
    filled: Path, mirror: Mirror, place: str, mode: int
) -> None:
    root = filled.parents[2]
    folder = root if place == "cache" else root / "entries"
    folder.chmod(mode)
    with pytest.raises(ProvisionError, match=r"other users can write it[\s\S]*chmod -R go-w"):
        toolchain(root.parent, mirror, **PINNED).find(TOOL)
    folder.chmod(0o755)
    assert toolchain(root.parent, mirror, **PINNED).find(TOOL) is not None


@as_root
def test_a_cache_of_another_user_is_refused(filled: Path, mirror: Mirror) -> None:
    root = filled.parents[2]
    os.chown(root, ELSE, ELSE)
    with pytest.raises(ProvisionError, match=rf"belongs to the user {ELSE}[\s\S]*K3S_SANDBOX_CACHE"):
        toolchain(root.parent, mirror, **PINNED).find(TOOL)


def test_a_cache_below_a_folder_that_others_can_write_is_refused(filled: Path, mirror: Mirror) -> None:
    home = filled.parents[2].parent
    home.chmod(0o777)  # without the sticky bit, anybody can replace the cache
    with pytest.raises(ProvisionError, match="other users can write it"):
        toolchain(home, mirror, **PINNED).find(TOOL)


@pytest.mark.parametrize("what", ["program", "manifest", "entry"])
def test_an_entry_that_others_can_change_is_obtained_again(filled: Path, mirror: Mirror, what: str) -> None:
    """Size, time and inode are as recorded: a user who can write the file can forge them."""
    status = filled.stat()
    target = {"program": filled, "manifest": filled.with_name("manifest.json"), "entry": filled.parent}[what]
    target.chmod(0o777)
    filled.write_bytes(EVIL.ljust(len(DATA), b"#"))
    os.utime(filled, ns=(status.st_atime_ns, status.st_mtime_ns))
    found = toolchain(filled.parents[3], mirror, **PINNED).get(TOOL)
    assert (found.origin, found.path.read_bytes()) == ("release", DATA)


def test_a_link_in_an_entry_is_not_followed(filled: Path, mirror: Mirror, tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    evil.write_bytes(EVIL)
    filled.unlink()
    filled.symlink_to(evil)
    assert toolchain(filled.parents[3], mirror, **PINNED).get(TOOL).path.read_bytes() == DATA
