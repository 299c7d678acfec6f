"""What lanes ask the ledger for several times a second costs the same, however many years lie behind it.

Counted are the instructions of SQLite's virtual machine: they do not depend on the machine or on what else it
does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from node.ledger import CommitmentAnswer, Ledger, Output, ReceivedInstance, Reference, SynthesisRecord
from node.states import State

CT, NOTE = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.88.59"
SYNTHESIS = SynthesisRecord("arterial", "m-1", "dd", 0, "bridge", 4, "cpu")
LATER = 1e6

QUESTIONS: dict[str, Callable[[Ledger], object]] = {
    "settle: quiet series": lambda ledger: ledger.receiving(LATER, LATER),
    "settle: settled series": lambda ledger: ledger.jobs([State.SETTLED]),
    "worker: a job to take": lambda ledger: ledger.lease("w", -1.0, 60.0),
    "orphans: running jobs": lambda ledger: ledger.jobs([State.READY]),
    "deliver: what is due": lambda ledger: ledger.due("pacs", LATER),
    "deliver: what is overdue": lambda ledger: ledger.fall_back("pacs", "disk", -1.0, LATER),
    "deliver: it is back": lambda ledger: ledger.hasten("pacs", -1.0),
    "ask: what is due": lambda ledger: ledger.commitments_due("pacs", LATER, LATER),
    "figures: commitments": lambda ledger: ledger.commitments_waiting("pacs"),
    "report: what is due": lambda ledger: ledger.request_due("CT", LATER),
    "listener: a commitment asked of us": lambda ledger: ledger.record_request(
        "CT", "2.25.1", [Reference(CT, "1.2")], most_open=100, most_bytes=9999, now=LATER
    ),
    "notes: what is superseded": lambda ledger: ledger.superseded(),
    "receiving: a new slice": lambda ledger: receive(ledger, "9.9", 9, LATER),
    "receiving: a repeat": lambda ledger: receive(ledger, "9.9", 1, LATER),
    "receiving: a UID of another series": lambda ledger: receive(ledger, "9.8", 1, LATER, of="9.9"),
}


def receive(ledger: Ledger, series: str, number: int, now: float, of: str = "") -> int:
    uid = f"{of or series}.{number}"
    received = ReceivedInstance(uid, CT, "1.2", series, "1.99", "CT", Path(f"/{series}/{uid}"), "aa", 1)
    return ledger.record_instance(received, now).job_id


def make(ledger: Ledger, job_id: int, now: float) -> None:
    """RECEIVING → BUILT."""
    ledger.move(job_id, State.SETTLED, now)
    ledger.move(job_id, State.READY, now)
    assert ledger.lease("w", now, 60.0) is not None
    made = Output(job_id, "arterial", "ct", f"2.25.{job_id}", f"2.25.{job_id}.1", CT, Path("/x"), "aa")
    ledger.record_built(job_id, "w", [made], [SYNTHESIS], ["pacs"], now=now)


def deliver(ledger: Ledger, job_id: int, now: float) -> None:
    for output in ledger.pending_outputs(job_id, "pacs"):
        assert ledger.begin_delivery(job_id, "pacs", now)
        ledger.record_delivery(output.sop_instance_uid, "pacs", 0, now)


def commit(ledger: Ledger, job_id: int, now: float) -> None:
    held = frozenset(Reference(CT, each.sop_instance_uid) for each in ledger.outputs(job_id))
    ledger.record_found(job_id, "pacs", CommitmentAnswer(held), {"pacs"}, now)


def a_late_slice(ledger: Ledger, series: str, now: float) -> None:
    """Delivered, superseded, made again, rejected, delivered and committed."""
    old = receive(ledger, series, 1, now)
    make(ledger, old, now)
    deliver(ledger, old, now)
    new = receive(ledger, series, 2, now)
    make(ledger, new, now)
    note = Output(0, "", "rejection_note", f"{series}.9", f"{series}.9.1", NOTE, Path("/n"), "aa")
    made = ledger.reject(
        old, [f"2.25.{old}.1"], note, destinations=["pacs"], calling_ae="S2NODE", reason="", recall=False,
        now=now,
    )  # fmt: skip
    assert made is not None and made.note_id is not None
    for job_id in (made.note_id, new):
        deliver(ledger, job_id, now)
    commit(ledger, new, now)


def years(ledger: Ledger, first: int, last: int) -> None:
    """What ended: committed, superseded with and without a result, rejected, reported."""
    for number in range(first, last):
        a_late_slice(ledger, f"1.{number}", float(number))
        unmade = receive(ledger, f"2.{number}", 1, float(number))
        ledger.move(unmade, State.SETTLED, float(number))
        ledger.move(receive(ledger, f"2.{number}", 2, float(number)), State.REJECTED, float(number), "NOT-CT")
        ledger.record_request("CT", f"2.26.{number}", [], most_open=9, most_bytes=9, now=1.0)
        while request := ledger.request_due("CT", 2.0):
            ledger.close_request(request.id, None, 2.0)


def steps(ledger: Ledger, question: Callable[[Ledger], object]) -> int:
    """Instructions that SQLite takes for an answer."""
    counted = 0

    def step() -> int:
        nonlocal counted
        counted += 1
        return 0

    (db,) = ledger._store._idle
    db.set_progress_handler(step, 1)
    try:
        question(ledger)
    finally:
        db.set_progress_handler(None, 1)
    return counted


@pytest.fixture(scope="module")
def ledgers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ledger, Ledger]]:
    """One of a node that was just installed and one with a past, both with a series that is coming."""
    folder = tmp_path_factory.mktemp("years")
    with Ledger(folder / "young.sqlite3") as young, Ledger(folder / "old.sqlite3") as old:
        years(young, 0, 2)
        years(old, 0, 12)
        for ledger in (young, old):
            receive(ledger, "9.9", 1, 50.0)
        yield young, old


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_asked_all_the_time_takes_as_much_as_on_a_young_ledger(
    ledgers: tuple[Ledger, Ledger], question: str
) -> None:
    young, old = (steps(ledger, QUESTIONS[question]) for ledger in ledgers)
    assert 0 < old <= young


def test_a_node_that_asks_nobody_to_commit_looks_at_nothing_for_that_when_it_starts(
    ledgers: tuple[Ledger, Ledger],
) -> None:
    _, old = ledgers
    assert old.jobs([State.DELIVERED])
    assert steps(old, lambda ledger: ledger.close_committed([], LATER)) == 0
