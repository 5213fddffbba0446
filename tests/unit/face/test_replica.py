"""The replica: the order of batches, of full lists in pieces, and of answers ahead of them."""

from __future__ import annotations

from ray_jobs.dashboard_module.follower import sliced
from ray_jobs.dashboard_module.job_index import JobIndex
from ray_jobs.dashboard_module.jobs import SubmissionJob
from ray_jobs.dashboard_module.replica import Replica

from ray_jobs.models import DriverInfo, JobStatus
from ray_jobs.records import Change, ChangeBatch, encode_record

from .fakes import record


def change(revision: int, submission_id: str, **fields: object) -> Change:
    job = record(submission_id, revision=revision, **fields)
    return Change(revision, submission_id, encode_record(job))


def gone(revision: int, submission_id: str) -> Change:
    return Change(revision, submission_id, None)


def new_replica() -> Replica:
    return Replica(lambda _: None)


def ids(replica: Replica) -> list[str]:
    return [key[1] for key in replica.index.keys()]  # noqa: SIM118 - not a dict


def status(replica: Replica, submission_id: str) -> JobStatus:
    job = replica.index.get(submission_id)
    assert job is not None
    return job.status  # type: ignore[no-any-return]


def filled(*changes: Change, epoch: int = 1, revision: int = 10) -> Replica:
    replica = new_replica()
    replica.apply(ChangeBatch(epoch, revision, list(changes), reset=True))
    return replica


def test_a_full_list_takes_effect_with_its_last_piece() -> None:
    replica = filled(change(1, "old"))
    replica.apply(ChangeBatch(2, 3, [change(1, "a"), change(3, "b")], reset=True, more=True))
    assert ids(replica) == ["old"]
    assert replica.position == (2, 3)
    assert not replica.holds_managers_list
    replica.apply(ChangeBatch(2, 5, [gone(4, "a"), change(5, "c")], more=False))
    assert ids(replica) == ["b", "c"]
    assert replica.position == (2, 5)
    assert replica.holds_managers_list


def test_a_full_list_that_begins_anew_forgets_the_pieces_before() -> None:
    replica = filled()
    replica.apply(ChangeBatch(2, 3, [change(3, "a")], reset=True, more=True))
    replica.apply(ChangeBatch(3, 1, [change(1, "b")], reset=True, more=False))
    assert ids(replica) == ["b"]
    assert replica.position == (3, 1)


def test_a_piece_of_another_epoch_makes_the_stream_start_over() -> None:
    replica = filled(change(1, "a"))
    replica.apply(ChangeBatch(2, 3, [change(3, "b")]))
    assert ids(replica) == ["a"], "reads go on from what is known"
    assert replica.position == (0, 0)
    replica.apply(ChangeBatch(2, 3, [change(3, "b")], reset=True))
    assert ids(replica) == ["b"]


def test_an_answer_is_seen_before_the_stream_tells_it() -> None:
    replica = filled(change(1, "a"))
    replica.apply_early(ChangeBatch(1, 0, [change(12, "new")]))
    assert ids(replica) == ["a", "new"]
    assert replica.position == (1, 10)


def test_an_older_state_on_its_way_does_not_undo_an_answer() -> None:
    replica = filled(change(1, "a", status=JobStatus.RUNNING))
    replica.apply_early(ChangeBatch(1, 0, [gone(13, "a")]))
    replica.apply(ChangeBatch(1, 12, [change(12, "a", status=JobStatus.SUCCEEDED)]))
    assert ids(replica) == []
    replica.apply(ChangeBatch(1, 14, [gone(13, "a"), change(14, "a")]))
    assert ids(replica) == ["a"], "the id was given to another job"


def test_an_answer_older_than_the_stream_changes_nothing() -> None:
    replica = filled(change(9, "a", status=JobStatus.SUCCEEDED))
    replica.apply_early(ChangeBatch(1, 0, [change(8, "a", status=JobStatus.RUNNING)]))
    assert status(replica, "a") is JobStatus.SUCCEEDED


def test_an_answer_of_a_new_manager_outlives_its_full_list() -> None:
    replica = filled(change(9, "a"))
    replica.apply(ChangeBatch(2, 1, [change(1, "a")], reset=True, more=True))
    replica.apply_early(ChangeBatch(2, 0, [change(5, "new")]))
    replica.apply_early(ChangeBatch(2, 0, [gone(6, "b")]))
    assert ids(replica) == ["a", "new"]
    replica.apply(ChangeBatch(2, 3, [change(2, "b"), change(3, "c")]))
    assert ids(replica) == ["a", "c", "new"]
    replica.apply(ChangeBatch(2, 6, [change(5, "new"), gone(6, "b")]))
    assert ids(replica) == ["a", "c", "new"]


def test_an_answer_of_a_manager_that_was_replaced_is_dropped() -> None:
    replica = filled(change(1, "a", status=JobStatus.SUCCEEDED), epoch=2)
    replica.apply_early(ChangeBatch(1, 0, [change(50, "a", status=JobStatus.RUNNING)]))
    assert status(replica, "a") is JobStatus.SUCCEEDED


def test_jobs_are_in_the_order_of_their_start() -> None:
    replica = filled(
        change(1, "late", start_time=30),
        change(2, "early", start_time=10),
        change(3, "unknown", start_time=None),
        change(4, "same", start_time=10),
    )
    assert ids(replica) == ["unknown", "early", "same", "late"]
    newest = [job.id for job in replica.index.newest()]
    assert newest == ["late", "same", "early", "unknown"]
    assert [job.id for job in replica.index.newest(before=(10, "same"))] == ["early", "unknown"]


