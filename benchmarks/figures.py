"""Figures: what some work took against one server, and how two of them compare. Pure."""

from __future__ import annotations

import dataclasses
import math
import statistics

#: Units of which more is better; of all others less is.
RATES = ("jobs/s", "requests/s", "MB/s")


@dataclasses.dataclass(frozen=True)
class Figure:
    """What one kind of work took against one server. The samples are never empty."""

    name: str
    unit: str  #: "ms", "MB", "cores", "lines", or one of `RATES`
    samples: tuple[float, ...]
    note: str = ""

    @classmethod
    def of(cls, name: str, unit: str, samples: list[float] | float, note: str = "") -> Figure:
        values = tuple(samples) if isinstance(samples, list) else (samples,)
        assert values, f"no samples: {name}"
        return cls(name, unit, values, note)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def p95(self) -> float:
        """What 95 of 100 samples are as good as: of rates, that is a low one."""
        return self._worse_than(95)

    def _worse_than(self, percent: int) -> float:
        return percentile(self.samples, 100 - percent if self.unit in RATES else percent)

    def summary(self) -> dict[str, float | str]:
        """Return what the JSON report says of it."""
        return {
            "median": self.median,
            "p95": self.p95,
            "p99": self._worse_than(99),
            "min": min(self.samples),
            "max": max(self.samples),
            "count": len(self.samples),
            "note": self.note,
        }


def percentile(samples: tuple[float, ...] | list[float], percent: float) -> float:
    """Return the smallest sample that at least `percent` of all don't exceed (nearest rank)."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def times_better(stock: Figure, ours: Figure) -> float | None:
    """Return by what factor our median is better, or None where a factor has no meaning."""
    better, worse = (ours, stock) if ours.unit in RATES else (stock, ours)
    if better.median <= 0 or worse.median <= 0:
        return None
    return better.median / worse.median


def words_of(value: float, unit: str) -> str:
    """Return a value with its unit, in few digits: 1.27 s, 4.10 ms, 1,030 requests/s."""
    if unit == "ms" and abs(value) >= 1000:
        value, unit = value / 1000, "s"
    if unit == "MB" and abs(value) >= 1000:
        value, unit = value / 1000, "GB"
    if unit == "MB/s" and abs(value) >= 1000:
        value, unit = value / 1000, "GB/s"
    if unit == "lines":
        return f"{value:,.0f} lines"
    if unit == "cores":
        return f"{value:.5f} cores"
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2
    return f"{value:,.{digits}f} {unit}"
