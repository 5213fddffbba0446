"""Figures and their table. Pure."""

from __future__ import annotations

import dataclasses
import statistics


@dataclasses.dataclass(frozen=True)
class Figure:
    """What one kind of work took against one server."""

    name: str
    unit: str  #: "ms" (less is better) or "jobs/s", "requests/s" (more is better)
    median: float
    p95: float
    count: int

    @classmethod
    def of(cls, name: str, unit: str, samples: list[float]) -> Figure:
        ordered = sorted(samples)
        p95 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
        return cls(name, unit, statistics.median(ordered), p95, len(ordered))

    @property
    def more_is_better(self) -> bool:
        return self.unit.endswith("/s")


def ratio(stock: Figure, ours: Figure) -> float:
    """Return how many times better ours is."""
    better, worse = (ours, stock) if ours.more_is_better else (stock, ours)
    return better.median / worse.median if worse.median else float("inf")


def shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(stock: list[Figure], ours: list[Figure]) -> str:
    """Return a Markdown table of the figures that both servers have."""
    lines = [
        "| work | unit | stock: median | p95 | ray-jobs: median | p95 | better |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    by_name = {figure.name: figure for figure in stock}
    for own in ours:
        other = by_name.get(own.name)
        theirs = (shown(other.median), shown(other.p95)) if other else ("-", "-")
        better = f"{ratio(other, own):.1f} x" if other else ""
        cells = (own.name, own.unit, *theirs, shown(own.median), shown(own.p95), better)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
