"""Faults are injected into clusters of their own."""

from __future__ import annotations

from tests.clusters.conftest import no_settings_of_the_developer

__all__ = ["no_settings_of_the_developer"]
