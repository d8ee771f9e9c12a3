"""Official releases: downloads, checksums, resumption, machines without network."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import socket
import tarfile
import threading
import time
from dataclasses import replace

import pytest

from pytest_k3s_sandbox.errors import ProvisionError
from pytest_k3s_sandbox.toolchain import release
from pytest_k3s_sandbox.toolchain.release import ChecksumError, Hosts, checksum_in
from support.machines import Machine, Server

TOOL, OTHER = "k3sfake-tool", "k3sfake-other"
DATA = b"#!/bin/sh\necho 'tool version 1.2.3'\n" + b"#" * 300_000
FORK = multiprocessing.get_context("fork")
SUM = hashlib.sha256(DATA).hexdigest()


def test_download_is_verified_and_cached(machine: Machine, server: Server) -> None:
    machine.pin(release=server.offer(TOOL, DATA))
    first = machine.toolchain().get(TOOL)
    assert first.origin == "release"
    assert first.path.read_bytes() == DATA
    assert machine.toolchain().get(TOOL).origin == "cache"
    assert server.asked(TOOL) == [None]
    assert list((machine.cache / "downloads").iterdir()) == []


def test_archive_gives_all_programs(machine: Machine, server: Server) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in ("./bin/one", "./bin/two", "../../escape"):
            member = tarfile.TarInfo(name)
            member.size = len(DATA)
            archive.addfile(member, io.BytesIO(DATA))
    offered = replace(server.offer("all.tgz", packed.getvalue()), archive={TOOL: "bin/one", OTHER: "bin/two"})
    machine.pin(release=offered)
    toolchain = machine.toolchain()
    assert [toolchain.get(name).origin for name in (TOOL, OTHER)] == ["release", "cache"]
    assert len(server.asked("all.tgz")) == 1
    assert {path.name for path in machine.entries[0].iterdir()} == {TOOL, OTHER, "manifest.json"}


def test_archive_without_the_program_is_built_instead(machine: Machine, server: Server) -> None:
    machine.go()
    packed = io.BytesIO()
    tarfile.open(fileobj=packed, mode="w:gz").close()
    machine.pin(release=replace(server.offer("all.tgz", packed.getvalue()), archive={TOOL: "bin/one"}))
    toolchain = machine.toolchain()
    assert toolchain.get(TOOL).origin == "build"
    assert any("has no bin/one" in note for note in toolchain.why(TOOL))


def test_partial_download_is_continued(machine: Machine, server: Server) -> None:
    machine.pin(release=server.offer(TOOL, DATA))
    downloads = machine.cache / "downloads"
    downloads.mkdir(parents=True)
    (downloads / f"{SUM[:16]}-{TOOL}.part").write_bytes(DATA[:100_000])
    assert machine.toolchain().get(TOOL).path.read_bytes() == DATA
    assert server.asked(TOOL) == ["bytes=100000-"]


def test_complete_partial_download_is_taken(machine: Machine, server: Server) -> None:
    machine.pin(release=server.offer(TOOL, DATA))
    downloads = machine.cache / "downloads"
    downloads.mkdir(parents=True)
    (downloads / f"{SUM[:16]}-{TOOL}.part").write_bytes(DATA)
    assert machine.toolchain().get(TOOL).path.read_bytes() == DATA


def test_partial_download_of_something_else_is_thrown_away(machine: Machine, server: Server) -> None:
    machine.pin(release=server.offer(TOOL, DATA))
    downloads = machine.cache / "downloads"
    downloads.mkdir(parents=True)
    (downloads / f"{SUM[:16]}-{TOOL}.part").write_bytes(b"x" * 5000)
    assert machine.toolchain().get(TOOL).path.read_bytes() == DATA
    assert server.asked(TOOL) == ["bytes=5000-", None]


def test_lost_connection_is_continued(machine: Machine, server: Server) -> None:
    machine.pin(release=server.offer(TOOL, DATA))
    server.cut_after = 120_000
    assert machine.toolchain().get(TOOL).path.read_bytes() == DATA
    assert server.asked(TOOL) == [None, "bytes=120000-"]


def test_wrong_checksum_is_an_error_and_nothing_is_kept(machine: Machine, server: Server) -> None:
    machine.go()
    machine.pin(release=server.offer(TOOL, DATA, checksum="f" * 64))
    with pytest.raises(ChecksumError, match=f"sha256 {SUM}, published f"):
        machine.toolchain().get(TOOL)
    assert machine.builds == 0
    assert not machine.entries
    assert not machine.leftovers
    assert list((machine.cache / "downloads").iterdir()) == []


def test_checksum_that_is_not_stated_means_building(machine: Machine, server: Server) -> None:
    machine.go()
    machine.pin(release=server.offer(TOOL, DATA))
    server.files[f"/{TOOL}.sha256"] = b"<html>please log in</html>"
    toolchain = machine.toolchain()
    assert toolchain.get(TOOL).origin == "build"
    assert server.asked(TOOL) == []


def test_missing_release_means_building_and_keeps_the_host(machine: Machine, server: Server) -> None:
    machine.go()
    offered = server.offer(TOOL, DATA)
    machine.pin(release=offered)
    del server.files[f"/{TOOL}"]
    toolchain = machine.toolchain()
    assert toolchain.get(TOOL).origin == "build"
    assert any("404" in note for note in toolchain.why(TOOL))
    assert toolchain._hosts.problem(offered.url) is None


def test_unreachable_host_is_asked_once_and_the_program_built(
    machine: Machine, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:  # bound but not listening: refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        offered = server.offer(TOOL, DATA)
        machine.pin(release=replace(offered, url=f"{url}/a", checksum_url=f"{url}/b"))
        machine.go()
        tries: list[object] = []
        original = socket.create_connection

        def counted(address: tuple[str, int], timeout: float) -> socket.socket:
            tries.append(address)
            return original(address, timeout)

        monkeypatch.setattr(socket, "create_connection", counted)
        toolchain = machine.toolchain()
        assert toolchain.get(TOOL).origin == "build"
        (machine.home / "module/go.sum").write_text("changed")
        assert toolchain.get(TOOL).origin == "build"
    assert any("cannot be reached" in note for note in toolchain.why(TOOL))
    assert len(tries) == 1


def test_silent_hosts_cost_one_wait_together(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def silent(*_: object) -> None:
        over.wait(10)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", silent)
    hosts = Hosts([f"https://host{number}.invalid/x" for number in range(5)], seconds=0.2)
    began = time.monotonic()
    assert all("no answer" in str(hosts.problem(f"https://host{number}.invalid/y")) for number in range(5))
    assert time.monotonic() - began < 1
    over.set()


def test_proxy_is_what_has_to_be_reachable(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    assert machine.builds == 0  # the fixture has removed the machine's own proxies
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    assert Hosts._target("https://releases.invalid/x") == ("127.0.0.1", 9)


def test_two_processes_download_one_file_once(machine: Machine, server: Server) -> None:
    machine.pin(release=server.offer(TOOL, DATA))
    server.delay = 0.4
    racers = [FORK.Process(target=lambda: machine.toolchain().get(TOOL)) for _ in range(2)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(20)
    assert [racer.exitcode for racer in racers] == [0, 0]
    assert server.asked(TOOL) == [None]


def test_releases_can_be_switched_off(machine: Machine, server: Server) -> None:
    machine.go()
    machine.pin(release=server.offer(TOOL, DATA))
    machine.environ["K3S_SANDBOX_RELEASES"] = "0"
    assert machine.toolchain().get(TOOL).origin == "build"
    assert server.requests == []


def test_download_only_program_that_cannot_be_had(machine: Machine, server: Server) -> None:
    machine.pin(release=server.offer(TOOL, DATA), build=None)
    server.files.clear()
    with pytest.raises(ProvisionError, match=r"404(.|\n)*cannot be built(.|\n)*K3S_SANDBOX_K3SFAKE_TOOL"):
        machine.toolchain().get(TOOL)


def test_full_disk_in_a_download(machine: Machine, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.go()
    machine.pin(release=server.offer(TOOL, DATA))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(release, "_fetch", full)
    with pytest.raises(ProvisionError, match="no space left on the device of"):
        machine.toolchain().get(TOOL)
    assert machine.builds == 0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (SUM, True),
        (SUM.upper() + "\n", True),
        (f"{SUM}  file\n", True),
        (f"{SUM} *dist/artifacts/file\n", True),
        (f"{'0' * 64}  other\n{SUM}  file\n", True),
        (f"{SUM}  other\n", False),
        (f"{SUM}  other-file\n", False),
        (SUM[:-1], False),
        (SUM + "0", False),
        ("", False),
    ],
)
def test_checksum_files(text: str, *, found: bool) -> None:
    assert checksum_in(text, "file", "sha256") == (SUM if found else None)


def test_a_download_that_is_too_large_is_an_error_with_a_remedy() -> None:
    said = str(release._too_large("https://example.org/it", 7))
    assert said.startswith("https://example.org/it is not used: it has 7 bytes or more, the limit is ")
    assert "\nRemedy: check that the address leads to a release" in said
