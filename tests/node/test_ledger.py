from __future__ import annotations

import multiprocessing
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from node.ledger import (
    Job,
    JobUnknown,
    Ledger,
    LedgerError,
    LedgerUnusable,
    MoveRefused,
    Output,
    ReceivedInstance,
    StaleLease,
    SynthesisRecord,
)
from node.ledger.deliveries import REFUSED_CODE
from node.ledger.schema import MIGRATIONS, migrate, version_of
from node.states import MOVES, State

SYNTHESIS = SynthesisRecord(
    "arterial", "demo-arterial", "ab" * 32, 7, "bridge", 4, "cpu", {"engine": 1.5}, (("EDGE", "cut off"),)
)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite3") as opened:
        yield opened


def slice_(ledger: Ledger, number: int, series: str = "1.2.3", sha256: str | None = None) -> ReceivedInstance:
    return ReceivedInstance(
        sop_instance_uid=f"{series}.{number}",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        series_instance_uid=series,
        study_instance_uid="1.2",
        calling_ae="SENDER",
        path=ledger.path.parent / "inbox" / series / f"{number}.dcm",
        sha256=sha256 or f"{number:064x}",
        bytes=1000 + number,
    )


def received(ledger: Ledger, slices: int = 2, series: str = "1.2.3", now: float = 100.0) -> int:
    for number in range(slices):
        job_id = ledger.record_instance(slice_(ledger, number, series), now).job_id
    return job_id


def ready(ledger: Ledger, series: str = "1.2.3") -> int:
    job_id = received(ledger, series=series)
    ledger.move(job_id, State.SETTLED, 200.0)
    ledger.move(job_id, State.READY, 201.0)
    return job_id


def output(ledger: Ledger, job_id: int, number: int) -> Output:
    return Output(
        job_id=job_id,
        phase="arterial",
        kind="ct_series",
        series_instance_uid=f"2.25.{job_id}",
        sop_instance_uid=f"2.25.{job_id}.{number}",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
        path=ledger.path.parent / "outbox" / f"{job_id}-{number}.dcm",
        sha256=f"{number:064x}",
    )


def built(ledger: Ledger, destinations: tuple[str, ...] = ("pacs",), series: str = "1.2.3") -> int:
    job_id = ready(ledger, series)
    assert ledger.lease("w", 300.0, 60.0) is not None
    outputs = [output(ledger, job_id, number) for number in range(2)]
    ledger.record_built(job_id, "w", outputs, [SYNTHESIS], destinations, now=301.0)
    return job_id


def states(ledger: Ledger, job_id: int) -> list[State]:
    return [event.to_state for event in ledger.events(job_id) if event.from_state is not event.to_state]


# opening


def test_the_ledger_is_durable_and_checks_references(ledger: Ledger) -> None:
    with ledger._store.reading() as db:
        assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert db.execute("PRAGMA synchronous").fetchone()[0] == 2
        assert db.execute("PRAGMA foreign_keys").fetchone()[0] == 1


def test_a_reopened_ledger_remembers(ledger: Ledger) -> None:
    job_id = received(ledger)
    with Ledger(ledger.path) as again:
        assert again.job(job_id) == ledger.job(job_id)
        assert version_of_file(ledger.path) == len(MIGRATIONS)


def version_of_file(path: Path) -> int:
    db = sqlite3.connect(path)
    try:
        return version_of(db)
    finally:
        db.close()


def test_a_file_that_is_no_database_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    path.write_bytes(b"not a database, and long enough to be looked at" * 50)
    with pytest.raises(LedgerUnusable, match="cannot be used as the ledger"):
        Ledger(path)


def test_a_folder_in_the_ledgers_place_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnusable):
        Ledger(tmp_path)


def test_a_closed_ledger_says_so(ledger: Ledger) -> None:
    ledger.close()
    with pytest.raises(LedgerUnusable, match="closed"):
        ledger.jobs()


