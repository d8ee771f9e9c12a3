"""What a wait waits for: what it is called, when it has come, and when it cannot come."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.cluster import goals, jsonpath
from pytest_k3s_sandbox.errors import ConfigError

READY = {"type": "Ready", "status": "True"}


def item(
    kind: str = "Pod", generation: int = 1, spec: dict[str, Any] | None = None, **status: object
) -> dict[str, Any]:
    return {"kind": kind, "metadata": {"generation": generation}, "spec": spec or {}, "status": status}


def met(text: str, it: goals.Item) -> bool:
    return goals.parse(text, it["kind"]).met(it)


def hopeless(text: str, it: goals.Item) -> str | None:
    return goals.parse(text, it["kind"]).hopeless(it)


@pytest.mark.parametrize("text", ["Ready", "ready", "Ready=True", "Ready=true", "condition=Ready", " Ready "])
def test_a_condition(text: str) -> None:
    assert met(text, item(conditions=[READY]))
    assert not met(text, item(conditions=[{**READY, "status": "False"}]))
    assert not met(text, item())
    assert not goals.parse(text, "Pod").met(None)


def test_a_condition_that_is_not_so() -> None:
    assert met("Ready=False", item(conditions=[{**READY, "status": "False"}]))
    assert not met("Ready=False", item())


def test_a_condition_counts_when_the_change_was_seen() -> None:
    conditions = [{"type": "Available", "status": "True"}]
    assert not met("Available", item("Deployment", generation=2, observedGeneration=1, conditions=conditions))
    assert met("Available", item("Deployment", generation=2, observedGeneration=2, conditions=conditions))


def test_a_phase_is_one_of_its_kind_and_a_condition_otherwise() -> None:
    assert met("Running", item(phase="Running"))
    assert met("running", item(phase="Running"))
    assert isinstance(goals.parse("Failed", "Job"), goals.Met)
    assert isinstance(goals.parse("Failed", "Pod"), goals.Phase)
    assert isinstance(goals.parse("Available", "PersistentVolume"), goals.Phase)
    assert isinstance(goals.parse("Available", "Deployment"), goals.Met)


def test_it_is_there_or_gone() -> None:
    for text in ("deleted", "Deleted", "delete"):
        assert goals.parse(text, "Pod").met(None)
        assert not met(text, item())
    assert met("created", item())
    assert not goals.parse("created", "Pod").met(None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("jsonpath={.status.phase}=Running", True),
        ("jsonpath='{.status.phase}'=Running", True),
        ("jsonpath=.status.phase=Running", True),
        ("jsonpath={.status.phase}", True),
        ("jsonpath={.status.phase}=Failed", False),
        ("jsonpath={.status.nothing}", False),
        ("jsonpath={.status.replicas}=3", True),
        ("jsonpath={.status.done}=true", True),
        ('jsonpath={.status.conditions[?(@.type=="Ready")].status}=True', True),
        ("jsonpath={.status.conditions[0].type}=Ready", True),
        ("jsonpath={.status.conditions[*].status}=True", False),
        ("jsonpath={.status['a.b']}=x", True),
        (r"jsonpath={.status.a\.b}=x", True),
    ],
)
def test_a_jsonpath(text: str, expected: bool) -> None:
    other = {"type": "Other", "status": "False"}
    numbers: Any = {"a.b": "x"}
    it = item(phase="Running", replicas=3, done=True, conditions=[READY, other], **numbers)
    assert met(text, it) is expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is not a condition"),
        ("to be ready", "it is not a condition"),
        ("=True", "it is not a condition"),
        ("Ready=maybe", "a condition's status is True, False, Unknown"),
        ("phase=Running", "jsonpath={.status.FIELD}=VALUE"),
        ("jsonpath=", "it is empty"),
        ("jsonpath={range .items[*]}", "not understood from ' .items"),
        ("jsonpath={.a[?(@.b>1)]}", "not understood from '[?(@.b>1)]'"),
    ],
)
def test_what_cannot_be_waited_for_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        goals.parse(text, "Pod")
    assert words in str(caught.value)
    assert caught.value.remedy


def test_workloads_without_conditions_are_ready_when_they_are_rolled_out() -> None:
    done: Any = {"replicas": 2, "readyReplicas": 2, "updatedReplicas": 2}
    assert met("Ready", item("StatefulSet", spec={"replicas": 2}, **done))
    assert not met("Ready", item("StatefulSet", spec={"replicas": 2}, **{**done, "updatedReplicas": 1}))
    assert not met("Ready", item("StatefulSet", spec={"replicas": 2}))
    assert met("Ready", item("Deployment", spec={"replicas": 2}, **done))
    daemons: Any = {"desiredNumberScheduled": 1, "numberReady": 1, "updatedNumberScheduled": 1}
    assert met("Ready", item("DaemonSet", **daemons))
    assert not met("Ready", item("DaemonSet"))
    # A deployment's own condition goes before.
    available = [{"type": "Available", "status": "False"}]
    assert not met("Available", item("Deployment", spec={"replicas": 2}, conditions=available, **done))


ENDED: Any = {
    "phase": "Failed",
    "reason": "Evicted",
    "containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": 3}}}],
}


@pytest.mark.parametrize("text", ["Running", "Ready", "Succeeded"])
def test_a_pod_that_has_failed_does_not_get_there(text: str) -> None:
    why = hopeless(text, item(**ENDED))
    assert why is not None
    assert "failed already: Evicted: container c ended with exit code 3" in why
    assert hopeless(text, item(phase="Pending")) is None


def test_a_pod_without_an_image_does_not_get_there() -> None:
    waiting = {
        "name": "c",
        "state": {"waiting": {"reason": "ErrImageNeverPull", "message": "it is not there"}},
    }
    it = item(phase="Pending", containerStatuses=[waiting])
    assert hopeless("Ready", it) == "container c waits: ErrImageNeverPull: it is not there"
    assert hopeless("Ready=False", it) is None
    assert hopeless("deleted", it) is None


def test_a_job_that_has_failed_is_not_complete_any_more() -> None:
    failed = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "too often"}
    it = item("Job", conditions=[failed])
    assert hopeless("Complete", it) == "Failed=True, BackoffLimitExceeded: too often"
    assert hopeless("Failed", it) is None
    assert met("Failed", it)


def test_a_rollout_that_has_given_up() -> None:
    late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "m"}
    assert hopeless("Available", item("Deployment", conditions=[late])) is not None
    assert hopeless("Progressing", item("Deployment", conditions=[late])) is None


def test_the_pods_of_a_workload() -> None:
    expressions = [
        {"key": "a", "operator": "In", "values": ["b", "c"]},
        {"key": "d", "operator": "Exists"},
        {"key": "e", "operator": "DoesNotExist"},
        {"key": "f", "operator": "NotIn", "values": ["g"]},
    ]
    spec = {"selector": {"matchLabels": {"app": "x"}, "matchExpressions": expressions}}
    assert goals.selector_of(item(spec=spec)) == "app=x,a in (b,c),d,!e,f notin (g)"
    assert goals.selector_of(item(spec={"selector": {"app": "x"}})) == "app=x"
    assert goals.selector_of(item()) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(min_size=1), json_values, min_size=1, max_size=3))
def test_every_key_can_be_named(content: dict[str, Any]) -> None:
    for key, value in content.items():
        if not {"'", "\n"} & set(key):
            assert jsonpath.parse(f"['{key}']").find(content) == [value]


@given(st.text(), json_values)
def test_a_path_is_one_or_is_refused(text: str, content: object) -> None:
    try:
        path = jsonpath.parse(text)
    except ConfigError:
        return
    for each in path.find(content):
        jsonpath.text_of(each)
