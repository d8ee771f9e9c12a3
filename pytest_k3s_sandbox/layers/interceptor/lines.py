"""Finds the line of a field in a rule file, for error messages."""

from __future__ import annotations

import re


def toml_line(text: str, kind: str, index: int, field: str) -> int | None:
    """Return the line of a field, or of its table's head if the field is not there.

    Args:
        text: The file.
        kind: The table's name.
        index: The position among the tables of that name; -1 stands for the name itself.
        field: The field's name.
    """
    header = re.compile(rf"\s*\[\[?\s*{re.escape(kind)}\s*\]")
    seen = -1
    found = None
    for number, line in enumerate(text.splitlines(), 1):
        if header.match(line):
            seen += 1
            if seen == max(index, 0):
                found = number
        elif re.match(r"\s*\[", line) and found is not None:
            break
        elif re.match(rf"\s*[\"']?{re.escape(field)}\b", line) and (found or index < 0):
            return number
    return found


def yaml_line(text: str, kind: str, index: int, field: str) -> int | None:
    """Return the line of a field in YAML, whose parser keeps positions."""
    import yaml

    document = yaml.compose(text)
    for key, value in document.value if isinstance(document, yaml.MappingNode) else ():
        if key.value != kind:
            continue
        if index < 0 or not isinstance(value, yaml.SequenceNode):
            return int(key.start_mark.line) + 1
        table = value.value[index]
        for name, _ in table.value:
            if name.value == field:
                return int(name.start_mark.line) + 1
        return int(table.start_mark.line) + 1
    return None