def test_a_ledger_closed_while_it_is_read_closes_that_connection_too(ledger: Ledger) -> None:
    with ledger._store.reading() as db:
        ledger.close()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        db.execute("SELECT 1")


def test_an_older_file_is_brought_up_to_date_and_keeps_its_rows(tmp_path: Path) -> None:
    first = (("CREATE TABLE a (x)", "INSERT INTO a VALUES (1)"),)
    second = (*first, ("ALTER TABLE a ADD COLUMN y DEFAULT 5",))
    path = tmp_path / "old"
    db = sqlite3.connect(path, isolation_level=None)
    migrate(db, path, first)
    migrate(db, path, second)
    assert version_of(db) == 2
    assert db.execute("SELECT x, y FROM a").fetchall() == [(1, 5)]
    db.close()


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "old"
    db = sqlite3.connect(path, isolation_level=None)
    with pytest.raises(sqlite3.OperationalError):
        migrate(db, path, (("CREATE TABLE a (x)",), ("nonsense",)))
    assert version_of(db) == 0
    assert db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    db.close()


# receiving


def test_slices_of_a_series_join_one_job(ledger: Ledger) -> None:
    first = ledger.record_instance(slice_(ledger, 1), 100.0)
    second = ledger.record_instance(slice_(ledger, 2), 105.0)
    assert (first.is_new, first.generation, first.superseded_job_id) == (True, 1, None)
    assert second.job_id == first.job_id
    job = ledger.job(first.job_id)
    assert (job.state, job.instances, job.created_at, job.last_received_at) == (
        State.RECEIVING,
        2,
        100.0,
        105.0,
    )
    assert [i.sop_instance_uid for i in ledger.instances(job.id)] == ["1.2.3.1", "1.2.3.2"]


def test_a_path_is_stored_relative_and_comes_back_absolute(ledger: Ledger, tmp_path: Path) -> None:
    inside = slice_(ledger, 1)
    outside = replace(slice_(ledger, 2), path=Path("/elsewhere/2.dcm"))
    job_id = ledger.record_instance(inside, 100.0).job_id
    ledger.record_instance(outside, 101.0)
    assert [i.path for i in ledger.instances(job_id)] == [inside.path, outside.path]
    with ledger._store.reading() as db:
        stored = [row[0] for row in db.execute("SELECT path FROM instance ORDER BY received_at")]
    assert stored == ["inbox/1.2.3/1.dcm", "/elsewhere/2.dcm"]


def test_a_repeat_changes_nothing_but_keeps_an_open_series_waiting(ledger: Ledger) -> None:
    job_id = received(ledger, 2, now=100.0)
    again = ledger.record_instance(slice_(ledger, 1), 120.0)
    assert (again.job_id, again.is_new, again.conflict) == (job_id, False, False)
    assert ledger.record_repeat("1.2.3", "1.2.3.1", f"{1:064x}", 119.0) == job_id
    assert ledger.job(job_id).instances == 2
    assert ledger.receiving(110.0, 150.0) == []
    assert [job.id for job in ledger.receiving(120.0, 150.0)] == [job_id]


def test_a_clock_set_back_does_not_make_a_series_quiet(ledger: Ledger) -> None:
    ledger.record_instance(slice_(ledger, 1), 100.0)
    job_id = ledger.record_instance(slice_(ledger, 2), 50.0).job_id
    assert ledger.job(job_id).last_received_at == 100.0


def test_other_bytes_under_a_known_uid_are_a_conflict_and_the_first_stay(ledger: Ledger) -> None:
    job_id = received(ledger)
    answer = ledger.record_instance(slice_(ledger, 1, sha256="f" * 64), 101.0)
    assert (answer.is_new, answer.conflict, answer.job_id) == (False, True, job_id)
    assert ledger.instances(job_id)[1].sha256 == f"{1:064x}"


