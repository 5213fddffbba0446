"""How jobs are supervised in the two clusters."""

from __future__ import annotations

from typing import NamedTuple

import pytest

EACH_ITS_OWN, SHARED = "each its own", "shared"
#: What one supervisor takes where they are shared.
DENSE_JOBS = 64


class Mode(NamedTuple):
    env: dict[str, str]
    idle: int  #: Supervisors without a job when all is quiet.


MODES = {
    EACH_ITS_OWN: Mode({}, idle=3),
    # Room for one job more than a supervisor takes, so that there is always one without a job.
    SHARED: Mode(
        {"RAY_JOBS_SUPERVISION": "dense", "RAY_JOBS_WARM_SUPERVISORS": str(DENSE_JOBS + 1)}, idle=2
    ),
}
#: For a test to which it makes no difference.
each_its_own = pytest.mark.parametrize("cluster", [EACH_ITS_OWN], indirect=True)
