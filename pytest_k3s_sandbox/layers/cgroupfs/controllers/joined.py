"""Hierarchies of several controllers, as by ``mount -o cpu,cpuacct``, and of none.

Source: ``Documentation/admin-guide/cgroup-v1/cgroups.rst``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, make_dataclass
from typing import Any

from pytest_k3s_sandbox.layers.cgroupfs.controllers.base import Passive
from pytest_k3s_sandbox.layers.cgroupfs.group import Controller, File, Group, HierarchyView
from pytest_k3s_sandbox.layers.cgroupfs.sample import Change, Process


class Named(Passive[None]):
    """A hierarchy without controller files: a named one, or perf_event. Its groups only hold processes.

    Args:
        name: The hierarchy's name.
    """

    files: Mapping[str, File[None]] = {}

    def __init__(self, name: str) -> None:
        """Keep the name."""
        self.name = name

    def root(self) -> None:
        """Return None: the group has no state."""

    def child(self, _parent: Group[None]) -> None:
        """Return None: the group has no state."""


class Joined:
    """Several controllers on one hierarchy. A group's state has the attributes of all of theirs.

    Args:
        controllers: Two or more, with distinct names of states and files.
    """

    def __init__(self, controllers: Sequence[Controller[Any]]) -> None:
        """Create the class of the states."""
        self.name = ",".join(controller.name for controller in controllers)
        self.files: Mapping[str, File[Any]] = {
            name: file for controller in controllers for name, file in controller.files.items()
        }
        self._controllers = controllers
        self._roots = [controller.root() for controller in controllers]
        kinds = [type(root) for root in self._roots]
        self._state = make_dataclass("JoinedState", [], bases=tuple(kinds))
        if len(fields(self._state)) != sum(len(fields(kind)) for kind in kinds):
            raise ValueError(f"{self.name}: two of these controllers keep something of the same name")

    def root(self) -> object:
        """Return the state of the root group."""
        return self._merge(self._roots)

    def child(self, parent: Group[Any]) -> object:
        """Return the state of a group that is being made."""
        return self._merge(controller.child(parent) for controller in self._controllers)

    def attach(self, group: Group[Any], process: Process) -> None:
        """Ask each."""
        for controller in self._controllers:
            controller.attach(group, process)

    def removed(self, group: Group[Any]) -> None:
        """Tell each."""
        for controller in self._controllers:
            controller.removed(group)

    def sampled(self, hierarchy: HierarchyView[Any], change: Change) -> None:
        """Tell each."""
        for controller in self._controllers:
            controller.sampled(hierarchy, change)

    def _merge(self, states: Iterable[Any]) -> object:
        return self._state(**{f.name: getattr(state, f.name) for state in states for f in fields(state)})
