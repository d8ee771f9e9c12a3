"""A run's figures as files of their own, for papers."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_k3s_sandbox.errors import ConfigError
from pytest_k3s_sandbox.report.timeline import bring_up_window, standalone, timeline

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_k3s_sandbox.report.schema import Run

WIDTH_MM = 174.0
"""The usual width of a figure: two columns of most journals."""


def write_timelines(
    run: Run, folder: Path, *, stem: str = "timeline", width: float = WIDTH_MM
) -> tuple[Path, ...]:
    """Write a run's timeline as SVG files.

    Args:
        run: The run.
        folder: Where the files go; made when it does not exist.
        stem: The files' name without its ending.
        width: The figures' width in millimetres.

    Returns:
        ``<stem>.svg``, the whole run; and ``<stem>-bring-up.svg`` where the bring-up is too short a
        part of it to be seen there.

    Raises:
        ConfigError: A file cannot be written.
    """
    window = bring_up_window(run)
    drawn = [write(folder / f"{stem}.svg", standalone(timeline(run, phases=window is None), width))]
    if window is not None:
        drawing = timeline(run, window=window)
        drawn.append(write(folder / f"{stem}-bring-up.svg", standalone(drawing, width)))
    return tuple(drawn)


def write(path: Path, text: str) -> Path:
    """Write a text file, all or nothing, and return its path.

    Raises:
        ConfigError: The file cannot be written.
    """
    half = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        half.write_text(text, encoding="utf-8")
        half.replace(path)
    except OSError as error:
        with suppress(OSError):
            half.unlink()
        raise ConfigError(
            f"report {path}",
            cause=error.strerror or str(error),
            remedy="name a folder that can be written and has room",
        ) from error
    return path
