"""Files of a sandbox are opened beneath a folder, with and without openat2(2)."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytest_k3s_sandbox
from pytest_k3s_sandbox.sandbox import resolve, trees
from pytest_k3s_sandbox.sandbox.beneath import Beneath
from pytest_k3s_sandbox.sandbox.inside import InsidePath
from pytest_k3s_sandbox.sandbox.resolve import RefusedError, open_beneath
from pytest_k3s_sandbox.sandbox.trees import copy_tree_in, copy_tree_out, staged


@pytest.fixture(params=["openat2", "a walk"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the call of newer kernels, and as where it is missing."""
    if request.param == "a walk":

        def missing(*_: object) -> int:
            raise OSError(errno.ENOSYS, "no such call")

        monkeypatch.setattr(resolve, "_openat2", missing)


@pytest.fixture
def files(tmp_path: Path) -> Beneath:
    (tmp_path / "root/var/folder").mkdir(parents=True)
    return Beneath(tmp_path / "root")


def test_what_is_written_is_read(files: Beneath) -> None:
    files.write("/var/folder/a", "text", 0o640)
    assert files.text("/var/folder/a") == "text"
    assert stat.S_IMODE((files.root / "var/folder/a").stat().st_mode) == 0o640
    files.write("/var/folder/a", b"\xff")
    assert files.text("/var/folder/a") == "\N{REPLACEMENT CHARACTER}"
    assert files.names("/var/folder") == ["a"]  # nothing half-written is left
    assert (files.size("/var/folder/a"), files.size("/var/folder/b")) == (1, 0)
    assert files.exists("/var/folder/a")
    assert not files.exists("/var/folder/b")
    files.remove("/var/folder")
    files.remove("/var/folder")
    assert files.names("/var") == []


@pytest.mark.parametrize("path", ["/etc/passwd", "/var/../etc", "var/x", "/variable", ""])
def test_a_path_elsewhere_is_refused(files: Beneath, path: str) -> None:
    with pytest.raises(ValueError, match="is not below /var"):
        files.read(path)