def in_series(ledger: Ledger, series: str, number: int = 1) -> ReceivedInstance:
    """Slice ``number`` of series 1.2.3, byte for byte, as one of another series."""
    return replace(slice_(ledger, number), series_instance_uid=series)


@pytest.mark.parametrize("past", [s for s in State if s not in {State.SUPERSEDED, State.PURGED}])
def test_a_uid_that_another_series_holds_joins_nothing_wherever_that_series_stands(
    ledger: Ledger, past: State
) -> None:
    holder = walk_to(ledger, past)
    own = received(ledger, 1, series="1.9", now=500.0)
    for series in ("1.8", "1.9"):
        answer = ledger.record_instance(in_series(ledger, series), 510.0)
        assert (answer.job_id, answer.is_new, answer.conflict, answer.in_other_series) == (
            holder, False, True, True,
        )  # fmt: skip
    assert ledger.find_jobs("1.8") == []
    assert [i.sop_instance_uid for i in ledger.instances(own)] == ["1.9.0"]
    assert ledger.job(own).last_received_at == 510.0, "the sender is still at it"
    assert ledger.job(holder).state is past


def test_a_uid_held_elsewhere_opens_no_generation(ledger: Ledger) -> None:
    holder = received(ledger)
    own = ready(ledger, "1.9")
    assert ledger.record_instance(in_series(ledger, "1.9"), 510.0).job_id == holder
    assert [job.state for job in ledger.find_jobs("1.9")] == [State.READY]
    assert ledger.job(own).instances == 2


def test_a_series_that_was_purged_holds_no_uid(ledger: Ledger) -> None:
    walk_to(ledger, State.PURGED)
    assert ledger.record_instance(in_series(ledger, "1.8"), 900.0).is_new


def test_an_earlier_generation_holds_only_what_the_living_one_does(ledger: Ledger) -> None:
    old = walk_to(ledger, State.COMMITTED)
    new = ledger.record_instance(slice_(ledger, 9), 900.0).job_id
    assert ledger.record_instance(in_series(ledger, "1.8"), 901.0).job_id == new
    ledger.move(new, State.REJECTED, 902.0, "NOT-A-GRID")
    assert ledger.begin_purge(new, [State.REJECTED], 903.0, 904.0)
    assert ledger.job(old).state is State.SUPERSEDED
    assert ledger.record_instance(in_series(ledger, "1.8"), 905.0).is_new


def test_where_two_series_have_held_a_uid_for_long_a_repeat_is_one_in_each(ledger: Ledger) -> None:
    first, second = received(ledger), received(ledger, series="1.8")
    with ledger._store.writing() as db:  # a ledger from before this was noticed
        db.execute("UPDATE instance SET sop_instance_uid = '1.2.3.1' WHERE sop_instance_uid = '1.8.1'")
    for series, job_id in (("1.2.3", first), ("1.8", second)):
        again = ledger.record_instance(in_series(ledger, series), 200.0)
        assert (again.job_id, again.is_new, again.conflict) == (job_id, False, False)
        other = ledger.record_instance(replace(in_series(ledger, series), sha256="f" * 64), 201.0)
        assert (other.job_id, other.conflict, other.in_other_series) == (job_id, True, False)


@pytest.mark.parametrize("past", [s for s in State if s not in {State.RECEIVING, State.SUPERSEDED}])
def test_a_late_slice_opens_the_next_generation_with_the_old_slices_and_itself(
    ledger: Ledger, past: State
) -> None:
    old = walk_to(ledger, past)
    late = ledger.record_instance(slice_(ledger, 9), 900.0)
    assert (late.generation, late.is_new, late.superseded_job_id) == (2, True, old)
    assert ledger.job(old).state is State.SUPERSEDED
    new = ledger.job(late.job_id)
    assert new.state is State.RECEIVING
    kept = [] if past is State.PURGED else ["1.2.3.0", "1.2.3.1"]
    assert [i.sop_instance_uid for i in ledger.instances(new.id)] == [*kept, "1.2.3.9"]
    assert new.instances == len(kept) + 1
    assert [job.generation for job in ledger.find_jobs("1.2.3")] == [1, 2]


