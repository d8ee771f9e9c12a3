"""A run: its records and the figures that are computed from them, each once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from pytest_k3s_sandbox.report import distributions
from pytest_k3s_sandbox.report.distributions import Observations, Series
from pytest_k3s_sandbox.report.metrics import Metrics, compute
from pytest_k3s_sandbox.report.run_records import RunRecords
from pytest_k3s_sandbox.report.series import Lane, lanes


@dataclass(frozen=True)
class Run(RunRecords):
    """A run: its records and figures; see :class:`~.run_records.RunRecords` for the attributes."""

    @cached_property
    def metrics(self) -> Metrics:
        """Return the key figures."""
        return compute(self)

    @cached_property
    def lanes(self) -> tuple[Lane, ...]:
        """Return the states of the API server, the node and each pod over time."""
        return lanes(self.samples)

    @cached_property
    def distributions(self) -> tuple[Observations, ...]:
        """Return what was observed more than once, and the latencies of pods."""
        return distributions.distributions(self, self.metrics.pods, self.processor, self.memory)

    @cached_property
    def processor(self) -> tuple[Series, ...]:
        """Return each layer's use of the processor over time, in percent of one core."""
        return distributions.processor(self)

    @cached_property
    def memory(self) -> tuple[Series, ...]:
        """Return each layer's resident memory over time, in MiB."""
        return distributions.memory(self)
