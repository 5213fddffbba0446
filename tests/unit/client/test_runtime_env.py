from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import pytest

from ray_jobs.client.runtime_env import normalize
from ray_jobs.errors import InvalidRuntimeEnv


def fields(**runtime_env: Any) -> dict[str, Any]:
    plan = normalize(runtime_env)
    assert plan.packages == []
    json.dumps(plan.fields)
    return plan.fields


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({}, {}),
        ({"pip": None, "env_vars": None}, {}),
        ({"pip": ["a", "b", "a"]}, {"pip": {"packages": ["a", "b"], "pip_check": False}}),
        ({"pip": []}, {}),
        (
            {"pip": {"packages": ["a"], "pip_check": True, "pip_version": "==23"}},
            {"pip": {"packages": ["a"], "pip_check": True, "pip_version": "==23"}},
        ),
        (
            {"uv": ["a"]},
            {
                "uv": {
                    "packages": ["a"],
                    "uv_check": False,
                    "uv_pip_install_options": ["--no-cache"],
                }
            },
        ),
        (
            {"uv": {"packages": ["a"]}},
            {
                "uv": {
                    "packages": ["a"],
                    "uv_check": False,
                    "uv_pip_install_options": ["--no-cache"],
                }
            },
        ),
        ({"conda": "name"}, {"conda": "name"}),
        ({"conda": {"dependencies": ["pip"]}}, {"conda": {"dependencies": ["pip"]}}),
        ({"env_vars": {"A": "${B}"}}, {"env_vars": {"A": "${B}"}}),
        ({"env_vars": {}}, {}),
        ({"excludes": []}, {}),
        ({"excludes": ["*.csv"]}, {"excludes": ["*.csv"]}),
        (
            {"config": {"setup_timeout_seconds": 5}},
            {"config": {"setup_timeout_seconds": 5, "eager_install": True, "log_files": []}},
        ),
        (
            {"config": {"setup_timeout_seconds": -1, "eager_install": False}},
            {"config": {"setup_timeout_seconds": -1, "eager_install": False, "log_files": []}},
        ),
        ({"nsight": "default"}, {"_nsight": "default"}),
        ({"worker_process_setup_hook": "a.b"}, {"worker_process_setup_hook": "a.b"}),
        (
            {"image_uri": "rayproject/ray", "env_vars": {"A": "1"}},
            {"image_uri": "rayproject/ray", "env_vars": {"A": "1"}},
        ),
        ({"py_executable": "python -X dev"}, {"py_executable": "python -X dev"}),
        ({"working_dir": "s3://b/a.zip"}, {"working_dir": "s3://b/a.zip"}),
        ({"working_dir": "https://h/a.zip?t=1"}, {"working_dir": "https://h/a.zip?t=1"}),
        ({"working_dir": "gcs://_ray_pkg_1.zip"}, {"working_dir": "gcs://_ray_pkg_1.zip"}),
        ({"working_dir": "local:///opt/app"}, {"working_dir": "local:///opt/app"}),
        ({"py_modules": ["gs://b/a.whl"]}, {"py_modules": ["gs://b/a.whl"]}),
        ({"py_modules": []}, {}),
    ],
)
def test_shape_that_is_sent(given: dict[str, Any], sent: dict[str, Any]) -> None:
    assert fields(**given) == sent


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"workingdir": "."}, "workingdir"),
        ({1: "."}, "1"),
        ({"pip": 1}, "pip"),
        ({"pip": [1]}, "pip"),
        ({"pip": {"pip_check": True}}, "pip"),
        ({"pip": {"packages": ["a"], "pip_check": "yes"}}, "pip_check"),
        ({"pip": {"packages": ["a"], "option": 1}}, "option"),
        ({"pip": "missing.txt"}, "pip"),
        ({"uv": {"packages": ["a"], "uv_pip_install_options": "-v"}}, "uv_pip_install_options"),
        ({"uv": ["a"], "pip": ["b"]}, "pip and uv"),
        ({"conda": "a", "pip": ["b"]}, "pip and conda"),
        ({"conda": 1}, "conda"),
        ({"conda": "missing.yaml"}, "conda"),
        ({"env_vars": {"A": 1}}, "env_vars"),
        ({"env_vars": [1]}, "env_vars"),
        ({"config": {"setup_timeout_seconds": 0}}, "setup_timeout_seconds"),
        ({"config": {"setup_timeout_seconds": 1.5}}, "setup_timeout_seconds"),
        ({"config": {"setup_timeout_seconds": True}}, "setup_timeout_seconds"),
        ({"config": {"eager_install": 1}}, "eager_install"),
        ({"config": {"log_files": "a"}}, "log_files"),
        ({"config": {"other": 1}}, "other"),
        ({"config": 1}, "config"),
        ({"worker_process_setup_hook": print}, "worker_process_setup_hook"),
        ({"container": {"image": "a"}, "pip": ["b"]}, "container"),
        ({"image_uri": "a", "working_dir": "s3://b/a.zip"}, "image_uri"),
        ({"working_dir": 1}, "working_dir"),
        ({"working_dir": "missing"}, "working_dir"),
        ({"working_dir": "ftp://h/a.zip"}, "working_dir"),
        ({"working_dir": "s3://b/a.whl"}, "working_dir"),
        ({"working_dir": "local://opt"}, "working_dir"),
        ({"py_modules": "a"}, "py_modules"),
        ({"py_modules": ["s3://b/a.zip", 1]}, r"py_modules\[1\]"),
        ({"py_modules": ["missing"]}, r"py_modules\[0\]"),
        ({"excludes": "a"}, "excludes"),
    ],
)
def test_errors_name_the_field(given: dict[Any, Any], named: str) -> None:
    with pytest.raises(InvalidRuntimeEnv, match=named):
        normalize(given)


