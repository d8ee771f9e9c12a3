"""The figures of ``bench pods``: medians by kind and runtime, ratios, targets, and where the time went."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pytest_k3s_sandbox.bench.spending import UNATTRIBUTED, Spent
from pytest_k3s_sandbox.report.records import Measurement, Verdict

PODS = 30
READY_SECONDS, GONE_SECONDS = 90.0, 60.0
"""The targets in seconds: all Ready, and all gone."""
RATIO, GONE_RATIO, SINGLE_RATIO = 2.5, 2.5, 1.1
"""The targets as multiples of natively: all Ready, all gone, and one pod after another Ready."""
PRICE_RATIO = 0.45
"""The target of crun's processor time as a share of runc's, both in gVisor."""

OURS, WITH_RUNC, NATIVE = ("gvisor", "crun"), ("gvisor", "runc"), ("host", "runc")
CASES = (OURS, WITH_RUNC, NATIVE)
"""The kinds of sandbox and the OCI runtimes; the last one is the yardstick."""
FIGURES = ("ready", "gone", "single", "price")
"""What is compared: seconds until all were Ready, until all were gone, of a single pod; price of a pod."""


def case(kind: str, runtime: str) -> str:
    """Return the name of a case in results and records."""
    return f"{kind}-{runtime}"


@dataclass(frozen=True)
class Crowd:
    """Pods that were made at once and deleted at once, and then pods one after another on the same node.

    Attributes:
        sandbox: The sandbox's kind.
        runtime: The OCI runtime.
        ready: Seconds from the first one's creation until all were Ready; None when they never were.
        gone: Seconds from the deletion until the API had none; None when it still had some.
        firsts: Seconds until half of them were Ready.
        left: Their remains on the node afterwards.
        spent: The processor time from the first creation until all were Ready.
        whole: The processor time from the first creation until nothing was left of them.
        singles: Seconds from creation to Ready of the pods that were made one after another.
        failure: Why it could not be measured, if so.
    """

    sandbox: str
    runtime: str = "runc"
    ready: float | None = None
    gone: float | None = None
    firsts: float | None = None
    left: tuple[str, ...] = ()
    spent: Spent | None = None
    whole: Spent | None = None
    singles: tuple[float, ...] = ()
    failure: str | None = None

    @property
    def single(self) -> float | None:
        """The median seconds from creation to Ready of pods one after another."""
        return statistics.median(self.singles) if self.singles else None

    @property
    def price(self) -> float | None:
        """The processor time of one pod of the crowd until Ready, by the machine's count."""
        return None if self.spent is None or self.spent.machine is None else self.spent.machine / PODS

    @property
    def words(self) -> str:
        """The times and the largest prices, for a line about the progress."""
        if self.failure is not None:
            return self.failure
        parts = (
            ("Ready", self.ready, "s"),
            ("gone", self.gone, "s"),
            ("one pod", self.single, "s"),
            ("a pod costs", self.price, "core-s"),
        )
        return ", ".join(f"{name} {value:.2f} {unit}" for name, value, unit in parts if value is not None)


def summary(crowds: Sequence[Crowd]) -> dict[str, Any]:
    """Return the medians by kind and runtime, their ratios, the price of a pod by layer, and every crowd."""
    result: dict[str, Any] = {"pods": PODS, "crowds": [asdict(each) for each in crowds]}
    for kind, runtime in CASES:
        mine = [each for each in crowds if (each.sandbox, each.runtime) == (kind, runtime)]
        fine = [each for each in mine if each.failure is None]
        result[case(kind, runtime)] = {
            "n": len(mine),
            "failures": len(mine) - len(fine),
            "left": sum(len(each.left) for each in mine),
            **{name: _median(fine, name) for name in FIGURES},
            "whole_price": _middle(
                each.whole.machine / PODS
                for each in fine
                if each.whole is not None and each.whole.machine is not None
            ),
            "layers": _shares(fine),
            "programs": _programs(fine),
        }
    result["ratios"] = {
        case(*one): {name: _ratio(result[case(*one)][name], result[case(*NATIVE)][name]) for name in FIGURES}
        for one in (OURS, WITH_RUNC)
    }
    result["price_to_runc"] = _ratio(result[case(*OURS)]["price"], result[case(*WITH_RUNC)]["price"])
    return result


