"""Key figures, from runs whose numbers are known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_k3s_sandbox.report.records import ErrorLine, Event, Record, Run, Sample

if TYPE_CHECKING:
    from collections.abc import Callable


def test_the_key_figures_of_a_good_run(
    make_run: Callable[..., Run], good_records: tuple[Record, ...]
) -> None:
    known = make_run(*good_records).metrics
    assert known.seconds_to_ready == 4
    assert known.hold_seconds == 6
    assert (known.samples, known.samples_since_ready, known.ready_samples) == (9, 6, 6)
    assert known.longest_gap == 1.5
    assert (len(known.transitions), known.losses) == (1, 0)
    (pod,) = known.pods
    assert (pod.created, pod.running, pod.ready, pod.deleted, pod.gone) == (4.5, 6.5, 6.5, 8.5, 10)


def test_the_longest_hold_ends_where_ready_is_not_known(
    make_run: Callable[..., Run], sample: Callable[..., Sample]
) -> None:
    states = [True, True, None, True, True, True, False, True]
    known = make_run(*(sample(i, ready) for i, ready in enumerate(states))).metrics
    assert known.hold_seconds == 2
    assert known.losses == 1
    assert (known.ready_samples, known.samples_since_ready) == (6, 8)


def test_errors_count_lines_or_totals_whichever_is_more(make_run: Callable[..., Run]) -> None:
    lines = [ErrorLine(t=i, component="kubelet", kind="eintr", text="x") for i in range(3)]
    counted = Sample(t=1, node_ready=None, api_reachable=False, errors={"eintr": 2, "cgroup": 7})
    assert make_run(*lines, counted).metrics.errors == {"cgroup": 7, "eintr": 3}


def test_a_run_without_samples_has_no_figures(make_run: Callable[..., Run]) -> None:
    known = make_run().metrics
    assert known.seconds_to_ready is None
    assert (known.samples, known.hold_seconds, known.longest_gap, known.pods) == (0, 0, 0, ())


def test_figures_know_the_records_that_they_come_from(
    make_run: Callable[..., Run], good_records: tuple[Record, ...]
) -> None:
    run = make_run(*good_records)
    known = run.metrics
    assert known.first_ready is not None
    assert known.hold is not None
    (pod,) = known.pods
    # the header is line 1; see good_records for the others
    assert run.line(known.first_ready) == 8
    assert [run.line(end) for end in known.hold] == [8, 15]
    assert {name: run.line(record) for name, record in pod.seen.items()} == {
        "created": 9,
        "running": 11,
        "ready": 11,
        "deleted": 13,
        "gone": 15,
    }


def test_equal_records_have_lines_of_their_own(make_run: Callable[..., Run]) -> None:
    twice = [Event(t=1, kind="a", what="b"), Event(t=1, kind="a", what="b")]
    run = make_run(*twice)
    assert [run.line(event) for event in run.events] == [2, 3]


def test_a_pod_without_a_sample_before_running_has_no_latency(
    make_run: Callable[..., Run], sample: Callable[..., Sample]
) -> None:
    (steady,) = make_run(sample(1, pod="Running"), sample(2, pod="Running")).metrics.pods
    assert (steady.running, steady.to_running, steady.to_ready) == (1, None, None)
    (seen,) = make_run(sample(1, pod="Pending"), sample(2, pod="Running")).metrics.pods
    assert (seen.to_running, seen.to_gone) == (1, None)


def test_a_pod_is_not_gone_while_the_api_server_does_not_answer(
    make_run: Callable[..., Run], sample: Callable[..., Sample]
) -> None:
    run = make_run(sample(1, pod="Running"), sample(2, api=False), sample(3))
    assert run.metrics.pods[0].gone == 3
