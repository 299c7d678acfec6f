from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from config.settings import Settings, SettleSettings
from node.errors import SeriesRejected
from node.ledger import Job, Ledger, ReceivedInstance
from node.settle import CURABLE, Verdict, judge, settle_due
from node.states import State

SETTLE = SettleSettings(quiet_s=30, max_wait_s=900)
RECEIVED_AT = 1000.0


def rejecting(code: str) -> Callable[[], None]:
    def examine() -> None:
        raise SeriesRejected(code, "why")

    return examine


@pytest.mark.parametrize("code", [None, "NOT-A-GRID", "NOT-CT"])
def test_a_series_that_is_still_coming_is_never_settled(code: str | None) -> None:
    examine = rejecting(code) if code else lambda: None
    assert judge(29.9, SETTLE, [], examine) == Verdict(False, "slices are still coming")


def test_quiet_and_regular_is_settled() -> None:
    verdict = judge(30, SETTLE, [], lambda: None)
    assert verdict.settled
    assert "regular grid" in verdict.reason


@pytest.mark.parametrize("code", sorted(CURABLE))
def test_an_irregular_series_waits_and_is_judged_as_it_is_in_the_end(code: str) -> None:
    assert not judge(30, SETTLE, [], rejecting(code)).settled
    assert not judge(899, SETTLE, [], rejecting(code)).settled
    last = judge(900, SETTLE, [], rejecting(code))
    assert last.settled
    assert code in last.reason


def test_what_no_further_slice_can_cure_does_not_wait() -> None:
    assert judge(30, SETTLE, [], rejecting("LOCALIZER")).settled


# the lane


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite3") as opened:
        yield opened


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.model_validate(
        {"storage": {"data_dir": tmp_path}, "settle": SETTLE.model_dump(), "intake": {"min_slices": 4}}
    )


def receive(ledger: Ledger, paths: list[Path], now: float = RECEIVED_AT) -> Job:
    for path in paths:
        ds = dcmread(path, stop_before_pixels=True)
        received = ReceivedInstance(
            sop_instance_uid=ds.SOPInstanceUID,
            sop_class_uid=ds.SOPClassUID,
            transfer_syntax_uid=ds.file_meta.TransferSyntaxUID,
            series_instance_uid=ds.SeriesInstanceUID,
            study_instance_uid=ds.StudyInstanceUID,
            calling_ae="SENDER",
            path=path,
            sha256=ds.SOPInstanceUID,
            bytes=path.stat().st_size,
        )
        recorded = ledger.record_instance(received, now)
    return ledger.job(recorded.job_id)


def states(ledger: Ledger, job: Job) -> list[State]:
    return [event.to_state for event in ledger.events(job.id) if event.from_state is not event.to_state]


def test_a_whole_series_is_settled_and_accepted_once_it_is_quiet(
    ledger: Ledger, settings: Settings, kit: Any
) -> None:
    job = receive(ledger, kit.files())
    settle_due(ledger, settings, RECEIVED_AT + 29)
    assert ledger.job(job.id).state is State.RECEIVING
    settle_due(ledger, settings, RECEIVED_AT + 30)
    assert states(ledger, job) == [State.RECEIVING, State.SETTLED, State.READY]
    assert "quiet for 30 s" in str(ledger.events(job.id)[1].note)


def test_a_gap_is_waited_for_and_the_missing_slice_completes_the_series(
    ledger: Ledger, settings: Settings, kit: Any
) -> None:
    paths = kit.files()
    job = receive(ledger, paths[:2] + paths[3:])
    for seconds in (30, 31, 100):
        settle_due(ledger, settings, RECEIVED_AT + seconds)
    assert states(ledger, job) == [State.RECEIVING]
    assert sum("waiting for more" in (event.note or "") for event in ledger.events(job.id)) == 1
    receive(ledger, paths[2:3], RECEIVED_AT + 200)
    settle_due(ledger, settings, RECEIVED_AT + 229)
    assert ledger.job(job.id).state is State.RECEIVING
    settle_due(ledger, settings, RECEIVED_AT + 231)
    assert ledger.job(job.id).state is State.READY
    assert ledger.job(job.id).generation == 1


