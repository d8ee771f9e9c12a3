"""The names of the cache's entries: another way to get a program is another entry."""

from __future__ import annotations

import hashlib
import platform
from typing import TYPE_CHECKING

from pytest_k3s_sandbox.errors import MissingCapability
from pytest_k3s_sandbox.toolchain import golang

if TYPE_CHECKING:
    from pytest_k3s_sandbox.toolchain.pins import Build, Pin, Release

ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64"}


def architecture() -> str:
    """Return this machine's architecture as Go calls it.

    Raises:
        MissingCapability: It is not one that programs are pinned for.
    """
    machine = platform.machine()
    if machine.lower() not in ARCHITECTURES:
        raise MissingCapability(
            f"architecture {machine} is not supported",
            cause="programs are pinned for x86_64 (amd64) only, and so is the interceptor",
            remedy="use an x86_64 machine",
        )
    return ARCHITECTURES[machine.lower()]


def release_key(pin: Pin, official: Release) -> str:
    """Return the entry's name for a program from a release.

    Args:
        pin: The program.
        official: Its release.
    """
    # An entry of another digest, or of a version that pinned none, is another entry.
    what = (official.url, sorted(official.archive.items()), official.sha256 or "unpinned")
    digest = hashlib.sha256(repr(what).encode()).hexdigest()
    name = pin.group if official.archive else pin.name
    return f"{name}-{official.version}-release-{digest[:12]}"


def build_key(pin: Pin, build: Build, arch: str) -> str:
    """Return the entry's name for a group that is built.

    Args:
        pin: A program of the group.
        build: How it is built.
        arch: The architecture, as Go calls it.
    """
    return f"{pin.group}-{pin.version}-build-{golang.recipe_digest(build, arch)[:12]}"
