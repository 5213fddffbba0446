"""Runtime environments as the server takes them: refused by the field's name, or left alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ray_jobs.errors import InvalidRuntimeEnv
from ray_jobs.runtime_env_fields import MAX_DEPTH, check_fields, check_known
from ray_jobs.validation import parse_submit_request

DEEP: Any = json.loads("[" * 400 + "]" * 400)


@pytest.mark.parametrize(
    "runtime_env",
    [
        {},
        # As Ray's own client sends them.
        {"pip": {"packages": ["a"], "pip_check": False}, "_ray_commit": "0123"},
        {"uv": {"packages": ["a"], "uv_check": False, "uv_pip_install_options": ["--no-cache"]}},
        {"config": {"setup_timeout_seconds": 600, "eager_install": True, "log_files": []}},
        {"config": {"setup_timeout_seconds": -1, "log_files": None}},
        {"_inject_current_ray": True, "_ray_release": "1", "_nsight": "default"},
        {"working_dir": "gcs://_ray_pkg_0.zip", "py_modules": ["gcs://a.whl"], "excludes": ["x"]},
        # As people write them, for curl and KubeRay.
        {"pip": ["a"], "conda": {"dependencies": ["pip", {"pip": ["a"]}]}},
        {"pip": "/home/ray/requirements.txt", "conda": "name"},
        {"container": {"image": "a", "run_options": ["-x"]}, "nsight": {"t": "cuda"}},
        {"container": {"image": "a", "run_options": None, "worker_path": "/a.py"}},
        {"image_uri": "a", "py_executable": "python -X dev", "java_jars": ["gcs://a.jar"]},
        {"worker_process_setup_hook": "a.b", "rocprof_sys": {"env": {"A": "1"}}, "env_vars": {}},
    ],
)
def test_what_clients_send(runtime_env: dict[str, Any]) -> None:
    check_fields(runtime_env)
    check_known(runtime_env, has_plugins=False)


@pytest.mark.parametrize(
    ("runtime_env", "named"),
    [
        ({"working_dir": 1}, "'working_dir'.*a number"),
        ({"working_dir": ["a"]}, "'working_dir'.*an array"),
        ({"py_modules": "a"}, "'py_modules'"),
        ({"py_modules": [1]}, "'py_modules'"),
        ({"excludes": {"a": 1}}, "'excludes'"),
        ({"pip": True}, "'pip'.*a boolean"),
        ({"pip": [{}]}, "'pip'"),
        ({"pip": {"packages": [{}]}}, "'packages'"),
        ({"pip": {"packages": 1}}, "'packages'"),
        ({"pip": {"pip_check": True}}, "'packages'.*null"),
        ({"pip": {"packages": [], "pip_check": 0}}, "'pip_check'.*a number"),
        ({"pip": {"packages": [], "pip_version": 23}}, "'pip_version'"),
        ({"pip": {"packages": [], "pip_install_options": "-v"}}, "'pip_install_options'"),
        ({"pip": {"packages": [], "uv_check": True}}, "'uv_check'.*pip_check"),
        ({"uv": {"packages": "requirements.txt"}}, "'packages'"),
        ({"uv": 1}, "'uv'"),
        ({"conda": 1}, "'conda'"),
        ({"config": 1}, "'config'"),
        ({"config": {"timeout": 1}}, "'timeout'"),
        ({"config": {"setup_timeout_seconds": True}}, "setup_timeout_seconds.*a boolean"),
        ({"config": {"setup_timeout_seconds": 0}}, "setup_timeout_seconds"),
        ({"config": {"setup_timeout_seconds": 1.5}}, "setup_timeout_seconds"),
        ({"config": {"setup_timeout_seconds": 2**31}}, "setup_timeout_seconds"),
        ({"config": {"setup_timeout_seconds": None}}, "setup_timeout_seconds.*null"),
        ({"config": {"eager_install": 1}}, "eager_install"),
        ({"config": {"log_files": [1]}}, "log_files"),
        ({"container": "a"}, "'container'"),
        ({"container": {"image": 1}}, "'image'.*a number"),
        ({"container": {"image": ["a"]}}, "'image'.*an array"),
        ({"container": {"image": "a", "worker_path": {}}}, "'worker_path'"),
        ({"container": {"image": "a", "run_options": "-x"}}, "'run_options'"),
        ({"container": {"image": "a", "run_options": [1]}}, "'run_options'"),
        ({"container": {"image": "a", "user": "b"}}, "'user'.*image, worker_path, run_options"),
        ({"_ray_commit": 1}, "'_ray_commit'"),
        ({"_ray_release": True}, "'_ray_release'"),
        ({"_inject_current_ray": "no"}, "'_inject_current_ray'.*a string"),
        ({"image_uri": ["a"]}, "'image_uri'"),
        ({"py_executable": 1}, "'py_executable'"),
        ({"java_jars": "a"}, "'java_jars'"),
        ({"worker_process_setup_hook": {}}, "'worker_process_setup_hook'"),
        ({"nsight": 1}, "'nsight'"),
        ({"_nsight": []}, "'_nsight'"),
        ({"rocprof_sys": 1}, "'rocprof_sys'"),
        ({"mine": DEEP}, f"'mine'.*{MAX_DEPTH} levels"),
        ({"conda": {"a\0b": 1}}, "'conda'.*NUL"),
        ({"mine": [2**64]}, "'mine'.*64 bits"),
        ({"mine": [-(10**400)]}, "'mine'.*64 bits"),
    ],
)
def test_a_field_of_a_wrong_type(runtime_env: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRuntimeEnv, match=named):
        check_fields(runtime_env)
    body = json.dumps({"entrypoint": "true", "runtime_env": runtime_env}).encode()
    with pytest.raises(InvalidRuntimeEnv, match=named):
        parse_submit_request(body)


@pytest.mark.parametrize("has_plugins", [False, True])
def test_fields_of_plugins(has_plugins: bool) -> None:
    check_known({"mine": None}, has_plugins=has_plugins)
    # It would turn Ray's own checks off.
    with pytest.raises(InvalidRuntimeEnv, match="'_validate'"):
        check_known({"_validate": False}, has_plugins=has_plugins)
    if has_plugins:
        check_known({"mine": 1}, has_plugins=True)
    else:
        with pytest.raises(InvalidRuntimeEnv, match=r"'mine'.*working_dir"):
            check_known({"mine": 1}, has_plugins=False)


def test_null_is_absent() -> None:
    body = {"entrypoint": "true", "runtime_env": {"pip": None, "_validate": None, "conda": "a"}}
    assert parse_submit_request(json.dumps(body).encode()).runtime_env == {"conda": "a"}
