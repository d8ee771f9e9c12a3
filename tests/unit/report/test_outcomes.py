"""The schema: old files, its published copy, and what outcomes are made of."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_k3s_sandbox.report import jsonschema as exported
from pytest_k3s_sandbox.report.page import render
from pytest_k3s_sandbox.report.records import SCHEMA_VERSION, Measurement, RunWriter, Spread, read_run
from support.synthetic_runs import everything

DATA = Path(__file__).with_name("data")
PUBLISHED = Path(__file__).parents[3] / "docs" / "records.schema.json"


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    """What other languages validate records with."""
    schema: dict[str, Any] = json.loads(PUBLISHED.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_published_schema_is_current() -> None:
    wanted = "python -m pytest_k3s_sandbox.report.jsonschema > docs/records.schema.json"
    assert PUBLISHED.read_text() == exported.text(), f"run {wanted}"


def test_what_is_written_is_valid(validator: jsonschema.Draft202012Validator, tmp_path: Path) -> None:
    with RunWriter(tmp_path) as writer:
        for record in everything(310):
            writer.append(record)
    lines = writer.path.read_text().splitlines()
    kinds = {json.loads(line)["type"] for line in lines}
    assert len(kinds) == 12  # every kind there is
    for line in lines:
        validator.validate(json.loads(line))


@pytest.mark.parametrize(
    "line",
    [
        {"t": 1.0, "kind": "a", "what": "b"},
        {"type": "event", "t": 1.0, "kind": "a"},
        {"type": "event", "t": "soon", "kind": "a", "what": "b"},
        {"type": "event", "t": 1.0, "kind": "a", "what": "b", "more": 1},
        {"type": "unheard"},
    ],
)
def test_what_is_no_record_is_not_valid(
    validator: jsonschema.Draft202012Validator, line: dict[str, object]
) -> None:
    assert not validator.is_valid(line)


def test_a_file_of_version_1_is_read(validator: jsonschema.Draft202012Validator, tmp_path: Path) -> None:
    file = DATA / "records-v1.jsonl"
    run = read_run(file)
    assert (run.header.schema_version, SCHEMA_VERSION) == (1, 3)
    assert run.complete
    assert run.environment is not None
    assert (run.environment.kubernetes, run.environment.pins["kubernetes"]) == (None, "1.34.4")
    assert len(run.records) == len(file.read_text().splitlines())
    assert {len(found) for found in (run.samples, run.verdicts)} == {3}
    for line in file.read_text().splitlines():
        validator.validate(json.loads(line))
    assert "1.34.4" in render([file], tmp_path).read_text()


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=50))
def test_a_spread_is_in_order_and_holds_all_values(values: list[float]) -> None:
    spread = Spread.of(values)
    ordered = [spread.min, spread.p25, spread.median, spread.p75, spread.max]
    assert ordered[0] == min(values)
    assert ordered[-1] == max(values)
    slack = 1e-6 * max(1.0, *map(abs, values))
    assert all(before <= after + slack for before, after in pairwise(ordered))


def test_a_measurement_of_several_observations() -> None:
    one = Measurement.of("wait", [3.0, 1.0, 2.0, 4.0, 5.0], "s", benchmark="b", variant="ours")
    assert (one.value, one.n, one.values) == (3.0, 5, (3.0, 1.0, 2.0, 4.0, 5.0))
    assert one.spread == Spread(min=1, p25=2, median=3, p75=4, max=5)
    assert Measurement.of("wait", [7.0], "s").spread == Spread(min=7, p25=7, median=7, p75=7, max=7)
