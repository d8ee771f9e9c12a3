"""Images, taken apart again by the OCI specification's rules."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.cluster.images import (
    PAUSE_SCRIPT,
    Image,
    ImageConfig,
    ImageFile,
    archive,
    busybox_root,
    elf_architecture,
    find_busybox,
    pause,
    write_images,
)
from pytest_k3s_sandbox.cluster.images import busybox as machines_busybox
from pytest_k3s_sandbox.errors import MissingCapability


def elf(*segments: int, machine: int = 62) -> bytes:
    """Return a 64-bit ELF header and program headers of the given types."""
    header = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0, 64, 0, 0, 64, 56, len(segments), 0, 0, 0)
    return header + b"".join(struct.pack("<I", kind) + bytes(52) for kind in segments)


STATIC = elf(1, 1)
DYNAMIC = elf(6, 3, 1)


class Unpacked:
    """An image read back, every digest and size checked on the way."""

    def __init__(self, image: bytes) -> None:
        """Take the image apart."""
        with tarfile.open(fileobj=io.BytesIO(image)) as tar:
            self.members = tar.getmembers()
            self.files = {
                m.name: file.read() for m in self.members if (file := tar.extractfile(m)) is not None
            }
        assert json.loads(self.files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
        self.index = json.loads(self.files["index.json"])
        (self.described,) = self.index["manifests"]
        self.manifest = json.loads(self.blob(self.described))
        self.config = json.loads(self.blob(self.manifest["config"]))
        (layer,) = self.manifest["layers"]
        self.layer = self.blob(layer)
        assert self.config["rootfs"] == {"type": "layers", "diff_ids": [layer["digest"]]}
        assert len(self.files) == 5
        with tarfile.open(fileobj=io.BytesIO(self.layer)) as tar:
            self.root = {m.name: m for m in tar.getmembers()}

    def blob(self, descriptor: dict[str, Any]) -> bytes:
        """Return the blob that a descriptor names."""
        algorithm, digest = descriptor["digest"].split(":")
        content = self.files[f"blobs/{algorithm}/{digest}"]
        assert hashlib.sha256(content).hexdigest() == digest
        assert len(content) == descriptor["size"]
        return content


def one(reference: str, root: Sequence[ImageFile], program: ImageConfig) -> bytes:
    """Return an archive with one image."""
    return archive([Image(reference, root, program)])


@pytest.fixture
def busybox(tmp_path: Path) -> Path:
    """Stand in for busybox: a script that lists applets, with an ELF header that is never executed."""
    path = tmp_path / "busybox"
    path.write_bytes(STATIC)
    return path


def test_every_digest_and_size_is_right_and_the_name_is_exact() -> None:
    unpacked = Unpacked(
        one(
            "example.org/a/b:1",
            [ImageFile("x", 0o640, b"hello")],
            ImageConfig(entrypoint=["/x"], cmd=["y"], env={"A": "b"}, architecture="arm64"),
        )
    )
    assert unpacked.described["annotations"]["io.containerd.image.name"] == "example.org/a/b:1"
    assert unpacked.described["platform"] == {"architecture": "arm64", "os": "linux"}
    assert unpacked.config["architecture"] == "arm64"
    assert unpacked.config["config"] == {"Env": ["A=b"], "Entrypoint": ["/x"], "Cmd": ["y"]}
    assert unpacked.root["x"].mode == 0o640


entries = st.dictionaries(
    st.text("abc/", min_size=1, max_size=8).map(lambda text: text.strip("/") or "a"), st.binary(max_size=99)
)


@given(entries, st.randoms(use_true_random=False))
def test_the_same_content_in_any_order_gives_the_same_bytes(files: dict[str, bytes], random: Random) -> None:
    root = [ImageFile(path, content=content) for path, content in files.items()]
    first = one("a:1", root, ImageConfig())
    random.shuffle(root)
    assert one("a:1", root, ImageConfig()) == first


def test_nothing_of_the_machine_gets_into_a_tar() -> None:
    unpacked = Unpacked(one("a:1", [ImageFile("bin"), ImageFile("bin/x", content=b"x")], ImageConfig()))
    for member in (*unpacked.members, *unpacked.root.values()):
        assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")


def test_pause_is_one_program_that_is_started_without_arguments(tmp_path: Path, busybox: Path) -> None:
    unpacked = Unpacked(write_images(tmp_path / "pause.tar", [pause(busybox=busybox)]).read_bytes())
    assert unpacked.described["annotations"]["io.containerd.image.name"] == "registry.k8s.io/pause:3.10"
    assert unpacked.config["config"]["Entrypoint"] == ["/bin/busybox", "sh", "-c", PAUSE_SCRIPT]
    assert sorted(unpacked.root) == ["bin", "bin/busybox"]
    assert unpacked.root["bin/busybox"].mode == 0o755
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_an_archive_has_all_its_images_and_what_they_share_once() -> None:
    shared = [ImageFile("x", content=b"shared")]
    images = [Image("a:1", shared, ImageConfig(cmd=["a"])), Image("b:2", shared, ImageConfig(cmd=["b"]))]
    with tarfile.open(fileobj=io.BytesIO(archive(images))) as tar:
        names = tar.getnames()
        file = tar.extractfile("index.json")
        assert file is not None
        index = json.load(file)
    named = [entry["annotations"]["io.containerd.image.name"] for entry in index["manifests"]]
    assert named == ["a:1", "b:2"]
    assert {f"blobs/sha256/{entry['digest'].partition(':')[2]}" for entry in index["manifests"]} <= set(names)
    assert len(names) == len(set(names)) == 4 + 1 + 2 + 2  # a layer, two configurations, two manifests


def test_busybox_has_a_link_for_each_applet() -> None:
    unpacked = Unpacked(one("a:1", busybox_root(b"program", ["sh", "[", "busybox", "sh"]), ImageConfig()))
    assert unpacked.root["bin/sh"].linkname == unpacked.root["bin/["].linkname == "busybox"
    assert unpacked.root["bin/busybox"].isfile()
    assert unpacked.root["tmp"].mode == 0o1777


def test_the_machines_busybox_makes_an_image() -> None:
    try:
        find_busybox()
    except MissingCapability as missing:
        pytest.skip(str(missing))
    first = archive([machines_busybox()])
    assert first == archive([machines_busybox()])
    unpacked = Unpacked(first)
    assert unpacked.described["annotations"]["io.containerd.image.name"] == "docker.io/library/busybox:1.36"
    assert unpacked.config["config"]["Cmd"] == ["sh"]
    assert {"bin/sh", "bin/sleep", "bin/cat", "etc/passwd"} <= set(unpacked.root)


def test_a_failed_write_leaves_the_old_image_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "image.tar"
    target.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Past this size writes fail with EFBIG, as they do with ENOSPC on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            write_images(target, [Image("a:1", [ImageFile("a", content=bytes(99_999))], ImageConfig())])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (STATIC, "amd64"),
        (elf(1, machine=183), "arm64"),
        (DYNAMIC, None),
        (elf(1, machine=9999), None),
        (STATIC[:100], None),
        (b"#!/bin/sh\n" * 9, None),
        (b"", None),
    ],
)
def test_a_static_program_is_known_by_its_headers(image: bytes, expected: str | None) -> None:
    assert elf_architecture(image) == expected


@given(st.binary(max_size=200))
def test_no_content_breaks_the_elf_reader(tail: bytes) -> None:
    elf_architecture(b"\x7fELF" + tail)


def test_this_python_is_known_to_be_dynamic() -> None:
    image = Path(sys.executable).read_bytes()
    interpreter = b"/ld-linux" in image[:4096] or b"/ld-musl" in image[:4096]
    if not interpreter:
        pytest.skip("this Python names no dynamic loader")
    assert elf_architecture(image) is None


def test_a_missing_and_a_dynamic_busybox_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(MissingCapability, match=r"there is no .*/none") as missing:
        find_busybox(tmp_path / "none")
    assert "busybox-static" in str(missing.value)
    dynamic = tmp_path / "busybox"
    dynamic.write_bytes(DYNAMIC)
    with pytest.raises(MissingCapability, match="not a static ELF"):
        pause(busybox=dynamic)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_pause_sleeps_until_it_is_told_to_end(number: signal.Signals) -> None:
    try:
        busybox = find_busybox()
    except MissingCapability as missing:
        pytest.skip(str(missing))
    # Without a PATH, as the image has nothing on it but busybox.
    script = PAUSE_SCRIPT.replace("/bin/busybox", str(busybox))
    with subprocess.Popen(
        [busybox, "sh", "-c", script], start_new_session=True, env={"PATH": "/nonexistent"}
    ) as process:
        try:
            time.sleep(0.3)
            assert process.poll() is None
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            assert len(children) == 1
            assert Path(f"/proc/{children[0]}/cmdline").read_bytes().split(b"\0")[1] == b"sleep"
            process.send_signal(number)
            assert process.wait(timeout=5) == 0
        finally:
            os.killpg(process.pid, signal.SIGKILL)
