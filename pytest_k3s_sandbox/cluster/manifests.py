"""Manifests that a user gives: files, texts and objects, checked before kubectl gets them.

kubectl gets texts and files as they were written. They are parsed here for the checks only, because PyYAML
reads some values in another way than Go does (times, ``12:30``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_k3s_sandbox.cluster.access import existing, places
from pytest_k3s_sandbox.errors import ConfigError, on_purpose, suggestion

__tracebackhide__ = on_purpose

Manifest = str | Path | Mapping[str, Any] | Sequence[Any]
"""A file, a folder, a text of YAML or JSON, an object, or several of these."""

SUFFIXES = (".yaml", ".yml", ".json")
"""How a file of manifests is called; the others in a folder are left out, as ``kubectl apply -f`` does."""

SEPARATOR = "---\n"


@dataclass(frozen=True)
class Document:
    """An object of the user's manifest.

    Attributes:
        where: Where it stands, for messages, as ``greeter.yaml, document 2``.
        content: The object.
    """

    where: str
    content: Mapping[str, Any]


@dataclass(frozen=True)
class Manifests:
    """The user's manifest, checked.

    Attributes:
        text: All of it as a stream of YAML for ``kubectl -f -``.
        documents: Its objects, of which there is at least one.
    """

    text: str
    documents: tuple[Document, ...]


def is_path(text: str) -> bool:
    """Tell whether a text names a file, rather than being a manifest.

    A manifest has several lines, a colon with a space behind it, or begins with a brace.

    Args:
        text: The user's text.
    """
    return bool(text.strip()) and not ("\n" in text or ": " in text or text.lstrip().startswith("{"))


def read(given: Manifest, namespace: str, folders: Sequence[Path]) -> Manifests:
    """Read and check a user's manifest.

    Args:
        given: The manifests.
        namespace: The namespace that objects may name.
        folders: Where a relative path is looked for, in this order.

    Returns:
        The stream for kubectl, and the objects in it.

    Raises:
        ConfigError: A file does not exist, a text does not parse, or a document is not an object of
            that namespace.
    """
    texts: list[str] = []
    documents: list[Document] = []
    for where, text in _texts(given, folders):
        found = list(_documents(where, text))
        for document in found:
            _check(document, namespace)
        if found:
            texts.append(text if text.endswith("\n") else f"{text}\n")
        documents += found
    if not documents:
        raise ConfigError(
            f"the manifest {_shown(given)}",
            cause="it has no object: it is empty, or has comments only",
            remedy="give at least one object with apiVersion, kind and metadata.name",
        )
    return Manifests("".join(SEPARATOR + text for text in texts), tuple(documents))


def _shown(given: Manifest) -> str:
    return f"{given}" if isinstance(given, Path) else f"{str(given)[:80]!r}"


def _texts(given: object, folders: Sequence[Path], where: str = "the manifest") -> Iterator[tuple[str, str]]:
    """Yield where each text comes from, and the text."""
    if isinstance(given, Path) or (isinstance(given, str) and is_path(given)):
        for file in _files(Path(given), folders):
            yield str(file), _content(file)
    elif isinstance(given, str):
        yield where, given
    elif isinstance(given, Mapping):
        yield where, _dumped(given, where)
    elif isinstance(given, Sequence) and not isinstance(given, bytes):
        for number, each in enumerate(given, 1):
            yield from _texts(each, folders, f"manifest {number} of the list")
    else:
        raise ConfigError(
            where,
            cause=f"it is of type {type(given).__name__}",
            remedy="give a path, a text of YAML or JSON, a dict, or a list of these",
        )


def _dumped(given: Mapping[str, Any], where: str) -> str:
    try:
        return json.dumps(given, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            where,
            cause=f"it cannot be JSON: {error}",
            remedy="give texts, numbers, booleans, dicts and lists",
        ) from error


def _files(path: Path, folders: Sequence[Path]) -> list[Path]:
    """Return the files that a path means: itself, or those in the folder."""
    found = existing(path, folders)
    if found is None:
        tried = places(path, folders)
        raise ConfigError(
            f"the manifest {path}",
            cause=f"there is no such file; tried {', '.join(map(str, tried))}",
            remedy=_resembling(path, tried),
        )
    if not found.is_dir():
        return [found]
    files = sorted(each for each in found.iterdir() if each.suffix in SUFFIXES and each.is_file())
    if not files:
        raise ConfigError(
            f"the folder of manifests {found}",
            cause=f"no file in it ends with {', '.join(SUFFIXES)}",
            remedy="name a file, or another folder",
        )
    return files


def _resembling(path: Path, tried: Sequence[Path]) -> str:
    """Return the remedy for a file that does not exist."""
    there = {
        str(path.with_name(each.name))
        for folder in {each.parent for each in tried}
        if folder.is_dir()
        for each in folder.iterdir()
        if each.suffix in SUFFIXES
    }
    words = suggestion(str(path), sorted(there))
    return words if "mean" in words else "give its path from the test's folder or the working directory"


def _content(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"the manifest {file}", cause=f"it is not UTF-8: {error}", remedy="save it as UTF-8"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"the manifest {file}", cause=error.strerror, remedy="make it readable, or name another"
        ) from error


def _documents(where: str, text: str) -> Iterator[Document]:
    """Yield the objects in a text, those of a ``List`` one by one."""
    for number, content in enumerate(_parsed(where, text), 1):
        if content is None:
            continue
        place = f"{where}, document {number}"
        if not isinstance(content, Mapping):
            raise ConfigError(
                place,
                cause=f"it is not an object but {_kind_of(content)}: {str(content)[:60]!r}",
                remedy="an object has apiVersion, kind and metadata; `---` alone on a line is between two",
            )
        yield from _unpacked(place, content)


def _unpacked(place: str, content: Mapping[str, Any]) -> Iterator[Document]:
    items = content.get("items")
    if str(content.get("kind", "")).endswith("List") and isinstance(items, list):
        for number, item in enumerate(items, 1):
            yield Document(f"{place}, item {number}", item if isinstance(item, Mapping) else {})
    else:
        yield Document(place, content)


def _kind_of(content: object) -> str:
    return "a list" if isinstance(content, list) else f"a {type(content).__name__}"


def _parsed(where: str, text: str) -> list[Any]:
    """Return the documents of a text, parsed."""
    import yaml

    try:
        return [json.loads(text)]
    except (ValueError, RecursionError):
        pass  # it is YAML, or neither
    try:
        return list(yaml.safe_load_all(text))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark is not None else ""
        said = "; ".join(filter(None, (error.context, error.problem)))
        raise ConfigError(
            f"{where}{line}",
            cause=f"it is not YAML: {said}{_quoted(text, mark.line if mark is not None else None)}",
            remedy="correct the line; a template (Helm, Jinja) has to be rendered first",
        ) from None  # the message has all of it
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(
            where, cause=f"it is not YAML: {error}", remedy="correct it"
        ) from None  # the message has all of it


def _quoted(text: str, line: int | None) -> str:
    lines = text.splitlines()
    return f" in {lines[line].strip()[:80]!r}" if line is not None and line < len(lines) else ""


def _check(document: Document, namespace: str) -> None:
    """Refuse an object that kubectl would refuse without naming the place, and one of another namespace."""
    content, where = document.content, document.where
    for field in ("apiVersion", "kind"):
        if not isinstance(content.get(field), str):
            raise ConfigError(
                where,
                cause=f"it has no {field}; it has {', '.join(map(str, content)) or 'nothing'}",
                remedy="begin it as `apiVersion: v1` and `kind: Pod` do"
                if field == "kind"
                else f"add it, as in `apiVersion: {_usual(content.get('kind'))}`",
            )
    metadata = content.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    what = f"{where} ({content['kind']} {metadata.get('name', 'without a name')})"
    if not isinstance(metadata.get("name"), str):
        generates = "generateName" in metadata
        raise ConfigError(
            what,
            cause="apply needs metadata.name" + (", and generateName gives none" if generates else ""),
            remedy="name it; for generateName use `k3s.kubectl('create', ...)`"
            if generates
            else "add metadata.name, a text in quotes if it looks like a number",
        )
    named = metadata.get("namespace", namespace)
    if named != namespace:
        raise ConfigError(
            what,
            cause=f"it names the namespace {named!r}, and this is {str(namespace)!r}",
            remedy="leave metadata.namespace out; apply objects of other namespaces by `k3s.kubectl`",
        )


def _usual(kind: object) -> str:
    apps = {"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"}
    batch = {"Job", "CronJob"}
    return "apps/v1" if kind in apps else "batch/v1" if kind in batch else "v1"
