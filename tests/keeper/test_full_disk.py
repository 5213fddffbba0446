"""Keepers on a disk that is full."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_jobs import keeper
from tests.disks import fill, small_disk

from .conftest import Node, running_node

DISK_MIB = 4


@pytest.fixture
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("small")
    with small_disk(folder, DISK_MIB), running_node(folder) as node:
        yield node


def test_the_program_is_told_and_its_end_is_recorded(node: Node) -> None:
    keeper_client, started = node.spawn("cat /dev/zero; exit 9")
    ended = keeper_client.read()
    assert (ended["state"], ended["code"], ended["log_disk_full"]) == ("exited", 9, True)
    assert node.status(started["attempt"]) == ended
    assert (node.folder / started["attempt"] / keeper.STATUS_FILE).stat().st_size == (
        keeper.STATUS_BYTES
    )


def test_a_job_that_ends_while_others_have_filled_the_disk(node: Node) -> None:
    os.mkfifo(node.folder / "gate")
    keeper_client, started = node.spawn(f"read line < {node.folder}/gate; exit 3")
    fill(node.folder)
    (node.folder / "gate").write_text("go\n")
    ended = keeper_client.read()
    assert (ended["code"], ended["log_disk_full"]) == (3, True)
    assert node.status(started["attempt"])["code"] == 3


def test_no_room_for_the_status_is_a_reason_not_to_start(node: Node, tmp_path: Path) -> None:
    fill(node.folder)
    client, answer = node.spawn(f"touch {tmp_path}/started")
    assert answer["state"] == "failed_to_start"
    assert "No space left on device" in answer["error"]
    assert client.at_end()
    assert not (tmp_path / "started").exists()


def test_a_disk_with_room_is_not_full(node: Node) -> None:
    keeper_client, _ = node.spawn("echo fine")
    assert keeper_client.read()["log_disk_full"] is False
