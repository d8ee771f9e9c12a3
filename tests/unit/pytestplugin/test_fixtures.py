"""What fixtures say in the output of pytest."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pytest_k3s_sandbox.node.spec import NodeSpec
from pytest_k3s_sandbox.pytestplugin.fixtures import note_runtime
from pytest_k3s_sandbox.pytestplugin.stash import LINES


def noted(spec: NodeSpec, crun: object) -> list[str]:
    """Return the lines for a node, which is brought up twice, on a machine with crun or None."""
    lines: list[str] = []
    config: Any = SimpleNamespace(stash={LINES: lines})
    toolchain: Any = SimpleNamespace(find=lambda _name: crun, why=lambda _name: ["not on PATH", "no apt-get"])
    for _ in range(2):
        note_runtime(config, spec, toolchain)
    return lines


def test_a_run_without_crun_says_so_in_one_line() -> None:
    (line,) = noted(NodeSpec(), None)
    assert line == "k3s-sandbox: containers start with runc (no crun: not on PATH; no apt-get)"


def test_a_run_with_crun_or_with_runc_that_was_asked_for_says_nothing() -> None:
    assert noted(NodeSpec(), object()) == []
    assert noted(NodeSpec(runtime="runc"), None) == []
