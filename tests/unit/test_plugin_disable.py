"""Disabling the plugin where no job server tells whether jobs run."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_jobs import plugin
from ray_jobs.node_processes import Process

NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / plugin.FILE_NAME
    path.write_text(plugin.FILE_TEXT)
    monkeypatch.setattr(plugin, "plugin_path", lambda: path)
    return path


def test_it_is_refused_while_a_cluster_runs_here(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin, "raylets", lambda: [Process(7, ["raylet"], {}, "")])
    with pytest.raises(plugin.PluginError, match="A cluster runs here") as caught:
        plugin.disable(address=NOBODY)
    assert "--address" in (caught.value.hint or "")
    assert "--force" in (caught.value.hint or "")
    assert file.exists()
    plugin.disable(address=NOBODY, force=True)
    assert not file.exists()


def test_it_is_not_where_none_runs(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "raylets", lambda: [])
    plugin.disable(address=NOBODY)
    assert not file.exists()
