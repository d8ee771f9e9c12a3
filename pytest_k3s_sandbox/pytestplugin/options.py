"""pytest's half of the settings: how options are declared to it, and read from its configuration."""

from __future__ import annotations

import argparse
import os
from itertools import repeat

import pytest

from pytest_k3s_sandbox.errors import ConfigError
from pytest_k3s_sandbox.settings import BY_NAME, OPTIONS, Given, Option, Place, Settings, parse_flag
from pytest_k3s_sandbox.settings import resolve as resolved


def add(parser: pytest.Parser) -> None:
    """Declare the options on the command line and in the ini file."""
    group = parser.getgroup("k3s-sandbox", "Kubernetes nodes in sandboxes")
    for option in OPTIONS:
        text = f"{option.help} (default: {option.default or 'off'}; environment: {option.variable})"
        name = f"--k3s-{option.name}"
        shown = text.replace("%", "%%")  # argparse formats it
        if option.flag:
            group.addoption(name, dest=option.dest, action="store_const", const="1", default=None, help=shown)
        else:
            metavar = "|".join(option.choices) or option.name.upper()
            group.addoption(name, dest=option.dest, metavar=metavar, default=None, help=shown)
        parser.addini(option.dest, help=text, default=None)
        if (before := option.before) is not None:
            group.addoption(f"--k3s-{before.name}", dest=before.dest, default=None, help=argparse.SUPPRESS)
            parser.addini(before.dest, help=f"the former name of {option.dest}", default=None)


def places(option: Option, config: pytest.Config) -> tuple[Place, ...]:
    """Return the places where an option can be given, the strongest first, with what stands there."""
    return (
        (f"--k3s-{option.name}", config.getoption(option.dest)),
        (f"environment variable {option.variable}", os.environ.get(option.variable)),
        (f"ini option {option.dest}", config.getini(option.dest)),
    )


def resolve(option: Option, config: pytest.Config) -> Given:
    """Return an option's value: command line, then environment, then ini file, then default.

    Raises:
        ConfigError: The value is not one of the choices; the message names where it came from.
    """
    before = repeat(None) if option.before is None else places(option.before, config)
    return resolved(option, zip(places(option, config), before, strict=False))


def settings(config: pytest.Config) -> Settings:
    """Resolve all options.

    Raises:
        ConfigError: One has a value that it cannot have.
    """
    return Settings.of({option.name: resolve(option, config) for option in OPTIONS}, config.rootpath)


def on_command_line(config: pytest.Config) -> bool:
    """Tell whether an option of ours stands on the command line, as only a user of nodes writes it."""
    return any(
        config.getoption(each.dest) is not None
        for option in OPTIONS
        for each in (option, option.before)
        if each is not None
    )


def wants_share(config: pytest.Config) -> bool:
    """Tell whether workers share one cluster; a wrong value counts as no, and is a test's error later."""
    try:
        return parse_flag(resolve(BY_NAME["share"], config))
    except ConfigError:
        return False


def scope(config: pytest.Config) -> str:
    """Return how long a node lives; a wrong value counts as the default, until one is wanted."""
    try:
        return resolve(BY_NAME["scope"], config).value
    except ConfigError:
        return BY_NAME["scope"].default