@pytest.mark.parametrize("past", [s for s in State if s not in {State.SUPERSEDED, State.PURGED}])
def test_a_repeat_never_opens_a_generation(ledger: Ledger, past: State) -> None:
    job_id = walk_to(ledger, past)
    before = ledger.job(job_id)
    assert ledger.record_repeat("1.2.3", "1.2.3.1", f"{1:064x}", 100.0) == job_id
    assert not ledger.record_instance(slice_(ledger, 1), 100.0).is_new
    assert ledger.job(job_id) == before
    assert len(ledger.jobs()) == 1


def test_a_repeat_of_what_was_purged_is_kept_again_in_a_generation_of_its_own(ledger: Ledger) -> None:
    job_id = walk_to(ledger, State.PURGED)
    assert ledger.record_repeat("1.2.3", "1.2.3.1", f"{1:064x}", 100.0) is None
    again = ledger.record_instance(slice_(ledger, 1), 100.0)
    assert (again.is_new, again.generation, again.superseded_job_id) == (True, 2, job_id)
    assert [i.sop_instance_uid for i in ledger.instances(again.job_id)] == ["1.2.3.1"]


def walk_to(ledger: Ledger, target: State) -> int:
    """A job of two slices walked to a state by the shortest way through MOVES."""
    job_id = received(ledger)
    for step in path_to(target):
        ledger.move(job_id, step, 500.0)
    return job_id


def path_to(target: State) -> list[State]:
    ways: list[list[State]] = [[State.RECEIVING]]
    for way in ways:
        if way[-1] is target:
            return way[1:]
        ways.extend(
            [*way, step] for step in MOVES[way[-1]] if step not in way and step is not State.SUPERSEDED
        )
    raise AssertionError(target)


def test_bytes_nobody_sent_are_no_repeat(ledger: Ledger) -> None:
    received(ledger)
    assert ledger.record_repeat("1.2.3", "1.2.3.1", "0" * 64, 200.0) is None
    assert ledger.record_repeat("9.9", "1.2.3.1", f"{1:064x}", 200.0) is None
    assert [job.last_received_at for job in ledger.jobs()] == [100.0]


def test_settling_is_refused_when_a_slice_came_while_it_was_judged(ledger: Ledger) -> None:
    job_id = received(ledger, 2)
    ledger.record_instance(slice_(ledger, 2), 130.0)
    assert not ledger.settle(job_id, 2, 131.0)
    assert ledger.settle(job_id, 3, 132.0, "quiet")
    assert not ledger.settle(job_id, 3, 133.0)
    assert ledger.events(job_id)[-1].note == "quiet"
    with pytest.raises(JobUnknown):
        ledger.settle(99, 1, 0.0)


def test_a_judged_series_is_left_alone_until_its_time_or_the_next_slice(ledger: Ledger) -> None:
    job_id = received(ledger, 2)
    ledger.wait_on(job_id, 2, 1000.0, "a gap", 131.0)
    assert ledger.receiving(999.0, 999.0) == []
    assert [job.id for job in ledger.receiving(1000.0, 1000.0)] == [job_id]
    assert ledger.events(job_id)[-1].note == "a gap"
    ledger.record_instance(slice_(ledger, 2), 140.0)
    assert [job.id for job in ledger.receiving(170.0, 170.0)] == [job_id]
    ledger.wait_on(job_id, 2, 1000.0, "judged before the third came", 171.0)
    assert [job.id for job in ledger.receiving(172.0, 172.0)] == [job_id]


# moving


