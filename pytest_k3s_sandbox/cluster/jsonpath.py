r"""The part of kubectl's JSONPath that waits need, without a process of kubectl for every look.

It has fields (``.status.phase``, ``['key.with.dots']``, ``\.`` for a dot in a name), positions (``[0]``,
``[-1]``), all (``[*]``) and filters by equality (``[?(@.type=="Ready")]``). See Kubernetes' page "JSONPath
Support" for the whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pytest_k3s_sandbox.errors import ConfigError, on_purpose

__tracebackhide__ = on_purpose

_STEP = re.compile(
    r"""
    \.?(?P<field>(?:[^.\[\]\\{}\s]|\\.)+)
    | \.?\[(?P<position>-?\d+)\]
    | \.?\[(?P<all>\*)\]
    | \.?\[(?P<quote>['"])(?P<quoted>.*?)(?P=quote)\]
    | \.?\[\?\(\s*@\.(?P<key>[\w./-]+)\s*==\s*
      (?:"(?P<text>[^"]*)"|'(?P<text2>[^']*)'|(?P<bare>[\w.-]+))\s*\)\]
    """,
    re.VERBOSE,
)


@dataclass(frozen=True)
class Path:
    """A parsed path.

    Attributes:
        text: As the user wrote it.
        steps: A name, a position, ``None`` for all, or a name and its value for a filter.
    """

    text: str
    steps: tuple[str | int | tuple[str, str] | None, ...]

    def find(self, item: object) -> list[Any]:
        """Return the values at the path; none if nothing is there.

        Args:
            item: An object, as parsed JSON.
        """
        found: list[Any] = [item]
        for step in self.steps:
            found = [each for value in found for each in _below(value, step)]
        return found


def _below(value: object, step: str | int | tuple[str, str] | None) -> Iterable[Any]:
    if isinstance(step, str):
        return [value[step]] if isinstance(value, dict) and step in value else []
    if isinstance(step, int):
        return [value[step]] if isinstance(value, list) and -len(value) <= step < len(value) else []
    each = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []
    if step is None:
        return each
    key, wanted = step
    inner = Path("", tuple(key.split(".")))
    return [one for one in each if [text_of(found) for found in inner.find(one)] == [wanted]]


def text_of(value: object) -> str:
    """Return a value as kubectl compares and prints it: ``true`` for a boolean, JSON for lists and objects.

    Args:
        value: Parsed JSON.
    """
    import json

    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def parse(text: str) -> Path:
    """Return a path; the braces around it and the dot in front may be left out, as for kubectl.

    Args:
        text: Like ``{.status.phase}``.

    Raises:
        ConfigError: It is not a path, or uses syntax that only kubectl knows.
    """
    inner = text.strip()
    if inner.startswith("{") and inner.endswith("}"):
        inner = inner[1:-1].strip()
    inner = inner.removeprefix("$")
    steps: list[str | int | tuple[str, str] | None] = []
    at = 0
    while at < len(inner):
        found = _STEP.match(inner, at)
        if found is None or (steps and found["field"] is not None and inner[at] != "."):
            break
        steps.append(_step(found))
        at = found.end()
    if at < len(inner) or not steps:
        raise ConfigError(
            f"the JSONPath {text!r}",
            cause=f"it is not understood from {inner[at:]!r} on" if inner else "it is empty",
            remedy='write it like {.status.phase}, {.items[0].name} or {.x[?(@.type=="Ready")].status}',
        )
    return Path(text, tuple(steps))


def _step(found: re.Match[str]) -> str | int | tuple[str, str] | None:
    if found["field"] is not None:
        return re.sub(r"\\(.)", r"\1", found["field"])
    if found["position"] is not None:
        return int(found["position"])
    if found["all"] is not None:
        return None
    if found["quoted"] is not None:
        return found["quoted"]
    return found["key"], next(word for word in found.group("text", "text2", "bare") if word is not None)
