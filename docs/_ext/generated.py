"""Directives whose text is generated from the code, so that the reference cannot be out of date."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import typer
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from pytest_k3s_sandbox import settings
from pytest_k3s_sandbox.cli import main
from pytest_k3s_sandbox.layers.folders import FOLDERS
from pytest_k3s_sandbox.pytestplugin import fixtures, markers


def cell(text: str) -> str:
    """Return a text that can stand in a table's cell."""
    return " ".join(text.split()).replace("|", "\\|")


def literal(text: str) -> str:
    """Return reStructuredText's inline literals and roles as Markdown's code."""
    text = re.sub(r":\w+:`~?([^`<]*\.)?([^`.<]+)`", r"`\2`", text)
    return re.sub(r"``([^`]+)``", r"`\1`", text)


def option_lines() -> Iterator[str]:
    """Yield a list of the plugin's options."""
    for option in settings.OPTIONS:
        values = ", ".join(f"`{value}`" for value in option.choices)
        facts = [
            "a flag" if option.flag else f"values: {values}" if values else "",
            f"default: `{option.default}`" if option.default else "default: off",
            f"environment: `{option.variable}`",
            f"ini: `{option.dest}`",
        ]
        yield f"`--k3s-{option.name}`\n: {option.help[0].upper()}{option.help[1:]}.\n"
        yield f"  {'; '.join(fact for fact in facts if fact)}.\n"


def marker_lines() -> Iterator[str]:
    """Yield a list of the markers."""
    for line in markers.MARKERS.values():
        name, _, meaning = line.partition(": ")
        yield f"`@pytest.mark.{name}`\n: {meaning}\n"


def fixture_lines() -> Iterator[str]:
    """Yield a section for each public fixture, from its source."""
    tree = ast.parse(Path(inspect.getfile(fixtures)).read_text())
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "_layer_fixture":
            for fixture in FOLDERS.values():
                yield f"## `{fixture.name}`\n"
                yield "Gives `Layer`; scope: as `--k3s-scope` says.\n"
                yield literal(fixture.text) + "\n"
        if not isinstance(node, ast.FunctionDef) or node.name not in fixtures.__all__:
            continue
        text = ast.unparse(node.decorator_list[0])
        scope = (
            "as `--k3s-scope` says" if "_scope" in text else "session" if "session" in text else "function"
        )
        returns = "" if node.returns is None else ast.unparse(node.returns).removeprefix("Iterator")
        gives = returns.strip("[]") if returns.startswith("[") else returns
        yield f"## `{node.name}`\n"
        yield f"Gives `{gives}`; scope: {scope}.\n"
        yield literal(inspect.cleandoc(ast.get_docstring(node) or "")) + "\n"


def command_lines() -> Iterator[str]:
    """Yield a section for each command."""
    group: Any = typer.main.get_command(main.app)
    for name, command in group.commands.items():
        yield f"## `k3s-sandbox {name}`\n"
        yield literal(command.help or "") + "\n"
        rows = [row for parameter in command.params if (row := _parameter(parameter)) is not None]
        if rows:
            yield "| argument | default | what it does |\n|---|---|---|"
            yield from rows
            yield ""


def experiment_lines() -> Iterator[str]:
    """Yield the README of every experiment, with its links as seen from here."""
    for readme in sorted(Path(__file__).parents[2].glob("experiments/exp*/README.md")):
        text = re.sub(r"^#", "##", readme.read_text(), flags=re.MULTILINE)
        text = re.sub(r"\[([^]]*)\]\(\.\./exp\d+\)", r"\1", text)  # they are all on this page
        yield text.replace("](../../docs/", "](").replace("](../../", "](../")


def _parameter(parameter: Any) -> str | None:  # noqa: ANN401 - typer vendors click in some versions
    if parameter.name == "help":
        return None
    words = ", ".join(f"`{word}`" for word in parameter.opts + parameter.secondary_opts)
    if parameter.param_type_name == "argument":
        words = f"`{parameter.name.upper()}`"
    default = parameter.default
    shown = "" if default is None or default is False or callable(default) else f"`{default}`"
    return f"| {words} | {shown} | {cell(literal(getattr(parameter, 'help', None) or ''))} |"


class Generated(SphinxDirective):
    """Parses what a function yields as text of the page."""

    lines: ClassVar[Callable[[], Iterator[str]]]

    def run(self) -> list[nodes.Node]:
        """Return the parsed text."""
        return self.parse_text_to_nodes("\n".join(type(self).lines()), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives: ``k3s-options``, ``k3s-markers`` and so on."""
    for name, function in {
        "options": option_lines,
        "markers": marker_lines,
        "fixtures": fixture_lines,
        "commands": command_lines,
        "experiments": experiment_lines,
    }.items():
        app.add_directive(f"k3s-{name}", type(name, (Generated,), {"lines": staticmethod(function)}))
    return {"parallel_read_safe": True}