def test_a_move_the_table_has_is_made_and_written_down(ledger: Ledger) -> None:
    job_id = received(ledger)
    ledger.move(job_id, State.REJECTED, 150.0, "NOT-CT", "the objects are MR")
    job = ledger.job(job_id)
    assert (job.state, job.code, job.reason, job.updated_at) == (
        State.REJECTED,
        "NOT-CT",
        "the objects are MR",
        150.0,
    )
    last = ledger.events(job_id)[-1]
    assert (last.at, last.from_state, last.to_state, last.code) == (
        150.0,
        State.RECEIVING,
        State.REJECTED,
        "NOT-CT",
    )


@pytest.mark.parametrize("target", [State.READY, State.BUILT, State.RECEIVING])
def test_a_move_the_table_lacks_is_refused_and_changes_nothing(ledger: Ledger, target: State) -> None:
    job_id = received(ledger)
    with pytest.raises(MoveRefused, match=f"is RECEIVING and cannot become {target}"):
        ledger.move(job_id, target, 150.0)
    assert states(ledger, job_id) == [State.RECEIVING]


def test_a_job_that_is_not_there_is_named(ledger: Ledger) -> None:
    with pytest.raises(JobUnknown, match="no job 7"):
        ledger.job(7)
    with pytest.raises(JobUnknown):
        ledger.move(7, State.SETTLED, 0.0)


def test_jobs_are_listed_by_state_and_the_newest_when_limited(ledger: Ledger) -> None:
    ids = [received(ledger, 1, series=f"1.2.{n}") for n in range(4)]
    ledger.move(ids[0], State.SETTLED, 200.0)
    assert [job.id for job in ledger.jobs()] == ids
    assert [job.id for job in ledger.jobs(limit=2)] == ids[2:]
    assert [job.id for job in ledger.jobs([State.SETTLED])] == ids[:1]
    assert ledger.jobs([]) == []


@pytest.mark.parametrize(
    ("way", "target"),
    [
        ([State.PARKED], State.SETTLED),
        ([State.SETTLED, State.PARKED], State.SETTLED),
        ([State.SETTLED, State.READY, State.PARKED], State.READY),
        ([State.SETTLED, State.READY, State.BUILT, State.PARKED], State.BUILT),
        ([State.SETTLED, State.REJECTED], State.READY),
    ],
)
def test_retry_sends_a_job_back_to_where_it_stood(ledger: Ledger, way: list[State], target: State) -> None:
    job_id = received(ledger)
    for step in way:
        ledger.move(job_id, step, 150.0, "CODE", "why")
    assert ledger.retry(job_id, 160.0) is target
    job = ledger.job(job_id)
    assert (job.state, job.code, job.attempt) == (target, None, 0)


def test_retry_of_a_job_that_is_on_its_way_is_refused(ledger: Ledger) -> None:
    with pytest.raises(MoveRefused):
        ledger.retry(received(ledger), 160.0)


# working


def test_a_ready_job_is_leased_once_and_again_when_the_lease_ran_out(ledger: Ledger) -> None:
    job_id = ready(ledger)
    taken = ledger.lease("one", 300.0, 60.0)
    assert taken is not None
    assert (taken.id, taken.owner, taken.leased_until, taken.attempt) == (job_id, "one", 360.0, 1)
    assert ledger.lease("two", 359.0, 60.0) is None
    again = ledger.lease("two", 360.0, 60.0)
    assert again is not None
    assert (again.owner, again.attempt) == ("two", 2)


def test_the_oldest_job_is_leased_first(ledger: Ledger) -> None:
    ids = [ready(ledger, f"1.2.{n}") for n in range(3)]
    leased = [ledger.lease("w", 300.0, 60.0) for _ in ids]
    assert [job.id for job in leased if job] == ids


def test_a_renewed_lease_lasts_and_shows_progress(ledger: Ledger) -> None:
    job_id = ready(ledger)
    ledger.lease("one", 300.0, 60.0)
    assert ledger.renew(job_id, "one", 350.0, 60.0, 0.5)
    assert ledger.lease("two", 400.0, 60.0) is None
    assert ledger.job(job_id).progress == 0.5
    assert not ledger.renew(job_id, "two", 400.0, 60.0, 0.6)


