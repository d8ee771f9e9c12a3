"""The settings of a run, from the command line, the environment and the ini file."""

from pytest_k3s_sandbox.settings.options import (
    BY_NAME,
    DISTRIBUTIONS,
    FORMER_KINDS,
    KINDS,
    OPTIONS,
    RUNTIMES,
    Given,
    Option,
    Place,
    resolve,
    variables,
)
from pytest_k3s_sandbox.settings.parsing import LAST_PORT, parse_duration, parse_flag, parse_port
from pytest_k3s_sandbox.settings.resolved import Settings

__all__ = [
    "BY_NAME",
    "DISTRIBUTIONS",
    "FORMER_KINDS",
    "KINDS",
    "LAST_PORT",
    "OPTIONS",
    "RUNTIMES",
    "Given",
    "Option",
    "Place",
    "Settings",
    "parse_duration",
    "parse_flag",
    "parse_port",
    "resolve",
    "variables",
]