def test_not_a_dict() -> None:
    with pytest.raises(InvalidRuntimeEnv, match="dict"):
        normalize(["pip"])  # type: ignore[arg-type]


def test_a_near_miss_gets_a_hint() -> None:
    with pytest.raises(InvalidRuntimeEnv) as caught:
        normalize({"workingdir": "."})
    assert "Did you mean working_dir?" in (caught.value.hint or "")


def test_values_of_environment_variables_are_not_shown() -> None:
    with pytest.raises(InvalidRuntimeEnv) as caught:
        normalize({"env_vars": {"TOKEN": 12345}})
    assert "TOKEN" in str(caught.value)
    assert "12345" not in str(caught.value)


def test_the_signature_of_a_uri_is_not_shown() -> None:
    with pytest.raises(InvalidRuntimeEnv) as caught:
        normalize({"working_dir": "https://user:secret@h/a.exe?signature=hidden"})
    assert "secret" not in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_fields_of_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_RUNTIME_ENV_PLUGINS", '[{"class": "my.Plugin"}]')
    assert fields(my_plugin={"a": 1}) == {"my_plugin": {"a": 1}}


def test_the_users_dict_is_left_alone() -> None:
    given = {"pip": {"packages": ["a", "a"]}, "config": {"eager_install": True}}
    normalize(given)
    assert given == {"pip": {"packages": ["a", "a"]}, "config": {"eager_install": True}}


def test_requirements_files(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "base.txt").write_text("c\n-r ../requirements.txt\n")
    path = tmp_path / "requirements.txt"
    path.write_text("a==1\n# note\n-r more/base.txt # why\nb\n--requirement=https://h/x.txt\n")
    expected = ["a==1", "# note", "c", "b", "--requirement=https://h/x.txt"]
    assert fields(pip=str(path))["pip"]["packages"] == expected
    assert fields(uv=path)["uv"]["packages"] == expected
    assert fields(pip={"packages": str(path)})["pip"]["packages"] == expected


