"""Files of old jobs go, and only those; what somebody still needs stays, whatever happens meanwhile."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from config.settings import RetentionSettings
from node.ledger import Ledger, Output, ReceivedInstance, SetAside
from node.purge import Retention, Tally, purge, purge_quarantine, remove_strays, weigh
from node.spool import Spool
from node.states import PURGEABLE, State

PATHS = {
    State.COMMITTED: (State.SETTLED, State.READY, State.BUILT, State.DELIVERED, State.COMMITTED),
    State.DELIVERED: (State.SETTLED, State.READY, State.BUILT, State.DELIVERED),
    State.REJECTED: (State.REJECTED,),
    State.PARKED: (State.PARKED,),
    State.SUPERSEDED: (State.SETTLED, State.SUPERSEDED),
    State.READY: (State.SETTLED, State.READY),
    State.BUILT: (State.SETTLED, State.READY, State.BUILT),
}


class Folder:
    """A spool and its ledger; jobs of two received files, and of two outputs where they got that far."""

    def __init__(self, root: Path) -> None:
        self.spool = Spool(root)
        self.ledger = Ledger(root / "ledger.sqlite3")

    def receive(self, series: str, number: int, now: float = 10.0) -> int:
        placed = self.spool.place(f"{series}.{number}".encode(), f"inbox/{series}/{number}.dcm")
        received = ReceivedInstance(
            f"{series}.{number}", "1.2", "1.2", series, "1.9", "CT", placed.path, placed.sha256, placed.bytes
        )
        return self.ledger.record_instance(received, now).job_id

    def job(self, state: State, series: str = "1.5") -> int:
        job_id = max(self.receive(series, number) for number in (1, 2))
        for step in PATHS[state]:
            if step is State.BUILT:
                self.build(job_id, series)
            else:
                self.ledger.move(job_id, step, 10.0)
        return job_id

    def build(self, job_id: int, series: str) -> None:
        self.ledger.lease("w", 10.0, 60.0)
        outputs = []
        for number in (1, 2):
            uid = f"2.25.{job_id}.{number}"
            placed = self.spool.place(b"synthetic", f"outbox/2.25.{job_id}/{uid}.dcm")
            outputs.append(
                Output(job_id, "arterial", "ct_series", f"2.25.{job_id}", uid, "1.2", placed.path, "00")
            )
        self.ledger.record_built(job_id, "w", outputs, [], ["pacs"], now=10.0)

    def files(self) -> set[str]:
        root = self.spool.root
        return {str(path.relative_to(root)) for path in root.glob("*box/*/*.dcm")}

    def purge(self, *states: State, before: float = 100.0) -> list[State]:
        gone = purge(self.ledger, self.spool, states or (State.COMMITTED,), before, lambda: 200.0)
        return [weight.state for weight in gone]

    def state(self, job_id: int) -> State:
        return self.ledger.job(job_id).state


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path / "data")
    yield made
    made.ledger.close()


def test_a_committed_job_loses_its_files_and_keeps_its_rows_and_history(folder: Folder) -> None:
    job_id = folder.job(State.COMMITTED)
    before = folder.ledger.events(job_id)
    (weight,) = weigh(folder.ledger, [State.COMMITTED], 100.0)
    assert (weight.files, weight.bytes) == (4, 2 * len("1.5.1") + 2 * len("synthetic"))
    assert len(folder.files()) == 4
    heard: list[int] = []
    gone = purge(folder.ledger, folder.spool, [State.COMMITTED], 100.0, lambda: 200.0, heard.append)
    assert (gone, heard) == ([weight], [1])
    assert folder.files() == set()
    assert list((folder.spool.root / "inbox").iterdir()) == []
    assert folder.state(job_id) is State.PURGED
    assert folder.ledger.events(job_id)[:-1] == before
    assert len(folder.ledger.instances(job_id)) == len(folder.ledger.outputs(job_id)) == 2
    assert folder.purge() == []


@pytest.mark.parametrize("state", [state for state in PATHS if state is not State.COMMITTED])
def test_what_is_not_committed_stays_unless_its_state_is_named(folder: Folder, state: State) -> None:
    job_id = folder.job(state)
    held = folder.files()
    assert folder.purge() == []
    assert (folder.files(), folder.state(job_id)) == (held, state)
    if state in PURGEABLE:
        assert folder.purge(state) == [state]
        assert folder.files() == set()
        assert folder.state(job_id) is (State.SUPERSEDED if state is State.SUPERSEDED else State.PURGED)
        assert folder.purge(state) == []


def test_a_job_that_is_young_stays(folder: Folder) -> None:
    folder.job(State.COMMITTED)
    assert folder.purge(before=9.0) == []
    assert len(folder.files()) == 4


def test_files_that_the_next_generation_shares_stay_as_long_as_it_needs_them(folder: Folder) -> None:
    old = folder.job(State.COMMITTED)
    late = folder.receive("1.5", 3)
    assert folder.purge(*PURGEABLE) == [State.SUPERSEDED]
    assert folder.files() == {f"inbox/1.5/{number}.dcm" for number in (1, 2, 3)}
    assert len(folder.ledger.instances(late)) == 3
    folder.ledger.move(late, State.REJECTED, 20.0)
    assert folder.purge(State.REJECTED) == [State.REJECTED]
    assert folder.files() == set()
    assert folder.state(old) is State.SUPERSEDED


def test_a_late_slice_of_a_purged_series_opens_a_generation_without_the_old_files(folder: Folder) -> None:
    folder.job(State.COMMITTED)
    folder.purge()
    late = folder.receive("1.5", 3)
    again = folder.receive("1.5", 1)
    assert late == again
    assert [one.sop_instance_uid for one in folder.ledger.instances(late)] == ["1.5.1", "1.5.3"]
    assert folder.purge() == []
    assert folder.files() == {"inbox/1.5/1.dcm", "inbox/1.5/3.dcm"}


def test_a_purge_that_was_cut_off_is_finished_by_the_next_and_spares_what_came_again(folder: Folder) -> None:
    job_id = folder.job(State.COMMITTED)
    assert folder.ledger.begin_purge(job_id, [State.COMMITTED], 100.0, 150.0)
    folder.receive("1.5", 1)
    assert folder.ledger.unfinished_purges() == [job_id]
    assert folder.purge() == []
    assert folder.files() == {"inbox/1.5/1.dcm"}
    assert folder.ledger.unfinished_purges() == []


def test_a_job_that_moved_on_between_look_and_purge_is_left_alone(folder: Folder) -> None:
    job_id = folder.job(State.COMMITTED)
    folder.receive("1.5", 3)
    assert not folder.ledger.begin_purge(job_id, [State.COMMITTED], 100.0, 150.0)


def test_nothing_outside_inbox_and_outbox_is_ever_removed(folder: Folder, tmp_path: Path) -> None:
    for path in (tmp_path / "elsewhere.dcm", folder.spool.root / "quarantine" / "x.dcm"):
        path.write_bytes(b"keep")
        assert folder.spool.remove(path) == 0
        assert path.exists()
    assert folder.spool.remove(folder.spool.root / "inbox" / "1.5" / "gone.dcm") == 0


def test_nothing_is_removed_while_a_file_is_being_received(folder: Folder) -> None:
    folder.job(State.COMMITTED)
    done = threading.Event()
    thread = threading.Thread(target=lambda: (folder.purge(), done.set()))
    with folder.spool.keeping(), folder.spool.keeping():
        thread.start()
        assert not done.wait(0.2)
        assert len(folder.files()) == 4
    thread.join(60)
    assert done.is_set()
    assert folder.files() == set()


def test_a_result_that_was_placed_and_never_recorded_goes_and_nothing_else(folder: Folder) -> None:
    known = folder.job(State.BUILT)
    kept = folder.files()
    folder.spool.place(b"synthetic", "outbox/2.25.900/2.25.900.1.dcm")
    folder.spool.place(b"synthetic", f"outbox/2.25.{known}/2.25.900.2.dcm")
    folder.spool.place(b"received", "inbox/1.5/9.dcm")
    assert remove_strays(folder.ledger, folder.spool, time.time() + 60, lambda: None) == 2
    assert folder.files() == kept | {"inbox/1.5/9.dcm"}


def test_what_a_running_attempt_has_made_is_no_stray_and_what_lay_there_before_is(folder: Folder) -> None:
    job_id = folder.job(State.READY)
    began = time.time()
    assert folder.ledger.lease("w", began, 60.0) is not None
    made, older = (
        folder.spool.place(b"synthetic", f"outbox/2.25.{job_id}/2.25.90{number}.dcm").path
        for number in (1, 2)
    )
    os.utime(older, times=(0, began - 60))
    keep = Retention(RetentionSettings(), folder.ledger, folder.spool, lambda: time.time() + 60, lambda: None)
    keep.run()
    assert made.exists()
    assert not older.exists()
    folder.ledger.release(job_id, "w", began, began, "killed")
    keep.run()
    assert not made.exists()


def test_no_result_is_a_stray_between_its_placing_and_its_recording(folder: Folder) -> None:
    job_id = folder.job(State.READY)
    removed: list[int] = []
    with folder.spool.keeping():
        folder.spool.place(b"synthetic", f"outbox/2.25.{job_id}/2.25.{job_id}.1.dcm")
        sweep = threading.Thread(
            target=lambda: removed.append(
                remove_strays(folder.ledger, folder.spool, time.time() + 60, lambda: None)
            )
        )
        sweep.start()
        sweep.join(0.5)
        assert sweep.is_alive()
        folder.build(job_id, "1.5")
    sweep.join()
    assert removed == [0]


def test_retention_lets_go_by_itself_what_the_settings_say_and_nothing_else(folder: Folder) -> None:
    for number, state in enumerate((State.REJECTED, State.PARKED, State.COMMITTED)):
        folder.job(state, series=f"1.{number}")
    aside = folder.spool.place(b"other", "quarantine/1.0/1.dcm")
    folder.ledger.record_set_aside(SetAside(1, aside.path, aside.sha256, aside.bytes, "CT", "why"), 10.0)
    beats: list[None] = []

    def run(now: float, **days: float) -> set[State]:
        settings = RetentionSettings(**days)
        beat = partial(beats.append, None)
        Retention(settings, folder.ledger, folder.spool, lambda: now, beat).run()
        return {job.state for job in folder.ledger.jobs()}

    day = 86_400.0
    everything = {State.REJECTED, State.PARKED, State.COMMITTED}
    assert run(100 * day) == everything
    assert run(day, rejected_days=2, quarantine_days=2) == everything
    assert run(3 * day, rejected_days=2, parked_days=9, identity_days=1) == everything - {State.REJECTED} | {
        State.PURGED
    }
    assert beats
    assert aside.path.exists()
    run(3 * day, quarantine_days=2)
    assert not aside.path.exists()
    assert folder.ledger.set_aside() == []
    assert purge_quarantine(folder.ledger, folder.spool, 5 * day, lambda: 1.0) == Tally(0, 0)
