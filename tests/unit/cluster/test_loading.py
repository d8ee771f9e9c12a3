"""Loading a user's image: what is refused, and that nothing half-written stays."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pytest_k3s_sandbox.cluster.base import Distribution
from pytest_k3s_sandbox.cluster.images import Image, ImageConfig, ImageFile, write_images
from pytest_k3s_sandbox.cluster.loading import load_archive
from pytest_k3s_sandbox.cluster.names import NAME, REF_NAME, full, names_in
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import ClusterError, ConfigError, SandboxError, StartError
from pytest_k3s_sandbox.sandbox.base import STATE_DIR, Sandbox
from pytest_k3s_sandbox.sandbox.beneath import Beneath


class Importer:
    """A distribution that only notes what it is given, and may refuse it."""

    def __init__(self, folder: Path, refusal: SandboxError | None = None) -> None:
        """Keep the sandbox's folder on the machine."""
        self.folder, self.refusal = folder, refusal
        self.loaded: list[bytes] = []
        self.knows = {"example.org/mine:1"}

    def load_image(self, _sandbox: object, tar: str, deadline: Deadline) -> None:
        """Read the archive where a process inside would."""
        assert deadline.remaining() > 0
        assert tar.startswith(f"{STATE_DIR}/")
        self.loaded.append((self.folder / tar.removeprefix("/")).read_bytes())
        if self.refusal:
            raise self.refusal

    def images(self, _sandbox: object, _deadline: Deadline) -> frozenset[str]:
        """Have what was loaded, and what was there before."""
        return frozenset({*self.knows, "docker.io/library/busybox:1.36"})

    def load(self, tar: Path) -> tuple[str, ...]:
        """Load an archive in the way that a cluster does."""
        sandbox = SimpleNamespace(files=Beneath(self.folder), logs=self.folder)
        found = (cast("Distribution", self), cast("Sandbox", sandbox))
        return load_archive(*found, tar, deadline=Deadline.after(5))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_images(
        tmp_path / "image.tar", [Image("example.org/mine:1", [ImageFile("bin")], ImageConfig())]
    )


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    (folder / STATE_DIR.removeprefix("/")).mkdir(parents=True)
    return folder


def test_the_archive_is_shown_inside_while_it_is_imported_and_gone_afterwards(
    archive: Path, inside: Path
) -> None:
    importer = Importer(inside)
    assert importer.load(archive) == ("example.org/mine:1",)
    assert importer.loaded == [archive.read_bytes()]
    assert [path for path in inside.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(("content", "cause"), [(None, "no such file"), (b"no tar", "not a tar archive")])
def test_what_is_no_archive_is_refused_before_anything_is_copied(
    tmp_path: Path, inside: Path, content: bytes | None, cause: str
) -> None:
    tar = tmp_path / "mine.tar"
    if content is not None:
        tar.write_bytes(content)
    importer = Importer(inside)
    with pytest.raises(ConfigError, match=cause) as caught:
        importer.load(tar)
    assert str(tar) in caught.value.what
    assert importer.loaded == []
    assert [path for path in inside.rglob("*") if path.is_file()] == []


def test_a_refusal_is_told_in_containerds_words_and_leaves_nothing(archive: Path, inside: Path) -> None:
    importer = Importer(inside, StartError("`ctr ...` failed", cause="ctr: unrecognized image format"))
    with pytest.raises(ClusterError, match="unrecognized image format") as caught:
        importer.load(archive)
    assert str(archive) in caught.value.what
    assert [path for path in inside.rglob("*") if path.is_file()] == []


def tar_of(path: Path, **files: object) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            data = json.dumps(content).encode()
            member = tarfile.TarInfo(name.replace("__", "-") + ("" if name == "oci__layout" else ".json"))
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def layout(*annotations: dict[str, str] | None) -> dict[str, object]:
    manifests = [
        {"digest": "sha256:0", **({} if one is None else {"annotations": one})} for one in annotations
    ]
    return {"oci__layout": {"imageLayoutVersion": "1.0.0"}, "index": {"manifests": manifests}}


UNNAMED: dict[str, dict[str, object]] = {
    "docker save of an id": {"manifest": [{"Config": "c", "RepoTags": None, "Layers": []}]},
    "no tags at all": {"manifest": [{"Config": "c", "Layers": []}]},
    "an OCI layout without annotations": layout(None),
    "an OCI layout with a tag alone": layout({REF_NAME: "1.0"}),
    "an OCI layout with a short name": layout({REF_NAME: "mine:1.0"}),
}


@pytest.mark.parametrize("what", UNNAMED)
def test_an_image_that_no_pod_could_name_is_refused_before_it_is_copied(
    tmp_path: Path, inside: Path, what: str
) -> None:
    importer = Importer(inside)
    with pytest.raises(ConfigError, match="docker tag ID") as caught:
        importer.load(tar_of(tmp_path / "mine.tar", **UNNAMED[what]))
    assert "mine.tar" in caught.value.what
    assert importer.loaded == []


def test_an_image_that_containerd_leaves_out_is_an_error(archive: Path, inside: Path) -> None:
    importer = Importer(inside)
    importer.knows = set()  # as of an image for another kind of machine
    with pytest.raises(ClusterError, match=r"no pod can use it: containerd has none of .*example.org/mine:1"):
        importer.load(archive)


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (
            {"manifest": [{"RepoTags": ["mine:1", "a.b/c:2"]}, {"RepoTags": ["mine:1"]}]},
            ("mine:1", "a.b/c:2"),
        ),
        (layout({NAME: "docker.io/library/mine:1", REF_NAME: "1"}), ("docker.io/library/mine:1",)),
        (layout({REF_NAME: "a.b/c:2"}, None), ("a.b/c:2",)),
        # Docker's later versions write both; containerd reads the layout.
        ({"manifest": [{"RepoTags": ["mine:1"]}], **layout({NAME: "a.b/c:2"})}, ("a.b/c:2",)),
        ({"other": 1}, None),
        ({"manifest": "no list of objects"}, None),
        ({"manifest": None}, None),
    ],
)
def test_the_names_of_an_archive(
    tmp_path: Path, files: dict[str, object], names: tuple[str, ...] | None
) -> None:
    assert names_in(tar_of(tmp_path / "mine.tar", **files)) == names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("me/mine:1", "docker.io/me/mine:1"),
        ("docker.io/mine", "docker.io/library/mine:latest"),
        ("localhost/mine:1", "localhost/mine:1"),
        ("localhost:5000/mine", "localhost:5000/mine:latest"),
        ("example.org/a/b/c:2", "example.org/a/b/c:2"),
        ("example.org/a@sha256:00", "example.org/a@sha256:00"),
        ("example.org/a:1@sha256:00", "example.org/a@sha256:00"),
    ],
)
def test_a_full_name(name: str, expected: str) -> None:
    assert full(name) == expected
    assert full(expected) == expected
