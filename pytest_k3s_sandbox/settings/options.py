"""The list of options with names, defaults and choices, and the order of their sources.

:mod:`~pytest_k3s_sandbox.pytestplugin.options` declares them to pytest,
:mod:`~pytest_k3s_sandbox.cli.options` to the command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from pytest_k3s_sandbox.errors import ConfigError


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: The name without ``--k3s-``.
        default: The default value.
        help: The effect, for ``--help``.
        choices: The valid values; empty if any value is valid.
        flag: Whether the option takes no value on the command line.
        former: The former name, which still works and adds a note; empty without one.
        former_values: The current values by their former words.
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
        """The option under its former name; None without a former name."""
        return replace(self, name=self.former, former="") if self.former else None


SCOPES = ("session", "package", "module", "class", "function")

KEEP = ("never", "failed", "always", "running")

KINDS = ("gvisor", "host")
"""The kinds of sandboxes."""

FORMER_KINDS = {"here": "host"}
"""The current kinds by their former words."""

DISTRIBUTIONS = ("embedded", "k3s")
"""The forms in which Kubernetes comes: the parts that k3s is made of, or the official k3s binary."""

RUNTIMES = ("crun", "runc")
"""The OCI runtimes that can start a node's containers."""

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
    Option(
        "runtime",
        "default",
        "the OCI runtime that starts containers; 'default' is crun if there is one, for experiments runc",
        ("default", *RUNTIMES),
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
        "the disk that a sandbox may take: bytes like 20Gi, a share of the free space like 50%, or none",
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
    """Return the environment variables of this project that can change a measurement.

    Other variables with the prefix ``K3S_`` belong to k3s, and may contain secrets (K3S_TOKEN).

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
    """An option's value and its source.

    Attributes:
        value: The value, as text.
        source: The command-line option, environment variable or ini option, for messages.
        note: A hint that a former word has a new name; None without one.
    """

    value: str
    source: str
    note: str | None = None


Place = tuple[str, str | None]
"""A source of an option, for messages, and the text there; None if it has none."""


def resolve(option: Option, places: Iterable[tuple[Place, Place | None]], prefix: str = "--k3s-") -> Given:
    """Return an option's value.

    Args:
        option: The option.
        places: The sources, the strongest first, each with the source under the former name.
        prefix: The prefix of option names on this command line.

    Raises:
        ConfigError: The value is not one of the choices; the message names its source.
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
