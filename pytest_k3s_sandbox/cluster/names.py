"""The names that an image archive gives its images, and which of them a pod can use.

A docker-archive has them in ``manifest.json`` (``RepoTags``), an OCI layout in annotations of ``index.json``.
The rules are those of containerd's importer (core/images/archive) and of its ``ctr images import``. A pod's
image is looked up by its full name, ``docker.io/library/busybox:1.36`` for ``busybox:1.36``
(distribution/reference, ParseDockerRef).
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

MAX_JSON = 20 * 1024 * 1024
"""Bytes of such a file that containerd reads."""

NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"


def full(name: str) -> str:
    """Return an image's name as containerd looks for it.

    Args:
        name: A name as it stands in a pod.
    """
    name, at, digest = name.partition("@")
    head, slash, rest = name.partition("/")
    if not slash or not (set(".:") & set(head) or head == "localhost"):
        head, rest = "docker.io", name
    if head == "docker.io" and "/" not in rest:
        rest = f"library/{rest}"
    repository, colon, tag = rest.partition(":")
    if at:
        return f"{head}/{repository}@{digest}"
    return f"{head}/{repository}:{tag if colon else 'latest'}"


def names_in(tar: Path) -> tuple[str, ...] | None:
    """Return the names in an archive that a pod can use; None if it is not an image archive.

    Args:
        tar: The archive, which may be compressed.
    """
    found: dict[str, Any] = {}
    try:
        with tarfile.open(tar) as archive:
            for member in archive:
                path = str(PurePosixPath(member.name))
                if path in {"manifest.json", "index.json", "oci-layout"} and member.isfile():
                    file = archive.extractfile(member)
                    found[path] = json.loads(file.read(MAX_JSON)) if file is not None else None
    except (tarfile.TarError, ValueError, EOFError, OSError):
        return None
    try:
        if "oci-layout" in found:
            return _of_layout(found.get("index.json", {}))
        return None if "manifest.json" not in found else _of_docker(found["manifest.json"])
    except (AttributeError, TypeError):
        return None  # containerd's own message names the fault


def _of_docker(manifests: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for each in manifests for name in each.get("RepoTags") or ()))


def _of_layout(index: Mapping[str, Any]) -> tuple[str, ...]:
    notes = [each.get("annotations") or {} for each in index.get("manifests") or ()]
    names = [note.get(NAME) or note.get(REF_NAME) or "" for note in notes]
    # A name of an OCI layout is stored as it is: one that is not a full name is never found.
    return tuple(dict.fromkeys(name for name in names if name and full(name) == name))
