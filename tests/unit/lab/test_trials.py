"""States of a sandbox compared, and what a sweep takes for a node's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.errors import ConfigError
from pytest_k3s_sandbox.lab import reset
from pytest_k3s_sandbox.lab.trials import Trials, differences

STATES = st.dictionaries(st.sampled_from(["mounts", "/dev"]), st.lists(st.sampled_from("abc"), max_size=5))


@given(STATES, STATES)
def test_states_differ_where_their_lines_do(
    before: dict[str, list[str]], after: dict[str, list[str]]
) -> None:
    found = differences(before, after)
    places = {*before, *after}
    assert set(found) == {
        each for each in places if Counter(before.get(each, ())) != Counter(after.get(each, ()))
    }
    swapped = {
        place: sorted(line.translate({43: "-", 45: "+"}) for line in lines) for place, lines in found.items()
    }
    assert swapped == {place: sorted(lines) for place, lines in differences(after, before).items()}


def test_a_sweep_spares_what_is_kept_with_its_descendants(monkeypatch: pytest.MonkeyPatch) -> None:
    own, shell = 105, 104
    monkeypatch.setattr(os, "getpid", lambda: own)
    monkeypatch.setattr(os, "getppid", lambda: shell)
    parents = {1: 0, 5: 1, 6: 5, 7: 6, 8: 1, 9: 8, own: shell, shell: 1, 10: own}
    monkeypatch.setattr(reset, "processes", lambda: list(parents))
    monkeypatch.setattr(reset, "parent_of", parents.__getitem__)
    assert reset.others({5}) == [8, 9]
    assert reset.others(set()) == [5, 6, 7, 8, 9]


def test_a_sweep_that_changes_nothing_tells_the_state() -> None:
    request = {"keep": [], "mounts": None, "remove": ["/nothing"]}
    program = [sys.executable, "-I", "-S", reset.__file__, json.dumps(request)]
    answers = [
        json.loads(subprocess.run(program, check=True, capture_output=True, text=True).stdout)
        for _ in range(2)
    ]
    assert answers[0]["mounts"] == answers[1]["mounts"] != []
    assert any(line.endswith(" null") for line in answers[0]["/dev"])
    assert "/proc/sys/kernel/ostype Linux" in answers[0]["tunables"]


def test_emptying_removes_folders_and_files(tmp_path: Path) -> None:
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "file").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("folder", "file", "missing"):
        reset.empty(str(tmp_path / name))
    assert list(tmp_path.iterdir()) == []


def test_trials_need_a_node_apart_from_its_control_plane(tmp_path: Path) -> None:
    cluster: Any = SimpleNamespace(distribution=SimpleNamespace(name="k3s"), sandbox=None)
    with pytest.raises(ConfigError, match="--k3s-distribution=embedded"):
        Trials(cluster, tmp_path)
