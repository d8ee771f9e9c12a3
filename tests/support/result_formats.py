"""Reading what pytest and allure-pytest wrote, each file held against its format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import jsonschema
import xmlschema

FORMATS = Path(__file__).with_name("formats")


@cache
def junit_schema() -> xmlschema.XMLSchema:
    return xmlschema.XMLSchema(str(FORMATS / "junit.xsd"))


@cache
def allure_schema() -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((FORMATS / "allure.schema.json").read_text())
    return schema


def cases(path: Path) -> dict[str, ET.Element]:
    """The test cases of a JUnit file that is valid and whose sums are right, by name."""
    junit_schema().validate(str(path))
    root = ET.parse(path).getroot()  # noqa: S314 - our own file
    for suite in root.iter("testsuite"):
        for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert int(suite.get(attribute, "")) == len(list(suite.iter(tag)))
    return {case.get("name", ""): case for case in root.iter("testcase")}


def ends(case: ET.Element) -> list[str]:
    return [one.tag for one in case if one.tag != "properties"]


def properties(case: ET.Element) -> dict[str | None, str | None]:
    return {one.get("name"): one.get("value") for one in case.iter("property")}


def documents(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Allure's files of one kind, each valid."""
    validator = jsonschema.Draft202012Validator(
        {**allure_schema(), "$ref": f"#/$defs/{kind}"},
    )
    found = [json.loads(path.read_text()) for path in sorted(folder.glob(f"*-{kind}.json"))]
    for one in found:
        validator.validate(one)
    return found


def attachments(one: dict[str, Any]) -> dict[str, str]:
    return {found["name"]: found["source"] for found in one.get("attachments", ())}


def steps_of(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Every step of every fixture: the fixture's name, the step's, and its status."""
    for container in documents(folder, "container"):
        for fixture in container.get("befores", ()):
            for step in fixture.get("steps", ()):
                yield fixture["name"], step["name"], step["status"]
