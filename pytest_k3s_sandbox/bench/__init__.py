"""The measurements, each runnable alone: ratios of values that are measured side by side in one run.

A benchmark is a module of this package with a function ``bench(count, say)`` that
returns a :class:`Result`, and an entry in :data:`BENCHMARKS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pytest_k3s_sandbox.errors import ConfigError, suggestion

if TYPE_CHECKING:
    from pytest_k3s_sandbox.report.records import Measurement, Verdict

Say = Callable[[str], None]
"""Takes a line about the progress."""


@dataclass(frozen=True)
class Result:
    """The result of a benchmark.

    Attributes:
        figures: Everything that was measured, as JSON values.
        table: The same for people.
        ok: Whether everything could be measured; a target that was missed is a finding, not a failure.
        records: The figures and targets as a report shows them, if the benchmark has them so.
    """

    figures: dict[str, Any]
    table: str
    ok: bool
    records: tuple[Measurement | Verdict, ...] = ()


class Bench(Protocol):
    """The function ``bench`` of a benchmark's module."""

    def __call__(self, count: int, say: Say) -> Result:
        """Measure each case ``count`` times, and say how it goes."""


@dataclass(frozen=True)
class Benchmark:
    """An entry of the registry.

    Attributes:
        about: The measured thing, in a few words.
        count: How often each case is measured unless the user says otherwise.
    """

    about: str
    count: int


BENCHMARKS = {
    "coldstart": Benchmark("from a sandbox's start to a Ready node and ten Running pods", 20),
    "cgroupfs": Benchmark("the cost of the FUSE cgroupfs, beside the kernel's and lxcfs'", 5),
    "pods": Benchmark("30 pods on one node, at once and one by one: times and processor time", 3),
    "interceptor": Benchmark("the cost of the interceptor, beside other tracers", 10),
}
"""Every benchmark; its key is its module's name."""


def require(name: str) -> Benchmark:
    """Return a benchmark's entry.

    Raises:
        ConfigError: There is no such benchmark.
    """
    if name not in BENCHMARKS:
        raise ConfigError(
            f"unknown benchmark {name!r}",
            cause="known are " + ", ".join(BENCHMARKS),
            remedy=suggestion(name, BENCHMARKS),
        )
    return BENCHMARKS[name]


def load(name: str) -> Bench:
    """Import a benchmark that :func:`require` knows; it is done late because some need much."""
    bench: Bench = importlib.import_module(f"{__name__}.{name}").bench
    return bench


def record(result: Result, folder: Path) -> Path:
    """Write a result's records as a run, and its page.

    Args:
        result: The benchmark's result.
        folder: The run's folder, which is new.

    Returns:
        The page.
    """
    from pytest_k3s_sandbox.report.page import render
    from pytest_k3s_sandbox.report.records import RunWriter

    writer = RunWriter(folder)
    for one in result.records:
        writer.append(one)
    writer.close()
    return render([folder], folder)
