"""The page and its drawings: complete, self-contained, safe, whatever the logs hold."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_k3s_sandbox.errors import ConfigError
from pytest_k3s_sandbox.report.drawing import WIDTH, standalone, time_ticks
from pytest_k3s_sandbox.report.errors import fragment, group_errors
from pytest_k3s_sandbox.report.page import render
from pytest_k3s_sandbox.report.records import (
    End,
    ErrorLine,
    Event,
    Header,
    Phase,
    PodState,
    Record,
    Run,
    Sample,
    Verdict,
    read_run,
)
from pytest_k3s_sandbox.report.timeline import MAX_PODS, bring_up_window, side_by_side, timeline
from support.own_xml import parsed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "link", "br", "img", "input", "hr"}
NASTY = 'E1123 14:02:31.1  47 x.go:1] <script>alert("x")</script> & "quotes" \x1b[31m\x00'


class Page(HTMLParser):
    """Reads a page, checks that its tags nest, and keeps what tests ask for."""

    def __init__(self, text: str) -> None:
        """Read the whole page."""
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep a tag; remember that it is open."""
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Check that the tag was the last one opened."""
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of every such tag."""
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(path: Path) -> tuple[str, Page]:
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_the_page_of_a_good_run(
    write_run: Callable[..., Path], good_records: tuple[Record, ...], tmp_path: Path
) -> None:
    folder = write_run(good_records)
    (folder / "logs").mkdir()
    (folder / "logs" / "kubelet log.log").touch()
    path = render([folder], tmp_path / "reports")
    assert path == tmp_path / "reports" / "index.html"
    text, page = page_of(path)
    assert "The only claim held: the node was Ready 4.0 s after" in text
    assert "9p (0x01021997)" in text
    assert "pytest -m exp08 &#39;--k3s-hold=10 s&#39;" in text
    assert "Incomplete" not in text
    links = [a["href"] for a in page.all("a")]
    assert len(links) > 2
    for link in links:
        assert link is not None
        if link.startswith("#"):
            assert link[1:] in {attributes.get("id") for _, attributes in page.tags}
        else:
            assert (path.parent / link.replace("%20", " ")).is_file()


def test_nothing_comes_from_elsewhere(
    write_run: Callable[..., Path], good_records: tuple[Record, ...], tmp_path: Path
) -> None:
    text, page = page_of(render([write_run(good_records)], tmp_path))
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    assert page.all("script") == page.all("img") == page.all("iframe") == []
    policies = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_what_logs_hold_stays_text(
    write_run: Callable[..., Path], tmp_path: Path, sample: Callable[..., Sample]
) -> None:
    records = [
        ErrorLine(t=1, component="<b>kubelet", kind="<i>", text=NASTY),
        Event(t=1, kind="<script>", what=NASTY),
        Phase(name=NASTY, start=0, end=1),
        Sample(t=1, node_ready=True, api_reachable=True, pods={NASTY: PodState(phase=NASTY, ready=False)}),
        Verdict(name="<u>", held=True, measured="<s>", text=NASTY),
        sample(2),
    ]
    text, page = page_of(render([write_run(records)], tmp_path))
    assert not {tag for tag, _ in page.tags} & {"script", "b", "i", "u", "s"}
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;" in text
    assert "\x1b" not in text
    assert "\x00" not in text


def test_a_killed_run_says_so(
    write_run: Callable[..., Path], good_records: tuple[Record, ...], tmp_path: Path
) -> None:
    folder = write_run(good_records, close=False)
    with (folder / "records.jsonl").open("ab") as file:
        file.write(b'{"type":"sam')
    text, _ = page_of(render([folder], tmp_path))
    alert = re.search(r'<p class="alert"[^>]*>(.*?)</p>', text, re.DOTALL)
    assert alert is not None
    assert "cut off" in alert[1]
    assert "half-written" in alert[1]
    assert "judged so far" in text


def test_a_run_killed_at_once_has_a_page(write_run: Callable[..., Path], tmp_path: Path) -> None:
    text, _ = page_of(render([write_run([], close=False)], tmp_path))
    assert "before its environment was recorded" in text
    assert "no sample was taken" in text


