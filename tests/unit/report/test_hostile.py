"""Hostile records give a message or a page, never a traceback."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pytest_k3s_sandbox.errors import ConfigError
from pytest_k3s_sandbox.report.export import export
from pytest_k3s_sandbox.report.headline import headline, headline_lines, summarize
from pytest_k3s_sandbox.report.page import render
from pytest_k3s_sandbox.report.records import RECORD, read_run

if TYPE_CHECKING:
    from pathlib import Path

HEAD = b'{"type":"header","schema_version":3,"project_version":"1"}\n'
DEEP = b"[" * 10_000 + b"]" * 10_000
SAMPLE = b'{"type":"sample","t":%s,"node_ready":true,"api_reachable":true}\n'
REFUSED = {
    "a first line that is nested": DEEP + b"\n",
    "a header with something nested": HEAD.replace(b'"1"', DEEP),
    "a line with something nested": HEAD + b'{"type":"event","t":1,"kind":"a","what":%s}\n' % DEEP + HEAD,
    "times of 1e308": HEAD + SAMPLE % b"1e308" + SAMPLE % b"-1e308",
    "a time of infinity": HEAD + SAMPLE % b"1e999",
    "a time that is NaN": HEAD + SAMPLE % b"NaN",
    "a version of 5,000 digits": HEAD.replace(b"3", b"9" * 5000),
    "a number of 1e308": HEAD + b'{"type":"measurement","name":"a","unit":"s","value":1e308}\n',
    "a spread that is none": HEAD
    + b'{"type":"measurement","name":"a","unit":"s","value":1,'
    + b'"spread":{"min":1,"p25":3,"median":2,"p75":4,"max":5}}\n',
    "a count of 400 digits": HEAD
    + b'{"type":"sample","t":1,"node_ready":true,"api_reachable":true,"errors":{"a":%s}}\n' % (b"9" * 400),
    "bytes that are not UTF-8": HEAD + b"\xff\xfe\n" + HEAD,
    "UTF-16": HEAD.decode().encode("utf-16"),
    "half a character as an escape": HEAD + b'{"type":"event","t":1,"kind":"\\ud800","what":"b"}\n' + HEAD,
}
SHOWN = {
    "half a line": HEAD + SAMPLE[:20],
    "half a line that is nested": HEAD + b'{"type":"event","t":1,"kind":"a","what":' + b"[" * 10_000,
    "half a character": HEAD + b'{"type":"event","t":1,"kind":"\xc3',
    "zeros at the end": HEAD + b"\0" * 100 + b"\n",
    "a date that there is not in UTC": HEAD
    + json.dumps(
        {
            "type": "environment",
            "experiment": "e",
            "sandbox": "s",
            "root_magic": -1,
            "kernel": None,
            "python": "",
            "project_version": "",
            "started": "0001-01-01T00:00:00+23:59",
            "argv": [],
            "machine": {"cores": -1, "memory_bytes": -1},
        }
    ).encode()
    + b"\n",
}


def show(folder: Path) -> None:
    """Make everything of a run that can be made of it."""
    run = read_run(folder)
    json.dumps(summarize(run), allow_nan=False)
    headline_lines([headline(run)])
    render([folder], folder, export([folder], folder, [84]))
    render([folder, folder], folder / "both")


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_records_is_refused_with_a_message(tmp_path: Path, what: str) -> None:
    (tmp_path / "records.jsonl").write_bytes(REFUSED[what])
    with pytest.raises(ConfigError) as refused:
        show(tmp_path)
    assert refused.value.remedy
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("what", SHOWN)
def test_what_can_be_read_is_shown(tmp_path: Path, what: str) -> None:
    (tmp_path / "records.jsonl").write_bytes(SHOWN[what])
    show(tmp_path)
    assert (tmp_path / "index.html").exists()


SECONDS = st.sampled_from([0.0, 1.0, 5e-324, 1e10, -1e10]) | st.floats(-1e10, 1e10)
NUMBERS = st.sampled_from([0.0, 1e18, -1e18, 1e-300]) | st.floats(-1e18, 1e18)
COUNTS = st.sampled_from([0, 1, 2**63, -(2**63)]) | st.integers(-(2**63), 2**63)
WORDS = st.sampled_from(["", "Ready", "None", "a/b"]) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=8
)
FLAGS = st.booleans()


def maybe(strategy: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.none() | strategy


def several(strategy: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.dictionaries(WORDS, strategy, max_size=2)


ERROR = st.fixed_dictionaries({"component": WORDS, "kind": WORDS, "text": WORDS, "t": maybe(SECONDS)})
SPREADS = st.lists(NUMBERS, min_size=5, max_size=5).map(
    lambda values: dict(zip(("min", "p25", "median", "p75", "max"), sorted(values), strict=True))
)
STAGES = st.sampled_from(["nothing", "started", "registered", "ready", "pod"])
KINDS: dict[str, dict[str, st.SearchStrategy[object]]] = {
    "phase": {"name": WORDS, "start": SECONDS, "end": maybe(SECONDS)},
    "layer": {"t": SECONDS, "name": WORDS, "ok": FLAGS, "details": several(WORDS)},
    "sample": {
        "t": SECONDS,
        "node_ready": maybe(FLAGS),
        "reason": maybe(WORDS),
        "api_reachable": FLAGS,
        "errors": several(COUNTS),
        "pods": several(st.fixed_dictionaries({"phase": WORDS, "ready": FLAGS, "restarts": maybe(COUNTS)})),
        "cost": several(st.fixed_dictionaries({"cpu_seconds": NUMBERS, "rss_bytes": COUNTS})),
        "heartbeat_age": maybe(SECONDS),
    },
    "event": {
        "t": SECONDS,
        "kind": st.sampled_from(["pod-created", "pod-deleted", "fault", "restart", "recovery"]) | WORDS,
        "what": WORDS,
        "component": maybe(WORDS),
        "seconds": maybe(SECONDS),
    },
    "error": {"t": SECONDS, "component": WORDS, "kind": WORDS, "text": WORDS, "errno": maybe(WORDS)},
    "measurement": {
        "name": WORDS,
        "value": NUMBERS,
        "unit": WORDS,
        "n": maybe(COUNTS),
        "values": st.lists(NUMBERS, max_size=4),
        "spread": maybe(SPREADS),
        "benchmark": maybe(WORDS),
        "case": maybe(WORDS),
        "variant": maybe(WORDS),
        "baseline": maybe(WORDS),
        "limit": maybe(NUMBERS),
    },
    "wall": {
        "error": ERROR,
        "layers": st.lists(WORDS, max_size=2),
        "version": WORDS,
        "settings": several(WORDS),
        "removed_by": maybe(WORDS),
    },
    "ablation": {
        "layers": st.lists(WORDS, max_size=2),
        "version": WORDS,
        "settings": several(WORDS),
        "reached": STAGES,
        "seconds_to_ready": maybe(SECONDS),
        "error": maybe(ERROR),
        "exit_code": maybe(COUNTS),
        "stats_summary": maybe(FLAGS),
    },
    "announced": {"name": WORDS, "text": WORDS, "limit": maybe(NUMBERS | WORDS), "unit": WORDS},
    "verdict": {
        "name": WORDS,
        "held": FLAGS,
        "measured": maybe(NUMBERS | WORDS),
        "limit": maybe(NUMBERS | WORDS),
        "unit": WORDS,
        "text": WORDS,
        "judged": FLAGS,
        "ended": maybe(WORDS),
    },
    "test": {
        "t": SECONDS,
        "nodeid": WORDS,
        "text": WORDS,
        "outcome": st.sampled_from(["announced", "elsewhere", "passed", "skipped", "broken", "failed"]),
        "message": maybe(WORDS),
    },
    "end": {"t": SECONDS, "outcome": st.sampled_from(["finished", "interrupted"]), "reason": maybe(WORDS)},
}
LINES = st.one_of(
    [st.fixed_dictionaries({"type": st.just(name), **fields}) for name, fields in KINDS.items()]
)


@pytest.mark.filterwarnings("ignore:Glyph")  # there are letters that no font has
@settings(
    deadline=None,
    max_examples=6,
    derandomize=True,  # each makes two pages and all figures
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(LINES, max_size=12))
def test_whatever_the_records_allow_is_shown(tmp_path: Path, records: list[dict[str, object]]) -> None:
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "records.jsonl").write_bytes(HEAD + text.encode())
    show(folder)


def test_the_records_made_here_are_of_all_kinds() -> None:
    for name in ("header", "environment", *KINDS):
        with pytest.raises(ValidationError) as refused:
            RECORD.validate_python({"type": name, "unheard of": 1})
        assert any(error["type"] == "extra_forbidden" for error in refused.value.errors())
