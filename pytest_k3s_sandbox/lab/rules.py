"""Worker nodes under the interceptor's rules, for experiments 04 and 06.

Both experiments try the same two stacks of layers, without and with their rules. The workarounds are those
that the research had beside its interceptor, without the ones that replace the interceptor: the tree of
/proc/sys is there, but only a rule leads to it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_k3s_sandbox.lab.observe import Observation
from pytest_k3s_sandbox.layers.stack import parse
from pytest_k3s_sandbox.report.records import Stage

INTERCEPTOR = (sys.executable, "-m", "pytest_k3s_sandbox.layers.interceptor")
"""The command line of the interceptor, without its options."""

OWN = "workarounds:cgroups+kmsg+oci+private+tree,fake_cni"
"""The layers of a node that uses the sandbox's own cgroups."""

FUSE = "workarounds:kmsg+oci+private+tree,fuse_cgroupfs,fake_cni"
"""The layers of a node that uses the cgroups of experiment 07."""

STATISTICS = "unable to find data in memory cache"
"""A part of the kubelet's error without statistics of the root's file system."""


@dataclass(frozen=True)
class Fate:
    """How far a node gets, and the error that stops it there, as found with Kubernetes 1.34.

    Attributes:
        base: The layers without rules: :data:`OWN` or :data:`FUSE`.
        rules: The layer with the rules; None for a node without rules.
        reached: The last stage that the node reaches.
        words: A part of the error's text.
    """

    base: str
    rules: str | None
    reached: Stage
    words: str

    @property
    def name(self) -> str:
        """A short name for test ids and claims, like ``fuse-rules``."""
        return f"{'fuse' if self.base == FUSE else 'own'}-{'rules' if self.rules else 'none'}"

    @property
    def layers(self) -> Sequence[str]:
        """The layers' words."""
        return parse([*self.base.split(","), *([self.rules] if self.rules else [])])

    @property
    def text(self) -> str:
        """The claim in words."""
        return (
            f"{'With' if self.rules else 'Without'} the rules a node of {self.base} gets as far as "
            f"'{self.reached}', and the error speaks of '{self.words}'"
        )

    def holds(self, seen: Observation) -> bool:
        """Tell whether a node was stopped at this stage, by this error."""
        return seen.reached is self.reached and seen.speaks_of(self.words)
