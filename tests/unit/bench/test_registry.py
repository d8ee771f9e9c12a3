"""The benchmarks by name."""

from __future__ import annotations

import inspect

import pytest

from pytest_k3s_sandbox.bench import BENCHMARKS, load, require
from pytest_k3s_sandbox.errors import ConfigError


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_entry_has_a_module_with_bench(name: str) -> None:
    assert list(inspect.signature(load(name)).parameters) == ["count", "say"]
    assert require(name).count >= 2


def test_unknown_name_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown benchmark 'coldstrat'[^?]*did you mean 'coldstart'\?"):
        require("coldstrat")
