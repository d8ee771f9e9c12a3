"""The schema of records as JSON Schema, for readers in other languages.

``python -m pytest_k3s_sandbox.report.jsonschema > docs/records.schema.json`` writes the published copy.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from pytest_k3s_sandbox.report.records import RECORD, SCHEMA_VERSION


def records_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of one line of a run's file."""
    made = RECORD.json_schema(mode="validation")
    for kind in made["$defs"].values():
        # The default of ``type`` is for Python. A record in a file needs the field, which names its kind.
        if "const" in kind.get("properties", {}).get("type", {}):
            kind["required"] = ["type", *kind.get("required", [])]
            del kind["properties"]["type"]["default"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Records of pytest-k3s-sandbox",
        "description": "One line of records.jsonl. The first line is a header, whose schema_version is at "
        f"most {SCHEMA_VERSION}; the last line of a run that came to its end is an end.",
        **made,
    }


def text() -> str:
    """Return the schema as the file that is published."""
    return json.dumps(records_schema(), indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