def test_a_released_job_waits_for_its_time(ledger: Ledger) -> None:
    job_id = ready(ledger)
    ledger.lease("one", 300.0, 60.0)
    ledger.release(job_id, "one", 310.0, 400.0, "memory ran out")
    assert ledger.lease("two", 399.0, 60.0) is None
    taken = ledger.lease("two", 400.0, 60.0)
    assert taken is not None and taken.attempt == 2
    with pytest.raises(StaleLease):
        ledger.release(job_id, "one", 401.0, 402.0, "late")


def test_a_late_slice_ends_the_lease_and_the_work_is_not_wanted(ledger: Ledger) -> None:
    job_id = ready(ledger)
    ledger.lease("one", 300.0, 60.0)
    ledger.record_instance(slice_(ledger, 9), 310.0)
    assert not ledger.renew(job_id, "one", 311.0, 60.0, 0.2)
    with pytest.raises(StaleLease):
        ledger.record_built(job_id, "one", [output(ledger, job_id, 1)], [], ["pacs"], now=312.0)
    assert ledger.outputs(job_id) == []


def test_what_was_built_by_an_owner_who_lost_the_job_is_not_recorded(ledger: Ledger) -> None:
    job_id = ready(ledger)
    ledger.lease("one", 300.0, 60.0)
    ledger.lease("two", 400.0, 60.0)
    with pytest.raises(StaleLease, match=f"job {job_id} is no longer leased to one"):
        ledger.record_built(job_id, "one", [output(ledger, job_id, 1)], [], ["pacs"], now=401.0)
    ledger.record_built(job_id, "two", [output(ledger, job_id, 1)], [], ["pacs"], now=402.0)
    assert ledger.job(job_id).state is State.BUILT


def test_what_was_built_is_remembered_whole(ledger: Ledger) -> None:
    job_id = built(ledger)
    job = ledger.job(job_id)
    assert (job.state, job.owner, job.progress) == (State.BUILT, None, 1.0)
    assert ledger.outputs(job_id) == [output(ledger, job_id, 0), output(ledger, job_id, 1)]
    assert ledger.syntheses(job_id) == [SYNTHESIS]
    assert ledger.is_own_series(f"2.25.{job_id}")
    assert not ledger.is_own_series("1.2.3")


def test_a_failing_row_undoes_the_whole_move(ledger: Ledger) -> None:
    job_id = ready(ledger)
    ledger.lease("one", 300.0, 60.0)
    same = output(ledger, job_id, 1)
    with pytest.raises(sqlite3.IntegrityError):
        ledger.record_built(job_id, "one", [same, same], [], ["pacs"], now=301.0)
    assert ledger.job(job_id).state is State.READY
    assert ledger.job(job_id).owner == "one"


# delivering


def test_a_job_is_delivered_when_every_output_is_everywhere(ledger: Ledger) -> None:
    job_id = built(ledger, ("pacs", "folder"))
    first, second = (o.sop_instance_uid for o in ledger.outputs(job_id))
    ledger.record_delivery(first, "pacs", 0x0000, 310.0)
    assert [o.sop_instance_uid for o in ledger.pending_outputs(job_id, "pacs")] == [second]
    ledger.record_delivery(second, "pacs", 0xB000, 311.0)
    assert ledger.due("pacs", 400.0) == []
    assert [job.id for job in ledger.due("folder", 400.0)] == [job_id]
    ledger.record_delivery(first, "folder", 0, 312.0)
    assert ledger.job(job_id).state is State.BUILT
    ledger.record_delivery(second, "folder", 0, 313.0)
    assert ledger.job(job_id).state is State.DELIVERED
    ledger.record_delivery(second, "folder", 0, 314.0)
    assert states(ledger, job_id).count(State.DELIVERED) == 1


