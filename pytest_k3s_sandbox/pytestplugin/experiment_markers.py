"""The markers of experiments and of long tests, for the conftest files of this repository.

The plugin does not register them, because other projects may use these names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from pytest_k3s_sandbox.pytestplugin.stash import EXPERIMENT
from pytest_k3s_sandbox.pytestplugin.workers import is_worker

EXPERIMENTS = {f"exp{number:02}": f"experiment {number:02}" for number in range(1, 9)}
MARKERS = {
    **{name: f"{name}: tests of {text}" for name, text in EXPERIMENTS.items()},
    "nightly": "nightly: takes long: runs only when -m has this word, or when named by its id",
}


def register(config: pytest.Config) -> None:
    """Register the markers.

    Args:
        config: pytest's configuration.
    """
    known = config.getini("markers")
    for line in MARKERS.values():
        if line not in known:
            config.addinivalue_line("markers", line)


def apply(config: pytest.Config, items: list[pytest.Item], folder: Path) -> None:
    """Note the experiment of each test below a folder, and deselect nightly tests.

    Args:
        config: pytest's configuration.
        items: The tests; deselected ones are removed.
        folder: The folder of the conftest file that calls this.

    Raises:
        UsageError: A marker has an invalid argument.
    """
    ours = [item for item in items if folder in item.path.parents]
    for item in ours:
        for mark in item.iter_markers():
            if mark.name in MARKERS and not is_worker(config):  # an error at collection crashes a worker
                _check(item, mark)
            if mark.name in EXPERIMENTS:
                item.stash.setdefault(EXPERIMENT, mark.name)
    later = nightly(ours, config.option.markexpr, config.args)
    if later:
        config.hook.pytest_deselected(items=list(later))
        items[:] = [item for item in items if item not in later]


def _check(item: pytest.Item, mark: pytest.Mark) -> None:
    unknown = [repr(word) for word in (*mark.kwargs, *mark.args)]
    if unknown:
        raise pytest.UsageError(
            f"{item.nodeid}: marker {mark.name}: unknown argument {unknown[0]}: it takes none"
        )


def nightly(items: Sequence[pytest.Item], expression: str, arguments: Sequence[str]) -> set[pytest.Item]:
    """Return the nightly tests that this run does not ask for.

    Args:
        items: The collected tests.
        expression: The expression of ``-m``.
        arguments: The positional arguments of the command line.
    """
    if re.search(r"\bnightly\b", expression):
        return set()
    named = tuple(argument.partition("::")[2] for argument in arguments if "::" in argument)
    return {
        item
        for item in items
        if item.get_closest_marker("nightly") is not None
        and not any(item.nodeid.partition("::")[2].startswith(name) for name in named)
    }
