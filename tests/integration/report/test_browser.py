"""The page in a real browser, which has no network: shown fast, complete, for everybody.

chromium is the distribution's (``k3s-sandbox provision --for-tests``), driven by playwright over a pipe.
"""

from __future__ import annotations

import os
import shutil
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from pytest_k3s_sandbox.report.export import export
from pytest_k3s_sandbox.report.page import render
from support.synthetic_runs import everything, write

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Scheme = Literal["light", "dark"]
CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
MAX_BYTES = 3_000_000
MAX_SHOWN_MS = 1000
SHOWN = """() => new Promise(done => new PerformanceObserver(list => done(Math.max(
    performance.getEntriesByType('navigation')[0].loadEventEnd, ...list.getEntries().map(one => one.startTime)
))).observe({type: 'paint', buffered: true}))"""
"""Milliseconds from the spec for a page to the end of its loading and its first picture."""

SERIOUS = {"serious", "critical"}

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="not root: the browser gets a network namespace of its own"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium; run `k3s-sandbox provision --for-tests`"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium in a network namespace in which there is nothing, not even a loopback that is up."""
    from playwright.sync_api import sync_playwright

    offline = tmp_path_factory.mktemp("browser") / "chromium"
    offline.write_text(f'#!/bin/sh\nexec unshare --net -- {CHROMIUM} "$@"\n')
    offline.chmod(offline.stat().st_mode | stat.S_IXUSR)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=offline, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def hour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run of 60 minutes with everything in it: 3600 samples, 358 pods, faults, findings."""
    folder = tmp_path_factory.mktemp("runs") / "hour"
    write(folder, everything(3600))
    return render([folder], folder)


@pytest.fixture(scope="module")
def pages(hour: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of every sort: of one run, of a killed one with files beside it, of several, of an empty one."""
    base = tmp_path_factory.mktemp("pages")
    killed = write(base / "killed", everything(310), close=False)
    empty = write(base / "empty", [], close=False)
    return {
        "hour": hour,
        "killed": render([killed], killed, export([killed], killed, widths=[84])),
        "both": render([killed, write(base / "other", everything(30))], base / "both"),
        "empty": render([empty], empty),
    }


Open = Callable[..., "Page"]


@pytest.fixture
def show(browser: Browser) -> Iterator[Open]:
    """Return a function that opens a page; at its end, no page may have wanted or said anything."""
    said: list[str] = []
    contexts = []

    def opened(path: Path, scheme: Scheme = "light", width: int = 1200) -> Page:
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda request: said.append(request.url))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    wanted = [one for one in said if not one.startswith(("file:", "data:"))]
    assert wanted == []
    # Nothing but the page itself was read.
    assert all(one.split("#")[0].endswith(".html") for one in said if one.startswith("file:"))


NAMES = ("hour", "killed", "both", "empty")


@pytest.mark.parametrize("name", NAMES)
def test_a_page_asks_for_nothing_and_complains_of_nothing(
    show: Open, pages: dict[str, Path], name: str
) -> None:
    page = show(pages[name])
    assert page.title().endswith("pytest-k3s-sandbox")
    assert page.locator("h1").count() == 1


def test_the_browser_has_no_network(browser: Browser) -> None:
    from playwright.sync_api import Error

    page = browser.new_page()
    with pytest.raises(Error, match=r"ERR_(INTERNET_DISCONNECTED|ADDRESS_UNREACHABLE|CONNECTION_REFUSED)"):
        page.goto("http://192.0.2.1:8080/")
    page.close()


def test_an_hour_is_small_and_shown_at_once(show: Open, hour: Path) -> None:
    assert hour.stat().st_size < MAX_BYTES
    times = []
    for _ in range(3):  # the machine may be busy with something else
        page = show(hour)
        times.append(page.evaluate(SHOWN))
    assert min(times) < MAX_SHOWN_MS, times


