"""Declares the layer ``workarounds``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_k3s_sandbox.layers.declaration import Declaration

if TYPE_CHECKING:  # see layers/declaration.py
    from pytest_k3s_sandbox.layers.base import Layer
    from pytest_k3s_sandbox.sandbox.base import Sandbox


def _make(sandbox: Sandbox, variant: str | None) -> Layer:
    from pytest_k3s_sandbox.layers.workarounds.layer import Workarounds

    return Workarounds(sandbox) if variant is None else Workarounds.only(sandbox, variant)


def _check_variant(variant: str) -> None:
    from pytest_k3s_sandbox.layers.workarounds.layer import parse_parts

    parse_parts(variant)


LAYER = Declaration(
    name="workarounds",
    make=_make,
    check_variant=_check_variant,
    native=True,  # it protects the machine's kernel tunables
    processes=(),  # the holder of /dev/kmsg only sleeps
)
