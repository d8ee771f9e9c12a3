"""Declares the layer ``fake_cni``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_k3s_sandbox.layers.declaration import Declaration

if TYPE_CHECKING:  # see layers/declaration.py
    from pytest_k3s_sandbox.layers.base import Layer
    from pytest_k3s_sandbox.sandbox.base import Sandbox


def _make(sandbox: Sandbox, _variant: str | None) -> Layer:
    from pytest_k3s_sandbox.layers.cni.layer import FakeCni

    return FakeCni(sandbox)


LAYER = Declaration(
    name="fake_cni",
    make=_make,
    native=True,  # a node is not Ready without a CNI plugin
    gives="pods their addresses",
)
