"""The interceptor as a layer: it wraps the node's programs, and checks the rules with a probe."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Final, Self

from pytest_k3s_sandbox.errors import ConfigError, LayerError, StartError
from pytest_k3s_sandbox.layers.base import Health, NodeOverrides
from pytest_k3s_sandbox.layers.interceptor.loading import load_preset, preset_names
from pytest_k3s_sandbox.layers.interceptor.mounttable import rewrite_mountinfo
from pytest_k3s_sandbox.sandbox.base import STATE_DIR, Sandbox, magic_argv

if TYPE_CHECKING:
    from types import TracebackType

    from pytest_k3s_sandbox.layers.interceptor.rules import Rules

NAME: Final = "ptrace_interceptor"
ROLES: Final = ("kubelet", "containerd")
PRESET: Final = "exp08"
"""The default rule set."""

_PROBE: Final = f"{shlex.join(magic_argv('/'))} && cat /proc/self/mountinfo"
"""Prints f_type and the mount table; a shell starts faster than Python."""


class PtraceInterceptor:
    """The ptrace interceptor around kubelet and containerd.

    The layer has no process of its own: each program starts with its tracer.

    Attributes:
        name: The layer's name, with the preset unless it is the default.
    """

    def __init__(self, sandbox: Sandbox, preset: str = PRESET, tree: str | None = None) -> None:
        """Bind it to a sandbox.

        Args:
            sandbox: Where the node runs.
            preset: The rule set of the kubelet; containerd gets ``<preset>-containerd`` if there is one.
            tree: The folder inside that ``{tree}`` in redirects stands for; None leaves those redirects out.

        Raises:
            ConfigError: The preset is unknown.
        """
        load_preset(preset)
        self.name = NAME if preset == PRESET else f"{NAME}:{preset}"
        special = f"{preset}-containerd"
        self._presets = {"kubelet": preset, "containerd": special if special in preset_names() else preset}
        self._sandbox = sandbox
        self._tree = tree

    @property
    def overrides(self) -> NodeOverrides:
        """The tracer's argv before each program's own, by role."""
        return NodeOverrides(wrap={role: self._wrap(role) for role in ROLES})

    def __enter__(self) -> Self:
        """Check the rules with a program in the sandbox.

        Raises:
            LayerError: The program sees other values, or the interceptor does not work there.
        """
        health = self.check()
        if not health.ok:
            seen = "; ".join(f"{name}: {value}" for name, value in health.details.items())
            raise LayerError(
                f"layer {self.name}",
                cause=f"a program under it does not see what preset {self._presets['kubelet']} says ({seen})",
                remedy="run it by hand: k3s-sandbox intercept --log-level debug -- CMD",
                log=self._sandbox.workdir / "logs",
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Do nothing: a tracer ends with its program."""

    def check(self) -> Health:
        """Run the probe without and with the kubelet's rules, and compare the difference with the rules."""
        try:
            rules = load_preset(self._presets["kubelet"])
            plain = self._probe(())
            under = self._probe(self._wrap("kubelet", stats=False))
        except (StartError, ConfigError, ValueError) as error:
            return Health(ok=False, details={"error": str(error)})
        f_type, first = _expected(rules, *plain)
        seen, seen_first = under[0], under[1].partition("\n")[0]
        return Health(
            ok=(seen, seen_first) == (f_type, first),
            details={
                "statfs /": f"{plain[0]:#x} -> {seen:#x}",
                "statfs / by the rules": f"{f_type:#x}",
                "mountinfo": seen_first,
                "mountinfo by the rules": first,
            },
        )

    def _wrap(self, role: str, *, stats: bool = True) -> tuple[str, ...]:
        argv = [sys.executable, "-m", __package__ or "", "--preset", self._presets[role]]
        if self._tree is not None:
            argv += ["--tree", self._tree]
        if stats:
            argv += ["--stats", f"{STATE_DIR}/stats-{role}.json"]
        return (*argv, "--")

    def _probe(self, wrap: tuple[str, ...]) -> tuple[int, str]:
        f_type, _, mountinfo = self._sandbox.run([*wrap, "sh", "-c", _PROBE]).stdout.partition("\n")
        return int(f_type, 16), mountinfo


def _expected(rules: Rules, f_type: int, mountinfo: str) -> tuple[int, str]:
    """Apply rules to the f_type of ``/`` and to the first line of mountinfo."""
    for rule in rules.statfs:
        if rule.original == f_type and rule.under in {None, "/"}:
            f_type = rule.replacement
            break
    return f_type, rewrite_mountinfo(mountinfo, rules.mounts)[0].partition("\n")[0]
