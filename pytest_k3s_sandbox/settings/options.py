"""The options: the one list of names, defaults and choices, and where the value of one is taken from.

pytest's part of it is in :mod:`~pytest_k3s_sandbox.pytestplugin.options`, the command line's in
:mod:`~pytest_k3s_sandbox.cli.options`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from pytest_k3s_sandbox.errors import ConfigError


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
