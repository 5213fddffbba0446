"""Numbers that are set by environment variables."""

from __future__ import annotations

import logging
from collections.abc import Mapping

logger = logging.getLogger(__name__)

#: Whole numbers up to this one are floats too, without loss, and so is what is reckoned with them.
MOST = 2**53
#: Of a wrong value in the log, in characters.
MAX_SHOWN_CHARS = 80


def number(
    environ: Mapping[str, str], name: str, default: float, least: float = 0, most: float = MOST
) -> float:
    """Return the number that a variable gives: a whole one where the default is an int.

    A wrong value is logged, and the default taken.

    Args:
        least, most: What it may be; the default may be another, that nobody can give.
    """
    text = environ.get(name)
    if not text:
        return default
    try:
        value: float = int(text) if isinstance(default, int) else float(text)
    except ValueError:
        value = -1
    if not least <= value <= most:  # NaN too
        shown = text[:MAX_SHOWN_CHARS]
        logger.warning("%s=%s is not a number from %s to %s: %s", name, shown, least, most, default)
        return default
    return value