def test_a_gap_that_stays_is_rejected_with_its_code_in_the_end(
    ledger: Ledger, settings: Settings, kit: Any
) -> None:
    paths = kit.files()
    job = receive(ledger, paths[:2] + paths[3:])
    settle_due(ledger, settings, RECEIVED_AT + 30)
    settle_due(ledger, settings, RECEIVED_AT + 901)
    found = ledger.job(job.id)
    assert (found.state, found.code) == (State.REJECTED, "NOT-A-GRID")


def test_a_slice_after_the_rejection_opens_a_generation_that_is_accepted(
    ledger: Ledger, settings: Settings, kit: Any
) -> None:
    paths = kit.files()
    receive(ledger, paths[:2] + paths[3:])
    for seconds in (30, 901):
        settle_due(ledger, settings, RECEIVED_AT + seconds)
    late = receive(ledger, paths[2:3], RECEIVED_AT + 1000)
    settle_due(ledger, settings, RECEIVED_AT + 1031)
    assert (late.generation, ledger.job(late.id).state) == (2, State.READY)


def test_a_series_that_is_not_ours_is_rejected_without_waiting(
    ledger: Ledger, settings: Settings, kit: Any
) -> None:
    job = receive(ledger, kit.files(lambda ds: setattr(ds, "Modality", "MR")))
    settle_due(ledger, settings, RECEIVED_AT + 31)
    found = ledger.job(job.id)
    assert (found.state, found.code) == (State.REJECTED, "NOT-CT")


def test_files_that_are_no_dicom_are_rejected_and_missing_ones_park_and_nobody_else_waits(
    ledger: Ledger, settings: Settings, kit: Any
) -> None:
    def other(uid: str) -> list[Path]:
        def rename(ds: Any) -> None:
            ds.SeriesInstanceUID, ds.SOPInstanceUID = uid, f"{uid}.{ds.InstanceNumber}"

        return list(kit.files(rename))

    broken, missing = other("2.25.7"), other("2.25.8")
    jobs = [receive(ledger, paths) for paths in (broken, missing, kit.files())]
    broken[0].write_bytes(b"no DICOM at all" * 50)
    missing[0].unlink()
    settle_due(ledger, settings, RECEIVED_AT + 31)
    found = [ledger.job(job.id) for job in jobs]
    assert [job.state for job in found] == [State.REJECTED, State.PARKED, State.READY]
    assert (found[0].code, found[1].code) == ("NOT-DICOM", "DISK")
    settle_due(ledger, settings, RECEIVED_AT + 32)
    assert [ledger.job(job.id).state for job in jobs] == [job.state for job in found]


def test_a_series_whose_files_cannot_be_read_for_the_moment_is_judged_later(
    ledger: Ledger, settings: Settings, kit: Any
) -> None:
    paths = kit.files()
    job = receive(ledger, paths)
    content = paths[0].read_bytes()
    paths[0].unlink()
    paths[0].mkdir()  # reading it is an error of the disk, and no missing file
    settle_due(ledger, settings, RECEIVED_AT + 31)
    assert ledger.job(job.id).state is State.RECEIVING
    paths[0].rmdir()
    paths[0].write_bytes(content)
    settle_due(ledger, settings, RECEIVED_AT + 32)
    assert ledger.job(job.id).state is State.READY


def test_a_parked_series_is_settled_again_after_a_retry(ledger: Ledger, settings: Settings, kit: Any) -> None:
    paths = kit.files()
    job = receive(ledger, paths)
    content = paths[0].read_bytes()
    paths[0].unlink()
    settle_due(ledger, settings, RECEIVED_AT + 31)
    paths[0].write_bytes(content)
    assert ledger.retry(job.id, RECEIVED_AT + 40) is State.SETTLED
    settle_due(ledger, settings, RECEIVED_AT + 41)
    assert ledger.job(job.id).state is State.READY
