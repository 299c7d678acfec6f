"""Results that were superseded or recalled are rejected where they went: never two live ones of a series."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from threading import Event
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, KeyObjectSelectionDocumentStorage
from structlog.testing import capture_logs

from config.settings import Settings
from node.breaker import Breaker
from node.deliver import DeliverLane
from node.lane import Means
from node.ledger import CommitmentAnswer, Ledger, Output, ReceivedInstance, SynthesisRecord
from node.outputs.encoding import to_bytes
from node.purge import purge
from node.rejection.lane import NotesLane
from node.rejection.note import KIND, Reason
from node.rejection.retract import DestinationGone, NobodyKnown, Retractor
from node.spool import Spool
from node.states import State

SERIES = "2.25.20"
BOTH = (CTImageStorage, KeyObjectSelectionDocumentStorage)


def synthesis(phase: str, model: str = "m-1") -> SynthesisRecord:
    return SynthesisRecord(phase, model, f"digest of {model}", 0, "bridge", 4, "cpu")


class Bench:
    """A node without listener and worker: what they leave is written by hand, the rest is real."""

    def __init__(self, root: Path, destinations: Sequence[dict[str, Any]]) -> None:
        self.settings = Settings.model_validate(
            {"storage": {"data_dir": root}, "destinations": list(destinations)}
        )
        self.spool = Spool(root)
        self.ledger = Ledger(root / "ledger.sqlite3")
        self.now = 1000.0
        self.on_beat: Callable[[], None] = lambda: None
        self.begin()

    def begin(self) -> None:
        """As a node that starts with the settings of now."""
        self.retractor = Retractor(self.settings, self.ledger, self.spool, lambda: self.now)
        self.notes = NotesLane(self.means(), self.retractor.announce)

    def receive(self, number: int, series: str = SERIES) -> int:
        placed = self.spool.place(
            to_bytes(image(f"{series}.{number}", series)), f"inbox/{series}/{number}.dcm"
        )
        received = ReceivedInstance(
            f"{series}.{number}", CTImageStorage, "1.2.840.10008.1.2.1", series, "2.25.10", "CT",
            placed.path, placed.sha256, placed.bytes,
        )  # fmt: skip
        return self.ledger.record_instance(received, self.now).job_id

    def build(self, job_id: int, *records: SynthesisRecord, slices: int = 2) -> list[str]:
        """READY → BUILT with ``slices`` outputs a phase; their UIDs."""
        self.ledger.move(job_id, State.SETTLED, self.now)
        self.ledger.move(job_id, State.READY, self.now)
        assert self.ledger.lease("w", self.now, 60.0) is not None
        outputs = [
            self.output(job_id, record.phase, number)
            for record in records or (synthesis("arterial"),)
            for number in range(slices)
        ]
        names = [each.name for each in self.settings.destinations]
        self.ledger.record_built(
            job_id, "w", outputs, records or (synthesis("arterial"),), names, now=self.now
        )
        return [output.sop_instance_uid for output in outputs]

    def output(self, job_id: int, phase: str, number: int) -> Output:
        series = f"2.25.{job_id}{len(phase)}"
        uid = f"{series}.{number}"
        placed = self.spool.place(to_bytes(image(uid, series)), f"outbox/{series}/{uid}.dcm")
        return Output(job_id, phase, "ct_series", series, uid, CTImageStorage, placed.path, placed.sha256)

    def result(
        self, *records: SynthesisRecord, series: str = SERIES, slices: int = 2
    ) -> tuple[int, list[str]]:
        """A series received and built; its job and its outputs' UIDs."""
        job_id = self.receive(1, series)
        return job_id, self.build(job_id, *records, slices=slices)

    def deliver(self) -> None:
        """One step of every deliver lane."""
        for destination in self.settings.destinations:
            means = self.means()
            DeliverLane(means, destination, Breaker(means, destination.name)).run()

    def means(self) -> Means:
        retry = self.settings.retry
        return Means(
            self.ledger, retry, Random(1), lambda: self.now, lambda: self.now, Event(), self.beat
        )  # fmt: skip

    def beat(self) -> None:
        self.on_beat()

    def recall(self, model: str = "m-1", since: float = 0.0) -> list[int | None]:
        made = [
            self.retractor.recall(each, model, Reason.SAFETY) for each in self.retractor.find(model, since)
        ]
        return [None if one is None else one.note_id for one in made]

    def state(self, job_id: int) -> State:
        return self.ledger.job(job_id).state


