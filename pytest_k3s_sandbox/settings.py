"""The settings of a run: one typed object, made once from a command line, the environment and an ini file.

:data:`OPTIONS` is the one list of names, defaults and choices. pytest's part of it is in
:mod:`~pytest_k3s_sandbox.pytestplugin.options`, the command line's in :mod:`~pytest_k3s_sandbox.cli.options`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from pytest_k3s_sandbox.errors import ConfigError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: Its name without ``--k3s-``.
        default: Its value where none is given.
        help: Its effect, for ``--help``.
        choices: The valid values; empty for any.
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
        "the form in which Kubernetes comes: the parts that k3s is made of, or the official k3s binary",
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

BY_NAME = {option.name: option for option in OPTIONS}

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


@dataclass(frozen=True)
class Given:
    """An option's value and where it came from.

    Attributes:
        value: The value, as text.
        source: The command-line option, environment variable or ini option, as a message names it.
        note: A hint for its user at a word that has another name now; None for none.
    """

    value: str
    source: str
    note: str | None = None


Place = tuple[str, str | None]
"""Where an option can be given, as a message names it, and the text there."""


def resolve(option: Option, places: Iterable[tuple[Place, Place | None]], prefix: str = "--k3s-") -> Given:
    """Return an option's value.

    Args:
        option: The option.
        places: The places where it can stand, the strongest first, each with that of its former name.
        prefix: What stands before the option's name on this command line.

    Raises:
        ConfigError: The value is not one of the choices; the message names where it came from.
    """
    for current, former in places:
        for source, value in filter(None, (current, former)):
            if value is None or value == "":
                continue
            note = None if (source, value) == current else f"{source} is now {prefix}{option.name}"
            renamed = option.former_values.get(value)
            if renamed is not None:
                note = f"{source}: {value!r} is now {renamed!r}"
            elif option.choices and value not in option.choices:
                raise ConfigError(f"{source}: {value!r} is not one of {', '.join(option.choices)}")
            return Given(str(renamed or value), source, note)
    return Given(option.default, f"{prefix}{option.name}")


@dataclass(frozen=True)
class Settings:
    """The resolved options; the fields have the options' names.

    Attributes:
        sandbox: The sandbox's kind, one of ``KINDS``.
        layers: The layers' words in the order of a stack, or None for the kind's default.
        scope: The scope of the fixtures that start something.
        duration: Seconds of an experiment's hold.
        timeout_scale: The factor that stretches an experiment's time limits.
        report: The folder of runs.
        keep: Whose run folders are kept, one of ``KEEP``.
        share: Whether workers of pytest-xdist share one cluster.
        version: The version of Kubernetes, or None for the default.
        distribution: The form in which Kubernetes comes, one of ``DISTRIBUTIONS``.
        api_port: The API server's TCP port.
        open_ports: TCP ports of the machine that programs inside may reach.
        memory: The memory that a sandbox may take, as text.
        disk: The disk that a sandbox may take, as text.
        processes: How many processes a sandbox may have, as text.
        require: Whether missing capabilities fail.
        notes: Hints at words that have other names now.
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
    memory: str
    disk: str
    processes: str
    require: bool
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, given: Mapping[str, Given], root: Path) -> Settings:
        """Make settings of what was given.

        Args:
            given: The options by their names; what is missing has its default.
            root: The folder that a relative ``report`` is below.

        Raises:
            ConfigError: One has a value that it cannot have; the message names where it came from.
        """
        found = {name: given.get(name, Given(each.default, name)) for name, each in BY_NAME.items()}
        values = {name: PARSERS.get(name, text)(value) for name, value in found.items()}
        if values["share"] and values["scope"] != "session":
            raise ConfigError(
                f"{found['share'].source}: a cluster that is shared lives for the whole session, "
                f"but {found['scope'].source} is {values['scope']}"
            )
        values["report"] = root / str(values["report"])
        notes = tuple(each.note for each in found.values() if each.note is not None)
        return cls(**{name.replace("-", "_"): value for name, value in values.items()}, notes=notes)  # type: ignore[arg-type] # each parser gives its field's type, which a test compares


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
    """Return the text as it is."""
    return given.value


def parse_flag(given: Given) -> bool:
    """Return whether a flag is on; it is off by default.

    Raises:
        ConfigError: The value is none that a flag can have.
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
    # isdecimal alone is true of digits of every script, and int() takes a number of any length apart slowly.
    plain = digits.isascii() and digits.isdecimal() and len(digits) <= len(str(LAST_PORT))
    if not (plain and 0 < int(digits) <= LAST_PORT):
        raise ConfigError(f"{given.source}: {digits!r} is not a TCP port (1 to {LAST_PORT})")
    return int(digits)


def parse_ports(given: Given) -> tuple[int, ...]:
    """Return TCP ports of a text like ``5000,8080``; none of ``none``.

    Raises:
        ConfigError: One is not a number from 1 to 65535.
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
        ConfigError: None of the pinned versions is meant.
    """
    if given.value == "default":
        return None
    from pytest_k3s_sandbox.toolchain.pins import kubernetes_versions, pick

    return _from_source(given, lambda value: pick(value, kubernetes_versions()))


def parse_duration(given: Given) -> float:
    """Return seconds of a text like ``90``, ``90s``, ``5m``, ``1h`` or ``2d``.

    Raises:
        ConfigError: It is none of these, or not positive.
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
    """Parse a value; an error names where the value came from."""
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
"""What makes a setting of an option's text; the text itself for the others."""
