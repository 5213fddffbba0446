"""How the dashboard fared while the rows ran. Pure."""

from __future__ import annotations

from benchmarks.figures import Figure, percentile, words_of
from benchmarks.probe import PATH
from benchmarks.report import RowResult

#: A row of fewer samples than this (2 s) doesn't count as the worst one.
LEAST_SAMPLES = 20


def health(results: list[RowResult]) -> list[RowResult]:
    """Return a row with the latency of the health check, over all rows and in the worst one."""
    everything = [sample for result in results for sample in result.health_ms]
    figures = []
    if everything:
        figures = [
            Figure.of(f"`{PATH}` while the rows ran", "ms", everything),
            Figure.of("the same, p99", "ms", percentile(everything, 99)),
        ]
    counted = [result for result in results if len(result.health_ms) >= LEAST_SAMPLES]
    if counted:
        worst = max(counted, key=lambda result: percentile(result.health_ms, 99))
        note = f"{worst.key}, n={len(worst.health_ms)}"
        p99 = percentile(worst.health_ms, 99)
        figures.append(Figure.of("the same, p99 in the worst row", "ms", p99, note))
    return [RowResult("health", figures, 0.0, [])]


def health_words(result: RowResult) -> str:
    """Return how the health check fared while one row ran."""
    if not result.health_ms:
        return f"`{PATH}`: not asked"
    p99 = words_of(percentile(result.health_ms, 99), "ms")
    return f"`{PATH}` at p99 of {len(result.health_ms)}: {p99}"
