"""Zygote and keeper, as real processes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ray_jobs import keeper
from tests.waiting import wait_for_line

from .conftest import Node

STOP = {"op": "stop", "signal": int(signal.SIGTERM), "wait_s": 5.0}


def is_alive(pid: int) -> bool:
    """Return whether a process runs (a zombie doesn't)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until_dead(pid: int, timeout_s: float = 5.0) -> None:
    with suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            assert select.select([fd], [], [], timeout_s)[0], f"{pid} still runs"
        finally:
            os.close(fd)


def test_exit_code_and_output(node: Node) -> None:
    keeper_client, started = node.spawn("echo out; echo err >&2; exit 3")
    assert started["state"] == "running"
    ended = keeper_client.read()
    assert (ended["state"], ended["code"]) == ("exited", 3)
    assert ended["ended_at_ms"] >= ended["started_at_ms"]
    assert node.log.read_text() == "out\nerr\n"
    assert keeper_client.at_end()


def test_signal_is_reported_as_negative_code(node: Node) -> None:
    keeper_client, _ = node.spawn("kill -9 $$")
    assert keeper_client.read()["code"] == -9


def test_header_precedes_output_and_log_is_private(node: Node) -> None:
    keeper_client, _ = node.spawn("echo hello", log_header="Running entrypoint\n")
    keeper_client.read()
    assert node.log.read_text() == "Running entrypoint\nhello\n"
    assert node.log.stat().st_mode & 0o777 == 0o600


def test_any_bytes_in_command_and_environment(node: Node) -> None:
    value = os.fsdecode(b"\xff raw")
    command = "printf '%s' \"$RAW\"; printf '%s' 'quote\" \u00fc\u4e16\nline'"
    keeper_client, _ = node.spawn(command, env={"RAW": value, "PATH": os.environ["PATH"]})
    keeper_client.read()
    assert node.log.read_bytes() == b"\xff raw" + 'quote" \u00fc\u4e16\nline'.encode()


def test_command_that_cannot_be_executed(node: Node) -> None:
    _, answer = node.spawn("true", argv=["/no/such/shell", "-c", "true"])
    assert answer["state"] == "failed_to_start"
    assert "No such file or directory" in answer["error"]


def test_missing_working_directory(node: Node) -> None:
    _, answer = node.spawn("true", cwd="/no/such/folder")
    assert answer["state"] == "failed_to_start"
    assert "/no/such/folder" in answer["error"]


def test_one_attempt_is_started_once(node: Node) -> None:
    first, started = node.spawn("echo once; sleep 60", attempt="one")
    assert started["state"] == "running"
    _, again = node.spawn("echo twice", attempt="one")
    assert again["state"] == "exists"
    wait_for_line(node.log, "once")
    first.send(**STOP)
    first.read()
    assert node.log.read_text() == "once\n"


def test_a_shell_has_the_stop_signal_before_its_children(node: Node) -> None:
    many = "sleep 60 & " * 30  # so that it takes a moment to signal all
    for _ in range(5):
        node.log.unlink(missing_ok=True)
        keeper_client, _ = node.spawn(f"{many} echo ready; sleep 60; echo next")
        wait_for_line(node.log, "ready")
        keeper_client.send(**STOP)
        keeper_client.read()
        assert node.log.read_text() == "ready\n"


def test_stop_by_signal(node: Node) -> None:
    keeper_client, _ = node.spawn("trap 'echo bye; exit 0' TERM; echo ready; sleep 60 & wait")
    wait_for_line(node.log, "ready")
    keeper_client.send(**STOP)
    ended = keeper_client.read()
    assert ended["stopped"] is True
    assert "bye" in node.log.read_text()


def test_stop_kills_who_ignores_the_signal(node: Node) -> None:
    keeper_client, started = node.spawn("trap '' TERM; echo ready; while :; do sleep 1; done")
    wait_for_line(node.log, "ready")
    keeper_client.send(op="stop", signal=int(signal.SIGTERM), wait_s=0.2)
    ended = keeper_client.read()
    assert ended["stopped"] is True
    assert ended["code"] == -9
    assert not is_alive(started["pid"])


@pytest.mark.parametrize("has_exited", [False, True])
def test_a_later_stop_makes_the_wait_shorter_and_never_longer(node: Node, has_exited: bool) -> None:
    """As when a job is given up whose stop may take an hour. Its entrypoint may be gone by then."""
    deaf = "trap '' TERM; echo ready; while :; do sleep 0.01; done"
    command = f"({deaf}) & trap 'exit 3' TERM; wait" if has_exited else deaf
    client, _ = node.spawn(command)
    wait_for_line(node.log, "ready")
    client.send(op="stop", signal=int(signal.SIGTERM), wait_s=3600)
    client.send(op="stop", signal=int(signal.SIGKILL), wait_s=0)
    client.send(op="stop", signal=int(signal.SIGTERM), wait_s=3600)
    ended = client.read()
    assert (ended["stopped"], ended["code"]) == (True, 3 if has_exited else -9)


@pytest.mark.parametrize("wait_s", [3e6, 1e300])
def test_a_wait_of_months_is_one(node: Node, wait_s: float) -> None:
    trap = "trap 'while [ ! -e go ]; do sleep 0.01; done; echo bye; exit 0' TERM"
    # No background child: a shell's child may lose a signal between fork and exec.
    keeper_client, _ = node.spawn(f"{trap}; echo ready; while :; do sleep 0.01; done")
    wait_for_line(node.log, "ready")
    keeper_client.send(op="stop", signal=int(signal.SIGTERM), wait_s=wait_s)
    (node.folder / "go").touch()
    ended = keeper_client.read()
    assert (ended["stopped"], ended["code"]) == (True, 0)
    assert node.log.read_text().endswith("bye\n")


def test_stop_reaches_what_was_started_to_clean_up_once_the_entrypoint_is_gone(
    node: Node,
) -> None:
    late = "(trap 'echo late; exit' TERM; touch up; while :; do sleep 0.01; done)"
    trap = f'trap "{late} & while [ ! -e up ]; do sleep 0.01; done; exit 0" TERM'
    keeper_client, _ = node.spawn(f"{trap}; echo ready; while :; do sleep 0.01; done")
    wait_for_line(node.log, "ready")
    keeper_client.send(op="stop", signal=int(signal.SIGTERM), wait_s=600)
    ended = keeper_client.read()
    assert (ended["stopped"], ended["code"]) == (True, 0)
    assert node.log.read_text().endswith("late\n")


def test_sigint_reaches_the_entrypoint(node: Node) -> None:
    keeper_client, _ = node.spawn(
        "trap 'echo interrupted; exit 0' INT; echo ready; while :; do sleep 0.01; done"
    )
    wait_for_line(node.log, "ready")
    keeper_client.send(op="stop", signal=int(signal.SIGINT), wait_s=600)
    ended = keeper_client.read()
    assert (ended["stopped"], ended["code"]) == (True, 0)
    assert "interrupted" in node.log.read_text()


def test_nothing_outlives_the_entrypoint(node: Node) -> None:
    daemon = "setsid sh -c 'echo $$ >> pids; exec sleep 300' &"
    keeper_client, _ = node.spawn(
        f": > pids; {daemon} {daemon} while [ $(wc -l < pids) -lt 2 ]; do :; done"
    )
    ended = keeper_client.read()
    assert ended["code"] == 0
    pids = [int(line) for line in (node.folder / "pids").read_text().split()]
    assert len(pids) == 2
    assert not any(is_alive(pid) for pid in pids)


def test_fork_storm_ends(node: Node) -> None:
    storm = "f() { while :; do sleep 0.01 & done; }; ulimit -u 4000; f & f & echo ready; wait"
    keeper_client, _ = node.spawn(storm)
    wait_for_line(node.log, "ready")
    keeper_client.send(op="stop", signal=int(signal.SIGTERM), wait_s=0.1)
    assert keeper_client.read()["stopped"] is True


def test_another_supervisor_adopts(node: Node) -> None:
    first, started = node.spawn("echo ready; sleep 60", attempt="adopted")
    first.close()
    second, status = node.adopt("adopted")
    assert status["pid"] == started["pid"]
    second.send(**STOP)
    ended = second.read()
    assert ended["stopped"] is True
    assert node.status("adopted")["state"] == "exited"


def test_outcome_is_found_without_anyone_watching(node: Node) -> None:
    os.mkfifo(node.folder / "fifo")
    client, started = node.spawn("read line < fifo; exit 7", attempt="alone")
    client.close()
    keeper_pid = parent_of(started["pid"])
    (node.folder / "fifo").write_text("go\n")
    wait_until_dead(keeper_pid)
    assert node.status("alone")["code"] == 7


def test_raylet_death_ends_everything(node: Node) -> None:
    client, started = node.spawn("setsid sleep 300 & echo ready; wait", attempt="orphan")
    wait_for_line(node.log, "ready")
    node.raylet.kill()
    node.raylet.wait()
    ended = client.read()
    assert ended["node_died"] is True
    assert not is_alive(started["pid"])


def test_zygote_leaves_with_the_raylet_and_is_replaced(node: Node) -> None:
    pid = zygote_pid(node)
    node.start_zygote()  # a second one sees the first and leaves
    assert is_alive(pid)
    node.raylet.kill()
    node.raylet.wait()
    wait_until_dead(pid)
    node.raylet = subprocess.Popen(["sleep", "300"])
    node.start_zygote()
    client, _ = node.spawn("true")
    assert client.read()["code"] == 0


def test_killed_zygote_does_not_disturb_its_keepers(node: Node) -> None:
    client, _ = node.spawn("echo ready; sleep 0.2; exit 4")
    wait_for_line(node.log, "ready")
    os.kill(zygote_pid(node), signal.SIGKILL)
    assert client.read()["code"] == 4


def test_keeper_is_small(node: Node) -> None:
    clients = [node.spawn("sleep 60")[1] for _ in range(10)]
    sizes = [proportional_size_kb(parent_of(each["pid"])) for each in clients]
    assert sorted(sizes)[5] < 3_000, sizes


def proportional_size_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise AssertionError("no Pss")


def zygote_pid(node: Node) -> int:
    """Return the pid of the zygote: the process with this node's folder in its command line."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    if str(node.folder).encode() in words and parent_of(int(entry.name)) == 1:
                        return int(entry.name)
    raise AssertionError("no zygote")


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_status_is_never_larger_than_its_file(node: Node) -> None:
    client, _ = node.spawn("exit 1", attempt="sized")
    client.read()
    assert (node.folder / "sized" / keeper.STATUS_FILE).stat().st_size == keeper.STATUS_BYTES


@pytest.mark.parametrize("garbage", [b"\n", b"not json\n", b"{}\n"])
def test_malformed_order_hurts_nobody(node: Node, garbage: bytes) -> None:
    client = node.connect(node.folder / "zygote")
    client.connection.sendall(garbage)
    assert client.read()["state"] == "failed_to_start"
    good, _ = node.spawn("true")
    assert good.read()["code"] == 0
