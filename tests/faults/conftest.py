"""Faults are injected into clusters of their own. What they cost is told in a table at the end."""

from __future__ import annotations

import pytest

from tests.clusters.conftest import no_settings_of_the_developer
from tests.faults.table import lines

__all__ = ["no_settings_of_the_developer"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    table = lines()
    if table:
        terminalreporter.section("faults")
    for line in table:
        terminalreporter.write_line(line)
