"""Who may do what: what stands before the handlers, in both hosts of the face."""

from __future__ import annotations

from .guard import Guard
from .settings import GuardSettings, settings

__all__ = ["Guard", "GuardSettings", "settings"]
