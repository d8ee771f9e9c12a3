"""Declares the layer ``pod_network``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_k3s_sandbox.layers.declaration import Declaration
from pytest_k3s_sandbox.layers.pod_network import PLUGIN

if TYPE_CHECKING:  # see layers/declaration.py
    from pytest_k3s_sandbox.layers.base import Layer
    from pytest_k3s_sandbox.sandbox.base import Sandbox


def _make(sandbox: Sandbox, _variant: str | None) -> Layer:
    from pytest_k3s_sandbox.layers.pod_network.layer import PodNetwork

    return PodNetwork(sandbox)


LAYER = Declaration(
    name="pod_network",
    make=_make,
    native=True,
    usual=False,  # until services and names are there, too
    gives="pods their addresses",
    programs=(PLUGIN,),
)
