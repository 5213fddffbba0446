"""A keeper that is killed: its zygote ends all that it leaves, and nothing else."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_jobs.keeper.processes import children_of
from tests.faults.processes import parent_of, runs, send
from tests.waiting import wait_until

from .conftest import Node, processes_in, running_node

CLEARED = "env -i setsid"
#: What a job may start: children, some in sessions of their own, some that have lost their parent
#: and every variable too.
FAMILY = (
    "sleep 300 & setsid sleep 300 &"
    f" {CLEARED} sleep 300 & ({CLEARED} sleep 300 &);"
    f" ({CLEARED} sh -c '({CLEARED} sleep 300 &); exec sleep 300' &);"
)
FAMILY_SIZE = 6  # without the shell
QUIET_S = 0.5


def start_family(node: Node, name: str) -> tuple[Path, int]:
    """Have a job started that has a family. Returns where it works, and its keeper's pid."""
    folder = node.folder / name
    folder.mkdir()
    _, started = node.spawn(f"{FAMILY} wait", cwd=str(folder), attempt=f"attempt-{name}")
    wait_until(lambda: len(sleepers(folder)) == FAMILY_SIZE, "all of it runs")
    return folder, parent_of(started["pid"])


def sleepers(folder: Path) -> list[str]:
    return [each for each in processes_in(folder) if ": b'sleep" in each]


def wait_until_dead(pid: int) -> None:
    wait_until(lambda: not runs(pid), f"{pid} is dead")


def test_nothing_of_its_job_is_left(node: Node) -> None:
    folder, keeper = start_family(node, "a")
    send(keeper)
    wait_until_dead(keeper)
    node.wait_for_orphans()
    assert not processes_in(folder)


def test_jobs_of_others_run_on(node: Node) -> None:
    """Though two keepers die at once."""
    families = [start_family(node, name) for name in "abc"]
    zygote = node.zygote()
    send(zygote, signal.SIGSTOP)
    for _, keeper in families[:2]:
        send(keeper)
        wait_until_dead(keeper)
    send(zygote, signal.SIGCONT)
    node.wait_for_orphans()
    assert not processes_in(families[0][0])
    assert not processes_in(families[1][0])
    assert len(sleepers(families[2][0])) == FAMILY_SIZE
    client, _ = node.adopt("attempt-c")
    client.send(op="stop", signal=int(signal.SIGTERM), wait_s=5.0)
    assert client.read()["state"] == "exited"
    assert not processes_in(families[2][0])


def test_what_forks_for_ever(node: Node) -> None:
    folder = node.folder / "storm"
    folder.mkdir()
    storm = "f() { (sleep 0.01; f) & }; " + "f; " * 20 + "echo ready; sleep 300"
    _, started = node.spawn(storm, cwd=str(folder))
    node.wait_for_log("ready")
    keeper = parent_of(started["pid"])
    send(keeper)
    wait_until_dead(keeper)
    node.wait_for_orphans()
    assert not processes_in(folder)


def test_raylet_that_dies_with_it(node: Node) -> None:
    """The zygote stays for as long as there is something to end."""
    folder, keeper = start_family(node, "a")
    others_folder, _ = start_family(node, "b")
    zygote = node.zygote()
    send(keeper, signal.SIGSTOP)  # it can't end its job itself
    node.raylet.kill()
    node.raylet.wait()
    wait_until(lambda: not processes_in(others_folder), "the other has ended its job")
    assert len(sleepers(folder)) == FAMILY_SIZE
    send(keeper)
    wait_until_dead(zygote)
    assert not processes_in(folder)


def test_zygote_keeps_no_dead_children(node: Node) -> None:
    _, keeper = start_family(node, "a")
    for _ in range(3):
        client, _ = node.spawn("true")
        client.read()
    send(keeper)
    wait_until(lambda: children_of(node.zygote()) == [], "all have been reaped")


def test_zygote_rests_while_jobs_run(node: Node) -> None:
    _, killed = start_family(node, "a")
    start_family(node, "b")
    send(killed)
    wait_until_dead(killed)
    node.wait_for_orphans()
    switches: list[str] = []

    def rests() -> bool:
        """It has answered, but need not have come to rest: two looks see the same then."""
        before, switches[:] = [*switches], context_switches(node.zygote())
        return before == switches

    wait_until(rests, "it rests")
    time.sleep(QUIET_S)
    assert context_switches(node.zygote()) == switches


def context_switches(pid: int) -> list[str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return [line for line in lines if "ctxt_switches" in line]


@pytest.fixture
def weak_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node that may not kill other users' processes, as one that isn't root's."""
    without_kill = ("setpriv", "--inh-caps=-kill", "--bounding-set=-kill")
    with running_node(tmp_path_factory.mktemp("n"), command=without_kill) as node:
        yield node


def test_what_it_may_not_kill_holds_up_nobody(weak_node: Node) -> None:
    node = weak_node
    _, started = node.spawn("setpriv --reuid=65534 sleep 300 & echo $! > pid; echo ready; wait")
    node.wait_for_log("ready")
    out_of_reach = int((node.folder / "pid").read_text())
    wait_until(lambda: os.stat(f"/proc/{out_of_reach}").st_uid == 65534, "it is another user's")
    try:
        send(parent_of(started["pid"]))
        wait_until_dead(started["pid"])
        node.wait_for_orphans()
        assert runs(out_of_reach)
        folder, keeper = start_family(node, "a")
        send(keeper)
        wait_until_dead(keeper)
        node.wait_for_orphans()
        assert not processes_in(folder)
    finally:
        send(out_of_reach)
    wait_until(lambda: children_of(node.zygote()) == [], "all have been reaped")