def image(uid: str, series: str) -> Dataset:
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, uid
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "2.25.10", series
    ds.PatientName, ds.PatientID, ds.StudyDate = "MÜLLER^JANE", "ID0017", "20260102"
    ds.Modality, ds.Rows, ds.Columns = "CT", 1, 1
    return ds


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def bench(*peers: Any, **more: Any) -> Bench:
        destinations = [
            {"name": f"pacs{number}", "host": "127.0.0.1", "port": peer.port, "ae_title": "PEER", **more}
            for number, peer in enumerate(peers)
        ]
        made.append(Bench(tmp_path / "data", destinations))
        return made[-1]

    yield bench
    for each in made:
        each.ledger.close()


def titles(received: Sequence[Dataset]) -> list[str]:
    return [ds.ConceptNameCodeSequence[0].CodeValue if ds.Modality == "KO" else "CT" for ds in received]


def test_a_superseded_result_is_rejected_before_the_new_one_is_sent(store_peer, start) -> None:
    peer = store_peer(sop_classes=BOTH)
    bench = start(peer)
    old, old_uids = bench.result()
    bench.deliver()
    new = bench.receive(2)
    bench.notes.run()
    assert titles(peer.received) == ["CT"] * 2, "nothing is rejected before something takes its place"
    bench.build(new)
    bench.deliver()
    assert bench.state(new) is State.BUILT and len(peer.received) == 2, "two live results"
    bench.notes.run()
    bench.notes.run()
    bench.deliver()
    bench.deliver()
    assert titles(peer.received) == ["CT", "CT", "113001", "CT", "CT"]
    assert (bench.state(old), bench.state(new)) == (State.SUPERSEDED, State.DELIVERED)
    note = peer.received[2]
    assert [
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in note.ContentSequence[1:]
    ] == old_uids
    evidence = note.CurrentRequestedProcedureEvidenceSequence[0]
    assert evidence.StudyInstanceUID == note.StudyInstanceUID == "2.25.10"
    assert len(evidence.ReferencedSeriesSequence[0].ReferencedSOPSequence) == 2
    assert (note.PatientID, str(note.PatientName)) == ("ID0017", "MÜLLER^JANE")
    [job] = [job for job in bench.ledger.jobs() if job.rejects is not None]
    assert (job.rejects, job.state) == (old, State.DELIVERED)
    assert bench.ledger.outputs(job.id)[0].kind == KIND
    assert any(f"rejection note: job {job.id}" in (event.note or "") for event in bench.ledger.events(old))


def test_a_result_that_went_nowhere_needs_no_note(store_peer, start) -> None:
    peer = store_peer(sop_classes=BOTH)
    bench = start(peer)
    bench.result()
    new = bench.receive(2)
    bench.build(new)
    bench.notes.run()
    bench.deliver()
    assert titles(peer.received) == ["CT"] * 2
    assert bench.state(new) is State.DELIVERED


def test_a_result_that_is_superseded_while_it_is_sent_is_sent_no_further(store_peer, start) -> None:
    peer = store_peer(sop_classes=BOTH)
    bench = start(peer)
    _, uids = bench.result(slices=4)
    bench.on_beat = lambda: bench.receive(2) if len(peer.received) == 1 else None
    bench.deliver()
    assert peer.uids == uids[:2], "the one that was on its way, and no other"
    new = bench.ledger.find_jobs(SERIES)[-1].id
    bench.on_beat = lambda: None
    bench.build(new)
    bench.notes.run()
    bench.deliver()
    bench.deliver()
    assert titles(peer.received) == ["CT", "CT", "113001", "CT", "CT"]
    note = peer.received[2]
    assert len(note.ContentSequence) == 1 + 4, "what may have arrived unanswered is named too"