def test_runs_stand_side_by_side(
    write_run: Callable[..., Path], good_records: tuple[Record, ...], tmp_path: Path
) -> None:
    lost = Verdict(name="gone", held=False, text="The pod is gone.")
    folders = [write_run(good_records, "first"), write_run([*good_records, lost], "second")]
    text, page = page_of(render(folders, tmp_path / "both.html"))
    assert "1 of 2 runs held" in text
    assert {"#run1", "#run2"} <= {a["href"] for a in page.all("a")}
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_page_can_be_used_without_eyes(
    write_run: Callable[..., Path], good_records: tuple[Record, ...], tmp_path: Path
) -> None:
    _, page = page_of(render([write_run(good_records)], tmp_path))
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("caption")) == len(page.all("table")) > 0
    assert len(page.all("h1")) == len(page.all("main")) == 1
    assert all(header.get("scope") in {"col", "row"} for header in page.all("th"))
    regions = [a for _, a in page.tags if a.get("role") == "region"]
    assert page.all("svg")
    assert page.all("th")
    assert len(regions) > len(page.all("pre"))  # those of tables and drawings, too
    for drawing in page.all("svg"):
        named = drawing.get("aria-labelledby")
        assert drawing.get("aria-hidden") == "true" or (named and set(named.split()) <= ids)
    for region in regions:
        assert region["tabindex"] == "0"
        assert region.get("aria-label") or region.get("aria-labelledby") in ids


def test_an_hour_of_samples_stays_small(
    write_run: Callable[..., Path], tmp_path: Path, sample: Callable[..., Sample]
) -> None:
    records = [sample(5.0 * i, pod="Running") for i in range(720)]
    errors = [ErrorLine(t=i, component="kubelet", kind="eintr", text=f"failed {i}") for i in range(3000)]
    path = render([write_run([*records, *errors])], tmp_path)
    assert path.stat().st_size < 200_000


def test_more_rows_than_fit_are_counted(write_run: Callable[..., Path], tmp_path: Path) -> None:
    events = [Event(t=i, kind="tick", what="x") for i in range(205)]
    text, _ = page_of(render([write_run(events)], tmp_path))
    assert "5 more are not shown" in text


def test_error_lines_are_grouped_but_for_numbers() -> None:
    header = "E1123 14:02:31.120417    4711 "
    lines = [
        ErrorLine(t=1, component="kubelet", kind="other", text=header + "x.go:1] once"),
        *(
            ErrorLine(t=i, component="kubelet", kind="eintr", text=f"{header}x.go:2] try {i} of 0x{i:x}")
            for i in range(2, 5)
        ),
    ]
    found = group_errors(lines)
    assert [(group.count, group.text, group.first, group.last) for group in found] == [
        (3, "x.go:2] try 2 of 0x2", 2, 4),
        (1, "x.go:1] once", 1, 1),
    ]


def test_a_link_leads_to_a_line_of_a_log_by_its_time() -> None:
    klog = "E1123 14:02:31.120417    4711 kubelet.go:1] x"
    assert fragment(klog) == "#:~:text=E1123%2014%3A02%3A31.120417"
    logfmt = 'time="2026-11-23T14:02:31Z" level=error msg="x"'
    assert fragment(logfmt) == "#:~:text=time%3D%222026%2D11%2D23T14%3A02%3A31Z%22"
    assert fragment("panic: x") == ""