def test_a_failed_output_stays_pending_until_it_is_taken(ledger: Ledger) -> None:
    job_id = built(ledger)
    first, second = (o.sop_instance_uid for o in ledger.outputs(job_id))
    ledger.record_delivery(first, "pacs", 0xA700, 310.0)
    ledger.record_delivery(second, "pacs", 0, 310.0)
    assert [o.sop_instance_uid for o in ledger.pending_outputs(job_id, "pacs")] == [first]
    [standing] = ledger.deliveries(job_id)
    assert (standing.delivered, standing.outputs) == (1, 2)
    ledger.record_delivery(first, "pacs", 0, 320.0)
    assert ledger.job(job_id).state is State.DELIVERED


def test_a_postponed_destination_is_due_later_and_counts_its_attempts(ledger: Ledger) -> None:
    job_id = built(ledger, ("pacs", "folder"))
    assert ledger.postpone(job_id, "pacs", 400.0, "nobody answered", 310.0) == 1
    assert ledger.postpone(job_id, "pacs", 500.0, "nobody answered", 410.0) == 2
    assert ledger.due("pacs", 499.0) == []
    assert [job.id for job in ledger.due("pacs", 500.0)] == [job_id]
    assert [job.id for job in ledger.due("folder", 310.0)] == [job_id]
    assert ledger.events(job_id)[-1].note == "pacs: nobody answered"


def test_a_refusal_parks_the_job_once_the_other_destinations_have_it(ledger: Ledger) -> None:
    job_id = built(ledger, ("pacs", "folder"))
    ledger.refuse(job_id, "pacs", "no presentation context", 310.0)
    assert ledger.job(job_id).state is State.BUILT
    assert ledger.due("pacs", 900.0) == []
    for made in ledger.outputs(job_id):
        ledger.record_delivery(made.sop_instance_uid, "folder", 0, 311.0)
    job = ledger.job(job_id)
    assert (job.state, job.code, job.reason) == (State.PARKED, REFUSED_CODE, "pacs: no presentation context")
    assert ledger.retry(job_id, 400.0) is State.BUILT
    assert [job.id for job in ledger.due("pacs", 400.0)] == [job_id]
    assert ledger.due("folder", 400.0) == []


def test_the_only_destinations_refusal_parks_the_job_at_once(ledger: Ledger) -> None:
    job_id = built(ledger)
    ledger.refuse(job_id, "pacs", "status 0x0122", 310.0)
    assert ledger.job(job_id).state is State.PARKED


def test_a_superseded_job_is_delivered_no_further(ledger: Ledger) -> None:
    job_id = built(ledger)
    ledger.record_instance(slice_(ledger, 9), 305.0)
    assert ledger.due("pacs", 400.0) == []
    ledger.record_delivery(ledger.outputs(job_id)[0].sop_instance_uid, "pacs", 0, 306.0)
    assert ledger.job(job_id).state is State.SUPERSEDED


@pytest.mark.parametrize("act", ["postpone", "refuse", "record"])
def test_a_destination_or_output_nobody_knows_is_an_error(ledger: Ledger, act: str) -> None:
    job_id = built(ledger)
    acts: dict[str, Callable[[], object]] = {
        "postpone": lambda: ledger.postpone(job_id, "moon", 400.0, "why", 310.0),
        "refuse": lambda: ledger.refuse(job_id, "moon", "why", 310.0),
        "record": lambda: ledger.record_delivery("1.1.1", "pacs", 0, 310.0),
    }
    with pytest.raises(LedgerError):
        acts[act]()


# counting and racing


def test_counters_count_and_survive(ledger: Ledger) -> None:
    ledger.count("own_dropped")
    ledger.count("own_dropped", 4)
    with Ledger(ledger.path) as again:
        assert again.counters() == {"own_dropped": 5}


