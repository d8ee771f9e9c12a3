"""README names commands, options, variables and fixtures that there are."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import typer

from pytest_k3s_sandbox import settings
from pytest_k3s_sandbox.cli import main
from pytest_k3s_sandbox.pytestplugin import fixtures
from support.blocks import ROOT

if not (ROOT / "docs").is_dir():
    pytest.skip("not applicable: this is not a checkout", allow_module_level=True)

TEXT = (ROOT / "README.md").read_text()
GROUP: Any = typer.main.get_command(main.app)


def test_options_of_pytest() -> None:
    known = {f"--k3s-{option.name}" for option in settings.OPTIONS}
    named = set(re.findall(r"--k3s-[\w-]*\w", TEXT))
    assert len(named) > 5
    assert named - known == set()


def test_variables() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "pytest_k3s_sandbox").rglob("*.py"))
    known = {option.variable for option in settings.OPTIONS}
    named = set(re.findall(r"\bK3S_[A-Z_]+[A-Z]\b", TEXT))
    assert named
    programs = {"K3S_SANDBOX_KUBELET"}  # made of the program's name
    assert [name for name in named - known - programs if f'"{name}"' not in sources] == []


def test_fixtures() -> None:
    (table,) = re.findall(r"\| fixture \| gives \|\n\|---\|---\|\n((?:\|.*\n)+)", TEXT)
    named = {name for line in table.splitlines() for name in re.findall(r"`(k3s\w*)`", line.split("|")[1])}
    assert len(named) > 8
    assert named - set(fixtures.__all__) == set()


def test_commands() -> None:
    (block,) = re.findall(r"^```\n(k3s-sandbox doctor.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    named = set()
    for line in block.splitlines():
        words = re.split(r"\s{2,}", line)[0].removeprefix("k3s-sandbox ")
        for name in words.split()[:1] + re.findall(r"\| (\w+)", words):
            named.add(name)
            taken = {word for parameter in GROUP.commands[name].params for word in parameter.opts}
            assert set(re.findall(r"--\w[\w-]*", line)) <= taken, line
    assert named == set(GROUP.commands)
    for inline in re.findall(r"`k3s-sandbox ([^`]*)`", TEXT):
        assert shlex.split(inline)[0] in GROUP.commands
