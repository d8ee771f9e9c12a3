"""The settings of a run: one typed object, made from the values of the options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_k3s_sandbox.errors import ConfigError
from pytest_k3s_sandbox.settings.options import BY_NAME, Given
from pytest_k3s_sandbox.settings.parsing import PARSERS, text


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
        runtime: The OCI runtime, one of ``RUNTIMES``, or ``default``.
        api_port: The API server's TCP port.
        open_ports: TCP ports of the machine that programs inside may reach.
        memory: The memory that a sandbox may take, as text.
        disk: The disk that a sandbox may take, as text.
        processes: How many processes a sandbox may have, as text.
        require: Whether missing capabilities fail.
        notes: Hints that former words have new names.
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
    runtime: str
    api_port: int
    open_ports: tuple[int, ...]
    memory: str
    disk: str
    processes: str
    require: bool
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, given: Mapping[str, Given], root: Path) -> Settings:
        """Make settings from the values of options.

        Args:
            given: The values by the options' names; a missing option has its default.
            root: The base folder of a relative ``report``.

        Raises:
            ConfigError: An option has an invalid value; the message names its source.
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
