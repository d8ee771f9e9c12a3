"""The declaration of a layer, which its folder has as ``LAYER`` in ``declaration.py``.

Declarations are read when options are parsed, so these modules import a layer's own code in functions only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # declarations are imported where options are parsed
    from pytest_k3s_sandbox.layers.base import Layer
    from pytest_k3s_sandbox.sandbox.base import Sandbox


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """One layer that a stack can have.

    Attributes:
        name: The layer's name as in ``--k3s-layers`` and in reports.
        make: Returns the layer bound to a sandbox, not up yet. It is called with the sandbox and the
            variant, None for the usual one.
        check_variant: Raises ConfigError for an unknown variant; None for a layer without variants.
        needs: The layers that come up before it, if they are in the stack.
        native: Whether a node on plain Linux gets the layer, too.
        usual: Whether a stack has the layer if its layers were not named.
        gives: What only one layer of a stack can give; empty for a layer that excludes no other.
        programs: The programs that the layer needs in its sandbox, by their names in the toolchain.
        processes: The names of the layer's own processes in a sandbox; samples record their use.
        wraps: The node's programs that the layer starts as children of a process of its own.
    """

    name: str
    make: Callable[[Sandbox, str | None], Layer]
    check_variant: Callable[[str], None] | None = None
    needs: tuple[str, ...] = ()
    native: bool = False
    usual: bool = True
    gives: str = ""
    programs: tuple[str, ...] = ()
    processes: tuple[str, ...] = ()
    wraps: tuple[str, ...] = ()
