"""What is asked of an API server that may be away."""

from __future__ import annotations

import pytest
from kubernetes.client import ApiException
from urllib3.exceptions import HTTPError

from pytest_k3s_sandbox.cluster.answers import answered, patient
from pytest_k3s_sandbox.cluster.reading import ApiUnavailable


@pytest.mark.parametrize(
    "trouble",
    [HTTPError("refused"), ApiException(status=503, reason="overloaded"), ApiUnavailable("/api", "refused")],
)
def test_a_hint_from_an_api_server_that_is_away_says_so(trouble: Exception) -> None:
    def hint() -> str:
        raise trouble

    told = answered(hint)()
    assert told is not None
    assert told.startswith("the API server does not answer: ")
    assert str(trouble) in told


def test_a_hint_that_there_is_stays_as_it_is() -> None:
    assert answered(lambda: "KubeletNotReady: cni")() == "KubeletNotReady: cni"
    assert answered(lambda: None)() is None


@pytest.mark.parametrize(
    "trouble",
    [
        HTTPError("refused"),
        ApiException(status=503),
        ApiException(status=429),
        ApiUnavailable("/api", "503", 503),
        ApiUnavailable("/api", "refused"),
    ],
)
def test_a_condition_is_not_met_while_the_api_server_is_away(trouble: Exception) -> None:
    def condition() -> bool:
        raise trouble

    assert patient(condition)() is False


def test_a_condition_that_is_wrong_is_an_error() -> None:
    for wrong in (ApiException(status=403), ApiUnavailable("/api", "403", 403), LookupError("a defect")):

        def condition(error: Exception = wrong) -> bool:
            raise error

        with pytest.raises(type(wrong)):
            patient(condition)()
        with pytest.raises(LookupError):
            answered(lambda: dict[str, str]()["a defect"])()
