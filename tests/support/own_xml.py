"""XML that this project wrote itself, parsed."""

from __future__ import annotations

from xml.etree import ElementTree as ET


def parsed(text: str) -> ET.Element:
    """Return the root element of a text that a test has made."""
    return ET.fromstring(text.encode())  # noqa: S314 - the tests parse what this project wrote, no foreign XML
