"""Pinning releases: fetched, checked against their publishers' checksums, and written down for review.

Where a publisher states no checksum, nothing but a pinned one is there to compare with; the line says so.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_k3s_sandbox.errors import ConfigError, ProvisionError
from pytest_k3s_sandbox.toolchain import release
from pytest_k3s_sandbox.toolchain.cache import sha256_of
from pytest_k3s_sandbox.toolchain.progress import Work

if TYPE_CHECKING:
    from pytest_k3s_sandbox.toolchain.pins import Release
    from pytest_k3s_sandbox.toolchain.resolve import Toolchain


UNSTATED = "# Its publisher states no checksum: compare this one with another source.\n"


def pin(toolchain: Toolchain, names: Iterable[str] | None = None) -> dict[str, str]:
    """Fetch releases and return their sha256 by their addresses; nothing of them is kept or run.

    Args:
        toolchain: Its pins say which releases there are.
        names: The programs; by default all that have a release.

    Raises:
        ConfigError: A program has no release.
        ChecksumError: A file's hash differs from the published or the pinned one.
        ProvisionError: A release could not be fetched.
    """
    programs = toolchain.pins.programs
    wanted = [name for name, one in programs.items() if one.release] if names is None else list(names)
    found: dict[str, str] = {}
    for name in wanted:
        official = programs[name].release if name in programs else None
        if official is None:
            known = ", ".join(name for name, one in programs.items() if one.release)
            raise ConfigError(
                f"program {name!r} cannot be pinned", cause="it has no release", remedy=f"these have: {known}"
            )
        if official.url not in found:
            found[official.url] = _digest(toolchain, official)
    return found


def _digest(toolchain: Toolchain, official: Release) -> str:
    what = f"fetching {official.url}"
    try:
        with Work(toolchain.progress, what) as work, tempfile.TemporaryDirectory() as folder:
            if official.checksum_url is None:
                file = Path(folder, "release")
                release.fetch(official.url, file, work, loopback=toolchain.loopback)
            else:
                file = release.download(
                    replace(official, sha256=None), Path(folder), work, loopback=toolchain.loopback
                )
            digest = sha256_of(file)
    except (OSError, HTTPException) as error:
        raise ProvisionError(
            f"{official.url} could not be fetched", cause=str(error), remedy="repeat it with a network"
        ) from error
    if official.sha256 not in {None, digest}:
        raise release.ChecksumError(
            f"{official.url} has changed since it was pinned",
            cause=f"sha256 {digest}, pinned {official.sha256}",
            remedy="ask its publisher why, before its line in programs.toml is changed",
        )
    return digest


def unstated(toolchain: Toolchain) -> set[str]:
    """Return the addresses of releases whose publishers state no checksum."""
    releases = [pin.release for pin in toolchain.pins.programs.values() if pin.release]
    return {each.url for each in releases if each.checksum_url is None}


def as_toml(digests: Mapping[str, str], unstated: Collection[str] = ()) -> str:
    """Return the lines for the table ``[sha256]`` of ``programs.toml``.

    Args:
        digests: What :func:`pin` returned.
        unstated: What :func:`unstated` returned; lines of these get a comment for the reviewer.
    """
    # A JSON string is a TOML basic string.
    return "".join(
        (UNSTATED if url in unstated else "") + f"{json.dumps(url)} = {json.dumps(digest)}\n"
        for url, digest in digests.items()
    )
