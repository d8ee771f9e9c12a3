"""The network of pods: a CNI plugin that makes interfaces and routes, and its configuration list."""

from __future__ import annotations

from typing import Final

PLUGIN: Final = "k3s-sandbox-network"
"""The plugin's ``type``, which is the name of its program."""
