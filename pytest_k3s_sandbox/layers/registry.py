"""Every layer by its name: a layer is a folder with a ``declaration.py``, and an entry in :mod:`.folders`."""

from __future__ import annotations

from importlib import import_module

from pytest_k3s_sandbox.layers.declaration import Declaration
from pytest_k3s_sandbox.layers.folders import FOLDERS


def declared(folder: str) -> Declaration:
    """Return what a folder of this package declares."""
    layer: Declaration = import_module(f"{__package__}.{folder}.declaration").LAYER
    return layer


LAYERS = {layer.name: layer for layer in map(declared, FOLDERS)}
"""The declarations by the layers' names, in the order of :data:`~.folders.FOLDERS`."""

FIXTURES = {declared(folder).name: fixture.name for folder, fixture in FOLDERS.items()}
"""The names of the layers' fixtures by the layers' names."""
