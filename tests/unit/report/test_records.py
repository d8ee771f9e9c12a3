"""Records survive the disk, a kill and several threads; what cannot be read is refused clearly."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pytest_k3s_sandbox.errors import ConfigError, SandboxError
from pytest_k3s_sandbox.report.records import (
    RECORD,
    SCHEMA_VERSION,
    Cost,
    End,
    Environment,
    ErrorLine,
    Event,
    Header,
    Measurement,
    Phase,
    PodState,
    Record,
    RunWriter,
    Sample,
    Verdict,
    read_run,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
TIMES = st.floats(-1e6, 1e6)
COUNTS = st.integers(0, 2**53)
SAMPLES = st.builds(
    Sample,
    t=TIMES,
    node_ready=st.none() | st.booleans(),
    reason=st.none() | WORDS,
    conditions=st.dictionaries(WORDS, WORDS, max_size=3),
    pods=st.dictionaries(WORDS, st.builds(PodState, phase=WORDS, ready=st.booleans()), max_size=3),
    api_reachable=st.booleans(),
    errors=st.dictionaries(WORDS, COUNTS, max_size=3),
    cost=st.dictionaries(WORDS, st.builds(Cost, cpu_seconds=TIMES, rss_bytes=COUNTS), max_size=2),
)
RECORDS = st.one_of(
    SAMPLES,
    st.builds(Event, t=TIMES, kind=WORDS, what=WORDS),
    st.builds(ErrorLine, t=TIMES, component=WORDS, kind=WORDS, text=WORDS, errno=st.none() | WORDS),
    st.builds(Phase, name=WORDS, start=TIMES, end=st.none() | TIMES),
    st.builds(
        Verdict,
        name=WORDS,
        held=st.booleans(),
        measured=st.none() | TIMES | WORDS,
        limit=st.none() | TIMES | WORDS,
        unit=WORDS,
        text=WORDS,
    ),
)


@given(RECORDS)
def test_a_record_survives_json(record: Record) -> None:
    line = record.model_dump_json()
    assert "\n" not in line
    assert RECORD.validate_json(line) == record


@settings(deadline=None, max_examples=50)  # it writes to a disk, whose speed is not its subject
@given(st.lists(RECORDS, max_size=6), st.floats(0, 1))
def test_a_file_cut_anywhere_gives_the_records_before_the_cut(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record], share: float
) -> None:
    folder = tmp_path_factory.mktemp("run")
    with RunWriter(folder) as writer:
        for record in records:
            writer.append(record)
    whole = writer.path.read_bytes()
    head = whole.index(b"\n") + 1
    cut = head + round(share * (len(whole) - head))
    writer.path.write_bytes(whole[:cut])
    run = read_run(folder)
    kept = whole[:cut].count(b"\n")
    assert run.truncated == (not whole[:cut].endswith(b"\n"))
    assert list(run.records) == [run.header, *records, *run.records[len(records) + 1 :]][:kept]
    assert run.complete == (cut == len(whole))


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValidationError):
        RECORD.validate_python({"type": "event", "t": 0, "kind": "a", "what": "b", "more": 1})


def test_a_number_that_json_cannot_hold_is_refused() -> None:
    with pytest.raises(ValidationError):
        Event(t=float("nan"), kind="a", what="b")


def test_a_run_that_was_not_closed_is_incomplete(write_run: Callable[..., Path]) -> None:
    run = read_run(write_run([Event(t=1, kind="a", what="b")], close=False))
    assert not run.complete
    assert not run.truncated
    assert run.end is None


def test_an_exception_in_the_block_is_kept_as_the_reason(tmp_path: Path) -> None:
    message = "no space"
    with pytest.raises(OSError, match=message), RunWriter(tmp_path):
        raise OSError(message)
    run = read_run(tmp_path)
    assert run.end == End(t=run.end.t if run.end else 0, outcome="interrupted", reason="OSError: no space")
    assert not run.complete


def test_a_killed_writer_leaves_every_record_that_it_appended(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, pathlib\n"
        "from pytest_k3s_sandbox.report.records import Event, RunWriter\n"
        "writer = RunWriter(pathlib.Path(sys.argv[1]), sync_every=1e9)\n"
        "for i in range(100): writer.append(Event(t=i, kind='tick', what=''))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    run = read_run(tmp_path)
    assert len(run.events) == 100
    assert not run.complete


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    with RunWriter(tmp_path) as writer:

        def work(number: int) -> None:
            for i in range(100):
                writer.append(Event(t=i, kind=str(number), what="x" * 500))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    run = read_run(tmp_path)
    assert run.complete
    assert sorted(event.kind for event in run.events) == sorted("0123" * 100)


def test_a_full_disk_is_said_and_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RunWriter(tmp_path)
    real = os.write

    def half(fd: int, data: bytes) -> int:
        real(fd, data[:5])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        with pytest.raises(SandboxError, match="No space left on device"):
            writer.append(Event(t=1, kind="lost", what=""))
    writer.append(Event(t=2, kind="kept", what=""))
    writer.close()
    assert [event.kind for event in read_run(tmp_path).events] == ["kept"]


def test_a_closed_writer_refuses_more_and_closes_twice(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    writer.close()
    writer.close()
    with pytest.raises(SandboxError, match="closed"):
        writer.append(Event(t=1, kind="a", what="b"))


def test_a_folder_with_a_run_is_not_written_again(write_run: Callable[..., Path]) -> None:
    folder = write_run([])
    before = (folder / "records.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="already"):
        RunWriter(folder)
    assert (folder / "records.jsonl").read_bytes() == before


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="it is a file"):
        RunWriter(tmp_path / "file")


def test_a_phase_is_recorded_when_it_begins_and_when_it_has_ended(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path)
    with writer.phase("kubelet"):
        assert [phase.end for phase in read_run(tmp_path).phases] == [None]
    writer.close()
    (phase,) = read_run(tmp_path).phases
    assert phase.end is not None
    assert phase.end >= phase.start


def test_a_newer_schema_is_refused_with_both_versions(tmp_path: Path) -> None:
    newer = SCHEMA_VERSION + 1
    line = {"type": "header", "schema_version": newer, "project_version": "9.9", "unheard": 1}
    (tmp_path / "records.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(ConfigError, match=rf"version {newer}.*up to {SCHEMA_VERSION}") as caught:
        read_run(tmp_path)
    assert "9.9" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "ends before its first record"),
        ('{"type": "hea', "ends before its first record"),
        ('{"type":"event","t":1,"kind":"a","what":"b"}\n', "not the header"),
        ("[1, 2]\n", "not the header"),
        ("not json\n", "not the header"),
        ('{"type":"header","project_version":"1","schema_version":"x"}\n', "not the header"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "records.jsonl").write_text(content)
    with pytest.raises(ConfigError, match=words):
        read_run(tmp_path)


def test_a_damaged_line_in_the_middle_is_named_by_its_number(write_run: Callable[..., Path]) -> None:
    path = write_run([Event(t=1, kind="a", what="b"), Event(t=2, kind="c", what="d")]) / "records.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    lines[1] = lines[1][:9] + "\n"
    path.write_text("".join(lines))
    with pytest.raises(ConfigError, match="line 2"):
        read_run(path)


def test_a_missing_run_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"records\.jsonl: No such file"):
        read_run(tmp_path)


def test_the_header_says_the_version(tmp_path: Path) -> None:
    RunWriter(tmp_path).close()
    assert isinstance(read_run(tmp_path).records[0], Header)
    assert read_run(tmp_path).header.schema_version == SCHEMA_VERSION


def test_a_kind_under_its_former_word_is_read_as_today() -> None:
    ratio = Measurement(name="n", value=1.0, unit="s", variant="here", baseline="here")
    assert (ratio.variant, ratio.baseline) == ("host", "host")
    fields: dict[str, object] = {
        "python": "3",
        "project_version": "0",
        "started": "now",
        "argv": (),
        "root_magic": 1,
    }
    fields |= {"kernel": "4", "machine": {"cores": 1, "memory_bytes": 1}, "experiment": "e"}
    assert Environment.model_validate({**fields, "sandbox": "here"}).sandbox == "host"
