"""Merges the overrides of a stack of layers."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_k3s_sandbox.layers.base import NodeOverrides


def merge(each: Iterable[NodeOverrides]) -> NodeOverrides:
    """Merge the overrides of several layers.

    Args:
        each: The layers' overrides, in the order of the stack.

    Returns:
        All overrides in one: a later layer wraps around an earlier one, adds to its environment,
        and replaces its folders and runtimes.
    """
    wrap: dict[str, tuple[str, ...]] = {}
    environment: dict[str, str] = {}
    runtimes: dict[str, str] = {}
    bin_dir = conf_dir = None
    for overrides in each:
        for role, argv in overrides.wrap.items():
            wrap[role] = (*argv, *wrap.get(role, ()))
        environment |= overrides.environment
        bin_dir = overrides.cni_bin_dir or bin_dir
        conf_dir = overrides.cni_conf_dir or conf_dir
        runtimes |= overrides.runtimes
    return NodeOverrides(wrap, environment, bin_dir, conf_dir, runtimes)
