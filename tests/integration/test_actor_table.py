"""What the GCS says of actors, asked by a driver in a job."""

from __future__ import annotations

from pathlib import Path

from ray_jobs import JobSubmissionClient
from ray_jobs.models import JobStatus

SCRIPT = """
import asyncio
import ray
from ray_jobs import _ray

@ray.remote(num_cpus=0)
class Actor:
    def ping(self):
        pass

ray.init(log_to_driver=False)
unborn = Actor.options(name="unborn", resources={"nobody has it": 1}).remote()
living = Actor.remote()
ray.get(living.ping.remote())
dead = Actor.remote()
ray.get(dead.ping.remote())
ray.kill(dead)
found = asyncio.run(_ray.unborn_actors())
print([_ray.actor_id(each) in found for each in (unborn, living, dead)])
"""


def test_actors_that_have_not_come_to_life(client: JobSubmissionClient, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    job_id = client.submit_job(entrypoint=f"python {script}")
    assert client.wait_until_finish(job_id, timeout=60).status is JobStatus.SUCCEEDED
    assert client.get_job_logs(job_id).splitlines()[-1] == "[True, False, False]"
