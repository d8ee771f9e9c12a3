"""The figures of the interceptor's benchmark, from readings that are made up."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from pytest_k3s_sandbox.bench.interceptor import bench, tracers, turned
from pytest_k3s_sandbox.bench.interceptor_figures import (
    CASES,
    NATIVE,
    OTHERS,
    OURS,
    Reading,
    ratios,
    records,
    summary,
    table,
    targets,
)
from pytest_k3s_sandbox.bench.interceptor_node import cpu_seconds
from pytest_k3s_sandbox.errors import MissingCapability
from pytest_k3s_sandbox.layers.interceptor.loading import parse_rules
from pytest_k3s_sandbox.layers.interceptor.rules import trapped_calls
from pytest_k3s_sandbox.report.records import Measurement, Verdict

NODE: dict[str, Any] = {
    "seconds": 60.0,
    "idle": {"kubelet": 0.3, "containerd": 0.3},
    "percent_of_a_core": 1.0,
    "pods": 50,
    "at_once": 5,
    "busy": {"kubelet": 10.0, "containerd": 20.0},
    "busy_seconds": 200.0,
    "seconds_a_pod": 0.6,
    "failed": 0,
}


def reading(tracer: str, number: int, factor: float, rss: int = 20480, place: str = "host") -> Reading:
    return Reading(place, tracer, number, dict.fromkeys(CASES, factor * (number + 1) * 1e-06), rss)


def readings() -> list[Reading]:
    return [
        reading(name, number, factor)
        for number in range(3)
        for name, factor in ((NATIVE, 1.0), (OURS, 1.04), ("strace --seccomp-bpf", 2.0), ("proot", 1.02))
    ]


def test_ratios_are_taken_within_a_repetition() -> None:
    # The machine became slower from one repetition to the next; the ratio did not.
    assert ratios(readings(), "host", "statfs", "strace --seccomp-bpf") == pytest.approx([2.0] * 3)
    alone = [*readings(), reading("strace", 7, 9.0)]
    assert ratios(alone, "host", "statfs", "strace") == []
    assert ratios(readings(), "gvisor", "statfs", OURS) == []


def test_targets_say_what_held() -> None:
    found = {target.text: target for target in targets(readings(), NODE)}
    assert found["untrapped call natively, to native"].held
    assert found["statfs natively, to strace --seccomp-bpf"].measured == pytest.approx(0.52)
    assert found["statfs natively, to strace --seccomp-bpf"].held
    assert not found["statfs natively, to proot"].held
    assert found["the tracer's memory natively"].measured == 20.0
    assert found["the tracers' CPU for a Ready node with 1 pod"].held
    assert not found["the tracers' CPU for each pod"].held
    assert found["failed of 50 pod starts"].held


def test_a_program_that_no_rule_is_for_has_a_target_of_its_own() -> None:
    given = [*readings(), *(reading(OTHERS, number, 1.06) for number in range(3))]
    found = {target.text: target for target in targets(given, NODE)}
    theirs = found["untrapped call of a program that no rule is for, natively, to native"]
    assert theirs.measured == pytest.approx(1.06)
    assert (theirs.limit, theirs.held) == (1.05, False)
    assert found["untrapped call natively, to native"].measured == pytest.approx(1.04)


def test_the_rules_for_others_are_the_same_rules() -> None:
    _, files = tracers(0x01021997)
    own, others = (parse_rules(text, name) for name, text in files.items())
    assert trapped_calls(own) == trapped_calls(others) != frozenset()
    assert [rule.programs for rule in others.statfs] == [("another",)]
    assert [rule.programs for rule in others.redirects] == [("another",)]


def test_what_was_not_measured_is_not_held() -> None:
    broken = [Reading("gvisor", OURS, 0, failure="it hung"), reading(NATIVE, 0, 1.0, place="gvisor")]
    found = list(targets(broken, None))
    assert found
    assert not any(target.held for target in found)
    assert {target.measured for target in found} == {None}


def test_summary_and_table() -> None:
    given = [*readings(), Reading("host", "python-ptrace", 0, failure="x" * 500 + " ran longer\nthan 120 s")]
    result = summary(given, NODE)
    assert json.loads(json.dumps(result)) == result
    assert result["places"]["host"]["cases"]["open"][OURS]["ratio"]["n"] == 3
    text = table(result)
    assert "| 1.04 (1.04 to 1.04, 3) |" in text
    assert "- python-ptrace failed: " in text
    assert "than 120 s" in text
    assert "| statfs natively, to proot | 1.02 | 1  | not held |" in text
    rows = [line for line in text.splitlines() if line.startswith("| go build of")]
    assert len(rows) == 1
    assert rows[0].count("|") == 6


def test_records_are_the_ratios_and_the_targets() -> None:
    found = records(readings(), NODE)
    ratios_of_ours = [one for one in found if isinstance(one, Measurement) and one.variant == OURS]
    assert [one.case for one in ratios_of_ours] == list(CASES)
    assert {one.baseline for one in ratios_of_ours} == {NATIVE}
    assert ratios_of_ours[0].limit == 1.05
    held = {one.text: one.held for one in found if isinstance(one, Verdict)}
    assert held["the tracers' CPU for each pod: at most 0.5 s"] is False
    assert len(held) == len(list(targets(readings(), NODE)))


def test_every_tracer_comes_first_once() -> None:
    compared, _ = tracers(0x01021997)
    firsts = [turned(compared, number)[0].name for number in range(len(compared))]
    assert sorted(firsts) == sorted(tracer.name for tracer in compared)
    assert all(len(turned(compared, number)) == len(compared) for number in range(9))


def test_cpu_seconds_of_a_process_with_a_strange_name() -> None:
    stat = "12 (a) b (c) S 1 12 12 0 -1 0 0 0 0 0 250 50 7 7 20 0 1 0 99 0 0\n"
    assert cpu_seconds(stat) == pytest.approx(3.0)


def test_a_package_that_is_missing_is_named_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ptrace", None)
    with pytest.raises(MissingCapability, match="python-ptrace is not installed") as caught:
        bench(1, pytest.fail)
    assert caught.value.remedy == "pip install 'pytest-k3s-sandbox[bench]'"
