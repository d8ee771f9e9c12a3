"""The resources that an API server has, and the meaning of ``deployment/greeter`` there.

A word is looked up as kubectl does: plural, singular, short name or kind, with the group behind a dot if
need be. The core group comes first, then the groups in the API server's own order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pytest_k3s_sandbox.cluster.reading import ApiUnavailable
from pytest_k3s_sandbox.errors import ConfigError, on_purpose, suggestion

__tracebackhide__ = on_purpose

_REFERENCE = re.compile(r"(?P<kind>[A-Za-z][A-Za-z0-9.-]*)/(?P<name>[A-Za-z0-9][A-Za-z0-9.:_-]*)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:_-]*")


class Reader(Protocol):
    """Reads the API as parsed JSON; see :class:`~.reading.ApiReader`."""

    def read(self, path: str) -> dict[str, Any] | None:
        """Return the parsed JSON at a path; None if the server answers 404."""


@dataclass(frozen=True)
class Resource:
    """A kind of objects that the API server has.

    Attributes:
        name: The plural, as in paths.
        kind: The kind, as in manifests.
        base: Where its group is, as ``/apis/apps/v1``.
        namespaced: Whether its objects are in a namespace.
        words: Its names, in small letters.
    """

    name: str
    kind: str
    base: str
    namespaced: bool
    words: frozenset[str]

    @property
    def group(self) -> str:
        """The group; empty for the core."""
        return self.base.split("/")[2] if self.base.startswith("/apis/") else ""

    def path(self, namespace: str, name: str = "") -> str:
        """Return the path of an object, or of the list of all.

        Args:
            namespace: The namespace, which is left out where objects are in none.
            name: The object's name; empty for the list.
        """
        where = f"/namespaces/{namespace}" if self.namespaced else ""
        return f"{self.base}{where}/{self.name}" + (f"/{name}" if name else "")


@dataclass(frozen=True)
class Reference:
    """An object as a user names it, found out.

    Attributes:
        resource: Its kind.
        name: Its name.
    """

    resource: Resource
    name: str

    @property
    def shown(self) -> str:
        """It as people write it."""
        return f"{self.resource.kind.lower()}/{self.name}"

    def __str__(self) -> str:
        """Return it as kubectl takes it, with its group, so that no other one is meant."""
        resource = self.resource
        group = f".{resource.group}" if resource.group else ""
        return f"{resource.name}{group}/{self.name}"


def split(text: str) -> tuple[str, str]:
    """Return the kind and the name in a reference; a name alone is a pod's.

    Args:
        text: Like ``deployment/greeter``.

    Raises:
        ConfigError: It is not a reference.
    """
    found = _REFERENCE.fullmatch(text)
    if found is not None:
        return found["kind"], found["name"]
    if _NAME.fullmatch(text):
        return "pod", text
    raise ConfigError(
        f"the object {text!r}",
        cause="it is not KIND/NAME",
        remedy="name it like 'deployment/greeter', or a pod by its name alone",
    )


class Resources:
    """The resources of an API server, read when a word asks for them, and kept.

    Args:
        reader: Reads the API.
    """

    def __init__(self, reader: Callable[[], Reader]) -> None:
        """Keep the reader; nothing is read yet."""
        self._reader = reader
        self._known: list[Resource] = []
        self._sources: Iterator[list[Resource]] | None = None

    def find(self, text: str) -> Reference:
        """Return the object that a text refers to.

        Args:
            text: Like ``deployment/greeter``.

        Raises:
            ConfigError: It is not a reference, or the API server has no such kind.
            ApiUnavailable: The API server does not answer.
        """
        word, name = split(text)
        return Reference(self.resource(word, text), name)

    def resource(self, word: str, said: str | None = None) -> Resource:
        """Return the resource that a word means.

        Args:
            word: Like ``deploy``, ``deployments.apps`` or ``Deployment``.
            said: All that the user wrote, for the message.

        Raises:
            ConfigError: The API server has no such kind.
            ApiUnavailable: The API server does not answer.
        """
        wanted = word.lower()
        complete = self._sources is not None
        for each in self._all():
            if wanted in each.words:
                return each
        if complete:  # it may have come with a custom resource definition meanwhile
            self._known, self._sources = [], None
            return self.resource(word, said)
        names = {each.kind.lower() for each in self._known}
        of = "" if said is None or said == word else f" of {said!r}"
        raise ConfigError(
            f"the kind {word!r}{of}",
            cause="the cluster has no resource of that name",
            remedy=suggestion(wanted, sorted(names)).replace(
                "use one of these", "see `kubectl api-resources` for those that there are"
            ),
        )

    def _all(self) -> Iterator[Resource]:
        """Yield the known resources, then read the others."""
        yield from list(self._known)
        if self._sources is None:
            self._sources = self._read()
        for found in self._sources:
            self._known += found
            yield from found

    def _read(self) -> Iterator[list[Resource]]:
        reader = self._reader()
        yield _resources("/api/v1", reader.read("/api/v1"))
        for group in (reader.read("/apis") or {}).get("groups") or []:
            preferred = group["preferredVersion"]["groupVersion"]
            others = [each["groupVersion"] for each in group["versions"]]
            for version in dict.fromkeys([preferred, *others]):
                base = f"/apis/{version}"
                try:
                    yield _resources(base, reader.read(base))
                except ApiUnavailable as error:
                    if error.status is None:
                        raise
                    # The server of this group is away. The other groups can still be found.


def _resources(base: str, listed: Mapping[str, Any] | None) -> list[Resource]:
    """Return the resources of a group's ``APIResourceList``; subresources are left out."""
    _, _, rest = base.partition("/apis/")
    group, _, version = rest.partition("/")
    return [
        Resource(each["name"], each["kind"], base, bool(each["namespaced"]), _words(each, group, version))
        for each in (listed or {}).get("resources") or []
        if "/" not in each["name"]
    ]


def _words(each: dict[str, Any], group: str, version: str) -> frozenset[str]:
    plain = {each["name"], each.get("singularName") or each["kind"].lower(), each["kind"].lower()}
    short = set(each.get("shortNames") or ())
    behind = {"", *({f".{group}", f".{version}.{group}"} if group else ())}
    return frozenset(f"{word}{end}" for word in plain | short for end in behind)
