"""Logs that are too long are rotated, and nothing else is touched."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import pytest

from pytest_k3s_sandbox.cluster.embedded import CONTROL_PLANE
from pytest_k3s_sandbox.cluster.logs import copy_logs, written_since
from pytest_k3s_sandbox.sandbox import rotation
from pytest_k3s_sandbox.sandbox.base import Reachable
from pytest_k3s_sandbox.sandbox.beneath import Beneath
from pytest_k3s_sandbox.sandbox.inside import InsidePath
from pytest_k3s_sandbox.sandbox.rotation import FOLDER, cut, rotate


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """Give the folder of logs, as the machine sees it."""
    folder = tmp_path / FOLDER.lstrip("/")
    folder.mkdir(parents=True)
    return folder


def test_a_long_log_goes_on_at_its_beginning_and_its_end_is_kept(tmp_path: Path, logs: Path) -> None:
    with (logs / "kubelet.log").open("ab", buffering=0) as program, (logs / "short.log").open("wb") as other:
        other.write(b"short\n")
        for number in range(30):
            program.write(b"%06d\n" % number)
        assert rotate(Beneath(tmp_path), 70) == ["kubelet.log"]
        program.write(b"after\n")
        assert (logs / "kubelet.log").read_bytes() == b"after\n"
        assert (logs / "kubelet.log.1").read_bytes() == b"".join(
            b"%06d\n" % number for number in range(20, 30)
        )
        assert rotate(Beneath(tmp_path), 70) == []
        for number in range(30, 50):
            program.write(b"%06d\n" % number)
        assert rotate(Beneath(tmp_path), 70) == ["kubelet.log"]
        assert (logs / "kubelet.log.1").read_bytes().endswith(b"000049\n")  # one is kept
    assert sorted(path.name for path in logs.iterdir()) == ["kubelet.log", "kubelet.log.1", "short.log"]


def test_what_is_no_log_of_ours_is_not_truncated(tmp_path: Path, logs: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_bytes(b"x" * 100)
    (logs / "link.log").symlink_to(theirs)
    (logs / "hard.log").hardlink_to(theirs)
    os.mkfifo(logs / "fifo.log")
    (logs / "folder.log").mkdir()
    (logs / "notes.txt").write_bytes(b"x" * 100)
    assert rotate(Beneath(tmp_path), 10) == []
    assert theirs.read_bytes() == b"x" * 100
    assert (logs / "notes.txt").read_bytes() == b"x" * 100


def test_a_link_in_the_place_of_the_older_log_is_replaced(tmp_path: Path, logs: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_text("mine")
    (logs / "it.log").write_bytes(b"x" * 100)
    (logs / "it.log.1").symlink_to(theirs)
    assert rotate(Beneath(tmp_path), 10) == ["it.log"]
    assert theirs.read_text() == "mine"
    assert (logs / "it.log.1").read_bytes() == b"x" * 10


def test_a_folder_that_is_gone_or_leads_elsewhere_is_left_alone(tmp_path: Path, logs: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "it.log").write_bytes(b"x" * 100)
    logs.rmdir()
    assert rotate(Beneath(tmp_path), 10) == []
    logs.symlink_to(elsewhere)
    assert rotate(Beneath(tmp_path), 10) == []
    assert (elsewhere / "it.log").stat().st_size == 100


def test_not_more_logs_than_a_number_are_looked_at(
    tmp_path: Path, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "LOGS", 3)
    for number in range(9):
        (logs / f"{number}.log").write_bytes(b"x" * 100)
    notes: list[str] = []
    assert rotate(Beneath(tmp_path), 10, notes.append) == ["0.log", "1.log", "2.log"]
    assert notes == [f"{FOLDER} has more than 3 logs of over 10 bytes; so many are rotated at once"]


def test_names_that_come_before_hide_no_log(tmp_path: Path, logs: Path) -> None:
    for number in range(300):
        (logs / f"0{number}.log").touch()
    (logs / "kubelet.log").write_bytes(b"x" * 100)
    (logs / "mine.log").write_bytes(b"x" * 100)
    notes: list[str] = []
    assert rotate(Beneath(tmp_path), 10, notes.append) == ["kubelet.log", "mine.log"]
    assert notes == []


def test_no_number_of_names_hides_a_log_of_the_node(
    tmp_path: Path, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "NAMES", 3)
    for number in range(9):
        (logs / f"{number}.log").touch()
    known = (*CONTROL_PLANE, "containerd", "kubelet", "k3s")
    for name in known:
        (logs / f"{name}.log").write_bytes(b"x" * 100)
    notes: list[str] = []
    found = rotate(Beneath(tmp_path), 10, notes.append)
    assert {f"{name}.log" for name in known} <= set(found)
    assert [note for note in notes if "more than 3 names" in note] == notes != []


def test_a_note_goes_to_a_log_of_the_machine(tmp_path: Path) -> None:
    rotation.noted(tmp_path / "sandbox.log", "it is long")
    assert (tmp_path / "sandbox.log").read_text() == "k3s-sandbox: it is long\n"


def test_a_log_of_the_machine_keeps_its_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "sandbox.log"
    cut(log, 100)  # it does not exist
    with log.open("ab", buffering=0) as program:
        program.write(b"x" * 6400)
        cut(log, 6400)
        assert log.stat().st_size == 6400
        program.write(b"the end")
        cut(log, 6400)
        assert log.stat().st_size == 100
        assert log.read_bytes().endswith(b"xthe end")
        program.write(b", and more")
        assert log.read_bytes().endswith(b"the end, and more")


def test_what_a_log_got_is_read_from_its_beginning_when_it_was_rotated(tmp_path: Path) -> None:
    log = InsidePath(tmp_path / "it.log")
    Path(log).write_bytes(b"0123456789")
    assert written_since(log, 4) == b"456789"
    Path(log).write_bytes(b"new")
    assert written_since(log, 4) == b"new"


def test_the_copy_in_the_report_has_the_older_part_too(tmp_path: Path, logs: Path) -> None:
    class Sandbox:
        """Only where its logs are."""

        control = tmp_path
        files = Beneath(tmp_path)
        logs = InsidePath(tmp_path / FOLDER.lstrip("/"))

    (logs / "kubelet.log").write_bytes(b"new\n")
    (logs / "kubelet.log.1").write_bytes(b"old\n")
    (tmp_path / "sandbox.log").write_bytes(b"the machine's own\n")
    (logs / "sandbox.log").write_bytes(b"forged\n")
    report = tmp_path / "report"
    report.mkdir()
    copy_logs(cast("Reachable", Sandbox()), report)
    assert (report / "logs" / "kubelet.log").read_bytes() == b"old\nnew\n"
    assert (report / "logs" / "sandbox.log").read_bytes() == b"the machine's own\n"
