"""Declares the layer ``fuse_cgroupfs``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_k3s_sandbox.layers.declaration import Declaration

if TYPE_CHECKING:  # see layers/declaration.py
    from pytest_k3s_sandbox.layers.base import Layer
    from pytest_k3s_sandbox.sandbox.base import Sandbox


def _make(sandbox: Sandbox, _variant: str | None) -> Layer:
    from pytest_k3s_sandbox.layers.cgroupfs.layer import FuseCgroupfs

    return FuseCgroupfs(sandbox)


LAYER = Declaration(
    name="fuse_cgroupfs",
    make=_make,
    needs=("workarounds",),  # they change how mounts propagate
    processes=("cgroupfs",),
)
