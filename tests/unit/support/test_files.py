"""Files are replaced as a whole, or stay as they were."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pytest_k3s_sandbox.support import files, mountinfo


def test_a_file_is_replaced_by_a_new_one(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    file.write_text("old")
    with file.open() as opened:
        files.write_text(file, "neu: \N{LATIN SMALL LETTER U WITH DIAERESIS}")
        assert opened.read() == "old"
    assert file.read_bytes() == b"neu: \xc3\xbc"
    assert list(tmp_path.iterdir()) == [file]


def test_a_block_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    file.write_text("old")

    def write() -> None:
        with files.replacing(file) as new:
            new.write(b"half of it")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_the_mode_is_subject_to_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write_text(tmp_path / "shown", "")
        with files.replacing(tmp_path / "private", mode=0o600):
            pass
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"shown": 0o640, "private": 0o600}


def test_a_link_under_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (tmp_path / "state.new").symlink_to(victim)
    with pytest.raises(FileExistsError):
        files.write_text(tmp_path / "state", "text", temporary="state.new")
    assert not victim.exists()


def test_a_long_name_has_room_for_the_temporary_one(tmp_path: Path) -> None:
    file = tmp_path / ("\N{SNOWMAN}" * 80 + ".json")
    files.write_text(file, "text")
    assert file.read_text() == "text"


@pytest.mark.parametrize(
    ("field", "path"), [("/a\\040b", b"/a b"), ("/a\\134040", b"/a\\040"), ("/\\303\\274", b"/\xc3\xbc")]
)
def test_fields_of_mountinfo_are_unescaped(field: str, path: bytes) -> None:
    assert os.fsencode(mountinfo.unescape(field)) == path