def test_a_job_found_due_and_superseded_before_it_began_is_not_sent(store_peer, start) -> None:
    peer = store_peer(sop_classes=BOTH)
    bench = start(peer)
    old, _ = bench.result()
    bench.receive(2)
    assert not bench.ledger.begin_delivery(old, "pacs0", bench.now)
    assert bench.ledger.went_to(old) == []


def test_where_notes_are_refused_the_new_result_waits_until_somebody_decides(store_peer, start) -> None:
    peer = store_peer(sop_classes=(CTImageStorage,))
    bench = start(peer)
    bench.result()
    bench.deliver()
    new = bench.receive(2)
    bench.build(new)
    bench.notes.run()
    bench.deliver()
    bench.now += 10_000
    bench.deliver()
    [note] = [job for job in bench.ledger.jobs() if job.rejects is not None]
    assert (note.state, bench.state(new)) == (State.PARKED, State.BUILT)
    bench.ledger.forgo_notes(["elsewhere"], bench.now)
    assert bench.state(note.id) is State.PARKED
    bench.ledger.forgo_notes(["pacs0"], bench.now)
    bench.deliver()
    assert (bench.state(note.id), bench.state(new)) == (State.DELIVERED, State.DELIVERED)


def test_a_destination_that_wants_no_notes_gets_none(store_peer, start) -> None:
    peer = store_peer(sop_classes=BOTH)
    bench = start(peer, rejection_notes=False)
    bench.result()
    bench.deliver()
    bench.build(bench.receive(2))
    bench.notes.run()
    bench.deliver()
    assert titles(peer.received) == ["CT"] * 4
    assert [job.rejects for job in bench.ledger.jobs()] == [None, None]
    assert len(list((bench.spool.root / "outbox").iterdir())) == 2, "no file of a note is left"


def test_a_note_goes_only_where_the_old_result_went(store_peer, start) -> None:
    here, there = store_peer(sop_classes=BOTH), store_peer(sop_classes=BOTH, statuses=[0xA700] * 9)
    bench = start(here, there)
    bench.result()
    bench.ledger.postpone(1, "pacs1", bench.now + 99, "busy", bench.now)
    bench.deliver()
    bench.build(bench.receive(2))
    bench.notes.run()
    [note] = [job for job in bench.ledger.jobs() if job.rejects is not None]
    assert [each.destination for each in bench.ledger.deliveries(note.id)] == ["pacs0"]


def test_a_result_at_a_destination_that_is_no_longer_named_is_not_taken_for_rejected(
    store_peer, start
) -> None:
    peer = store_peer(sop_classes=BOTH)
    bench = start(peer)
    old, _ = bench.result()
    bench.deliver()
    renamed = [each.model_copy(update={"name": "pacs"}) for each in bench.settings.destinations]
    named, bench.settings = bench.settings, bench.settings.model_copy(update={"destinations": tuple(renamed)})
    bench.begin()
    with pytest.raises(DestinationGone, match="pacs0"):
        bench.recall()
    new = bench.receive(2)
    bench.build(new)
    with capture_logs() as logs:
        for _ in range(60):
            bench.notes.run()
            bench.deliver()
            bench.now += 1
    words = [line["reason"] for line in logs if line["event"] == "rejection note not written"]
    assert len(words) < 5, "with the waits of [retry]"
    assert all("pacs0" in each for each in words) and words
    assert (len(peer.received), bench.state(new)) == (2, State.BUILT), "perhaps it is the same archive"
    assert bench.ledger.live_outputs(old) != []
    bench.settings = named.model_copy(update={"destinations": (*named.destinations, *renamed)})
    bench.begin()
    bench.notes.run()
    bench.deliver()
    bench.deliver()
    assert titles(peer.received) == ["CT", "CT", "113001", "CT", "CT"]
    assert bench.state(new) is State.DELIVERED


