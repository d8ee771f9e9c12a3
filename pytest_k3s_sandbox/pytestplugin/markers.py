"""What the markers mean: checked at collection, before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pytest_k3s_sandbox.pytestplugin.stash import EXPERIMENT

CAPABILITIES = ("root", "fuse", "ptrace", "gvisor")
STACK = "k3s_layers"  # the marker, and the fixture that it parametrizes
MARKERS = {
    "k3s_layers": "k3s_layers(*names): the stack of layers that this test runs its node with",
    "k3s_requires": f"k3s_requires(*capabilities): what the machine must have: {', '.join(CAPABILITIES)}",
}


def check(item: pytest.Item) -> None:
    """Refuse a test's markers when they mean nothing.

    Raises:
        UsageError: One has arguments that it cannot have, or no effect on this test.
    """
    from pytest_k3s_sandbox.errors import ConfigError

    for mark in item.iter_markers():
        if mark.name not in MARKERS:
            continue
        try:
            _check_arguments(mark)
        except ConfigError as error:
            raise pytest.UsageError(f"{item.nodeid}: marker {mark.name}: {error}") from None
    if not isinstance(item, pytest.Function) or item.get_closest_marker("k3s_layers") is None:
        return
    if any("k3s_layers" in argument_names(mark) for mark in item.iter_markers("parametrize")):
        raise pytest.UsageError(
            f"{item.nodeid}: has the marker k3s_layers and parametrizes k3s_layers, too\n"
            "Remedy: name every stack in the parametrization, and drop the marker"
        )
    own = any(mark.name == "k3s_layers" for mark in item.own_markers)
    if own and "k3s_layers" not in item.fixturenames:
        raise pytest.UsageError(
            f"{item.nodeid}: marker k3s_layers: the test has no node whose layers that could be\n"
            "Remedy: give it one of the fixtures k3s_layers, k3s, k3s_node or k3s_namespace"
        )


def check_shareable(item: pytest.Item) -> None:
    """Refuse an experiment's test on a shared cluster: what it measures would not be its own.

    Raises:
        ConfigError: The test is one, and its node is not of a stack of its own.
    """
    from pytest_k3s_sandbox.errors import ConfigError

    experiment = item.stash.get(EXPERIMENT, None)
    if (
        experiment is not None
        and "k3s_layers" in getattr(item, "fixturenames", ())
        and not _has_own_stack(item)
    ):
        raise ConfigError(
            f"{item.nodeid}",
            cause=f"it measures for {experiment}, and the cluster is shared with other tests",
            remedy="run experiments without --k3s-share",
        )


def _check_arguments(mark: pytest.Mark) -> None:
    from pytest_k3s_sandbox.errors import ConfigError
    from pytest_k3s_sandbox.layers.stack import parse

    if mark.kwargs:
        raise ConfigError(f"unknown argument {next(iter(mark.kwargs))!r}", cause="it takes names only")
    if mark.name == "k3s_layers":
        parse([str(name) for name in mark.args])
    elif mark.name == "k3s_requires":
        unknown = [name for name in mark.args if name not in CAPABILITIES]
        if unknown:
            raise ConfigError(
                f"unknown capability {unknown[0]!r}", cause=f"known are {', '.join(CAPABILITIES)}"
            )


def argument_names(mark: pytest.Mark) -> tuple[str, ...]:
    """Return the names that a ``parametrize`` marker gives values to."""
    names = mark.args[0] if mark.args else mark.kwargs.get("argnames", ())
    return tuple(name.strip() for name in (names.split(",") if isinstance(names, str) else names))


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Give a test with the marker ``k3s_layers`` its stack, by parametrizing the fixture of that name.

    What is wrong about its markers is left to :func:`check`: here, an error would be a broken module.
    """
    from pytest_k3s_sandbox.errors import ConfigError
    from pytest_k3s_sandbox.layers.stack import parse

    mark = metafunc.definition.get_closest_marker("k3s_layers")
    if mark is None or "k3s_layers" not in metafunc.fixturenames:
        return
    if any(
        "k3s_layers" in argument_names(other) for other in metafunc.definition.iter_markers("parametrize")
    ):
        return
    try:
        names = ",".join(parse([str(name) for name in mark.args])) or "none"
    except ConfigError:
        return
    # A text, because pytest compares parameters: tests with equal stacks share one node.
    metafunc.parametrize("k3s_layers", [names], indirect=True, ids=[f"layers={names.replace(',', '+')}"])


def group(items: Sequence[pytest.Item], scope: str) -> list[pytest.Item]:
    """Return tests in an order in which a shared node is not ended for one with a stack of its own.

    Such a test ends the shared cluster, as it has the same fixture with another parameter: after it,
    the cluster would have to come up again, in a sandbox that another one has been in. Therefore it
    runs after those that share. Where nothing is mixed, the order stays.

    Args:
        items: The tests, as pytest ordered them.
        scope: How long a node lives.
    """
    users = [item for item in items if "k3s_layers" in getattr(item, "fixturenames", ())]
    if scope == "function" or len({_has_own_stack(item) for item in users}) < 2:  # noqa: PLR2004 - both kinds
        return list(items)
    places: dict[object, int] = {}
    for item in items:
        places.setdefault(_place(item, scope), len(places))
    return sorted(items, key=lambda item: (places[_place(item, scope)], _has_own_stack(item)))


def _has_own_stack(item: pytest.Item) -> bool:
    callspec: Any = getattr(item, "callspec", None)
    return callspec is not None and "k3s_layers" in callspec.params


def _place(item: pytest.Item, scope: str) -> object:
    """Return what a node of this scope is shared in."""
    kinds: dict[str, type[pytest.Collector]] = {
        "package": pytest.Package,
        "module": pytest.Module,
        "class": pytest.Class,
    }
    return item.getparent(kinds[scope]) if scope in kinds else None
