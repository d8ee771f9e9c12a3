"""Pods that come and go: what is counted, also when the API server is away."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from kubernetes.client import ApiException, CoreV1Api
from urllib3.exceptions import MaxRetryError

from pytest_k3s_sandbox.lab.churn import LABEL, Churn, Life, advance, pod


class FakeCore:
    """Pods that become Ready when a test says so, and go as soon as they are deleted."""

    def __init__(self) -> None:
        """Have no pods."""
        self.pods: dict[str, bool] = {}
        self.trouble: Exception | None = None

    def _trouble(self) -> None:
        if self.trouble is not None:
            raise self.trouble

    def create_namespaced_pod(self, namespace: str, body: dict[str, Any]) -> None:
        """As CoreV1Api does."""
        self._trouble()
        assert namespace == "ns"
        self.pods[body["metadata"]["name"]] = False

    def list_namespaced_pod(self, namespace: str, *, label_selector: str) -> SimpleNamespace:
        """As CoreV1Api does."""
        self._trouble()
        assert (namespace, label_selector) == ("ns", LABEL)
        condition = {True: [SimpleNamespace(type="Ready", status="True")], False: None}
        return SimpleNamespace(
            items=[
                SimpleNamespace(
                    metadata=SimpleNamespace(name=name), status=SimpleNamespace(conditions=condition[ready])
                )
                for name, ready in self.pods.items()
            ]
        )

    def delete_namespaced_pod(self, name: str, namespace: str) -> None:
        """As CoreV1Api does."""
        assert namespace == "ns"
        del self.pods[name]


class Bench:
    """A churn with a clock that a test turns."""

    def __init__(self) -> None:
        """Begin at zero."""
        self.now = 0.0
        self.core = FakeCore()
        self.said: list[str] = []
        self.churn = Churn(
            cast("CoreV1Api", self.core),
            "ns",
            lambda: self.now,
            lambda what, name: self.said.append(f"{what} {name}"),
        )

    def step(self, now: float, *, create: bool = True) -> None:
        """Take a step at a time."""
        self.now = now
        self.churn.step(create=create)


def test_a_pod_every_ten_seconds_deleted_when_ready() -> None:
    bench = Bench()
    bench.step(0)
    bench.step(3)
    bench.core.pods["churn-00000"] = True
    bench.step(4)
    bench.step(9.9)
    bench.step(10)
    assert bench.said == ["created churn-00000", "deleted churn-00000", "created churn-00001"]
    assert not bench.churn.idle
    bench.core.pods["churn-00001"] = True
    bench.step(30, create=False)
    bench.step(31, create=False)
    assert bench.churn.idle
    assert bench.churn.lives == [Life("churn-00000", 0, 4, 4, 9.9), Life("churn-00001", 10, 30, 30, 31)]


def test_a_pod_that_never_gets_ready_is_a_failed_start_and_is_deleted() -> None:
    bench = Bench()
    bench.step(0)
    bench.step(60, create=False)
    bench.step(60.5, create=False)
    bench.step(61, create=False)
    (life,) = bench.churn.lives
    assert (life.failure, life.deleted, life.gone) == ("not Ready after 60 s", 60.5, 61)


def test_a_pod_that_vanishes_is_a_failed_start() -> None:
    lives = [Life("a", 0), Life("b", 0, ready=1, deleted=1)]
    assert advance(lives, {}, 5, 60) == []
    assert [life.failure for life in lives] == ["it vanished before it was Ready", None]
    assert [life.gone for life in lives] == [5, 5]


def test_a_pod_may_stay_a_while() -> None:
    bench = Bench()
    bench.churn.stay = 5
    bench.step(0)
    bench.core.pods["churn-00000"] = True
    for now in (1, 5.9, 6):
        assert "deleted churn-00000" not in bench.said
        assert bench.churn.alive == 1
        bench.step(now, create=False)
    assert bench.said[-1] == "deleted churn-00000"
    bench.step(7, create=False)
    assert bench.churn.alive == 0


@pytest.mark.parametrize(
    "trouble",
    [MaxRetryError(cast("Any", None), "/"), ApiException(status=503), ApiException(status=429)],
)
def test_an_api_server_that_is_away_is_no_failed_start(trouble: Exception) -> None:
    bench = Bench()
    bench.core.trouble = trouble
    bench.step(0)
    assert bench.churn.lives == []
    bench.core.trouble = None
    bench.step(1)
    bench.core.trouble = trouble
    bench.step(2)
    bench.core.trouble = None
    bench.core.pods["churn-00000"] = True
    bench.step(3)
    bench.step(4)
    assert [life.failure for life in bench.churn.lives] == [None]


def test_a_request_that_is_wrong_is_an_error() -> None:
    bench = Bench()
    bench.core.trouble = ApiException(status=403)
    with pytest.raises(ApiException):
        bench.step(0)


def test_fields_of_the_container_can_be_set() -> None:
    container = pod("a", command=["true"])["spec"]["containers"][0]
    assert (container["command"], container["image"]) == (["true"], "busybox:1.36")
