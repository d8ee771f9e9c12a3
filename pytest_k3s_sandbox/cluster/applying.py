"""Creating, changing and deleting objects by kubectl, with the API server's own words when it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_k3s_sandbox.cluster import manifests
from pytest_k3s_sandbox.cluster.access import Access, existing, folders_of, short
from pytest_k3s_sandbox.cluster.manifests import Document, Manifest
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import ClusterError, ConfigError, on_purpose

if TYPE_CHECKING:
    from pytest_k3s_sandbox.sandbox.base import Completed

__tracebackhide__ = on_purpose

LEAVE_SECONDS = 10.0
"""How long the deletion of objects outside a namespace may take to be accepted."""

SAID_LINES = 20
"""Of a message of kubectl's."""

_REFERENCE = re.compile(r"[A-Za-z][A-Za-z0-9.-]*/[A-Za-z0-9][A-Za-z0-9.:_-]*")


@dataclass(frozen=True)
class Applied:
    """The result of an apply.

    Attributes:
        references: The objects, as ``deployment.apps/greeter``.
        outside: The new objects that are in no namespace.
    """

    references: tuple[str, ...]
    outside: tuple[str, ...]


def apply(access: Access, manifest: Manifest, folders: Sequence[Path], deadline: Deadline) -> Applied:
    """Create or change objects; see :meth:`.Namespace.apply`.

    Args:
        access: The namespace.
        manifest: The objects.
        folders: Where relative paths are looked for, before the working directory.
        deadline: When to give up.

    Raises:
        ConfigError: It is not a manifest for this namespace.
        ClusterError: The API server refused it.
    """
    found = manifests.read(manifest, access.namespace, folders_of(*folders))
    before = _outside_before(access, found.documents)
    done = access.kubectl(
        "apply",
        "--server-side",
        "--force-conflicts",  # the test's manifest wins over other field managers
        "--field-manager=k3s-sandbox",
        "--output=json",
        "--filename=-",
        stdin=found.text,
        deadline=deadline,
    )
    if done.returncode != 0:
        names = ", ".join(f"{each.content['kind']} {_name(each.content)}" for each in found.documents[:5])
        raise ClusterError(
            f"applying {names} in namespace {access.namespace}", cause=_said(done), log=access.cluster.logs
        )
    items = _items(json.loads(done.stdout))
    outside = [_reference(item) for item in items if "namespace" not in item["metadata"]]
    new = tuple(reference for reference in outside if reference not in before)
    return Applied(tuple(map(_reference, items)), new)


def _outside_before(access: Access, documents: Sequence[Document]) -> set[str]:
    """Return those of the objects that are in no namespace and exist already: they are not ours to delete."""
    there = set()
    for document in documents:
        reference = _reference(document.content)
        try:
            found = access.resources.find(reference)
        except ConfigError:
            continue  # a kind that comes with this manifest, or that kubectl refuses
        if not found.resource.namespaced and access.item(found) is not None:
            there.add(reference)
    return there


def delete(
    access: Access,
    what: Manifest,
    folders: Sequence[Path],
    deadline: Deadline,
    *,
    grace: float | None = None,
    missing_ok: bool = False,
) -> None:
    """Delete objects and wait until they are gone; see :meth:`.Namespace.delete`.

    Args:
        access: The namespace.
        what: ``KIND/NAME``, or a manifest.
        folders: Where relative paths are looked for, before the working directory.
        deadline: When to give up.
        grace: Seconds that pods have for their end.
        missing_ok: Whether to accept that an object does not exist.

    Raises:
        ConfigError: It is neither a reference nor a manifest.
        ClusterError: An object does not exist, or is not gone in time.
    """
    stdin = None
    if isinstance(what, str) and is_reference(what, folders_of(*folders)):
        words = [str(access.resources.find(what))]
    else:
        words = ["--filename=-"]
        stdin = manifests.read(what, access.namespace, folders_of(*folders)).text
    done = access.kubectl(
        "delete",
        *words,
        "--cascade=foreground",
        f"--timeout={max(1, round(deadline.remaining()))}s",
        *([] if grace is None else [f"--grace-period={max(1, round(grace))}"]),
        *(["--ignore-not-found"] if missing_ok else []),
        stdin=stdin,
        deadline=Deadline(deadline.at + 2),  # kubectl ends by itself before, and says why
    )
    if done.returncode != 0:
        named = short(what, 120) if isinstance(what, (str, Path)) else "the objects of a manifest"
        raise ClusterError(
            f"deleting {named} in namespace {access.namespace}", cause=_said(done), log=access.cluster.logs
        )


def leave(access: Access, references: Sequence[str]) -> None:
    """Delete objects that are in no namespace, without a wait for their end.

    Args:
        access: The namespace that they were applied from.
        references: The objects. Those that are gone already are skipped.

    Raises:
        ClusterError: The API server refused it.
    """
    if not references:
        return
    deadline = Deadline.after(LEAVE_SECONDS)
    access.kubectl("delete", *references, "--ignore-not-found", "--wait=false", deadline=deadline, check=True)


def is_reference(text: str, folders: Sequence[Path]) -> bool:
    """Tell whether a text names an object, rather than being a manifest or its path.

    Args:
        text: Like ``deployment/greeter``, ``greeter`` or ``manifests/greeter.yaml``.
        folders: Where a file of that name would lie.
    """
    if not _REFERENCE.fullmatch(text) and (not manifests.is_path(text) or set("./") & set(text)):
        return False
    return not text.endswith(manifests.SUFFIXES) and existing(text, folders) is None


def _said(done: Completed) -> str:
    """Return kubectl's message, which may quote text from inside the sandbox."""
    lines = done.stderr.strip().splitlines()
    return "\n".join(short(line, 1000) for line in lines[:SAID_LINES]) or f"exit code {done.returncode}"


def _items(result: dict[str, Any]) -> list[dict[str, Any]]:
    listed = result.get("items")
    return list(listed) if result.get("kind") == "List" and isinstance(listed, list) else [result]


def _name(item: Mapping[str, Any]) -> str:
    return str((item.get("metadata") or {}).get("name"))


def _reference(item: Mapping[str, Any]) -> str:
    """Return an object as the other methods take it, with its group, so that no other one is meant."""
    group, slash, _ = item["apiVersion"].partition("/")
    return f"{item['kind'].lower()}{f'.{group}' if slash else ''}/{_name(item)}"
