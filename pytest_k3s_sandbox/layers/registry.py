"""Every layer by its name: a layer is a folder with a ``declaration.py``, and a line here."""

from __future__ import annotations

from importlib import import_module

from pytest_k3s_sandbox.layers.declaration import Declaration

FOLDERS = (
    "workarounds",
    "cgroupfs",
    "interceptor",
    "cni",
)
"""The layers' folders, in the order in which a full stack has the layers."""


def declared(folder: str) -> Declaration:
    """Return what a folder of this package declares."""
    layer: Declaration = import_module(f"{__package__}.{folder}.declaration").LAYER
    return layer


LAYERS = {layer.name: layer for layer in map(declared, FOLDERS)}
"""The declarations by the layers' names, in the order of :data:`FOLDERS`."""
