"""The documentation builds without a warning, is complete, asks no network, and says what is so."""

from __future__ import annotations

import ast
import html
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from pytest_k3s_sandbox import settings
from pytest_k3s_sandbox.cli import main
from pytest_k3s_sandbox.pytestplugin import fixtures, markers
from support.blocks import ROOT, Block, blocks, pages, split
from support.own_xml import parsed

if not (ROOT / "docs").is_dir():
    pytest.skip("not applicable: this is not a checkout", allow_module_level=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the built pages."""
    pytest.importorskip("sphinx", reason="not applicable: Sphinx is not installed (the extra `docs`)")
    out = tmp_path_factory.mktemp("site")
    argv = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-d",
        f"{out}/trees",
        "docs",
        f"{out}/html",
    ]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    return out / "html"


def text(page: Path) -> str:
    """Return a page's text without its tags."""
    spaced = re.sub(r"<(?!/?span)[^>]+>", " ", re.sub(r"</?span[^>]*>", "", page.read_text()))
    return " ".join(html.unescape(spaced).split())


def test_the_reference_is_complete(site: Path) -> None:
    said = text(site / "reference/options.html")
    words = set(re.findall(r"[\w-]+", said))
    wanted = [word for option in settings.OPTIONS for word in (f"--k3s-{option.name}", option.variable)]
    assert [word for word in wanted if word not in words] == []
    assert [name for name in markers.MARKERS if f"@pytest.mark.{name}" not in said] == []
    said = text(site / "reference/fixtures.html")
    assert [name for name in fixtures.__all__ if f"{name}" not in said] == []
    group: Any = typer.main.get_command(main.app)
    said = text(site / "reference/command.html")
    for name, command in group.commands.items():
        assert f"k3s-sandbox {name}" in said
        opts = [word for parameter in command.params for word in parameter.opts if word.startswith("--")]
        assert [word for word in opts if word not in said and word != "--help"] == []
    said = text(site / "reference/api.html")
    names = ("Node.wait_ready", "base.Layer", "base.Sandbox", "Deadline.after", "errors.MissingCapability")
    for word in (*names, "records.RunWriter"):
        assert word in said


def test_every_experiment_has_its_question_in_the_pages(site: Path) -> None:
    said = text(site / "experiments.html")
    for readme in ROOT.glob("experiments/exp*/README.md"):
        assert readme.read_text().splitlines()[0].lstrip("# ") in said


def test_a_page_asks_no_network(site: Path) -> None:
    loads = re.compile(r'<(?:script|img|link|iframe)[^>]*(?:src|href)="(?:https?:)?//[^"]*"')
    found = [hit for page in site.rglob("*.html") for hit in loads.findall(page.read_text())]
    assert found == []
    styles = [
        hit for css in site.rglob("*.css") for hit in re.findall(r"url\(.?https?:[^)]*", css.read_text())
    ]
    assert styles == []


def test_the_drawing_is_well_formed_and_described() -> None:
    root = parsed((ROOT / "docs/architecture.svg").read_text())
    names = [element.tag.rpartition("}")[2] for element in root]
    assert names[:2] == ["title", "desc"]


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yield every command of README, pages and CI files, with where it stands."""
    for block in blocks("sh"):
        for words in block.commands:
            yield block.page, words
    github = yaml.safe_load((ROOT / "docs/ci/github-actions.yml").read_text())
    for step in github["jobs"]["nightly"]["steps"]:
        if "run" in step:
            yield "github-actions.yml", shlex.split(step["run"])
    gitlab = yaml.safe_load((ROOT / "docs/ci/gitlab-ci.yml").read_text())["nightly"]
    for line in [*gitlab["before_script"], *gitlab["script"]]:
        yield "gitlab-ci.yml", shlex.split(line)


def program(words: list[str]) -> list[str]:
    """Return a command without what only says where and as whom it runs."""
    while words and (words[0] in {"sudo", "-E", "env"} or re.match(r"[A-Z_0-9]+=", words[0])):
        words = words[1:]
    return [words[0].removeprefix(".venv/bin/"), *words[1:]] if words else []


OTHERS = {"pip", "tox", "python", "python3", "apt-get", "chown"}


@pytest.mark.parametrize(
    ("page", "words"), list(commands()), ids=lambda value: value if isinstance(value, str) else None
)
def test_every_command_is_one_that_there_is(page: str, words: list[str]) -> None:
    name, *arguments = program(words)
    if name == "k3s-sandbox":
        group: Any = typer.main.get_command(main.app)
        command = group.commands[arguments[0]]
        command.make_context(arguments[0], arguments[1:])  # raises for unknown options and missing arguments
    elif name == "pytest":
        asked = [word for word in arguments if word.startswith("--k3s-")]
        known = {f"--k3s-{option.name}": option for option in settings.OPTIONS}
        for word in asked:
            option, _, value = word.partition("=")
            assert option in known, f"{page}: {word}"
            choices = known[option].choices
            assert not choices or value in choices, f"{page}: {word}"
    else:
        assert name in OTHERS, f"{page}: {' '.join(words)}"


def test_there_are_examples_of_every_kind() -> None:
    names = {program(words)[0] for _, words in commands()}
    assert {"k3s-sandbox", "pytest", "pip"} <= names
    assert len([block for block in blocks("python") if block.file]) >= 5


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: f"{block.page}-{block.file}")
def test_every_example_is_python_and_asks_for_fixtures_that_there_are(block: Block) -> None:
    tree = ast.parse(block.text)
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    known = {*fixtures.__all__, *own, "request", "self"}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and (node.name.startswith("test_") or node.decorator_list):
            names = {argument.arg for argument in node.args.args}
            assert names <= known, f"{block.page}: {names - known}"


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: f"{block.page}-{block.file}")
def test_a_test_executes_every_example_or_a_reason_stands_above_it(block: Block) -> None:
    assert (block.file is not None and block.file.startswith("test_")) or block.reason


def test_links_between_pages_lead_somewhere() -> None:
    missing = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages()
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
        if not target.startswith(("http:", "https:")) and not (page.parent / target).exists()
    ]
    assert missing == []


def test_a_line_of_several_commands_is_split() -> None:
    assert list(split(["a", "b", "&&", "c"])) == [["a", "b"], ["c"]]
