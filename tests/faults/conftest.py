"""Faults are injected into clusters of their own. What they cost is told in a table at the end."""

from __future__ import annotations

import pytest

from tests.clusters.conftest import no_settings_of_the_developer
from tests.faults.campaign import ROWS

__all__ = ["no_settings_of_the_developer"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not ROWS:
        return
    terminalreporter.section("faults")
    terminalreporter.write_line(
        f"{'fault':52} {'times':>5} {'jobs':>5} {'lost':>4} {'twice':>5} {'orphans':>7}"
        f" {'no read for':>11} {'slowest submission':>18}"
    )
    for row in ROWS:
        verdict = row.verdict
        terminalreporter.write_line(
            f"{row.fault:52} {row.times:5} {verdict.jobs:5} {len(verdict.lost):4}"
            f" {len(verdict.twice):5} {len(verdict.orphans):7} {row.longest_read_s:9.2f} s"
            f" {row.longest_submission_s:16.2f} s"
        )
