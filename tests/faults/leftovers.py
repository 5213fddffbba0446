"""What is left in a cluster once its jobs have ended: nothing that only a job needs."""

from __future__ import annotations

from ray_jobs import JobSubmissionClient
from ray_jobs.keeper.files import STATUS_FILE
from tests.cluster import Cluster
from tests.faults.processes import named
from tests.faults.supervisors import KEEPER, supervisors_without_task
from tests.waiting import left_after

#: A supervisor is told a second later that an end is recorded, and removes the attempt's folder.
#: Ray ends those of a job's own, and the manager connects to new ones, as fast as it can.
GONE_S = 10.0
RETRY_S = 0.1
MANAGER_PREFIX = "manager-"
#: In our folder of the session. The zygote stays for the next job; the name of a supervisor's
#: socket is gone when the manager is connected.
STAYS = ("attempts", "head-token", "zygote-", MANAGER_PREFIX)


def check_nothing_left(cluster: Cluster) -> None:
    """Hold a cluster to what the jobs need that live: other tests may have left some."""
    with JobSubmissionClient(cluster.address) as client:
        left = left_after(lambda: left_behind(cluster, live_jobs(client)), GONE_S, RETRY_S)
    assert not left, left


def live_jobs(client: JobSubmissionClient) -> int:
    infos = client.list_jobs().values()
    return sum(each.submission_id is not None and not each.status.is_terminal() for each in infos)


def left_behind(cluster: Cluster, live: int) -> list[str]:
    """Return what there is that isn't needed, of keepers and attempts all if they are too many."""
    folder = cluster.session_dir / "ray_jobs"
    names = [path.name for path in folder.iterdir()]
    keepers = [f"keeper {pid}" for pid in named(KEEPER, argument=str(cluster.folder))]
    # The folder of one that was never begun stays, so that it never will be.
    begun = [str(path) for path in folder.glob(f"attempts/*/{STATUS_FILE}")]
    managers = [name for name in names if name.startswith(MANAGER_PREFIX)]
    return [
        *(keepers if len(keepers) > live else []),
        *(begun if len(begun) > live else []),
        *(managers if len(managers) > 1 else []),
        *(name for name in names if not name.startswith(STAYS)),
        *(f"supervisor {pid}" for pid in supervisors_without_task()),
    ]
