"""The cgroup v1 controllers, one module each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pytest_k3s_sandbox.layers.cgroupfs.controllers.blkio import Blkio
from pytest_k3s_sandbox.layers.cgroupfs.controllers.cpu import Cpu
from pytest_k3s_sandbox.layers.cgroupfs.controllers.cpuacct import Cpuacct
from pytest_k3s_sandbox.layers.cgroupfs.controllers.cpuset import Cpuset
from pytest_k3s_sandbox.layers.cgroupfs.controllers.devices import Devices
from pytest_k3s_sandbox.layers.cgroupfs.controllers.freezer import Freezer
from pytest_k3s_sandbox.layers.cgroupfs.controllers.hugetlb import Hugetlb
from pytest_k3s_sandbox.layers.cgroupfs.controllers.joined import Joined, Named
from pytest_k3s_sandbox.layers.cgroupfs.controllers.memory import Memory
from pytest_k3s_sandbox.layers.cgroupfs.controllers.net import NetCls, NetPrio
from pytest_k3s_sandbox.layers.cgroupfs.controllers.pids import Pids
from pytest_k3s_sandbox.layers.cgroupfs.group import Controller
from pytest_k3s_sandbox.layers.cgroupfs.sample import Accounting

CONTROLLERS: Mapping[str, Callable[[Accounting], Controller[Any]]] = {
    "cpu": lambda _: Cpu(),
    "cpuacct": lambda _: Cpuacct(),
    "cpuset": Cpuset,
    "memory": lambda _: Memory(),
    "devices": lambda _: Devices(),
    "pids": lambda _: Pids(),
    "blkio": lambda _: Blkio(),
    "freezer": lambda _: Freezer(),
    "hugetlb": Hugetlb,
    "net_cls": lambda _: NetCls(),
    "net_prio": lambda _: NetPrio(),
    "perf_event": lambda _: Named("perf_event"),
    "systemd": lambda _: Named("name=systemd"),
    "cpu,cpuacct": lambda _: Joined([Cpu(), Cpuacct()]),
    "net_cls,net_prio": lambda _: Joined([NetCls(), NetPrio()]),
}
"""The factory of each hierarchy's controller, by directory, in the order of the mounts."""

DEFAULT = ("cpu", "cpuacct", "cpuset", "memory", "devices", "pids", "blkio", "freezer")
"""The hierarchies that a node needs; the default."""
