"""Declare the options to pytest, and read their values from its configuration."""

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
    """Return the sources of an option and their values, the strongest first."""
    return (
        (f"--k3s-{option.name}", config.getoption(option.dest)),
        (f"environment variable {option.variable}", os.environ.get(option.variable)),
        (f"ini option {option.dest}", config.getini(option.dest)),
    )


def resolve(option: Option, config: pytest.Config) -> Given:
    """Return an option's value: command line, then environment, then ini file, then default.

    Raises:
        ConfigError: The value is not one of the choices; the message names its source.
    """
    before = repeat(None) if option.before is None else places(option.before, config)
    return resolved(option, zip(places(option, config), before, strict=False))


def settings(config: pytest.Config) -> Settings:
    """Resolve all options.

    Raises:
        ConfigError: An option has an invalid value.
    """
    return Settings.of({option.name: resolve(option, config) for option in OPTIONS}, config.rootpath)


def on_command_line(config: pytest.Config) -> bool:
    """Return whether the command line has an option of this plugin."""
    return any(
        config.getoption(each.dest) is not None
        for option in OPTIONS
        for each in (option, option.before)
        if each is not None
    )


def wants_share(config: pytest.Config) -> bool:
    """Return whether workers share one cluster; False for an invalid value, which fails the tests later."""
    try:
        return parse_flag(resolve(BY_NAME["share"], config))
    except ConfigError:
        return False


def scope(config: pytest.Config) -> str:
    """Return the scope of a node; the default for an invalid value, which fails the tests later."""
    try:
        return resolve(BY_NAME["scope"], config).value
    except ConfigError:
        return BY_NAME["scope"].default
