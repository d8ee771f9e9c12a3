"""The HTML page of one or more runs: one self-contained file that needs no network."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

from pytest_k3s_sandbox.errors import ConfigError
from pytest_k3s_sandbox.report.compare import comparison
from pytest_k3s_sandbox.report.drawing import STYLE
from pytest_k3s_sandbox.report.records import read_run
from pytest_k3s_sandbox.report.view import link, view
from pytest_k3s_sandbox.support import files
from pytest_k3s_sandbox.support.escaping import xml

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def page_of(target: Path) -> Path:
    """Return the page's path: ``target`` itself when it ends with ``.html``, else its ``index.html``."""
    return target if target.suffix == ".html" else target / "index.html"


def render(run_dirs: Sequence[Path], target: Path, exports: Sequence[Path] = ()) -> Path:
    """Write the page of one or more runs.

    Args:
        run_dirs: The runs' folders, in the order in which they are shown.
        target: The folder that gets ``index.html``, or the page's own name when it ends with ``.html``.
        exports: Figures and tables that the page links to.

    Returns:
        The page.

    Raises:
        ConfigError: ``run_dirs`` is empty, a run cannot be read, or the page cannot be written.
    """
    if not run_dirs:
        raise ConfigError("report", cause="no run was named", remedy="name one run's folder or more")
    page = page_of(target)
    runs = [read_run(folder) for folder in run_dirs]
    views = [
        view(run, folder if folder.is_dir() else folder.parent, page.parent, f"run{i}")
        for i, (run, folder) in enumerate(zip(runs, run_dirs, strict=True), start=1)
    ]
    files = [{"name": path.name, "href": link(path, page.parent)} for path in exports]
    together = comparison(runs) if len(runs) > 1 else None
    return write(page, to_html(views, together, files))


def to_html(
    views: Sequence[dict[str, Any]], together: dict[str, Any] | None, exports: Sequence[dict[str, str]]
) -> str:
    """Fill the template with the values that :func:`~.view.view` returns for each run."""
    import jinja2

    def load(name: str) -> str | None:
        file = resources.files(__package__).joinpath("templates", name)
        return file.read_text(encoding="utf-8") if file.is_file() else None

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(load),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    held = sum(one["outcome"] == "held" for one in views)
    return environment.get_template("page.html.j2").render(
        runs=views, together=together, exports=exports, held=held, drawing_style=STYLE
    )


def _finalize(value: object) -> object:
    return xml(value) if type(value) is str else value


def write(path: Path, text: str) -> Path:
    """Write a text file, all or nothing, and return its path.

    Raises:
        ConfigError: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, text)
    except OSError as error:
        raise ConfigError(
            f"report {path}",
            cause=error.strerror or str(error),
            remedy="name a folder that can be written and has room",
        ) from error
    return path
