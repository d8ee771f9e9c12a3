"""The meaning of an API server's answers for a wait: it is away, it is busy, the object does not exist."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import TypeVar

from pytest_k3s_sandbox.cluster.reading import ApiUnavailable

Read = TypeVar("Read")


def patient(condition: Callable[[], bool]) -> Callable[[], bool]:
    """Return a condition that is False, and no error, while the API server cannot answer."""

    def ask() -> bool:
        try:
            return condition()
        except Exception as error:
            if _away(error):
                return False
            raise

    return ask


def _away(error: Exception) -> bool:
    """Tell whether an error means that the API server cannot answer now."""
    if isinstance(error, ApiUnavailable):
        return error.status is None or _busy(error.status)
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    if isinstance(error, ApiException):
        return _busy(error.status)
    return isinstance(error, HTTPError)


def _busy(status: int) -> bool:
    return status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR


def answered(hint: Callable[[], str | None]) -> Callable[[], str | None]:
    """Return a hint that says so, and raises no error, when the API server does not answer."""

    def ask() -> str | None:
        try:
            return hint()
        except Exception as error:
            from kubernetes.client import ApiException
            from urllib3.exceptions import HTTPError

            if isinstance(error, (ApiUnavailable, HTTPError, ApiException)):
                return f"the API server does not answer: {error}"
            raise

    return ask


def found(read: Callable[[], Read]) -> Read | None:
    """Return the result of a read of the API; None if the object does not exist."""
    from kubernetes.client import ApiException

    try:
        return read()
    except ApiException as error:
        if error.status == HTTPStatus.NOT_FOUND:
            return None
        raise
