"""Declares the layer ``services``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_k3s_sandbox.layers.declaration import Declaration

if TYPE_CHECKING:  # see layers/declaration.py
    from pytest_k3s_sandbox.layers.base import Layer
    from pytest_k3s_sandbox.sandbox.base import Sandbox


def _make(sandbox: Sandbox, _variant: str | None) -> Layer:
    from pytest_k3s_sandbox.layers.services.layer import Services

    return Services(sandbox)


LAYER = Declaration(
    name="services",
    make=_make,
    needs=("pod_network",),
    native=True,
    usual=False,
    processes=("services",),
)
