"""Processes of our own have the modules of the one that starts them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from ray_jobs.dashboard_module.package_check import BadPackage
from ray_jobs.dashboard_module.package_writer import write_package

from ray_jobs.own_python import python_command


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with modules that somebody else has put there."""
    for name in ("ray_jobs", "json", "click", "ray"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('planted')")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_modules_of_the_working_folder_are_left_alone(planted: Path) -> None:
    command = python_command("import json, ray_jobs; print(ray_jobs.__file__, *sys.argv[1:])", "a")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.endswith("/ray_jobs/__init__.py a\n")
    assert not done.stdout.startswith(str(planted))
    by_name = [sys.executable, "-m", "ray_jobs", "version"]  # which the test would see
    assert b"planted" in subprocess.run(by_name, stderr=subprocess.PIPE).stderr


@pytest.mark.usefixtures("planted")
async def test_a_package_is_looked_through_by_our_own_code() -> None:
    with tempfile.TemporaryFile() as file, pytest.raises(BadPackage, match="isn't a tar"):
        await write_package("127.0.0.1:1", "gcs://a.tar.gz", file)
