"""Which variables of the environment are recorded."""

from __future__ import annotations

from dataclasses import asdict

from pytest_k3s_sandbox.sandbox.limits import Wanted
from pytest_k3s_sandbox.settings import OPTIONS, variables


def test_options_are_recorded_and_secrets_are_not() -> None:
    given = {
        "K3S_TOKEN": "secret",
        "K3S_URL": "https://example.test",
        "K3S_LAYERS": "fake_cni",
        "K3S_SANDBOX": "host",
        "K3S_SANDBOX_RELEASES": "0",
        "K3S_SANDBOX_HOME": "/somewhere",
        "PATH": "/bin",
    }
    assert variables(given) == {"K3S_LAYERS": "fake_cni", "K3S_SANDBOX": "host", "K3S_SANDBOX_RELEASES": "0"}


def test_limits_have_one_default() -> None:
    """The options name it as text, because the plugin imports little."""
    defaults = {option.name: option.default for option in OPTIONS}
    assert {name: defaults[name] for name in ("memory", "disk", "processes")} == asdict(Wanted())