def test_a_recall_takes_back_what_the_model_made_and_nothing_else(store_peer, start) -> None:
    peer = store_peer(sop_classes=BOTH)
    bench = start(peer)
    mixed, uids = bench.result(synthesis("arterial", "good"), synthesis("venous", "bad"))
    bench.deliver()
    whole, _ = bench.result(synthesis("venous", "bad"), series="2.25.21")
    other, _ = bench.result(synthesis("venous", "good"), series="2.25.22")
    assert bench.recall("bad", since=bench.now + 1) == []
    found = list(bench.retractor.find("bad", 0.0))
    assert [(each.job.id, len(each.outputs), each.destinations) for each in found] == [
        (mixed, 2, ("pacs0",)),
        (whole, 2, ()),
    ]
    notes = bench.recall("digest of bad")
    assert notes[1] is None and notes[0] is not None
    bench.deliver()
    assert sorted(titles(peer.received)[4:]) == ["113037", "CT", "CT"], "the job not sent yet is not sent"
    note = next(ds for ds in peer.received if ds.Modality == "KO")
    named = [item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in note.ContentSequence[1:]]
    assert named == uids[2:]
    states = [bench.state(job_id) for job_id in (mixed, whole, other)]
    assert states == [State.DELIVERED, State.RECALLED, State.DELIVERED]
    assert bench.recall("bad") == []


def test_nobody_is_asked_about_or_sent_what_was_recalled(store_peer, start) -> None:
    bench = start(store_peer(sop_classes=BOTH))
    job, uids = bench.result(synthesis("arterial", "good"), synthesis("venous", "bad"))
    bench.deliver()
    bench.recall("bad")
    asked = [output.sop_instance_uid for output in bench.ledger.uncommitted_outputs(job, "pacs0")]
    assert asked == uids[:2]
    lacking = CommitmentAnswer(frozenset(), dict.fromkeys(uids, 0x0112))
    bench.ledger.record_found(job, "pacs0", lacking, {"pacs0"}, bench.now)
    assert [each.sop_instance_uid for each in bench.ledger.pending_outputs(job, "pacs0")] == uids[:2]
    bench.deliver()
    bench.deliver()
    due = [each.id for each in bench.ledger.commitments_due("pacs0", bench.now, bench.now)]
    assert due == [job], "archives hide notes, so none is asked about"


def test_half_a_recalled_job_is_delivered_to_its_end(store_peer, start) -> None:
    peer = store_peer(sop_classes=BOTH, statuses=[0, 0, 0xA700])
    bench = start(peer)
    job, uids = bench.result(synthesis("arterial", "good"), synthesis("venous", "bad"))
    bench.deliver()
    assert peer.uids == uids[:2]
    bench.recall("bad")
    assert bench.state(job) is State.DELIVERED


@pytest.mark.parametrize("state", [State.DELIVERED, State.COMMITTED])
def test_what_was_purged_is_recalled_all_the_same(store_peer, start, state: State) -> None:
    peer = store_peer(sop_classes=BOTH)
    bench = start(peer)
    job, _ = bench.result()
    bench.deliver()
    if state is State.COMMITTED:
        bench.ledger.move(job, State.COMMITTED, bench.now)
    purge(bench.ledger, bench.spool, [state], bench.now + 1, lambda: bench.now)
    assert list((bench.spool.root / "outbox").iterdir()) == []
    assert bench.recall() != []
    bench.deliver()
    note = peer.received[-1]
    assert (note.Modality, note.PatientID, str(note.PatientName)) == ("KO", "ID0017", "MÜLLER^JANE")
    assert bench.state(job) is State.PURGED


def test_whose_a_job_was_can_be_forgotten_and_then_it_says_so(store_peer, start) -> None:
    bench = start(store_peer(sop_classes=BOTH))
    job, _ = bench.result()
    bench.deliver()
    purge(bench.ledger, bench.spool, [State.DELIVERED], bench.now + 1, lambda: bench.now)
    assert bench.ledger.forget_identities(bench.now - 1) == 0
    assert bench.ledger.forget_identities(bench.now + 1) == 1
    assert bench.ledger.identity(job) is None
    with pytest.raises(NobodyKnown, match=f"job {job}"):
        bench.recall()


