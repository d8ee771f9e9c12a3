"""A folder is trusted only if the way to it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_k3s_sandbox.errors import ProvisionError
from pytest_k3s_sandbox.toolchain import trust
from pytest_k3s_sandbox.toolchain.cache import Cache

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a link to another user")
OTHER = 12345


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Give a folder that only this user can change, which a link in another folder leads to."""
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o755)
    (tmp_path / "way").mkdir(mode=0o755)
    (tmp_path / "way" / "link").symlink_to("../cache")
    return folder


def problem(path: Path) -> tuple[Path, str] | None:
    return trust.folder_problem(path, trust.owners({}))


def test_a_link_of_our_own_is_fine(tmp_path: Path, cache: Path) -> None:
    assert problem(cache) is None
    assert problem(tmp_path / "way" / "link") is None
    assert problem(tmp_path / "way" / "link" / "not" / "there") is None


@root_only
def test_a_link_of_another_user_is_refused_with_a_remedy(tmp_path: Path, cache: Path) -> None:
    link = tmp_path / "way" / "link"
    os.chown(link, OTHER, OTHER, follow_symlinks=False)
    assert problem(cache) is None
    assert problem(link / "below") == (link, f"it is a symbolic link, and it belongs to the user {OTHER}")
    (tmp_path / "outer").symlink_to(link)
    assert problem(tmp_path / "outer" / ".." / "cache") == problem(link)
    with pytest.raises(ProvisionError, match=rf"{link}: it is a symbolic link(.|\n)*Remedy: remove the link"):
        Cache(link).trusted()


def test_a_link_in_a_folder_that_others_can_write_is_refused(tmp_path: Path, cache: Path) -> None:
    way = tmp_path / "way"
    way.chmod(0o777)
    assert problem(cache) is None
    found = problem(way / "link")
    assert found is not None
    assert found[0] == way
    assert found[1].endswith("lies in it, and other users can write it (mode 0777)")
    assert "chmod go-w" in trust.remedy(way, way / "link")
    way.chmod(0o1777)
    assert problem(way / "link") is None


def test_a_link_below_a_folder_that_others_can_write_is_refused(tmp_path: Path, cache: Path) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    (outer / "inner").mkdir()
    (outer / "inner" / "link").symlink_to(cache)
    outer.chmod(0o777)
    found = problem(outer / "inner" / "link")
    assert found is not None
    assert found[0] == outer


def test_links_that_lead_nowhere_are_a_problem(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    found = problem(tmp_path / "a")
    assert found is not None
    assert found[1] == "too many symbolic links lead there"