def test_figures_are_there_and_have_a_size(show: Open, hour: Path) -> None:
    page = show(hour)
    boxes = page.evaluate(
        """() => [...document.querySelectorAll('figure .scroll svg')].map(svg => ({
            title: svg.querySelector('title').textContent,
            height: svg.getBoundingClientRect().height,
            marks: svg.querySelectorAll('rect, path, circle, line').length}))"""
    )
    titles = " | ".join(box["title"] for box in boxes)
    for words in ("Readiness over time", "Latency", "Processor", "Memory", "ratios to native"):
        assert words in titles
    assert len(boxes) == 9
    assert all(box["height"] > 50 and box["marks"] > 5 for box in boxes), boxes
    assert page.locator("table.heat td.version").count() == 32


@pytest.mark.parametrize(
    ("name", "scheme"), [("killed", "light"), ("killed", "dark"), ("both", "light"), ("empty", "light")]
)
def test_axe_has_no_serious_finding(show: Open, pages: dict[str, Path], name: str, scheme: Scheme) -> None:
    from axe_playwright_python.sync_playwright import Axe

    # The evidence at the end repeats two tables' markup hundreds of times; a few rows say as much.
    page = show(pages[name], scheme)
    page.evaluate(
        """() => document.querySelectorAll('.evidence tbody').forEach(
            body => [...body.rows].slice(10).forEach(row => row.remove()))"""
    )
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    bad = [
        (one["id"], [node["target"] for node in one["nodes"]][:3])
        for one in found
        if one["impact"] in SERIOUS
    ]
    assert bad == []


def test_colours_follow_the_scheme(show: Open, hour: Path) -> None:
    def paper(scheme: Scheme) -> str:
        found: str = show(hour, scheme).evaluate("() => getComputedStyle(document.body).backgroundColor")
        return found

    assert paper("light") == "rgb(253, 252, 250)"
    assert paper("dark") == "rgb(21, 23, 26)"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_sticks_out_of_a_narrow_screen(show: Open, pages: dict[str, Path], name: str) -> None:
    page = show(pages[name], width=390)
    assert page.evaluate("() => document.documentElement.scrollWidth") == 390


def test_the_keyboard_reaches_the_result_and_every_table(show: Open, hour: Path) -> None:
    page = show(hour)
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.url.endswith("#content")
    regions = page.locator("[role=region]")
    assert regions.count() > 10
    for i in range(0, regions.count(), 5):
        regions.nth(i).focus()
        assert page.evaluate("() => document.activeElement.getAttribute('role')") == "region"


def test_a_number_leads_to_its_record(show: Open, hour: Path) -> None:
    page = show(hour)
    number = page.locator(".figures .value a").first
    assert number.inner_text() == "9.0 s"
    number.click()
    row = page.locator(":target")
    assert '"node_ready":true' in row.inner_text()
    assert row.bounding_box() is not None


def test_paper_has_no_cut_table_and_names_records(show: Open, hour: Path, tmp_path: Path) -> None:
    page = show(hour)
    page.emulate_media(media="print")
    widths: list[dict[str, Any]] = page.evaluate(
        """() => { document.body.style.width = '182mm';
            return [...document.querySelectorAll('main table')].filter(t => t.offsetParent)
                .map(t => ({caption: t.caption.textContent,
                            over: t.scrollWidth - t.parentElement.clientWidth}))}"""
    )
    assert [one for one in widths if one["over"] > 1] == []
    shown = page.evaluate(
        """() => getComputedStyle(document.querySelector('.figures .value a'), '::after').content"""
    )
    assert "[" in shown
    paper = page.pdf(path=tmp_path / "page.pdf", prefer_css_page_size=True)
    assert paper.startswith(b"%PDF")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 1200), ("light", 390)])
def test_screenshots_can_be_looked_at(
    show: Open,
    pages: dict[str, Path],
    scheme: Scheme,
    width: int,
    record_property: Callable[[str, object], None],
) -> None:
    """The pictures are for people. The test checks that no page is blank."""
    page = show(pages["killed"], scheme, width)
    picture = page.screenshot()
    assert struct.unpack(">II", picture[16:24]) == (width, 900)
    assert len(picture) > 20_000
    folder = os.environ.get("K3S_SANDBOX_SCREENSHOTS")
    if folder:
        path = Path(folder) / f"report-{scheme}-{width}.png"
        path.write_bytes(page.screenshot(full_page=True))
        record_property("screenshot", path)