def test_the_newest_of_some_statuses() -> None:
    replica = filled(
        change(1, "a", start_time=1),
        change(2, "b", start_time=2, status=JobStatus.PENDING),
        change(3, "c", start_time=3, status=JobStatus.FAILED),
        change(4, "d", start_time=4),
    )
    wanted = {JobStatus.RUNNING, JobStatus.PENDING}
    assert [job.id for job in replica.index.newest(wanted)] == ["d", "b", "a"]
    replica.apply(ChangeBatch(1, 11, [change(11, "d", start_time=4, status=JobStatus.STOPPED)]))
    assert [job.id for job in replica.index.newest(wanted)] == ["b", "a"]
    replica.apply(ChangeBatch(1, 12, [gone(12, "b")]))
    assert [job.id for job in replica.index.newest(wanted)] == ["a"]


def test_only_the_watchers_of_a_job_are_woken() -> None:
    replica = filled(change(1, "a"), change(2, "b"))
    woken: list[str] = []
    with (
        replica.watch("a", lambda: woken.append("a")),
        replica.watch("b", lambda: woken.append("b")),
    ):
        replica.apply(ChangeBatch(1, 11, [change(11, "b")]))
        assert woken == ["b"]
        replica.apply_early(ChangeBatch(1, 0, [gone(12, "a")]))
        assert woken == ["b", "a"]
        replica.apply(ChangeBatch(2, 1, [], reset=True))
        assert sorted(woken) == ["a", "a", "b", "b"]
    assert not replica.is_watched


def test_a_list_read_from_the_kv_gives_way_to_the_managers() -> None:
    replica = new_replica()
    index = JobIndex()
    index.put(SubmissionJob(record("kept", revision=40), None))
    replica.replace(index, {})
    assert ids(replica) == ["kept"]
    assert replica.position == (0, 0)
    replica.apply_early(ChangeBatch(1, 0, [change(2, "new")]))
    assert ids(replica) == ["kept", "new"]
    replica.apply(ChangeBatch(1, 1, [change(1, "kept")], reset=True))
    assert ids(replica) == ["kept", "new"]


def test_a_list_read_from_the_kv_does_not_end_the_managers_on_its_way() -> None:
    replica = new_replica()
    replica.apply(ChangeBatch(3, 1, [change(1, "a")], reset=True, more=True))
    index = JobIndex()
    index.put(SubmissionJob(record("stored"), None))
    replica.replace(index, {})
    assert ids(replica) == ["stored"]
    assert replica.position == (3, 1)
    replica.apply(ChangeBatch(3, 2, [change(2, "b")]))
    assert ids(replica) == ["a", "b"]
    assert replica.holds_managers_list


def test_a_list_read_from_the_kv_does_not_undo_what_was_told_meanwhile() -> None:
    replica = new_replica()
    replica.apply_early(ChangeBatch(1, 0, [change(1, "before"), change(2, "deleted")]))
    told_before = replica.told
    replica.apply_early(
        ChangeBatch(1, 0, [change(3, "new"), change(4, "ended"), gone(5, "deleted")])
    )
    index = JobIndex()
    for name in ("before", "deleted"):
        index.put(SubmissionJob(record(name, status=JobStatus.SUCCEEDED), None))
    index.put(SubmissionJob(record("ended", status=JobStatus.FAILED), None))
    replica.replace(index, told_before)
    found = {name: job.status for name in ids(replica) if (job := replica.index.get(name))}
    assert found == {
        "before": JobStatus.SUCCEEDED,
        "ended": JobStatus.FAILED,
        "new": JobStatus.RUNNING,
    }


def test_another_driver_changes_the_json_of_its_job() -> None:
    drivers: dict[str, DriverInfo] = {}
    replica = Replica(drivers.get)
    replica.apply(ChangeBatch(1, 1, [change(1, "a")], reset=True))
    job = replica.index.get("a")
    assert job is not None
    assert b'"job_id":null' in job.info_json(redact=False)
    drivers["a"] = DriverInfo("01000000", "10.0.0.1", "5")
    replica.refresh_driver("a")
    replica.refresh_driver("unknown")
    job = replica.index.get("a")
    assert job is not None
    assert b'"job_id":"01000000"' in job.info_json(redact=False)


def test_a_batch_in_slices_comes_to_the_same() -> None:
    changes = [change(revision, f"job{revision}") for revision in range(1, 12)]
    whole, cut = new_replica(), new_replica()
    batch = ChangeBatch(3, 20, changes, reset=True)
    whole.apply(batch)
    pieces = list(sliced(batch, 4))
    assert [len(piece.changes) for piece in pieces] == [4, 4, 3]
    for piece in pieces:
        cut.apply(piece)
    assert ids(cut) == ids(whole)
    assert cut.position == whole.position == (3, 20)


def test_a_retired_index_is_shed_bit_by_bit() -> None:
    replica = filled(*(change(revision, f"job{revision}") for revision in range(5)))
    replica.apply(ChangeBatch(2, 1, [], reset=True))
    old = replica.retired[-1]
    assert [old.shed(2), old.shed(2), old.shed(2)] == [True, True, False]
