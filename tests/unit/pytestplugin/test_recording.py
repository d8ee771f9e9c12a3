"""The lines at the end of a run about a cluster that `--k3s-keep=running` has kept."""

from __future__ import annotations

import shlex
from typing import Any

from typer.main import get_command

from pytest_k3s_sandbox.cli.main import app
from pytest_k3s_sandbox.pytestplugin.recording import goes_on


def test_each_line_about_a_kept_cluster_is_a_command_that_there_is() -> None:
    head, *lines = goes_on("kept-12").splitlines()
    assert head == "k3s-sandbox: a cluster goes on, for a look (k3s-sandbox ps lists it):"
    words = [shlex.split(line) for line in lines]
    assert words == [
        ["k3s-sandbox", "kubectl", "--name", "kept-12", "--", "get", "pods,events", "-A"],
        ["k3s-sandbox", "shell", "--name", "kept-12"],
        ["k3s-sandbox", "stop", "kept-12"],
    ]
    group: Any = get_command(app)
    for _, name, *arguments in words:
        group.commands[name].make_context(name, arguments)
