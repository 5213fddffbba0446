"""The GCS's actor table."""

from __future__ import annotations

from ray_jobs._ray.gcs import gcs_client

#: Of actors whose constructors haven't returned, in the order in which an actor goes through them.
STATES_BEFORE_LIFE = ("DEPENDENCIES_UNREADY", "PENDING_CREATION")


async def unborn_actors() -> set[str]:
    """Return the ids of the actors that haven't come to life: nobody has had an answer of them.

    Public API is missing: `ray.util.state` asks the dashboard, which may be away.
    """
    found: set[str] = set()
    for state in STATES_BEFORE_LIFE:  # one after the other: an actor may go on in between
        table = await gcs_client().async_get_all_actor_info(actor_state_name=state, timeout=None)
        found.update(actor_id.hex() for actor_id in table)
    return found
