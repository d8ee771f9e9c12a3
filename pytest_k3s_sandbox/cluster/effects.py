"""What a stack of layers does to a node, merged from each layer's effect."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_k3s_sandbox.layers.base import Effect


def merge(effects: Iterable[Effect]) -> Effect:
    """Merge effects in the order of the stack.

    Args:
        effects: The layers' effects, the first layer's first.

    Returns:
        One effect: a later layer wraps around an earlier one, adds to its environment,
        and replaces its folders and runtime.
    """
    wrap: dict[str, tuple[str, ...]] = {}
    environment: dict[str, str] = {}
    bin_dir = conf_dir = runtime = None
    for effect in effects:
        for role, words in effect.wrap.items():
            wrap[role] = (*words, *wrap.get(role, ()))
        environment |= effect.environment
        bin_dir = effect.cni_bin_dir or bin_dir
        conf_dir = effect.cni_conf_dir or conf_dir
        runtime = effect.runtime or runtime
    return Effect(wrap, environment, bin_dir, conf_dir, runtime)
