"""The limit to how long something may take: `asyncio.timeout`, which Python 3.10 lacks.

`asyncio.wait_for` isn't used: before Python 3.12 it loses a cancellation that comes at the moment
at which what it waits for ends, so that what was told to end goes on. With Python 3.10 one is
still lost that comes in the very turn of the loop in which the time is up.
"""

from __future__ import annotations

import sys

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout

__all__ = ["timeout"]
