"""Faults are injected into clusters of their own. What they cost is told in a table at the end."""

from __future__ import annotations

import pytest

from tests.clusters.conftest import no_settings_of_the_developer
from tests.faults.table import lines, times

__all__ = ["no_settings_of_the_developer"]


@pytest.fixture(params=range(times(1)), ids=lambda number: f"round {number + 1}")
def fault_round(request: pytest.FixtureRequest) -> int:
    """Have a test run once, or as often as is asked for: each time the fault is injected once."""
    number: int = request.param
    return number


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    table = lines()
    if table:
        terminalreporter.section("faults")
    for line in table:
        terminalreporter.write_line(line)