@pytest.mark.parametrize(
    "line",
    [
        "-c constraints.txt",
        "--constraint=more/c.txt",
        "-e .",
        "--editable ./pkg",
        "-epkg",
        "-e pkg[x]",
        "./pkg",
        "../pkg[extra]",
        ".",
        "./a-1.0-py3-none-any.whl",
        ". ; python_version > '3'",
    ],
)
def test_requirements_that_only_this_machine_has(tmp_path: Path, line: str) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text(f"a==1\n{line}\n")
    with pytest.raises(InvalidRuntimeEnv, match="names a file of this machine") as caught:
        normalize({"pip": str(path)})
    assert repr(line) in str(caught.value)
    assert str(path) in str(caught.value)


def test_requirements_that_the_nodes_may_have(tmp_path: Path) -> None:
    lines = ["-c /etc/constraints.txt", "--constraint=https://h/c.txt", "-e git+https://h/x#egg=x"]
    lines += ["-r ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/r.txt", "-c $DIR/c.txt", "--constraint=/c"]
    lines += ["/opt/pkg", "file:///opt/a.whl", "--extra-index-url=https://h", "a @ https://h/a.whl"]
    path = tmp_path / "requirements.txt"
    path.write_text("\n".join(lines))
    assert fields(pip=str(path))["pip"]["packages"] == lines


def test_conda_file(tmp_path: Path) -> None:
    path = tmp_path / "environment.yaml"
    path.write_text("dependencies: [pip]\n")
    assert fields(conda=str(path)) == {"conda": {"dependencies": ["pip"]}}
    for text in ("[1", "- a", ""):
        path.write_text(text)
        with pytest.raises(InvalidRuntimeEnv, match="conda"):
            normalize({"conda": str(path)})


def test_local_working_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for given in (str(tmp_path), tmp_path, f"{tmp_path}/"):
        (package,) = normalize({"working_dir": given, "excludes": ["x"]}).packages
        assert (package.path, package.kind, package.excludes) == (tmp_path, "directory", ("x",))
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    (package,) = normalize({"working_dir": f"~/{tmp_path.name}"}).packages
    assert package.path == tmp_path
    monkeypatch.chdir(tmp_path)
    (package,) = normalize({"working_dir": "."}).packages
    assert package.path == tmp_path


def test_local_archives(tmp_path: Path) -> None:
    for name in ("a.zip", "a.tar.gz", "a.tgz", "a.tar.xz"):
        (tmp_path / name).write_text("x")
        (package,) = normalize({"working_dir": str(tmp_path / name)}).packages
        assert package.kind == "file"
    (tmp_path / "a.tar").write_text("x")
    with pytest.raises(InvalidRuntimeEnv, match=r"a\.tar"):
        normalize({"working_dir": str(tmp_path / "a.tar")})


def test_py_modules(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    for name in ("mod.py", "w-1-py3-none-any.whl", "other.txt"):
        (tmp_path / name).write_text("x")
    module = types.ModuleType("mod")
    module.__file__ = str(tmp_path / "mod.py")
    package = types.ModuleType("pkg")
    package.__path__ = [str(tmp_path / "pkg")]
    given: list[Any] = [
        str(tmp_path / "pkg"),
        "s3://b/a.zip",
        tmp_path / "w-1-py3-none-any.whl",
        module,
        package,
    ]
    plan = normalize({"py_modules": given})
    kinds = [(one.field, one.kind, one.include_parent) for one in plan.packages]
    assert kinds == [
        ("py_modules[0]", "directory", True),
        ("py_modules[2]", "file", False),
        ("py_modules[3]", "module", False),
        ("py_modules[4]", "directory", True),
    ]
    sent = plan.with_uris(["u0", "u2", "u3", "u4"])
    assert sent == {"py_modules": ["u0", "s3://b/a.zip", "u2", "u3", "u4"]}
    package.__path__ = ["a", "b"]
    for wrong in (package, types.ModuleType("built_in"), tmp_path / "other.txt"):
        with pytest.raises(InvalidRuntimeEnv, match=r"py_modules\[0\]"):
            normalize({"py_modules": [wrong]})
