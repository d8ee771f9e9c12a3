"""Figures for papers: of the size that was asked for, the same from the same run, with text that is text."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pytest_k3s_sandbox.errors import ConfigError, MissingCapability
from pytest_k3s_sandbox.report.export import export
from pytest_k3s_sandbox.report.figures import write_figures
from pytest_k3s_sandbox.report.records import Header, Record, Run, Sample
from support.own_xml import parsed
from support.synthetic_runs import everything

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

POINTS_MM = 72 / 25.4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All figures of one run, by their names."""
    run = Run(name="made", records=(Header(project_version="0"), *everything(60)))
    paths = write_figures(run, tmp_path_factory.mktemp("figures"), widths=[84])
    return {path.name: path for path in paths}


def test_everything_that_the_run_has_is_drawn(made: dict[str, Path]) -> None:
    stems = {name.removesuffix("-84mm.svg") for name in made if name.endswith(".svg")}
    assert stems == {
        "readiness", "latency", "processor", "memory", "measured-in-s",
        "processor-over-time", "memory-over-time", "ratios-interceptor", "ablation",
    }  # fmt: skip
    assert {name.removesuffix("-84mm.pdf") for name in made if name.endswith(".pdf")} == stems


def test_figures_have_the_width_that_was_asked_for(made: dict[str, Path]) -> None:
    for name, path in made.items():
        if name.endswith(".svg"):
            width = parsed(path.read_text()).get("width", "")
            assert float(width.removesuffix("pt")) == pytest.approx(84 * POINTS_MM, abs=0.5)
        else:
            (box,) = re.findall(rb"/MediaBox \[ ?([\d. ]+?) ?\]", path.read_bytes())
            assert float(box.split()[2]) == pytest.approx(84 * POINTS_MM, abs=0.5)


def test_text_stays_text(made: dict[str, Path]) -> None:
    drawing = parsed(made["readiness-84mm.svg"].read_text())
    texts = [text.text for text in drawing.iter() if text.tag.endswith("text")]
    assert {"Node", "API server", "Error lines"} <= set(texts)
    for name, path in made.items():
        if name.endswith(".pdf"):
            assert b"/Type3" not in path.read_bytes()


def test_the_same_run_gives_the_same_files(
    tmp_path: Path, make_run: Callable[..., Run], sample: Callable[..., Sample]
) -> None:
    run = make_run(sample(1, False), sample(2), sample(3))
    first, second = (write_figures(run, tmp_path / name, widths=[84]) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_folder_that_cannot_be_is_named(
    tmp_path: Path, make_run: Callable[..., Run], sample: Callable[..., Sample]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="figure"):
        write_figures(make_run(sample(1), sample(2)), tmp_path / "file")


def test_without_matplotlib_the_extra_is_named_and_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    write_run: Callable[..., Path],
    good_records: tuple[Record, ...],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingCapability, match="figures: the package matplotlib is not installed") as caught:
        export([write_run(good_records)], tmp_path / "page")
    assert caught.value.remedy is not None
    assert caught.value.remedy.startswith("pip install 'pytest-k3s-sandbox[figures]'")
    assert "--no-figures" in caught.value.remedy
    assert not (tmp_path / "page").exists()


def test_a_page_needs_no_matplotlib() -> None:
    program = (
        "import sys, pytest_k3s_sandbox.report.page, pytest_k3s_sandbox.report.finalize\n"
        "sys.exit('matplotlib' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