def test_no_run_and_no_folder_are_refused(write_run: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run was named"):
        render([], tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="report"):
        render([write_run([])], tmp_path / "file")


WORDS = st.text(max_size=20)


@settings(deadline=None)  # a machine that others use is slow at times
@given(
    st.lists(st.tuples(st.floats(0, 1e4), st.none() | st.booleans(), WORDS), max_size=30),
    st.lists(st.tuples(st.floats(-10, 1e4), WORDS), max_size=5),
)
def test_every_drawing_is_well_formed_and_within_its_frame(
    samples: list[tuple[float, bool | None, str]], events: list[tuple[float, str]]
) -> None:
    records: list[Record] = [
        Sample(t=t, node_ready=ready, api_reachable=True, pods={pod: PodState(phase="Running", ready=False)})
        for t, ready, pod in samples
    ]
    records += [Event(t=t, kind="event", what=what) for t, what in events]
    run = Run(name="any", records=(Header(project_version="0"), *records))
    root = parsed(standalone(timeline(run), 174))
    for rect in root.iter(f"{SVG}rect"):
        if rect.get("class") != "sheet":
            assert 0 <= float(rect.get("x", "-1")) <= WIDTH
            assert float(rect.get("width", "0")) > 0


def test_a_node_that_is_ready_at_once_can_be_drawn(sample: Callable[..., Sample]) -> None:
    run = Run(name="quick", records=(Header(project_version="0"), sample(0.0), sample(5.0)))
    window = bring_up_window(run)
    assert window == (0, 1)
    states = [rect.get("class") for rect in timeline(run, window=window).iter("rect")]
    assert states == ["up", "ready"]


def test_a_short_outage_in_a_long_run_is_seen(sample: Callable[..., Sample]) -> None:
    records = [sample(5.0 * i, ready=i != 300) for i in range(720)]
    run = Run(name="long", records=(Header(project_version="0"), *records))
    bad = [rect for rect in timeline(run).iter("rect") if rect.get("class") == "not-ready"]
    assert [float(rect.get("width", "0")) for rect in bad] == [3.0]


def test_the_bring_up_has_a_drawing_of_its_own_in_a_long_run(sample: Callable[..., Sample]) -> None:
    phase = Phase(name="kubelet", start=0, end=8)
    long = Run(name="long", records=(Header(project_version="0"), phase, sample(8), sample(600), End(t=600)))
    short = Run(name="short", records=(Header(project_version="0"), phase, sample(8), End(t=10)))
    assert bring_up_window(long) == pytest.approx((0, 9.2))
    assert bring_up_window(short) is None


def test_a_drawing_as_a_file_needs_no_css_variables(sample: Callable[..., Sample]) -> None:
    run = Run(name="any", records=(Header(project_version="0"), sample(1)))
    text = standalone(timeline(run), 84)
    assert "var(" not in text
    assert parsed(text).get("width") == "84mm"


def texts_of(drawing: ET.Element) -> list[str | None]:
    return [text.text for text in drawing.iter("text")]


def test_pods_that_do_not_fit_are_counted() -> None:
    pods = {f"default/p{i}": PodState(phase="Running", ready=i > 2) for i in range(MAX_PODS + 3)}
    samples = [
        Sample(t=t, node_ready=True, api_reachable=True, pods=pods if t == 50 else {}) for t in range(100)
    ]
    drawing = timeline(Run(name="many", records=(Header(project_version="0"), *samples)))
    texts = texts_of(drawing)
    assert "Pods, and those Ready" in texts
    assert f"{MAX_PODS + 3}" in texts
    assert "default/p0" not in texts


def test_many_events_of_pods_become_ticks_and_faults_keep_their_marks() -> None:
    samples = [Sample(t=t, node_ready=True, api_reachable=True) for t in range(100)]
    events = [Event(t=t, kind="pod-created", what=f"p{t}") for t in range(50)]
    fault = Event(t=70, kind="fault", what="SIGKILL", component="kubelet")
    records: list[Record] = [Header(project_version="0"), *samples, *events, fault]
    drawing = timeline(Run(name="many", records=tuple(records)))
    assert "Pods created, deleted" in texts_of(drawing)
    assert [path.get("class") for path in drawing.iter("path")] == ["flag fault"]
    assert len([mark for mark in drawing.iter("line") if mark.get("class") == "tick"]) == 50


def test_runs_are_drawn_on_one_scale(sample: Callable[..., Sample]) -> None:
    runs = [
        (name, Run(name=name, records=(Header(project_version="0"), sample(0), sample(1), sample(end))))
        for name, end in (("one", 2), ("two", 4))
    ]
    bars = [float(bar.get("width", "0")) for bar in side_by_side(runs).iter("rect")]
    assert bars[1] == pytest.approx(2 * bars[0], abs=0.02)


@given(st.floats(-100, 1e6), st.floats(0.5, 1e6))
def test_an_axis_has_few_and_round_marks(start: float, length: float) -> None:
    marks = time_ticks(start, start + length)
    assert len(marks) <= 11
    assert marks == sorted(set(marks))
    assert all(start - 0.001 <= mark <= start + length + 0.001 for mark in marks)


def test_every_number_leads_to_its_record(
    write_run: Callable[..., Path], good_records: tuple[Record, ...], tmp_path: Path
) -> None:
    folder = write_run(good_records)
    lines = (folder / "records.jsonl").read_text().splitlines()
    text, page = page_of(render([folder], tmp_path))
    cited = re.findall(r'<a class="n[^"]*" href="#(run1-[LN]\d+)"[^>]*>([^<]+)</a>', text)
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert {target for target, _ in cited} <= ids
    assert ("run1-L8", "4.0 s") in cited  # to Ready: the first sample that saw it
    rows = dict(re.findall(r'<tr id="run1-L(\d+)">.*?<td class="mono">(.*?)</td>', text))
    assert rows["8"].replace("&#34;", '"') == lines[7]
    assert '"node_ready":true' in lines[7]
    assert len(cited) > 15


def test_reading_again_gives_the_same_run(
    write_run: Callable[..., Path], good_records: tuple[Record, ...]
) -> None:
    folder = write_run(good_records)
    assert read_run(folder) == read_run(folder / "records.jsonl")
