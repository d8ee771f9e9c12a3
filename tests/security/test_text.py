"""One hostile text, wherever the inside can put text: no place where it is shown obeys it."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from pydantic import ValidationError

from pytest_k3s_sandbox.cli.options import give, say
from pytest_k3s_sandbox.cli.progress import Course, LiveDisplay, PlainDisplay, Verbosity
from pytest_k3s_sandbox.cluster.logs import copy_logs
from pytest_k3s_sandbox.daemon import inventory
from pytest_k3s_sandbox.deadline import Deadline
from pytest_k3s_sandbox.errors import ClusterError, WaitError
from pytest_k3s_sandbox.layers.stack import FULL
from pytest_k3s_sandbox.pytestplugin import allure
from pytest_k3s_sandbox.report import ablation_text
from pytest_k3s_sandbox.report.export import export
from pytest_k3s_sandbox.report.headline import sentence
from pytest_k3s_sandbox.report.page import render
from pytest_k3s_sandbox.report.records import RECORD, ErrorLine, Event, Tested, Verdict, read_run
from pytest_k3s_sandbox.sandbox.base import STATE_DIR
from support.synthetic_runs import everything, write

if TYPE_CHECKING:
    from pytest_k3s_sandbox.cluster.cluster import Cluster

HOSTILE = (
    "=cmd|'/C calc'!A0 \x1b]0;owned\x07\x1b[2J\x9b31m \u202egnp.exe\u2066 \\input{/etc/passwd} $x$ %"
    " </title></style></svg><script>alert(1)</script><img src=x onerror=alert(1)> | ` [a](javascript:x) "
    "\r\n| b | \ufeff\u2028\x00\x7f{{ 7*7 }} ]]> \" '"
)
BEGIN = "=cmd"
"""How the text is found again: whatever else is escaped, this is not."""


def unseen(text: str) -> list[str]:
    """Return the characters that a terminal obeys, or that hide or reorder text; lines and tabs are none."""
    found = {each for each in text if unicodedata.category(each) in {"Cc", "Cf", "Cs", "Zl", "Zp"}}
    return sorted(found - {"\n", "\t"})


Check = Callable[[object], bool]


class Page(html.parser.HTMLParser):
    """Collects what a browser would run or load."""

    def __init__(self) -> None:
        """Nothing was seen yet."""
        super().__init__()
        self.bad: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note elements and attributes that our page has none of."""
        if tag in {"script", "img", "iframe", "object", "form"}:
            self.bad.append(tag)
        for name, value in attrs:
            if name.startswith("on") or re.match(r"\s*(javascript|data:text)", value or ""):
                self.bad.append(f"{name}={value}")


def at_index(check: Check, values: list[object], index: int) -> Check:
    """Return a check of one element of a list, by the check of the list."""
    return lambda new: check([*values[:index], new, *values[index + 1 :]])


def at_key(check: Check, values: dict[str, object], key: str) -> Check:
    """Return a check of one value of a dictionary, by the check of the dictionary."""
    return lambda new: check({**values, key: new})


def poisoned(value: object, check: Check) -> object:
    """Put the text in the place of every text in a value, and into every name, where a check lets it."""

    def tried(made: object, other: object) -> object:
        return made if check(made) else other

    if isinstance(value, str):
        return tried(HOSTILE, value)
    if isinstance(value, list):
        for number, each in enumerate(value):
            value[number] = poisoned(each, at_index(check, value, number))
    elif isinstance(value, dict):
        for name, each in list(value.items()):
            value[name] = poisoned(each, at_key(check, value, name))
            renamed = {f"{HOSTILE}{name}": value[name], **{k: v for k, v in value.items() if k != name}}
            if check(renamed):
                value[f"{HOSTILE}{name}"] = value.pop(name)
    return value


