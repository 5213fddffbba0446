"""Numbers that are set by environment variables."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

logger = logging.getLogger(__name__)


def number(environ: Mapping[str, str], name: str, default: float, least: int = 0) -> float:
    """Return the number that a variable gives: a whole one where the default is an int.

    A wrong value is logged, and the default taken.
    """
    text = environ.get(name)
    if not text:
        return default
    try:
        value: float = int(text) if isinstance(default, int) else float(text)
    except ValueError:
        value = -1
    if not least <= value < math.inf:
        logger.warning("%s=%s is not a number of at least %d: %s", name, text, least, default)
        return default
    return value
