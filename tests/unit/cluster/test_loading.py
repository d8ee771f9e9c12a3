"""Loading a user's image: what is refused, and that nothing half-written stays."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pytest_k3s_sandbox.cluster.base import Distribution
from pytest_k3s_sandbox.cluster.images import Entry, Image, Program, write_images
from pytest_k3s_sandbox.cluster.loading import load_archive
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

    def load_image(self, _sandbox: object, tar: str, deadline: Deadline) -> None:
        """Read the archive where a process inside would."""
        assert deadline.remaining() > 0
        assert tar.startswith(f"{STATE_DIR}/")
        self.loaded.append((self.folder / tar.removeprefix("/")).read_bytes())
        if self.refusal:
            raise self.refusal

    def load(self, tar: Path) -> None:
        """Load an archive in the way that a cluster does."""
        sandbox = SimpleNamespace(files=Beneath(self.folder), logs=self.folder)
        load_archive(cast("Distribution", self), cast("Sandbox", sandbox), tar, deadline=Deadline.after(5))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_images(tmp_path / "image.tar", [Image("example.org/mine:1", [Entry("bin")], Program())])


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    (folder / STATE_DIR.removeprefix("/")).mkdir(parents=True)
    return folder


def test_the_archive_is_shown_inside_while_it_is_imported_and_gone_afterwards(
    archive: Path, inside: Path
) -> None:
    importer = Importer(inside)
    importer.load(archive)
    assert importer.loaded == [archive.read_bytes()]
    assert [path for path in inside.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(("content", "cause"), [(None, "no such file"), (b"no tar", "no tar archive")])
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
