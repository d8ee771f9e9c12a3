"""The JSON summary and the sentence."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from pytest_k3s_sandbox.report.headline import (
    Headline,
    decisive_verdict,
    headline,
    headline_lines,
    incomplete_reason,
    is_ok,
    outcome,
    restarts_text,
    sentence,
    summarize,
)
from pytest_k3s_sandbox.report.records import (
    Announced,
    End,
    ErrorLine,
    Event,
    Record,
    Run,
    Sample,
    Tested,
    Verdict,
)
from pytest_k3s_sandbox.report.wording import root_name, seconds_text

if TYPE_CHECKING:
    from collections.abc import Callable


END = End(t=11)
LOST = Verdict(
    name="gone", held=False, measured=52.25, limit=40, unit="s", text="The pod is gone within 40 s."
)


def test_the_summary_of_a_good_run(make_run: Callable[..., Run], good_records: tuple[Record, ...]) -> None:
    made = json.loads(json.dumps(summarize(make_run(*good_records, END)), allow_nan=False))
    assert made["ok"] is True
    assert made["outcome"] == "held"
    assert made["seconds_to_ready"] == 4
    assert made["seconds_to_pod_running"] == 2
    assert made["samples"] == 9
    assert made["errors"] == {}
    assert made["transitions"] == [{"t": 4, "ready": True, "reason": "KubeletReady"}]
    assert made["root"] == "9p (0x01021997)"
    assert made["environment"]["programs"]["kubelet"]["version"] == "v1.34.4"
    assert [verdict["held"] for verdict in made["verdicts"]] == [True]


def test_the_sentence_has_verdict_and_evidence(
    make_run: Callable[..., Run], good_records: tuple[Record, ...]
) -> None:
    said = sentence(make_run(*good_records, END))
    assert said == (
        "The only claim held: the node was Ready 4.0 s after the sandbox's start and stayed so "
        "at all 6 samples since (unbroken for 6.0 s); no error was logged."
    )


def test_a_claim_that_did_not_hold_is_said_first(
    make_run: Callable[..., Run], good_records: tuple[Record, ...]
) -> None:
    run = make_run(*good_records, LOST, END)
    assert not summarize(run)["ok"]
    assert sentence(run).startswith(
        "The pod is gone within 40 s: this did not hold (measured 52.25 s, limit 40 s); the node was Ready"
    )


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ((), "incomplete"),
        ((END,), "held"),
        ((LOST,), "not held"),
        ((LOST, END), "not held"),
        ((End(t=11, outcome="interrupted", reason="KeyboardInterrupt"),), "incomplete"),
    ],
)
def test_a_run_without_its_end_never_holds(
    make_run: Callable[..., Run],
    good_records: tuple[Record, ...],
    more: tuple[Record, ...],
    expected: str,
) -> None:
    assert outcome(make_run(*good_records, *more)) == expected


def test_a_run_without_verdicts_is_not_ok(
    make_run: Callable[..., Run], sample: Callable[..., Sample]
) -> None:
    made = summarize(make_run(sample(1), END))
    assert not made["ok"]
    assert "No claim was judged" in made["sentence"]


def test_why_a_run_is_incomplete_is_said(make_run: Callable[..., Run], sample: Callable[..., Sample]) -> None:
    interrupted = make_run(sample(1), End(t=3, outcome="interrupted", reason="KeyboardInterrupt"))
    assert summarize(interrupted)["incomplete_reason"] == (
        "This run was interrupted after 3.0 s: KeyboardInterrupt."
    )
    assert "cut off: its records stop at 1.0 s" in summarize(make_run(sample(1)))["incomplete_reason"]


def test_errors_and_a_node_that_never_was_ready_are_said(
    make_run: Callable[..., Run], sample: Callable[..., Sample]
) -> None:
    line = ErrorLine(t=1, component="kubelet", kind="kmsg", text="x")
    assert "Ready at none of 2 samples" in sentence(make_run(sample(1, False), sample(2, False), line))
    assert "1 error line logged" in sentence(make_run(sample(1), line))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (8.44, "8.4 s"),
        (59.94, "59.9 s"),
        (59.97, "1 min 00 s"),
        (123, "2 min 03 s"),
        (3725, "1 h 02 min"),
    ],
)
def test_durations_as_people_read_them(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("magic", "text"),
    [
        (0x01021997, "9p (0x01021997)"),
        (0xEF53, "ext (0x0000ef53)"),
        (5, "unknown (0x00000005)"),
        (None, "not read"),
    ],
)
def test_roots_have_names(magic: int | None, text: str) -> None:
    assert root_name(magic) == text


def test_an_experiment_in_one_line(
    make_run: Callable[..., Run], good_records: tuple[Record, ...], sample: Callable[..., Sample]
) -> None:
    good = headline(make_run(*good_records, END))
    times = "Ready after 4.0 s, pod Running after 2.0 s"
    assert headline_lines([good]) == [
        f"exp08: held; 1 of 1 claims, {times}, 6 of 6 samples Ready, lost 0 times, 0 error lines"
    ]
    cut = headline(make_run(*good_records[:7]))
    other = headline(make_run(sample(1), END))
    first, second = headline_lines([good, cut, other])
    assert first.startswith(f"exp08: 2 runs, 1 held, 1 incomplete; 1 of 1 claims, {times}, 7 of 7 samples")
    assert second == "test: finished; Ready after 1.0 s, 1 of 1 samples Ready, lost 0 times, 0 error lines"
    assert Headline(**json.loads(json.dumps(good.values()))) == good


def made_test(name: str, outcome: str, message: str | None = None) -> Tested:
    return Tested.model_validate(
        {
            "t": 1,
            "nodeid": f"a/test_b.py::{name}",
            "text": name.title(),
            "outcome": outcome,
            "message": message,
        }
    )


UNJUDGED = Verdict(name="cut", held=False, judged=False, ended="KeyboardInterrupt", text="It is cut off.")
CUT = "This run was cut off: its records stop at 10.0 s without an end. It was killed, or is running still."


@pytest.mark.parametrize(
    ("more", "word", "reason"),
    [
        ((made_test("x", "passed"), made_test("y", "skipped", "why")), "held", None),
        ((made_test("x", "failed", "one\ntwo"),), "not held", None),
        ((made_test("x", "broken", "one.\ntwo"),), "incomplete", "The test x broke: one."),
        (
            (made_test("x", "broken"), made_test("y", "broken")),
            "incomplete",
            "The test x broke, and 1 more.",
        ),
        ((made_test("x", "announced"),), "incomplete", "1 test not reached."),
        ((made_test("x", "announced"), made_test("x", "elsewhere")), "held", None),
        (
            (made_test("x", "announced"), made_test("x", "passed"), made_test("x", "broken")),
            "incomplete",
            "The test x broke.",
        ),
        ((Announced(name="new", text="New"),), "incomplete", "1 announced claim not reached."),
        ((Announced(name="ready", text="The node is Ready."),), "held", None),
        ((UNJUDGED,), "incomplete", "1 claim could not be judged."),
        ((UNJUDGED, LOST), "not held", "1 claim could not be judged."),
    ],
)
def test_a_failed_or_broken_test_and_a_gap_are_never_held(
    make_run: Callable[..., Run],
    good_records: tuple[Record, ...],
    more: tuple[Record, ...],
    word: str,
    reason: str | None,
) -> None:
    run = make_run(*good_records, *more, END)
    made = summarize(run)
    assert (outcome(run), is_ok(run), made["ok"]) == (word, word == "held", word == "held")
    assert incomplete_reason(run) == reason
    assert headline(run).outcome == word
    unfinished = incomplete_reason(make_run(*good_records, *more)) or ""
    assert unfinished.startswith(CUT)
    assert unfinished.endswith(reason or CUT)


def test_the_json_has_tests_and_what_was_not_reached(
    make_run: Callable[..., Run], good_records: tuple[Record, ...]
) -> None:
    more = (
        made_test("x", "announced"),
        made_test("x", "failed", "m"),
        Announced(name="n", text="N", limit=3, unit="s"),
    )
    made = summarize(make_run(*good_records, *more, END))
    assert made["tests"] == [
        {"t": 1, "nodeid": "a/test_b.py::x", "text": "X", "outcome": "failed", "phase": None, "message": "m"}
    ]
    assert made["not_reached"] == [{"name": "n", "text": "N", "limit": 3, "unit": "s"}]


@pytest.mark.parametrize(
    ("more", "begin"),
    [
        ((made_test("x", "failed", "one\ntwo"),), "The test x failed: one; the node"),
        ((made_test("x", "failed"), made_test("y", "failed")), "The test x failed, and 1 more; the node"),
        ((made_test("x", "failed"), LOST), "The pod is gone within 40 s: this did not hold"),
        ((made_test("x", "broken"),), "The only claim judged so far held: "),
        ((UNJUDGED,), "1 of 2 claims held, the others could not be judged: "),
        (
            (LOST, LOST),
            f"{LOST.text[:-1]}: this did not hold (measured 52.25 s, limit 40 s), and 1 more of 3 claims;",
        ),
    ],
)
def test_the_sentence_says_the_worst_first(
    make_run: Callable[..., Run], good_records: tuple[Record, ...], more: tuple[Record, ...], begin: str
) -> None:
    assert sentence(make_run(*good_records, *more, END)).startswith(begin)


def test_of_a_claim_that_is_judged_several_times_the_worst_counts(make_run: Callable[..., Run]) -> None:
    good = Verdict(name="a", held=True, measured=1, text="A")
    bad = Verdict(name="a", held=False, measured=2, text="A")
    cut = Verdict(name="a", held=False, judged=False, text="A")
    last = Verdict(name="a", held=True, measured=3, text="A")
    assert decisive_verdict(make_run(good, bad, cut, last), "a") == bad
    assert decisive_verdict(make_run(good, cut, last), "a") == cut
    assert decisive_verdict(make_run(good, last), "a") == last
    assert decisive_verdict(make_run(good, last), "a", "B") is None
    assert decisive_verdict(make_run(good), "b") is None


def test_an_experiments_line_counts_tests_and_gaps(
    make_run: Callable[..., Run], good_records: tuple[Record, ...]
) -> None:
    more = (
        made_test("x", "broken"),
        made_test("y", "failed"),
        made_test("z", "announced"),
        Announced(name="n", text="N"),
    )
    found = headline(make_run(*good_records, *more, made_test("s", "skipped"), END))
    assert headline_lines([found]) == [
        (
            "exp08: not held; 1 of 2 claims, Ready after 4.0 s, pod Running after 2.0 s, "
            "6 of 6 samples Ready, lost 0 times, 0 error lines, 2 tests failed, 1 test skipped, 2 not reached"
        )
    ]


@pytest.mark.parametrize(
    ("strays", "word"),
    [
        (["broken"], "incomplete, 1 test without a run broken;"),
        (["broken", "failed"], "not held, 2 tests without a run broken or failed;"),
    ],
)
def test_a_test_that_failed_without_a_run_is_on_the_line(
    make_run: Callable[..., Run], good_records: tuple[Record, ...], strays: list[str], word: str
) -> None:
    found = headline(make_run(*good_records, END))
    gone = [{"experiment": "exp08", "test": "t", "outcome": one} for one in strays]
    assert headline_lines([found], gone)[0].startswith(f"exp08: {word}")
    assert headline_lines([], gone) == [f"exp08: {word.rstrip(';')}"]
    assert headline_lines([found], [{**gone[0], "experiment": "exp01"}])[0].startswith("exp08: held;")


def test_a_run_without_a_claim_is_finished_unless_a_test_went_wrong(
    make_run: Callable[..., Run], sample: Callable[..., Sample]
) -> None:
    assert headline(make_run(sample(1), made_test("x", "passed"), END)).outcome == "finished"
    assert headline(make_run(sample(1), made_test("x", "skipped"), END)).outcome == "finished"
    assert headline(make_run(sample(1), made_test("x", "failed"), END)).outcome == "not held"
    assert headline(make_run(sample(1), made_test("x", "broken"), END)).outcome == "incomplete"
    assert headline(make_run(sample(1), Announced(name="a", text="A"), END)).outcome == "incomplete"
    assert headline(make_run(sample(1))).outcome == "incomplete"


def restart(t: float, component: str) -> Event:
    return Event(t=t, kind="restart", what=f"{component} started again", component=component)


def test_what_was_started_again_before_the_node_was_ready_is_said(
    make_run: Callable[..., Run], sample: Callable[..., Sample]
) -> None:
    assert restarts_text(make_run(sample(1.0, ready=True))) is None
    run = make_run(*(restart(t, "kubelet") for t in (1.0, 2.0)), restart(2.5, "k3s"), sample(3.0, ready=True))
    assert (
        restarts_text(run)
        == "kubelet was started again 2 times and k3s was started again once during the start"
    )
    assert sentence(run).endswith(f"; {restarts_text(run)}.")
    assert summarize(run)["restarts_during_start"] == {"kubelet": 2, "k3s": 1}


def test_what_was_started_again_later_is_not_of_the_start(
    make_run: Callable[..., Run], sample: Callable[..., Sample]
) -> None:
    run = make_run(sample(3.0, ready=True), restart(4.0, "kubelet"))
    assert restarts_text(run) is None
    assert summarize(run)["restarts_during_start"] == {}


def test_a_node_that_never_was_ready_has_its_restarts_said(make_run: Callable[..., Run]) -> None:
    run = make_run(restart(4.0, "kubelet"))
    assert restarts_text(run) == "kubelet was started again once during the start"
