"""Parse the text of an option: a function for each kind of value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from pytest_k3s_sandbox.errors import ConfigError
from pytest_k3s_sandbox.settings.options import Given

Value = TypeVar("Value")

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

FLAGS = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


def text(given: Given) -> str:
    """Return the text unchanged."""
    return given.value


def parse_flag(given: Given) -> bool:
    """Return whether a flag is on; it is off by default.

    Raises:
        ConfigError: The value is not valid for a flag.
    """
    word = given.value.strip().lower()
    if word and word not in FLAGS:
        raise ConfigError(f"{given.source}: {given.value!r} is not one of {', '.join(FLAGS)}")
    return bool(word) and FLAGS[word]


LAST_PORT = 65535


def parse_port(given: Given) -> int:
    """Return a TCP port.

    Raises:
        ConfigError: The text is not a number from 1 to 65535.
    """
    digits = given.value
    # isdecimal() accepts the digits of every script, and int() is slow for a very long number.
    plain = digits.isascii() and digits.isdecimal() and len(digits) <= len(str(LAST_PORT))
    if not (plain and 0 < int(digits) <= LAST_PORT):
        raise ConfigError(f"{given.source}: {digits!r} is not a TCP port (1 to {LAST_PORT})")
    return int(digits)


def parse_ports(given: Given) -> tuple[int, ...]:
    """Return the TCP ports of a text like ``5000,8080``; an empty tuple for ``none``.

    Raises:
        ConfigError: A port is not a number from 1 to 65535.
    """
    words = [word.strip() for word in given.value.split(",") if word.strip()]
    if words == ["none"]:
        return ()
    return tuple(dict.fromkeys(parse_port(replace(given, value=word)) for word in words))


def parse_layers(given: Given) -> tuple[str, ...] | None:
    """Return the layers' words in the order of a stack; None for the default.

    Raises:
        ConfigError: A layer or a variant is unknown.
    """
    if given.value == "default":
        return None
    from pytest_k3s_sandbox.layers.stack import parse

    return _from_source(given, parse)


def parse_version(given: Given) -> str | None:
    """Return the pinned version of Kubernetes that a text names; None for the default.

    Raises:
        ConfigError: The text does not match a pinned version.
    """
    if given.value == "default":
        return None
    from pytest_k3s_sandbox.toolchain.pins import kubernetes_versions, pick

    return _from_source(given, lambda value: pick(value, kubernetes_versions()))


def parse_duration(given: Given) -> float:
    """Return the seconds of a text like ``90``, ``90s``, ``5m``, ``1h`` or ``2d``.

    Raises:
        ConfigError: The text is not a duration, or not positive.
    """
    value = given.value
    number, unit = (value[:-1], value[-1]) if value[-1:] in UNITS else (value, "s")
    try:
        seconds = float(number) * UNITS[unit]
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"{given.source}: {value!r} is not a duration like 90s, 5m or 1h")
    return seconds


def parse_timeout_scale(given: Given) -> float:
    """Return the factor of a text like ``1`` or ``2.5``.

    Raises:
        ConfigError: The text is not a number, or less than 1.
    """
    try:
        factor = float(given.value)
    except ValueError:
        factor = 0.0
    if not 1 <= factor < float("inf"):
        raise ConfigError(f"{given.source}: {given.value!r} is not a factor of 1 or more")
    return factor


def _limit(name: str) -> Callable[[Given], str]:
    def parse(given: Given) -> str:
        from pytest_k3s_sandbox.sandbox.limits import Wanted

        _from_source(given, lambda value: Wanted(**{name: value}))
        return given.value

    return parse


def _from_source(given: Given, parse: Callable[[str], Value]) -> Value:
    """Parse a value; an error names its source."""
    try:
        return parse(given.value)
    except ConfigError as error:
        raise ConfigError(f"{given.source}: {error}") from error


PARSERS: dict[str, Callable[[Given], object]] = {
    "layers": parse_layers,
    "duration": parse_duration,
    "timeout-scale": parse_timeout_scale,
    "share": parse_flag,
    "version": parse_version,
    "api-port": parse_port,
    "open-ports": parse_ports,
    "memory": _limit("memory"),
    "disk": _limit("disk"),
    "processes": _limit("processes"),
    "require": parse_flag,
}
"""The parsers of options by name; other options keep their text."""
