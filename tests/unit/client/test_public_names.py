from __future__ import annotations

import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import ray_jobs
import ray_jobs.client
from ray_jobs import errors


@pytest.mark.parametrize("module", [ray_jobs, ray_jobs.client])
def test_names(module: ModuleType) -> None:
    assert list(module.__all__) == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name).__name__ == name
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match="no attribute"):
        module.nothing  # noqa: B018


def test_every_error_is_public() -> None:
    found = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.RayJobsError)
    }
    assert found <= set(ray_jobs.__all__)


def imported_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(subprocess.check_output([sys.executable, "-c", code], text=True).split())


def test_importing_costs_nearly_nothing() -> None:
    heavy = {"aiohttp", "msgspec", "asyncio", "pathspec", "yaml", "filelock", "zipfile", "ray"}
    assert not imported_by("import ray_jobs, ray_jobs.client") & heavy
    later = {"aiohttp", "pathspec", "yaml", "filelock", "zipfile", "ray"}
    assert (
        not imported_by("from ray_jobs import JobSubmissionClient; JobSubmissionClient()") & later
    )


def test_ray_is_never_imported() -> None:
    names = "transport plain session upload runtime_env tailing waiting listing submitting"
    statement = "from ray_jobs.client import " + ", ".join(names.split())
    assert "ray" not in imported_by(statement)