def test_a_purged_result_that_comes_again_is_rejected_and_one_nobody_can_name_holds_nothing_up(
    store_peer, start
) -> None:
    peer = store_peer(sop_classes=BOTH)
    bench = start(peer)
    bench.result()
    bench.deliver()
    purge(bench.ledger, bench.spool, [State.DELIVERED], bench.now + 1, lambda: bench.now)
    second = bench.receive(1)
    bench.build(second)
    bench.notes.run()
    bench.deliver()
    bench.deliver()
    assert titles(peer.received) == ["CT", "CT", "113001", "CT", "CT"]
    purge(bench.ledger, bench.spool, [State.DELIVERED], bench.now + 1, lambda: bench.now)
    bench.ledger.forget_identities(bench.now + 1)
    third = bench.receive(1)
    bench.build(third)
    bench.notes.run()
    bench.deliver()
    assert bench.state(third) is State.DELIVERED


def test_a_note_that_cannot_be_written_stops_no_other(store_peer, start) -> None:
    peer = store_peer(sop_classes=BOTH)
    bench = start(peer)
    for series in ("2.25.31", "2.25.32"):
        bench.result(series=series)
    bench.deliver()
    for path in [*bench.spool.root.glob("inbox/2.25.31/*"), *bench.spool.root.glob("outbox/2.25.1*/*")]:
        path.unlink()
    for series in ("2.25.31", "2.25.32"):
        bench.build(bench.receive(5, series))
    bench.notes.run()
    assert [job.rejects for job in bench.ledger.jobs() if job.rejects] == [2]


def test_a_note_that_cannot_be_written_is_tried_again_ever_later_with_a_line_each_time(
    store_peer, start
) -> None:
    bench = start(store_peer(sop_classes=BOTH))
    bench.result()
    bench.deliver()
    files = [*bench.spool.root.glob("inbox/*/*"), *bench.spool.root.glob("outbox/*/*")]
    kept = [path.read_bytes() for path in files]
    for path in files:
        path.write_bytes(b"rot")
    new = bench.receive(5)
    bench.ledger.instances(new)[-1].path.write_bytes(b"rot")
    bench.build(new)
    with capture_logs() as logs:
        for _ in range(3600):
            bench.notes.run()
            bench.now += 1
    failed = [line for line in logs if line["event"] == "rejection note not written"]
    assert [line["job"] for line in failed] == [1] * 8, "after 15, 30, 60, 120 … seconds"
    for path, data in zip(files, kept, strict=True):
        path.write_bytes(data)
    bench.now += 3600
    bench.notes.run()
    bench.notes.run()
    assert [job.rejects for job in bench.ledger.jobs() if job.rejects] == [1]
    assert bench.notes.waits == {}


def test_letting_an_old_job_go_whose_note_cannot_be_written_frees_the_new_one(store_peer, start) -> None:
    peer = store_peer(sop_classes=BOTH)
    bench = start(peer)
    bench.result()
    bench.deliver()
    for path in [*bench.spool.root.glob("inbox/*/*"), *bench.spool.root.glob("outbox/*/*")]:
        path.write_bytes(b"rot")
    new = bench.receive(5)
    bench.build(new)
    bench.notes.run()
    bench.deliver()
    assert bench.state(new) is State.BUILT
    purge(bench.ledger, bench.spool, [State.SUPERSEDED], bench.now, lambda: bench.now)
    bench.notes.run()
    bench.deliver()
    assert bench.state(new) is State.DELIVERED


def test_a_note_made_twice_is_one(store_peer, start) -> None:
    bench = start(store_peer(sop_classes=BOTH))
    job, _ = bench.result()
    bench.deliver()
    (found,) = bench.retractor.find("m-1", 0.0)
    assert bench.retractor.recall(found, "m-1", Reason.SAFETY) is not None
    assert bench.retractor.recall(found, "m-1", Reason.SAFETY) is None
    assert len(bench.ledger.jobs()) == 2
    assert bench.state(job) is State.RECALLED
    (note,) = [each for each in bench.ledger.jobs() if each.rejects]
    kept = dcmread(bench.ledger.outputs(note.id)[0].path)
    assert kept.ConceptNameCodeSequence[0].CodeValue == "113037"
