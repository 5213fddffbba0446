"""The GCS's actor table."""

from __future__ import annotations

import asyncio
from typing import Any

from ray_jobs._ray.gcs import gcs_client

#: Of actors whose constructors haven't returned: nobody can have called them.
STATES_BEFORE_LIFE = ("DEPENDENCIES_UNREADY", "PENDING_CREATION")


async def unborn_actors(client: Any = None) -> set[str]:
    """Return the ids of the actors that haven't come to life yet.

    Public API is missing: `ray.util.state` asks the dashboard, which may be away.
    """
    ask = (client or gcs_client()).async_get_all_actor_info
    tables = await asyncio.gather(
        *(ask(actor_state_name=state, timeout=None) for state in STATES_BEFORE_LIFE)
    )
    return {actor_id.hex() for table in tables for actor_id in table}
