"""Putting a cluster into a user's kubeconfig, and taking it out again.

The file is changed as YAML's nodes, and not as values: what is not ours stays as it was written, whatever its
type is (a time, a number with leading zeros, an anchor). Comments are lost, as with ``kubectl config``; the
copy of the file that is made before has them.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from pytest_k3s_sandbox.errors import ConfigError

SECTIONS = ("clusters", "contexts", "users")
CURRENT = "current-context"
_TEXT = "tag:yaml.org,2002:str"


def entry_name(cluster: str) -> str:
    """Return the name of a cluster's context, cluster and user in a user's kubeconfig.

    Args:
        cluster: The cluster's name, as ``k3s-sandbox ps`` lists it.
    """
    return f"k3s-sandbox-{cluster}"


@dataclass(frozen=True)
class Merged:
    """A kubeconfig with a cluster in it.

    Attributes:
        text: The file's new content.
        current: Whether the cluster is the current context, because the file had none.
    """

    text: str
    current: bool


def check(text: str, where: str) -> None:
    """Refuse a text that is not a kubeconfig.

    Args:
        text: The content of a file.
        where: The file, for the message.

    Raises:
        ConfigError: It does not parse, or its parts are of other types.
    """
    _root(text, where)


def merge(text: str, config: Mapping[str, Any], name: str, where: str) -> Merged:
    """Return a kubeconfig with one more cluster; entries of that name are replaced, the others stay.

    The current context stays, too: a test cluster is not to get the commands that are meant for another
    one. Only a file that has none gets the new one.

    Args:
        text: The content of the user's file; empty for a new one.
        config: A kubeconfig with one cluster, one user and one context.
        name: The name of the three entries.
        where: The user's file, for messages.

    Raises:
        ConfigError: The user's file is not a kubeconfig.
    """
    root = _root(text, where)
    entries = {
        "clusters": {"name": name, "cluster": config["clusters"][0]["cluster"]},
        "contexts": {
            "name": name,
            "context": {**config["contexts"][0]["context"], "cluster": name, "user": name},
        },
        "users": {"name": name, "user": config["users"][0]["user"]},
    }
    for field, value in (("apiVersion", "v1"), ("kind", "Config")):
        if _get(root, field) is None:
            _set(root, field, _node(value))
    for section, entry in entries.items():
        _set(root, section, _without(_get(root, section), name, also=_node(entry)))
    current = _scalar(_get(root, CURRENT))
    if not current:
        _set(root, CURRENT, _node(name))
    return Merged(_written(root), current=not current or current == name)


def remove(text: str, name: str, where: str) -> str:
    """Return a kubeconfig without the entries of a name; as current context it is taken away, too.

    Args:
        text: The content of the user's file.
        name: The name of the entries.
        where: The user's file, for messages.

    Raises:
        ConfigError: The user's file is not a kubeconfig.
    """
    root = _root(text, where)
    for section in SECTIONS:
        if _get(root, section) is not None:
            _set(root, section, _without(_get(root, section), name))
    if _scalar(_get(root, CURRENT)) == name:
        _set(root, CURRENT, _node(""))
    return _written(root)


def same(one: str, other: str) -> bool:
    """Tell whether two kubeconfigs say the same, an empty section being none.

    Args:
        one: A content that parses.
        other: Another one.
    """
    return _said(one) == _said(other)


def is_empty(text: str) -> bool:
    """Tell whether a kubeconfig has no entry at all.

    Args:
        text: A content that parses.
    """
    return not set(_said(text)) - {"apiVersion", "kind"}


def _said(text: str) -> dict[str, Any]:
    # As texts: every value is compared as it is written.
    content = yaml.load(text, Loader=yaml.BaseLoader) or {}  # noqa: S506 - makes only texts, lists, dicts
    return {key: value for key, value in content.items() if value}


def _root(text: str, where: str) -> yaml.MappingNode:
    """Return a kubeconfig's node, checked."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        yaml.safe_load(text)  # values that no type fits are found here
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise _broken(f"{where}{line}", f"it is not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _broken(where, f"it is not YAML: {error}") from error
    if root is None or (isinstance(root, yaml.ScalarNode) and root.value in {"", "null", "~"}):
        return yaml.MappingNode("tag:yaml.org,2002:map", [], flow_style=False)
    if not isinstance(root, yaml.MappingNode):
        raise _broken(where, "it has no fields: a kubeconfig is a mapping")
    kind = _scalar(_get(root, "kind"))
    if kind not in {None, "", "Config"}:
        raise _broken(where, f"its kind is {kind}, and not Config")
    for section in SECTIONS:
        _check(_get(root, section), section, where)
    return root


def _check(node: yaml.Node | None, section: str, where: str) -> None:
    if _is_null(node):
        return
    entries = node.value if isinstance(node, yaml.SequenceNode) else None
    if entries is None or not all(
        isinstance(each, yaml.MappingNode) and _scalar(_get(each, "name")) is not None for each in entries
    ):
        raise _broken(where, f"its {section} are not a list of entries with names")


def _broken(where: str, cause: str) -> ConfigError:
    return ConfigError(
        f"the kubeconfig {where}",
        cause=cause,
        remedy="it was left as it is; repair it, or name another file in KUBECONFIG",
    )


def _is_null(node: yaml.Node | None) -> bool:
    return node is None or (isinstance(node, yaml.ScalarNode) and node.value in {"", "null", "~"})


def _get(node: yaml.MappingNode, key: str) -> yaml.Node | None:
    return next((value for name, value in node.value if _scalar(name) == key), None)


def _set(node: yaml.MappingNode, key: str, value: yaml.Node) -> None:
    for at, (name, _) in enumerate(node.value):
        if _scalar(name) == key:
            node.value[at] = (name, value)
            return
    node.value.append((yaml.ScalarNode(_TEXT, key), value))


def _scalar(node: yaml.Node | None) -> str | None:
    return str(node.value) if isinstance(node, yaml.ScalarNode) else None


def _without(node: yaml.Node | None, name: str, also: yaml.Node | None = None) -> yaml.SequenceNode:
    """Return a list without the entries of a name, and with another one at its end."""
    entries = [] if not isinstance(node, yaml.SequenceNode) else list(node.value)
    kept = [each for each in entries if _scalar(_get(each, "name")) != name]
    return yaml.SequenceNode(
        "tag:yaml.org,2002:seq", [*kept, *([] if also is None else [also])], flow_style=False
    )


def _node(value: object) -> yaml.Node:
    node: yaml.Node = yaml.SafeDumper(io.StringIO()).represent_data(value)
    return node


def _written(root: yaml.Node) -> str:
    text: str = yaml.serialize(root, Dumper=yaml.SafeDumper, width=1 << 30, allow_unicode=True)
    return text
