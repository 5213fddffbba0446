"""The supervisor travels by value: to nodes where ray_jobs isn't installed (rule 8)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ray.cloudpickle

from ray_jobs import supervisor

#: Run where ray_jobs can't be imported.
THERE = """
import pickle, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ray_jobs":
            raise ImportError("ray_jobs isn't installed here")
sys.meta_path.insert(0, Refuse())
with open(sys.argv[1], "rb") as file:
    print(pickle.load(file).__name__)
"""


def test_it_can_be_shipped_and_needs_no_ray_jobs_there(tmp_path: Path) -> None:
    for module in supervisor.MODULES:
        ray.cloudpickle.register_pickle_by_value(module)
    try:
        shipped = ray.cloudpickle.dumps(supervisor.actor.JobSupervisor)
    finally:
        for module in supervisor.MODULES:
            ray.cloudpickle.unregister_pickle_by_value(module)
    (tmp_path / "supervisor").write_bytes(shipped)
    found = subprocess.run(
        [sys.executable, "-c", THERE, str(tmp_path / "supervisor")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    assert found.stdout == "JobSupervisor\n", found.stderr
