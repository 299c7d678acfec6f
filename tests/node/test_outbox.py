"""Files of a job that are written while more are made."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import pytest

from node.outbox import Outbox
from node.outputs.encoding import Instance
from node.spool import Spool

SERIES = "2.25.5"


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


def test_a_file_that_was_taken_for_a_stray_before_it_was_recorded_is_there_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with Outbox(spool, job_id=7) as outbox:
        outbox.put("venous", "ct_series", instance(1))
        outbox.put("venous", "ct_series", instance(2))
        first, second = outbox.outputs()
        assert spool.remove(first.path) > 0
        assert outbox.outputs() == [first, second]
    assert first.path.read_bytes() == b"slice 1"


def test_what_cannot_be_written_is_said_when_the_rows_are_asked_for(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    (tmp_path / "outbox" / SERIES).write_bytes(b"in the way")
    with Outbox(spool, job_id=7) as outbox:
        outbox.put("venous", "ct_series", instance(1))
        with pytest.raises(OSError, match=SERIES):
            outbox.outputs()


def test_work_that_fails_leaves_off_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool, gate = Spool(tmp_path), Event()
    place = spool.place
    monkeypatch.setattr(spool, "place", lambda *args: (gate.wait(), place(*args))[1])
    with pytest.raises(RuntimeError), Outbox(spool, job_id=7) as outbox:
        for number in range(100):
            outbox.put("venous", "ct_series", instance(number))
        gate.set()
        raise RuntimeError
    assert len(list((tmp_path / "outbox").rglob("*.dcm"))) < 100
