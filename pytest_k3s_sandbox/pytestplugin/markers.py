"""The plugin's markers: checked at collection, before a node starts."""

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
    """Refuse invalid markers of a test.

    Raises:
        UsageError: A marker has an invalid argument, or has no effect on this test.
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
            f"{item.nodeid}: marker k3s_layers: the test uses no node, so the marker has no effect\n"
            "Remedy: give it one of the fixtures k3s_layers, k3s, k3s_node or k3s_namespace"
        )


def check_shareable(item: pytest.Item) -> None:
    """Refuse an experiment's test on a shared cluster, because other tests would change its measurements.

    Raises:
        ConfigError: The test belongs to an experiment, and has no stack of its own.
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
    """Return the argument names of a ``parametrize`` marker."""
    names = mark.args[0] if mark.args else mark.kwargs.get("argnames", ())
    return tuple(name.strip() for name in (names.split(",") if isinstance(names, str) else names))


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Parametrize the fixture ``k3s_layers`` of a test with the marker of that name.

    It ignores invalid markers, which :func:`check` refuses: an error here would fail the whole module.
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
    """Return the tests in a new order: those with a stack of their own run after those that share a node.

    A test with its own stack has the same fixture with another parameter. Therefore pytest ends the shared
    node before this test, and the next test would start the node again, in a used sandbox. If all tests
    share a node, or none does, the order stays.

    Args:
        items: The tests, in pytest's order.
        scope: The scope of a node.
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
    """Return the part of the collection that shares a node of this scope; None for the session."""
    kinds: dict[str, type[pytest.Collector]] = {
        "package": pytest.Package,
        "module": pytest.Module,
        "class": pytest.Class,
    }
    return item.getparent(kinds[scope]) if scope in kinds else None
