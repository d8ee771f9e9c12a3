"""The options of the plugin: one prefix, resolved from command line, environment and ini file."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: Its name without ``--k3s-``.
        default: Its value when nobody says anything.
        choices: The valid values; empty for any.
        help: What it does, for ``--help``.
        flag: Whether it takes no value on the command line.
        former: The name that it had before, which still works, with a note; empty for none.
        former_values: Values that had another word before, by that word.
    """

    name: str
    default: str
    help: str
    choices: tuple[str, ...] = ()
    flag: bool = False
    former: str = ""
    former_values: Mapping[str, str] = field(default_factory=dict)

    @property
    def dest(self) -> str:
        """The name in pytest's configuration and ini file."""
        return "k3s_" + self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        """The environment variable."""
        return self.dest.upper()

    @property
    def before(self) -> Option | None:
        """The option under its former name; None if it always had this one."""
        return replace(self, name=self.former, former="") if self.former else None


SCOPES = ("session", "package", "module", "class", "function")

KEEP = ("never", "failed", "always", "running")

KINDS = ("gvisor", "host")
"""The kinds of sandboxes."""

FORMER_KINDS = {"here": "host"}
"""Kinds that had another word before."""

DISTRIBUTIONS = ("embedded", "k3s")
"""The forms in which Kubernetes comes: the parts that k3s is made of, or the official k3s binary."""

OPTIONS = (
    Option("sandbox", "gvisor", "where the node runs", KINDS, former_values=FORMER_KINDS),
    Option(
        "layers", "default", "the layers around the node, with commas; 'none'; or 'default' for all it needs"
    ),
    Option("scope", "session", "how long sandbox, layers and cluster live", SCOPES),
    Option(
        "duration", "120", "seconds for which an experiment holds the node Ready; 90s, 5m and 1h work, too"
    ),
    Option(
        "report", "reports", "the folder in which every run gets a folder of its own, below the root folder"
    ),
    Option(
        "timeout-scale",
        "1",
        "factor that stretches an experiment's time limits, for noisy machines; the report says so",
        former="patience",
    ),
    Option(
        "keep",
        "always",
        "whose run folders are kept: records, logs and diagnostics; 'running' keeps all, and after a "
        "failure the cluster itself, for a look: `k3s-sandbox ps`",
        KEEP,
    ),
    Option("share", "", "workers of pytest-xdist share one cluster, which the last of them ends", flag=True),
    Option(
        "version",
        "default",
        "the version of Kubernetes, like 1.36; 'default' for the first of those that are pinned",
    ),
    Option(
        "distribution",
        "embedded",
        "what Kubernetes comes as: the parts that k3s is made of, or the official k3s binary",
        DISTRIBUTIONS,
    ),
    Option("api-port", "6443", "the API server's port inside the sandbox"),
    Option(
        "open-ports",
        "none",
        "TCP ports of the machine that programs inside may reach, with commas, by the address of their "
        "default route",
    ),
    Option(
        "memory",
        "75%",
        "the memory that a sandbox may take: bytes like 2Gi, a share of the machine's like 75%, or none for "
        "no limit",
    ),
    Option(
        "disk",
        "50%",
        "the disk that a sandbox may take: bytes like 20Gi, a share of what is free like 50%, or none",
    ),
    Option(
        "processes",
        "32768",
        "how many processes and threads a sandbox may have on the machine, or none",
    ),
    Option("require", "", "a missing capability fails instead of skipping (for CI)", flag=True),
)


_BY_NAME = {option.name: option for option in OPTIONS}

_PLACES = {"K3S_SANDBOX_HOME", "K3S_SANDBOX_CACHE", "K3S_REPORT"}


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that are options of this project's, and could change what is measured.

    Others of that prefix are k3s' own, and may hold secrets (K3S_TOKEN).

    Args:
        environ: The environment.
    """
    ours = {each.variable for option in OPTIONS for each in (option, option.before) if each}
    return {
        name: value
        for name, value in environ.items()
        if (name in ours or name.startswith("K3S_SANDBOX_")) and name not in _PLACES
    }


class OptionError(Exception):
    """An option has a value that it cannot have; becomes pytest's UsageError."""


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


