"""Every method of `ray.job_submission.JobSubmissionClient`, unchanged, against our server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.job_submission import JobStatus as StockStatus

from tests.waiting import wait_until

#: Ray's client uses aiohttp in a way that aiohttp has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")


async def collect(lines: Any) -> str:
    return "".join([chunk async for chunk in lines])


def wait(stock: Any, job_id: str) -> Any:
    wait_until(lambda: stock.get_job_status(job_id).is_terminal(), f"the end of {job_id}", 120)
    return stock.get_job_info(job_id)


def test_version(stock: Any) -> None:
    assert stock.get_version() == "4"


def test_life(stock: Any) -> None:
    job_id = stock.submit_job(entrypoint="echo one; sleep 1; echo two", metadata={"owner": "me"})
    assert job_id.startswith("raysubmit_")
    log = asyncio.run(collect(stock.tail_job_logs(job_id)))
    assert log.endswith("one\ntwo\n")
    info = wait(stock, job_id)
    assert info.status == StockStatus.SUCCEEDED
    assert info.type.value == "SUBMISSION"
    assert info.submission_id == job_id
    assert info.metadata == {"owner": "me"}
    assert info.runtime_env == {}
    assert info.driver_exit_code == 0
    assert stock.get_job_logs(job_id) == log
    assert job_id in [job.submission_id for job in stock.list_jobs()]
    assert stock.stop_job(job_id) is False
    assert stock.delete_job(job_id) is True
    with pytest.raises(RuntimeError, match=f"404: Job {job_id} does not exist"):
        stock.get_job_info(job_id)


def test_duplicate(stock: Any) -> None:
    stock.submit_job(entrypoint="true", submission_id="stock-twice")
    with pytest.raises(RuntimeError) as caught:
        stock.submit_job(entrypoint="true", submission_id="stock-twice")
    # KubeRay re-attaches on exactly these words, and on no other status.
    assert "status code 500" in str(caught.value)
    assert "already exists" in str(caught.value)
    assert "Please use a different submission_id" in str(caught.value)
    wait(stock, "stock-twice")


def test_delete_of_a_live_job(stock: Any) -> None:
    job_id = stock.submit_job(entrypoint="sleep 100")
    with pytest.raises(RuntimeError, match="is in a non-terminal state"):
        stock.delete_job(job_id)
    assert stock.stop_job(job_id) is True
    assert wait(stock, job_id).status == StockStatus.STOPPED


def test_deprecated_job_id(stock: Any) -> None:
    assert stock.submit_job(entrypoint="true", job_id="by-job-id") == "by-job-id"
    wait(stock, "by-job-id")


def test_resources(stock: Any) -> None:
    job_id = stock.submit_job(
        entrypoint="echo $OMP_NUM_THREADS",
        entrypoint_num_cpus=2,
        entrypoint_memory=10_000_000,
        entrypoint_label_selector={"ray.io/node-id": "!in(nothing)"},
    )
    info = wait(stock, job_id)
    assert info.status == StockStatus.SUCCEEDED, info.message
    assert stock.get_job_logs(job_id).endswith("\n2\n")


def test_gpus(stock: Any) -> None:
    reserved = stock.submit_job(entrypoint="echo $CUDA_VISIBLE_DEVICES", entrypoint_num_gpus=1)
    assert wait(stock, reserved).status == StockStatus.SUCCEEDED
    assert stock.get_job_logs(reserved).splitlines()[-1] in ("0", "1")
    # Without a reservation the entrypoint sees the node's GPUs as they are.
    free = stock.submit_job(entrypoint="echo [$CUDA_VISIBLE_DEVICES]")
    wait(stock, free)
    assert stock.get_job_logs(free).endswith("\n[]\n")


def test_impossible_resources_say_so(stock: Any) -> None:
    job_id = stock.submit_job(entrypoint="true", entrypoint_resources={"unobtainium": 1})
    info = stock.get_job_info(job_id)
    assert info.status == StockStatus.PENDING
    assert "waiting for resources" in info.message
    stock.stop_job(job_id)
    assert stock.get_job_status(job_id) == StockStatus.STOPPED


def test_py_modules_and_pip(stock: Any, tmp_path: Any) -> None:
    module = tmp_path / "shipped_by_stock"
    module.mkdir()
    (module / "__init__.py").write_text("WORD = 'shipped'")
    code = (
        "import shipped_by_stock; from importlib.metadata import version;"
        " print(shipped_by_stock.WORD, version('iniconfig'))"
    )
    env = {"py_modules": [str(module)], "pip": ["iniconfig==2.0.0"]}
    job_id = stock.submit_job(entrypoint=f'python -c "{code}"', runtime_env=env)
    info = wait(stock, job_id)
    assert info.status == StockStatus.SUCCEEDED, info.message
    assert stock.get_job_logs(job_id).endswith("\nshipped 2.0.0\n")


def test_runtime_env_is_seen_by_entrypoint_tasks_and_actors(stock: Any, tmp_path: Any) -> None:
    (tmp_path / "module_of_mine.py").write_text("VALUE = 42\n")
    (tmp_path / "data.txt").write_text("data")
    (tmp_path / "main.py").write_text(
        """
import os, ray, module_of_mine
ray.init()
@ray.remote
def task():
    return module_of_mine.VALUE, open("data.txt").read(), os.environ["MINE"]
@ray.remote
class Actor:
    def see(self):
        return module_of_mine.VALUE, open("data.txt").read(), os.environ["MINE"]
print(module_of_mine.VALUE, open("data.txt").read(), os.environ["MINE"])
print(ray.get([task.remote(), Actor.remote().see.remote()]))
"""
    )
    env = {"working_dir": str(tmp_path), "env_vars": {"MINE": "mine"}}
    job_id = stock.submit_job(entrypoint="python main.py", runtime_env=env)
    info = wait(stock, job_id)
    log = stock.get_job_logs(job_id)
    assert info.status == StockStatus.SUCCEEDED, log
    assert "\n42 data mine\n" in log
    assert "[(42, 'data', 'mine'), (42, 'data', 'mine')]" in log
    assert info.runtime_env["working_dir"].startswith("gcs://_ray_pkg_")