def test_threads_recording_one_series_lose_nothing_and_open_one_job(ledger: Ledger) -> None:
    def send(part: int) -> None:
        for number in range(part, 40, 4):
            ledger.record_instance(slice_(ledger, number), 100.0 + number)

    run_all([threading.Thread(target=send, args=(part,)) for part in range(4)])
    [job] = ledger.jobs()
    assert job.instances == len(ledger.instances(job.id)) == 40


def run_all(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_threads_leasing_never_share_a_job(ledger: Ledger) -> None:
    ids = {ready(ledger, f"1.2.{n}") for n in range(12)}
    taken: list[Job] = []

    def work(owner: str) -> None:
        while job := ledger.lease(owner, 300.0, 60.0):
            taken.append(job)

    run_all([threading.Thread(target=work, args=(f"w{n}",)) for n in range(4)])
    assert sorted(job.id for job in taken) == sorted(ids)


def test_a_slice_racing_with_settling_is_in_the_job_or_opens_the_next(ledger: Ledger) -> None:
    for round_ in range(10):
        series = f"1.2.{round_}"
        job_id = received(ledger, 1, series)
        run_all(
            [
                threading.Thread(target=ledger.settle, args=(job_id, 1, 200.0)),
                threading.Thread(target=ledger.record_instance, args=(slice_(ledger, 5, series), 200.0)),
            ]
        )
        living = ledger.find_jobs(series)[-1]
        assert living.instances == len(ledger.instances(living.id)) == 2
        assert living.state is State.RECEIVING


def record_in_another_process(path: str, part: int) -> None:
    with Ledger(Path(path)) as ledger:
        for number in range(part, 20, 2):
            ledger.record_instance(slice_(ledger, number), 100.0)
            ledger.count("seen")


def test_processes_opening_a_new_ledger_together_share_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite3"
    context = multiprocessing.get_context("spawn")
    parts = [context.Process(target=record_in_another_process, args=(str(path), part)) for part in range(2)]
    for process in parts:
        process.start()
    for process in parts:
        process.join(60)
        assert process.exitcode == 0
    with Ledger(path) as ledger:
        [job] = ledger.jobs()
        assert (job.instances, ledger.counters()) == (20, {"seen": 20})


def test_an_attempt_that_was_told_to_stop_does_not_count(ledger: Ledger) -> None:
    job_id = ready(ledger)
    ledger.lease("one", 300.0, 60.0)
    ledger.release(job_id, "one", 310.0, 310.0, "stopped", counted=False)
    assert ledger.job(job_id).attempt == 0


def test_a_clock_that_is_set_makes_no_series_quieter_and_no_wait_longer(ledger: Ledger) -> None:
    day = 86_400.0
    job_id = ledger.record_instance(slice_(ledger, 1), 1000.0).job_id
    ledger.wait_on(job_id, 1, 1900.0, "waiting", 1000.0)
    ledger.follow_clock(1010.0 + day, day)
    assert ledger.job(job_id).last_received_at == 1000.0 + day
    ledger.follow_clock(1020.0, -day)
    job = ledger.job(job_id)
    assert (job.last_received_at, job.not_before) == (1020.0, 1020.0)
    assert [found.id for found in ledger.receiving(1020.0, 1020.0)] == [job_id]


def test_a_clock_that_is_set_makes_no_destination_owed_for_longer(ledger: Ledger) -> None:
    day, hour = 86_400.0, 3600.0
    job_id = built(ledger)  # owed since 301
    ledger.follow_clock(310.0 + day, day)
    assert ledger.fall_back("pacs", "other", 310.0 + day - hour, 310.0 + day) == []
    ledger.follow_clock(320.0, -day)
    assert ledger.fall_back("pacs", "other", 300.0, 320.0) == []
    assert ledger.fall_back("pacs", "other", 302.0, 320.0) == [job_id]