@dataclass(frozen=True)
class Given:
    """An option's value and where it came from.

    Attributes:
        value: The value, as text.
        source: The command-line option, environment variable or ini option, as a message names it.
        note: What its user should write instead; None where nothing has changed.
    """

    value: str
    source: str
    note: str | None = None


def resolve(option: Option, config: pytest.Config) -> Given:
    """Return an option's value: command line, then environment, then ini file, then default.

    Raises:
        OptionError: The value is not one of the choices; the message names where it came from.
    """
    for current, former in zip(
        places(option, config), places(option.before, config) if option.before else repeat(None), strict=False
    ):
        for source, value in filter(None, (current, former)):
            if value is None or value == "":
                continue
            note = None if (source, value) == current else f"{source} is now --k3s-{option.name}"
            renamed = option.former_values.get(value)
            if renamed is not None:
                note = f"{source}: {value!r} is now {renamed!r}"
            elif option.choices and value not in option.choices:
                raise OptionError(f"{source}: {value!r} is not one of {', '.join(option.choices)}")
            return Given(str(renamed or value), source, note)
    return Given(option.default, f"--k3s-{option.name}")


def places(option: Option, config: pytest.Config) -> tuple[tuple[str, Any], ...]:
    """Return the places where an option can be given, the strongest first, with what stands there."""
    return (
        (f"--k3s-{option.name}", config.getoption(option.dest)),
        (f"environment variable {option.variable}", os.environ.get(option.variable)),
        (f"ini option {option.dest}", config.getini(option.dest)),
    )


def on_command_line(config: pytest.Config) -> bool:
    """Tell whether an option of ours stands on the command line, which only who uses a node writes."""
    return any(
        config.getoption(each.dest) is not None
        for option in OPTIONS
        for each in (option, option.before)
        if each is not None
    )


def wants_share(config: pytest.Config) -> bool:
    """Tell whether workers share one cluster; a wrong value counts as no, and is a test's error later."""
    try:
        return parse_flag(resolve(_BY_NAME["share"], config))
    except OptionError:
        return False


def scope(config: pytest.Config) -> str:
    """Return how long a node lives; a wrong value counts as the default, until one is wanted."""
    try:
        return resolve(_BY_NAME["scope"], config).value
    except OptionError:
        return _BY_NAME["scope"].default


@dataclass(frozen=True)
class Settings:
    """The resolved options.

    Attributes:
        sandbox: The sandbox's kind.
        layers: The layers' names, or None for the kind's default.
        scope: The scope of the fixtures that start something.
        duration: Seconds of an experiment's hold.
        timeout_scale: The factor that stretches an experiment's time limits.
        report: The folder of runs.
        keep: Whose run folders are kept, one of ``KEEP``.
        share: Whether workers of pytest-xdist share one cluster.
        version: The version of Kubernetes, or None for the default.
        distribution: What Kubernetes comes as.
        api_port: The API server's port.
        open_ports: TCP ports of the machine that programs inside may reach.
        limits: What a sandbox may take of the machine.
        require: Whether missing capabilities fail.
        notes: What is to be written instead of words that are no longer the usual ones.
    """

    sandbox: str
    layers: tuple[str, ...] | None
    scope: str
    duration: float
    timeout_scale: float
    report: Path
    keep: str
    share: bool
    version: str | None
    distribution: str
    api_port: int
    open_ports: tuple[int, ...]
    limits: tuple[str, str, str]
    require: bool
    notes: tuple[str, ...] = ()


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


def parse_flag(given: Given) -> bool:
    """Return whether a flag is on; one that nobody gave is off.

    Raises:
        OptionError: The value is none that a flag can have.
    """
    word = given.value.strip().lower()
    if word and word not in FLAGS:
        raise OptionError(f"{given.source}: {given.value!r} is not one of {', '.join(FLAGS)}")
    return bool(word) and FLAGS[word]


def parse_port(given: Given) -> int:
    """Return a TCP port.

    Raises:
        OptionError: It is no number from 1 to 65535.
    """
    text = given.value
    # isdecimal alone is true of digits of every script, and int() takes a number of any length apart slowly.
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and 0 < int(text) < 65536):  # noqa: PLR2004 - the range of TCP ports
        raise OptionError(f"{given.source}: {text!r} is not a TCP port (1 to 65535)")
    return int(text)