def _middle(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None


def _median(crowds: Sequence[Crowd], name: str) -> float | None:
    return _middle(value for each in crowds if (value := getattr(each, name)) is not None)


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or not theirs else ours / theirs


def _shares(crowds: Sequence[Crowd]) -> dict[str, float]:
    """Return the median processor time of a pod until Ready by layer, with what no layer has."""
    spent = [each.spent.layers for each in crowds if each.spent is not None]
    names = dict.fromkeys(name for each in spent for name in each)
    return {name: statistics.median(each.get(name, 0.0) for each in spent) / PODS for name in names}


def _programs(crowds: Sequence[Crowd]) -> dict[str, float]:
    """Return the same by program, the largest first."""
    spent = [each.spent for each in crowds if each.spent is not None]
    names = dict.fromkeys(name for each in spent for name in each.programs)
    found = {
        name: statistics.median(each.programs.get(name, 0.0) * each.scale for each in spent) / PODS
        for name in names
    }
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def records(crowds: Sequence[Crowd], result: Mapping[str, Any]) -> tuple[Measurement | Verdict, ...]:
    """Return the measurements and the targets as a report shows them."""
    found: list[Measurement | Verdict] = []
    for kind, runtime in CASES:
        fine = [each for each in crowds if (each.sandbox, each.runtime) == (kind, runtime)]
        for name in FIGURES:
            values = [value for each in fine if (value := getattr(each, name)) is not None]
            if values:
                found.append(Measurement.of(f"pods-{name}-{case(kind, runtime)}", values, "s"))
    ours, ratios = result[case(*OURS)], result["ratios"][case(*OURS)]
    for name, measured, limit, unit in (
        ("ready", ours["ready"], READY_SECONDS, "s"),
        ("gone", ours["gone"], GONE_SECONDS, "s"),
        ("ratio", ratios["ready"], RATIO, ""),
        ("gone-ratio", ratios["gone"], GONE_RATIO, ""),
        ("single-ratio", ratios["single"], SINGLE_RATIO, ""),
        ("price", result["price_to_runc"], PRICE_RATIO, ""),
    ):
        held = measured is not None and measured <= limit
        value = None if measured is None else round(measured, 2)
        found.append(
            Verdict(name=f"pods-{name}", text=TEXTS[name], held=held, measured=value, limit=limit, unit=unit)
        )
    return tuple(found)


TEXTS = {
    "ready": f"{PODS} pods made at once in gVisor are Ready within {READY_SECONDS:g} s",
    "gone": f"{PODS} pods deleted at once in gVisor are gone within {GONE_SECONDS:g} s",
    "ratio": f"{PODS} pods made at once take at most {RATIO:g} times as long in gVisor as natively",
    "gone-ratio": f"{PODS} pods deleted at once take at most {GONE_RATIO:g} times as long in gVisor",
    "single-ratio": f"one pod takes at most {SINGLE_RATIO:g} times as long in gVisor as natively",
    "price": f"a pod with crun takes at most {PRICE_RATIO:g} of the processor time with runc in gVisor",
}


def table(result: Mapping[str, Any]) -> str:
    """Return the summary as text tables: times and ratios, then the price of a pod by layer."""
    head = f"{'':12} {'n':>3} {'Ready':>8} {'gone':>8} {'left':>5} {'one pod':>8} {'core-s':>8}"
    lines = [f"{head}   (medians, seconds; {PODS} pods, core-s a pod until Ready)"]
    for one in CASES:
        mine = result[case(*one)]
        lines.append(
            f"{case(*one):12} {mine['n']:>3} {_cell(mine['ready'])} {_cell(mine['gone'])} "
            f"{mine['left']:>5} {_cell(mine['single'], 2)} {_cell(mine['price'], 3)}"
        )
    for one in (OURS, WITH_RUNC):
        cells = {name: _cell(result["ratios"][case(*one)][name], 2) for name in FIGURES}
        lines.append(
            f"{case(*one):12} {'to':>3} {cells['ready']} {cells['gone']} {'host':>5} "
            f"{cells['single']} {cells['price']}"
        )
    lines.append(f"core-s with crun to runc, in gVisor: {_cell(result['price_to_runc'], 2).strip()}")
    return "\n".join([*lines, "", *_layers(result)])


def _layers(result: Mapping[str, Any]) -> list[str]:
    columns = [result[case(*one)]["layers"] for one in CASES]
    names = dict.fromkeys(name for column in columns for name in column)
    lines = [
        f"{'core-s a pod until Ready':24}" + "".join(f" {case(*one):>12}" for one in CASES),
        *(f"{name:24}" + "".join(_milli(column.get(name)) for column in columns) for name in names),
    ]
    total = [result[case(*one)]["price"] for one in CASES]
    lines.append(f"{'total':24}" + "".join(map(_milli, total)))
    whole = [result[case(*one)]["whole_price"] for one in CASES]
    lines.append(f"{'total, until gone':24}" + "".join(map(_milli, whole)))
    notes = f"{UNATTRIBUTED}: the total less all programs; in gVisor the layers share the machine's total"
    rough = "shim starts, CNI plugin: their sum is counted; the plugin's part is of calls on a quiet node"
    return [*lines, f"{notes} by gVisor's own count", rough]


def _milli(value: float | None) -> str:
    return f" {'':>12}" if value is None else f" {value:12.3f}"


def _cell(value: float | None, digits: int = 1) -> str:
    return f"{'never':>8}" if value is None else f"{value:8.{digits}f}"
