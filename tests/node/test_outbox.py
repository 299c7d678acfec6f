"""Files of a job that are written while more are made."""

from __future__ import annotations

import time
import weakref
from pathlib import Path
from threading import Event, Thread, Timer

import pytest

from node.flow import Action, failure_of
from node.outbox import WAITING, WRITERS, Outbox
from node.outputs.encoding import Instance
from node.spool import Spool

SERIES = "2.25.5"


class Watched(Instance):
    """One that can be asked whether somebody holds it."""


def instance(number: int) -> Instance:
    return Instance("1.2.840.10008.5.1.4.1.1.2", SERIES, f"{SERIES}.{number}", f"slice {number}".encode())


def test_every_file_has_a_row_in_the_order_they_were_made(tmp_path: Path) -> None:
    with Outbox(Spool(tmp_path), job_id=7) as outbox:
        for number in range(20):
            outbox.put("venous", "ct_series", instance(number))
        outputs = outbox.outputs()
    assert [output.sop_instance_uid for output in outputs] == [f"{SERIES}.{n}" for n in range(20)]
    assert {(o.job_id, o.phase, o.kind, o.series_instance_uid) for o in outputs} == {
        (7, "venous", "ct_series", SERIES)
    }
    assert [output.path.read_bytes() for output in outputs] == [f"slice {n}".encode() for n in range(20)]


def test_a_file_that_was_removed_before_it_was_recorded_is_an_error_to_retry(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with Outbox(spool, job_id=7) as outbox:
        outbox.put("venous", "ct_series", instance(1))
        outbox.put("venous", "ct_series", instance(2))
        first, _ = outbox.outputs()
        assert spool.remove(first.path) > 0
        with pytest.raises(FileNotFoundError) as caught:
            outbox.outputs()
    failure = failure_of(caught.value)
    assert failure.disposition.action is Action.RETRY
    assert failure.reason == "a result was removed before it was recorded"


def test_what_is_written_is_not_kept_in_memory(tmp_path: Path) -> None:
    with Outbox(Spool(tmp_path), job_id=7) as outbox:
        held = []
        for number in range(3):
            made = Watched("1.2", SERIES, f"{SERIES}.{number}", b"slice")
            held.append(weakref.ref(made))
            outbox.put("venous", "ct_series", made)
            del made
        outbox.outputs()
        until = time.monotonic() + 60
        while any(each() for each in held) and time.monotonic() < until:
            time.sleep(0.01)
        assert [each() for each in held] == [None] * 3


def test_who_makes_files_faster_than_the_disk_takes_them_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, gate, put = Spool(tmp_path), Event(), []
    place = spool.place
    monkeypatch.setattr(spool, "place", lambda *args: (gate.wait(60), place(*args))[1])

    def make(outbox: Outbox) -> None:
        for number in range(WAITING + 10):
            outbox.put("venous", "ct_series", instance(number))
            put.append(number)

    with Outbox(spool, job_id=7) as outbox:
        maker = Thread(target=make, args=(outbox,))
        maker.start()
        maker.join(1)
        assert maker.is_alive()
        assert len(put) <= WAITING
        gate.set()
        maker.join(60)
        assert len(outbox.outputs()) == WAITING + 10


def test_what_cannot_be_written_is_said_when_the_rows_are_asked_for_and_at_the_next_file(
    tmp_path: Path,
) -> None:
    spool = Spool(tmp_path)
    (tmp_path / "outbox" / SERIES).write_bytes(b"in the way")
    with Outbox(spool, job_id=7) as outbox:
        outbox.put("venous", "ct_series", instance(1))
        with pytest.raises(OSError, match=SERIES):
            outbox.outputs()
        with pytest.raises(OSError, match=SERIES):
            outbox.put("venous", "ct_series", instance(2))


def test_work_that_fails_leaves_off_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool, gate = Spool(tmp_path), Event()
    place = spool.place
    monkeypatch.setattr(spool, "place", lambda *args: (gate.wait(60), place(*args))[1])
    with pytest.raises(RuntimeError), Outbox(spool, job_id=7) as outbox:
        for number in range(WAITING):
            outbox.put("venous", "ct_series", instance(number))
        Timer(0.5, gate.set).start()
        raise RuntimeError
    assert len(list((tmp_path / "outbox").rglob("*.dcm"))) == WRITERS