def parse_ports(given: Given) -> tuple[int, ...]:
    """Return TCP ports of a text like ``5000,8080``; none of ``none``.

    Raises:
        OptionError: One is no number from 1 to 65535.
    """
    words = [word.strip() for word in given.value.split(",") if word.strip()]
    if words == ["none"]:
        return ()
    return tuple(dict.fromkeys(parse_port(Given(word, given.source)) for word in words))


def parse_limits(given: Mapping[str, Given]) -> tuple[str, str, str]:
    """Return what the options say that limit a sandbox: its memory, its disk and its processes.

    Args:
        given: The options by their names.

    Raises:
        OptionError: One says nothing that it could mean.
    """
    from pytest_k3s_sandbox.errors import ConfigError
    from pytest_k3s_sandbox.sandbox.limits import Wanted

    for name in ("memory", "disk", "processes"):
        try:
            Wanted(**{name: given[name].value})
        except ConfigError as error:
            raise OptionError(f"{given[name].source}: {error}") from error
    return given["memory"].value, given["disk"].value, given["processes"].value


def parse_version(given: Given) -> str | None:
    """Return the pinned version of Kubernetes that a text names; None for the default.

    Raises:
        OptionError: None of the pinned versions is meant.
    """
    if given.value == "default":
        return None
    from pytest_k3s_sandbox.errors import ConfigError
    from pytest_k3s_sandbox.toolchain.pins import kubernetes_versions, pick

    try:
        return pick(given.value, kubernetes_versions())
    except ConfigError as error:
        raise OptionError(f"{given.source}: {error}") from error


def parse_duration(text: str, source: str = "--k3s-duration") -> float:
    """Return seconds of a text like ``90``, ``90s``, ``5m``, ``1h`` or ``2d``.

    Args:
        text: The text.
        source: Where it came from, for the message.

    Raises:
        OptionError: It is none of these, or not positive.
    """
    number, unit = (text[:-1], text[-1]) if text[-1:] in UNITS else (text, "s")
    try:
        seconds = float(number) * UNITS[unit]
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise OptionError(f"{source}: {text!r} is not a duration like 90s, 5m or 1h")
    return seconds


def parse_timeout_scale(given: Given) -> float:
    """Return the factor of a text like ``1`` or ``2.5``.

    Raises:
        OptionError: It is no number, or less than 1.
    """
    try:
        factor = float(given.value)
    except ValueError:
        factor = 0.0
    if not 1 <= factor < float("inf"):
        raise OptionError(f"{given.source}: {given.value!r} is not a factor of 1 or more")
    return factor


def settings(config: pytest.Config) -> Settings:
    """Resolve all options.

    Raises:
        OptionError: One has a value that it cannot have.
    """
    from pytest_k3s_sandbox.errors import ConfigError
    from pytest_k3s_sandbox.layers.stack import parse

    given = {option.name: resolve(option, config) for option in OPTIONS}
    words = given["layers"]
    try:
        layers = None if words.value == "default" else parse(words.value)
    except ConfigError as error:
        raise OptionError(f"{words.source}: {error}") from error
    share = parse_flag(given["share"])
    if share and given["scope"].value != "session":
        raise OptionError(
            f"{given['share'].source}: a cluster that is shared lives for the whole session, "
            f"but {given['scope'].source} is {given['scope'].value}"
        )
    return Settings(
        sandbox=given["sandbox"].value,
        layers=layers,
        scope=given["scope"].value,
        duration=parse_duration(given["duration"].value, given["duration"].source),
        timeout_scale=parse_timeout_scale(given["timeout-scale"]),
        report=config.rootpath / given["report"].value,
        keep=given["keep"].value,
        share=share,
        version=parse_version(given["version"]),
        distribution=given["distribution"].value,
        api_port=parse_port(given["api-port"]),
        open_ports=parse_ports(given["open-ports"]),
        limits=parse_limits(given),
        require=parse_flag(given["require"]),
        notes=tuple(each.note for each in given.values() if each.note is not None),
    )
