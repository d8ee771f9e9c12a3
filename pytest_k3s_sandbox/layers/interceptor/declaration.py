"""Declares the layer ``ptrace_interceptor``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_k3s_sandbox.layers.declaration import Declaration

if TYPE_CHECKING:  # see layers/declaration.py
    from pytest_k3s_sandbox.layers.base import Layer
    from pytest_k3s_sandbox.sandbox.base import Sandbox


def _make(sandbox: Sandbox, variant: str | None) -> Layer:
    from pytest_k3s_sandbox.layers.interceptor.layer import PRESET, PtraceInterceptor
    from pytest_k3s_sandbox.layers.workarounds.layer import TREE

    return PtraceInterceptor(sandbox, variant or PRESET, tree=TREE)


def _check_variant(variant: str) -> None:
    from pytest_k3s_sandbox.layers.interceptor.loading import load_preset

    load_preset(variant)


LAYER = Declaration(
    name="ptrace_interceptor",
    make=_make,
    check_variant=_check_variant,
    needs=("workarounds",),  # they make the tree that redirected paths lead to
    wraps=("kubelet", "containerd"),
)