@given(parts=st.lists(st.sampled_from(["..", "a", ".", "link", "absolute"]), min_size=1, max_size=6))
def test_no_path_leads_out_of_a_folder(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    base = tmp_path_factory.mktemp("walk")
    (base / "root/a/a/a").mkdir(parents=True)
    for folder in (base / "root", base / "root/a"):
        (folder / "link").symlink_to("../..")
        (folder / "absolute").symlink_to("/")
    root = os.open(base / "root", os.O_RDONLY)
    try:
        found = open_beneath(root, "/".join(parts), os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        # A way that stays inside and is there is not refused.
        assert set(parts) & {"..", "link", "absolute"} or parts.count("a") > 3
        return
    finally:
        os.close(root)
    reached = Path(f"/proc/self/fd/{found}").readlink()
    os.close(found)
    assert reached.is_relative_to(base / "root")
    assert not set(parts) & {"..", "link", "absolute"}


def test_a_write_that_fails_leaves_nothing(files: Beneath, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write("/var/folder/a", "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fchmod", full)
    with pytest.raises(OSError, match="full"):
        files.write("/var/folder/a", "new")
    assert files.names("/var/folder") == ["a"]
    assert files.text("/var/folder/a") == "old"


def test_folders_are_made_with_their_mode_and_only_once(files: Beneath) -> None:
    umask = os.umask(0o077)
    try:
        files.mkdir("/var/x/y", 0o711)
    finally:
        os.umask(umask)
    modes = [stat.S_IMODE((files.root / path).stat().st_mode) for path in ("var/x", "var/x/y")]
    assert modes == [0o755, 0o711]
    files.mkdir("/var/x/y")
    with pytest.raises(FileExistsError):
        files.mkdir("/var/x/y", exist_ok=False)


def test_a_file_is_renamed_and_copied(files: Beneath, tmp_path: Path) -> None:
    files.write("/var/folder/a", "text")
    files.rename("/var/folder/a", "b")
    files.symlink("b", "/var/folder/c")
    assert files.names("/var/folder") == ["b", "c"]
    assert not files.exists("/var/folder/c")
    with pytest.raises(RefusedError):
        files.read("/var/folder/c")
    files.copy_out("/var/folder/b", tmp_path / "copy")
    assert stat.S_IMODE((tmp_path / "copy").stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        files.copy_out("/var/folder/b", tmp_path / "copy")
    with pytest.raises(RefusedError, match="larger than 3 bytes"):
        files.copy_out("/var/folder/b", tmp_path / "other", limit=3)
    with pytest.raises(RefusedError, match="larger than 3 bytes"):
        files.read("/var/folder/b", limit=3)
    files.copy_in(tmp_path / "copy", "/var/folder/d", 0o600)
    assert files.text("/var/folder/d") == "text"


def test_a_file_is_moved_in_and_through_no_link(files: Beneath, tmp_path: Path) -> None:
    for name in ("key", "other"):
        (tmp_path / name).write_text("secret")
    files.move_in(tmp_path / "key", "/var/key", 0o600)
    assert files.text("/var/key") == "secret"
    assert stat.S_IMODE((files.root / "var/key").stat().st_mode) == 0o600
    assert not (tmp_path / "key").exists()
    (tmp_path / "away").mkdir()
    files.symlink(str(tmp_path / "away"), "/var/link")
    with pytest.raises(OSError, match=r"."):
        files.move_in(tmp_path / "other", "/var/link/other")
    assert list((tmp_path / "away").iterdir()) == []
    assert (tmp_path / "other").exists()


def test_trees_are_copied_and_merged(files: Beneath, tmp_path: Path) -> None:
    with staged(files, "/var/tree") as folder:
        (folder / "sub").mkdir()
        (folder / "sub/file").write_text("one")
        (folder / "sub/run").write_text("#!")
        (folder / "sub/run").chmod(0o4755)
        (folder / "link").symlink_to("/etc/shadow")
    assert stat.S_IMODE((files.root / "var/tree/sub/run").stat().st_mode) == 0o755  # no set-id bit
    with staged(files, "/var/tree") as folder:
        (folder / "link").write_text("two")
    assert files.text("/var/tree/link") == "two"
    assert files.names("/var/tree/sub") == ["file", "run"]
    os.mkfifo(files.root / "var/tree/fifo")
    copy_tree_out(files, "/var/tree", tmp_path / "out", 100)
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["file", "link", "run", "sub"]
    with pytest.raises(RefusedError):
        copy_tree_out(files, "/var/tree", tmp_path / "small", 3)
    copy_tree_in(tmp_path / "out", files, "/var/again")
    assert files.text("/var/again/sub/file") == "one"


def test_a_tree_that_comes_out_has_limits(
    files: Beneath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (files.root / "var/tree/a/b").mkdir(parents=True)
    monkeypatch.setattr(trees, "MOST_DEPTH", 2)
    with pytest.raises(RefusedError, match="more than 2 levels"):
        copy_tree_out(files, "/var/tree", tmp_path / "deep", 100)
    monkeypatch.setattr(trees, "MOST_DEPTH", 3)
    copy_tree_out(files, "/var/tree", tmp_path / "fits", 100)
    monkeypatch.setattr(trees, "MOST_ENTRIES", 1)
    with pytest.raises(RefusedError, match="more than 1 entries"):
        copy_tree_out(files, "/var/tree", tmp_path / "many", 100)


def test_a_tree_is_not_copied_through_a_link(files: Beneath, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (files.root / "var/tree").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"link|directory|exists"), staged(files, "/var/tree") as folder:
        (folder / "file").write_text("x")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_log_reads_like_a_path_but_for_writing(tmp_path: Path) -> None:
    log = InsidePath(tmp_path / "a.log")
    assert (log.size(), log.exists()) == (0, False)
    Path(log).write_bytes(b"one\ntwo\xff\n")
    assert log.read_text() == "one\ntwo\N{REPLACEMENT CHARACTER}\n"
    assert log.read_bytes() == b"one\ntwo\xff\n"
    assert (log.tail(3), log.size()) == (b"o\xff\n", 9)
    with log.open(errors="replace") as file:
        assert file.readline() == "one\n"
    for name in ("parent", "absolute"):
        got = getattr(log, name)
        assert isinstance(got() if callable(got) else got, InsidePath)
    assert isinstance(log.parent / "b.log", InsidePath)
    for mode in ("w", "a", "r+", "xb"):
        with pytest.raises(ValueError, match="for reading only"):
            log.open(mode)


def test_nothing_else_writes_below_var() -> None:
    """The door stays the only one: what knows the path on the machine is here, in one list."""
    package = Path(pytest_k3s_sandbox.__file__).parent
    knows = re.compile(r'below_var\(|/ "var"|workdir / "rootfs"')
    found = {
        str(path.relative_to(package)) for path in package.rglob("*.py") if knows.search(path.read_text())
    }
    assert found == {
        "daemon/attached.py",  # where its logs are, to read them
        "sandbox/enter.py",  # inside the new root, before anything runs there
        "sandbox/layout.py",  # before the sandbox starts
        "sandbox/ownrun.py",  # what a program has written, to read it
        "sandbox/started.py",  # as attached.py
        "sandbox/watch.py",  # to have du(1) measure it
    }
