"""Enabling and disabling, and a package that is broken in every way: Ray always starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ray_jobs import JobSubmissionClient
from ray_jobs import plugin as ray_jobs_plugin
from ray_jobs.errors import JobNotTerminal, RayJobsError
from ray_jobs.models import JobStatus
from tests.cluster import BIN, Cluster, plugin, running_cluster
from tests.gateway import running_gateway
from tests.waiting import wait_until

BREAKAGES = {
    "gone": "raise ModuleNotFoundError('No module named ray_jobs')",
    "raising at import": "raise RuntimeError('broken at import')",
    "leaving at import": "raise SystemExit(3)",
    "raising in the constructor": """
import ray_jobs.dashboard_module.head as head
def broken(self):
    raise RuntimeError("broken in the constructor")
head.RayJobsHead._make_face = broken
""",
    "raising halfway through registration": """
import ray_jobs.dashboard_module.head as head
whole = head.RayJobsHead._handler
def broken(self, route):
    if route.name == head.ROUTES[3].name:
        raise RuntimeError("broken while registering")
    return whole(self, route)
head.RayJobsHead._handler = broken
""",
    "raising in run": """
import ray_jobs.dashboard_module.face as face
async def broken(self):
    raise RuntimeError("broken in run")
face.Face.start = broken
""",
}


#: One that fails before it is loaded, and one after. A cluster costs a quarter of a minute:
#: `make test-long` has the others.
SHOWN = ("gone", "raising in run")


@pytest.mark.parametrize(
    "breakage",
    [each if each in SHOWN else pytest.param(each, marks=pytest.mark.long) for each in BREAKAGES],
)
def test_broken_package_leaves_ray_its_own_server(breakage: str, tmp_path: Path) -> None:
    # The plugin's file imports ray_jobs.dashboard_module.head: this one is found before it.
    package = tmp_path / "ray_jobs"
    if "import" in breakage or breakage == "gone":
        package.mkdir()
        (package / "__init__.py").write_text(BREAKAGES[breakage])
    else:
        (tmp_path / "breakage.py").write_text(BREAKAGES[breakage])
    env = {"PYTHONPATH": str(tmp_path)}
    with plugin(enabled=True):
        path = ray_jobs_plugin.plugin_path()
        if not package.exists():
            text = ray_jobs_plugin.FILE_TEXT.replace(
                "    try:\n", "    try:\n        import breakage\n"
            )
            assert text != ray_jobs_plugin.FILE_TEXT
            path.write_text(text)
        with running_cluster(env, cpus=1) as cluster:
            assert_served_by_ray(cluster)


def assert_served_by_ray(cluster: Cluster) -> None:
    with JobSubmissionClient(cluster.address) as client:
        assert client.get_server_info().is_ray_jobs is False
        job_id = client.submit_job(entrypoint="echo by ray")
        info = client.wait_until_finish(job_id, timeout=60)
        assert info.status is JobStatus.SUCCEEDED
        assert "by ray" in client.get_job_logs(job_id)
        assert "by ray" in "".join(client.tail_job_logs(job_id))


def test_enabled_disabled_and_listed_both_ways(tmp_path: Path) -> None:
    # Without Redis no job outlives the head: here both servers see one KV, ours by the gateway.
    with (
        plugin(enabled=False),
        running_cluster(cpus=2) as cluster,
        running_gateway(cluster) as url,
        JobSubmissionClient(cluster.address) as ray_server,
        JobSubmissionClient(url) as ours,
    ):
        read_log_of_rays_job_on_another_node(cluster, ray_server, ours, tmp_path / "go")
        by_ray = ray_server.submit_job(entrypoint="echo one", submission_id="by-ray")
        ray_server.wait_until_finish(by_ray, timeout=60)
        by_us = ours.submit_job(entrypoint="echo two", submission_id="by-us")
        ours.wait_until_finish(by_us, timeout=60)
        for each in (ray_server, ours):
            jobs = each.list_jobs()
            assert {"by-ray", "by-us"} <= jobs.keys()
            assert jobs["by-ray"].status is jobs["by-us"].status is JobStatus.SUCCEEDED
            assert "one" in each.get_job_logs("by-ray")
            assert "two" in each.get_job_logs("by-us")
        # Either server refuses the other's id, and may delete the other's job.
        with pytest.raises(Exception, match="already exists"):
            ours.submit_job(entrypoint="true", submission_id="by-ray")
        with pytest.raises(Exception, match="already exists"):
            ray_server.submit_job(entrypoint="true", submission_id="by-us")
        assert ours.delete_job("by-ray") is True
        assert "by-ray" not in ray_server.list_jobs()
        # Ray's own server, in use again, leaves a running job of ours alone, and can stop it where
        # it has a supervisor of its own.
        live = ours.submit_job(entrypoint="echo up; sleep 300", entrypoint_num_cpus=0.5)
        wait_until(lambda: "up" in ours.get_job_logs(live).split(), "it runs", 30)
        other = ray_server.submit_job(entrypoint="sleep 3")
        ray_server.wait_until_finish(other, timeout=60)
        assert ours.get_job_status(live) is JobStatus.RUNNING
        assert ray_server.get_job_status(live) is JobStatus.RUNNING
        # Jobs that it is given while we serve are listed by us too, and its deletions hold.
        wait_until(lambda: other in ours.list_jobs(), "Ray's new job", 20)
        ended = ours.wait_until_finish(other, timeout=20)
        assert ended.status is JobStatus.SUCCEEDED
        assert ray_server.delete_job("by-us") is True
        wait_until(lambda: "by-us" not in ours.list_jobs(), "Ray's deletion", 20)
        assert ray_server.stop_job(live) is True
        assert ours.wait_until_finish(live, timeout=30).status is JobStatus.STOPPED


def read_log_of_rays_job_on_another_node(
    cluster: Cluster, ray_server: JobSubmissionClient, ours: JobSubmissionClient, go: Path
) -> None:
    cluster.add_node(resources={"elsewhere": 1})
    job_id = ray_server.submit_job(
        entrypoint=f"echo first; while [ ! -e {go} ]; do sleep 0.1; done; echo last",
        entrypoint_resources={"elsewhere": 1},
        # Its own lines Ray writes to the head: a file that has nothing of the job.
        runtime_env={"env_vars": {"A": "1"}},
    )
    wait_until(lambda: ray_server.get_job_status(job_id) is JobStatus.RUNNING, "it runs", 60)
    lines = ours.tail_job_logs(job_id)
    seen = next(lines)
    while "first\n" not in seen:
        seen += next(lines)
    go.touch()
    seen += "".join(lines)
    # Between the two there may be Ray's own line about the entrypoint.
    assert seen.endswith("\nlast\n")
    assert ours.get_job_logs(job_id) == seen
    cluster.kill_last_node()
    with pytest.raises(RayJobsError, match=f"Job {job_id} ran under Ray's own"):
        ours.get_job_logs(job_id)


def test_commands() -> None:
    def run(*words: str) -> Any:
        command = [str(BIN / "ray-jobs"), "plugin", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    with plugin(enabled=False):
        path = ray_jobs_plugin.plugin_path()
        assert "not enabled" in run("status").stdout
        enabled = run("enable")
        assert enabled.returncode == 0, enabled.stderr
        assert path.read_text() == ray_jobs_plugin.FILE_TEXT
        assert "already" in run("enable").stdout
        assert f"plugin: enabled ({path})" in run("status").stdout
        with running_cluster(cpus=1) as cluster:
            where = f"--address={cluster.address}"
            assert "server: ray-jobs " in run("status", where).stdout
            with JobSubmissionClient(cluster.address) as client:
                job_id = client.submit_job(entrypoint="sleep 300")
                with pytest.raises(JobNotTerminal, match="1 jobs have not finished"):
                    ray_jobs_plugin.disable(address=cluster.address)
                refused = run("disable", where)
                assert refused.returncode == 1
                assert job_id in refused.stderr
                assert run("disable", where, "--force").returncode == 0
                assert not path.exists()
                client.stop_job(job_id)
        assert "not enabled" in run("disable").stdout


def test_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody writes there, not even root.
    path = Path("/sys/kernel") / ray_jobs_plugin.FILE_NAME
    monkeypatch.setattr(ray_jobs_plugin, "plugin_path", lambda: path)
    with pytest.raises(ray_jobs_plugin.PluginError, match=f"Can't write {path}") as caught:
        ray_jobs_plugin.enable()
    assert "ray-jobs serve" in (caught.value.hint or "")


def test_the_file_costs_an_agent_nothing() -> None:
    code = f"import sys\nbefore = set(sys.modules)\n{ray_jobs_plugin.FILE_TEXT}\n" + (
        "print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
