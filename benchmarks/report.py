"""The table and the JSON of a run. Pure."""

from __future__ import annotations

import dataclasses
from typing import Any

from benchmarks.figures import Figure, percentile, times_better, words_of


@dataclasses.dataclass(frozen=True)
class RowResult:
    """What one row gave against one server."""

    key: str
    figures: list[Figure]
    seconds: float  #: how long the row ran
    health_ms: list[float]  #: latencies of the dashboard's health check meanwhile
    error: str = ""  #: why there are no figures


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One line of the table."""

    row: str
    name: str
    unit: str
    stock: Figure | None
    ours: Figure | None

    @property
    def times_better(self) -> float | None:
        return times_better(self.stock, self.ours) if self.stock and self.ours else None


def compare(stock: list[RowResult], ours: list[RowResult]) -> list[Comparison]:
    """Return every figure of either server beside the other's, in the order in which they came."""
    found: dict[tuple[str, str], list[Figure | None]] = {}
    for index, results in enumerate((ours, stock)):
        for result in results:
            for figure in result.figures:
                found.setdefault((result.key, figure.name), [None, None])[index] = figure
    lines = []
    for (key, name), (own, other) in found.items():
        either = own or other
        assert either is not None
        lines.append(Comparison(key, name, either.unit, other, own))
    order = list(dict.fromkeys(line.row for line in lines))
    return sorted(lines, key=lambda line: order.index(line.row))


def cell(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    text = words_of(figure.median, figure.unit)
    count = len(figure.samples)
    if count > 1:
        p95 = words_of(figure.p95, figure.unit)
        unit = p95[p95.index(" ") :]
        text = f"{text.removesuffix(unit)} / {p95} ({count})"
    return f"{text} [{figure.note}]" if figure.note else text


def table(lines: list[Comparison]) -> str:
    """Return a Markdown table. A cell is `median / p95 (number of samples)`."""
    rows = [("row", "work", "stock: p50 / p95 (n)", "ray-jobs: p50 / p95 (n)", "better")]
    for line in lines:
        factor = line.times_better
        better = "-" if factor is None else f"{factor:,.3g} x"
        rows.append((f"`{line.row}`", line.name, cell(line.stock), cell(line.ours), better))
    widths = [max(len(row[index]) for row in rows) for index in range(5)]

    def padded(row: tuple[str, ...]) -> str:
        cells = (
            text.ljust(width) if index < 2 else text.rjust(width)
            for index, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        return f"| {' | '.join(cells)} |"

    rule = [
        "-" * width if index < 2 else "-" * (width - 1) + ":" for index, width in enumerate(widths)
    ]
    return "\n".join([padded(rows[0]), f"| {' | '.join(rule)} |", *map(padded, rows[1:])])


def failures(stock: list[RowResult], ours: list[RowResult]) -> list[str]:
    """Return a line for each row that gave no figures."""
    return [
        f"`{result.key}` against {server} failed: {result.error}"
        for server, results in (("the stock server", stock), ("ray-jobs", ours))
        for result in results
        if result.error
    ]


def as_json(
    machine: dict[str, Any], stock: list[RowResult], ours: list[RowResult]
) -> dict[str, Any]:
    """Return everything that was measured, for a file."""
    return {
        **machine,
        "figures": [
            {
                "row": line.row,
                "name": line.name,
                "unit": line.unit,
                "stock": line.stock.summary() if line.stock else None,
                "ours": line.ours.summary() if line.ours else None,
                "times_better": line.times_better,
            }
            for line in compare(stock, ours)
        ],
        "rows": {
            server: [
                {
                    "row": result.key,
                    "seconds": round(result.seconds, 1),
                    "error": result.error,
                    "health_p99_ms": percentile(result.health_ms, 99) if result.health_ms else None,
                }
                for result in results
            ]
            for server, results in (("stock", stock), ("ours", ours))
        },
    }