def valid(record: object) -> bool:
    try:
        RECORD.validate_json(json.dumps(record))
    except (ValidationError, ValueError):
        return False
    return True


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything that a run can have, in which every text is the hostile one."""
    folder = write(
        tmp_path_factory.mktemp("runs") / "hostile",
        [
            *everything(30),
            Event(t=1, kind="a", what="b"),
            ErrorLine(t=2, component="kubelet", kind="other", errno=None, text="x"),
            Verdict(name="a", text="b", held=False, measured="c", limit="d", unit="e", ended="f"),
            Tested(t=3, nodeid="a.py::b", text="c", outcome="failed", phase="call", message="d"),
        ],
    )
    file = folder / "records.jsonl"
    made = [poisoned(json.loads(line), valid) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(record) + "\n" for record in made))
    assert file.read_text().count(BEGIN) > 400
    return folder


def test_the_page_runs_nothing_and_shows_the_text(hostile_run: Path, tmp_path: Path) -> None:
    logs = hostile_run / "logs"
    logs.mkdir(exist_ok=True)
    (logs / "javascript:alert(1).log").write_text(HOSTILE)
    text = render([hostile_run, hostile_run], tmp_path).read_text()
    page = Page()
    page.feed(text)
    assert page.bad == []
    assert unseen(text) == []
    assert r"\x1b]0;owned\x07" in text
    assert "7*7" in text


@pytest.mark.filterwarnings("ignore:constrained_layout")  # names of 60 characters leave no room
def test_no_file_of_an_export_obeys_the_text(hostile_run: Path, tmp_path: Path) -> None:
    found: dict[str, int] = {}
    for path in export([hostile_run], tmp_path):
        if path.suffix == ".pdf":  # its text is compressed; what acts is not
            found[".pdf"] = 1
            assert not re.search(rb"/(JavaScript|JS|URI|Launch|OpenAction|AA)\b", path.read_bytes())
            continue
        text = path.read_text()
        assert [*filter(lambda each: each != "\r", unseen(text))] == [], path.name
        found[path.suffix] = found.get(path.suffix, 0) + text.count(BEGIN)
        if path.suffix == ".svg":
            tags = {element.tag.partition("}")[2] for element in ET.fromstring(text).iter()}  # noqa: S314 - ours
            assert not tags & {"script", "img", "foreignObject", "a"}
        elif path.suffix == ".csv":
            for row in csv.reader(io.StringIO(text, newline="")):
                for cell in row:
                    assert re.match(r"[+-]?[0-9.]+(e[+-]?[0-9]+)?$", cell) or cell.lstrip()[:1] not in set(
                        "=+-@"
                    ), (path.name, cell)
        elif path.suffix in {".tex", ".bib"}:
            bare = re.sub(r"\\text\w+\{\}", "", text)
            assert r"\input" not in bare
            assert text.count("{") == text.count("}")
            assert "$x$" not in text
        elif path.suffix == ".md":
            assert "<script" not in re.sub(r"\\<", "", text)
            assert not re.search(r"(?<!\\)\]\(", text)
            assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in text.splitlines()}) == 1
    assert all(found[suffix] for suffix in (".svg", ".pdf", ".csv", ".tex", ".bib", ".md")), found


def test_the_ablation_in_markdown_is_a_text(hostile_run: Path) -> None:
    text = ablation_text.text(read_run(hostile_run).ablation)
    assert BEGIN in text
    assert unseen(text) == []
    legend = [line for line in text.splitlines() if line.startswith("- (")]
    assert legend
    for line in legend:  # a code span that ends with its line, whatever it holds
        fence = re.match(r"- \([^)]*\) (`+)", line)
        assert fence is not None
        assert line.endswith(fence[1])


def test_the_terminal_obeys_nothing(hostile_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE)
    give(f"{sentence(read_run(hostile_run))}\n{HOSTILE}", HOSTILE, None)
    give("", {HOSTILE: HOSTILE}, Path("-"))
    course = Course(duration=10.0)
    for line in (hostile_run / "records.jsonl").read_text().splitlines():
        course.take(json.loads(line))
    assert course.sample is not None
    course.sample.update(node_ready=False, reason=HOSTILE, api_reachable=True)
    for display in (PlainDisplay(Verbosity.VERBOSE), LiveDisplay(Verbosity.VERBOSE)):
        display.line(HOSTILE)
        display.update(course)
        display.close()
    row = inventory.Running(HOSTILE, "s", "host", "1", 1, HOSTILE, True, 1.0, HOSTILE, None, None)
    sys.stdout.write(inventory.table([row, row]) + "\n")
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert BEGIN in text
        assert unseen(text) == []
    assert len(inventory.table([row, row]).splitlines()) == 3


@pytest.mark.parametrize("kind", [ClusterError, WaitError])
def test_an_error_that_quotes_a_log_is_a_text(kind: type[ClusterError]) -> None:
    text = str(kind(HOSTILE, cause=HOSTILE, remedy=HOSTILE, log=Path(f"/{HOSTILE}")))
    assert unseen(text) == []
    assert text.count(BEGIN) == 4


def test_what_pytest_writes_of_an_error_is_a_text(tmp_path: Path) -> None:
    """On the terminal, in JUnit's XML and in allure's results."""
    (tmp_path / "test_it.py").write_text(
        "from pytest_k3s_sandbox.errors import ClusterError\n"
        "from pytest_k3s_sandbox.pytestplugin.claims import NotHeld, Claims\n"
        f"HOSTILE = {HOSTILE!r}\n"
        "def test_error():\n"
        "    raise ClusterError(HOSTILE, cause=HOSTILE)\n"
        "def test_claim(tmp_path):\n"
        "    Claims(None).fail_unless(False, HOSTILE)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-pno:cacheprovider", "--tb=long", "--junitxml=junit.xml"],
        cwd=tmp_path, capture_output=True, check=False,
    )  # fmt: skip
    out = done.stdout.decode()
    assert "2 failed" in out
    assert BEGIN in out
    # The source line that pytest shows has the text as Python writes it.
    assert unseen(out) == []
    xml = (tmp_path / "junit.xml").read_text()
    assert len(list(ET.fromstring(xml).iter("failure"))) == 2  # noqa: S314 - pytest's own file
    assert unseen(xml) == []


def test_the_frame_of_allures_results_has_a_line_a_name(tmp_path: Path) -> None:
    results = object.__new__(allure.Results)
    results._folder = tmp_path  # the rest of it speaks with allure
    results.write_frame({HOSTILE: HOSTILE, "b": "c"})
    text = (tmp_path / "environment.properties").read_text()
    assert len(text.splitlines()) == 2
    assert unseen(text) == []


@pytest.mark.k3s_layers(*FULL)  # a cluster of its own: experiments ask for an undisturbed one
@pytest.mark.k3s_requires("root", "fuse", "ptrace", "gvisor")
@pytest.mark.timeout(240)
def test_a_pod_that_says_it_everywhere(k3s: Cluster, k3s_namespace: str, tmp_path: Path) -> None:
    """Its log, its exit message, an annotation, an event, its standard error, a log's name on the node."""
    script = (
        'printf "%b" "$TEXT" | tee /dev/termination-log; printf "%b" "$TEXT" >&2; '
        'printf "E1123 14:00:00.000000 1 a.go:1] %b\\n" "$TEXT" > "/node/logs/evil$(printf "\\033").log"; '
        "exit 3"
    )
    said = HOSTILE.replace("\x00", "")
    encoded = "".join(f"\\0{byte:03o}" for byte in said.encode())
    container = {
        "name": "it",
        "image": "busybox:1.36",
        "command": ["sh", "-c", script],
        "env": [{"name": "TEXT", "value": encoded}],
        "volumeMounts": [{"name": "node", "mountPath": "/node"}],
    }
    pod = {
        "metadata": {"name": "evil", "annotations": {"text": said}},
        "spec": {
            "containers": [container],
            "restartPolicy": "Never",
            "volumes": [{"name": "node", "hostPath": {"path": STATE_DIR}}],
            "terminationGracePeriodSeconds": 0,
        },
    }
    k3s.core.create_namespaced_pod(k3s_namespace, pod)
    k3s.core.create_namespaced_event(
        k3s_namespace,
        {
            "metadata": {"name": "evil"},
            "involvedObject": {"kind": "Pod", "name": "evil", "namespace": k3s_namespace},
            "message": said[:900],
            "reason": "Evil",
        },
    )
    k3s.wait(
        lambda: k3s.core.read_namespaced_pod("evil", k3s_namespace).status.phase == "Failed",
        "the pod's end",
        Deadline.after(90),
    )
    assert BEGIN in k3s.kubectl("logs", "-n", k3s_namespace, "evil").stdout
    ended = k3s.core.read_namespaced_pod("evil", k3s_namespace).status.container_statuses[0]
    message = ended.state.terminated.message
    assert "\x1b" in message  # it is said as it is by the API
    with pytest.raises(WaitError) as waited:
        k3s.wait(lambda: False, "nothing", Deadline.after(0.1), hint=lambda: message)
    with pytest.raises(ClusterError) as refused:
        k3s.kubectl("get", "pod", said)
    copy_logs(k3s.sandbox, tmp_path)
    names = [path.name for path in (tmp_path / "logs").iterdir()]
    assert any(name.startswith("evil%1B") for name in names)
    for text in (str(waited.value), str(refused.value), *names):
        assert unseen(text) == []
    assert BEGIN in str(waited.value)
    say(str(waited.value))
