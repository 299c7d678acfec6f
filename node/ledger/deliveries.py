"""What of a built job has reached which destination.

A job is DELIVERED when every output is at every destination. A destination that said no for good holds up
no other: the job is PARKED once nothing is left to deliver but what was refused.
"""

from __future__ import annotations

import sqlite3

from node.ledger import moves
from node.ledger.errors import LedgerError
from node.states import State

REFUSED_CODE = "DELIVERY-REFUSED"
"""The code of a job parked because a destination said no for good."""

COMPLETE_CODE = "COMPLETE"
"""The code of the note that a destination has everything of a job."""

PARTIAL_CODE = "PARTIAL"
"""The code of the note that a destination took something of a job of which nothing more is to be sent."""

ACCEPTED = "(delivered.status IN (0, 1, 263, 273, 278) OR delivered.status BETWEEN 45056 AND 49151)"
"""Success, warnings (0x0001, 0x0107, 0x0116, 0xBxxx), duplicate (0x0111): the peer has it (PS3.7 Annex C)."""

UNWANTED = frozenset({State.SUPERSEDED, State.RECALLED, State.PURGED})
"""States of jobs of which nothing more is sent."""

LIVE = "NOT EXISTS (SELECT 1 FROM rejected WHERE rejected.output_id = output.id)"
"""Whether the output was not rejected: what was is sent nowhere and asked about nowhere."""

NAMEABLE = (
    "(NOT EXISTS (SELECT 1 FROM purge WHERE purge.job_id = {job}.id)"
    " OR EXISTS (SELECT 1 FROM identity WHERE identity.job_id = {job}.id))"
)
"""Whether a note on the job can still say whose it is: its files are there, or were kept in short."""

PENDING = (
    "SELECT output.* FROM output JOIN delivery ON delivery.job_id = output.job_id WHERE output.job_id = :job"
    " AND NOT EXISTS (SELECT 1 FROM delivered WHERE delivered.output_id = output.id"
    f" AND delivered.destination = delivery.destination AND {ACCEPTED}) AND {LIVE}"
)
"""The outputs of ``:job``, once for each destination that does not have them."""

HELD_UP = (
    "EXISTS (SELECT 1 FROM job AS old JOIN output ON output.job_id = old.id"
    " JOIN delivery AS went ON went.job_id = old.id"
    " LEFT JOIN rejected ON rejected.output_id = output.id"
    " WHERE old.series_instance_uid = job.series_instance_uid AND old.generation < job.generation"
    " AND old.state = 'SUPERSEDED' AND went.started_at IS NOT NULL"
    f" AND (rejected.output_id IS NULL AND {NAMEABLE.format(job='old')} OR EXISTS (SELECT 1"
    " FROM output AS note JOIN job AS told ON told.id = note.job_id JOIN delivery AS way"
    " ON way.job_id = told.id AND way.destination = :destination WHERE note.job_id = rejected.note_id"
    " AND told.state IN ('BUILT', 'PARKED') AND NOT EXISTS (SELECT 1 FROM delivered"
    f" WHERE delivered.output_id = note.id AND delivered.destination = :destination AND {ACCEPTED}))))"
)
"""Whether an earlier result of the series may still be shown: the rejection note comes first.

Where it was not written yet this holds for every destination: the archive may have another name by now.
"""


def due(db: sqlite3.Connection, destination: str, now: float, latest: float) -> list[sqlite3.Row]:
    """The BUILT jobs, oldest first, that this destination should be tried with now.

    What was put off beyond ``latest`` was so by a clock that has been set back since.
    """
    return db.execute(
        "SELECT job.* FROM job JOIN delivery ON delivery.job_id = job.id"
        " WHERE job.state = 'BUILT' AND delivery.destination = :destination AND delivery.refused = 0"
        " AND (delivery.not_before <= :now OR delivery.not_before > :latest)"
        " AND EXISTS (SELECT 1 FROM output WHERE output.job_id = job.id"
        " AND NOT EXISTS (SELECT 1 FROM delivered WHERE delivered.output_id = output.id"
        f" AND delivered.destination = :destination AND {ACCEPTED}) AND {LIVE})"
        f" AND NOT {HELD_UP} ORDER BY job.id",
        {"destination": destination, "now": now, "latest": latest},
    ).fetchall()


def pending(db: sqlite3.Connection, job_id: int, destination: str) -> list[sqlite3.Row]:
    """The job's outputs this destination does not have yet, in the order they were built."""
    return db.execute(
        f"{PENDING} AND delivery.destination = :destination ORDER BY output.id",
        {"job": job_id, "destination": destination},
    ).fetchall()


def begin(db: sqlite3.Connection, job_id: int, destination: str, now: float) -> bool:
    """Something of the job is about to be sent there; False where it is no longer to be delivered."""
    cursor = db.execute(
        "UPDATE delivery SET started_at = coalesce(started_at, ?) WHERE job_id = ? AND destination = ?"
        " AND EXISTS (SELECT 1 FROM job WHERE job.id = delivery.job_id AND job.state = 'BUILT')",
        (now, job_id, destination),
    )
    return cursor.rowcount == 1


def record(db: sqlite3.Connection, sop_instance_uid: str, destination: str, status: int, now: float) -> bool:
    """Keep what the destination answered for one output; the last one to arrive moves BUILT → DELIVERED.

    False where nothing more of the job should be sent: it was superseded or recalled meanwhile.
    """
    output = db.execute(
        "SELECT id, job_id FROM output WHERE sop_instance_uid = ?", (sop_instance_uid,)
    ).fetchone()
    if output is None:
        raise LedgerError("the delivered object is no output of this node")
    db.execute(
        "INSERT INTO delivered (output_id, destination, status, at) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (output_id, destination) DO UPDATE SET status = excluded.status, at = excluded.at",
        (output["id"], destination, status, now),
    )
    db.execute(
        "UPDATE delivery SET started_at = coalesce(started_at, ?) WHERE job_id = ? AND destination = ?",
        (now, output["job_id"], destination),
    )
    job_id = output["job_id"]
    state = moves.state_of(db, job_id)
    has_everything = not pending(db, job_id, destination)
    if has_everything or state in UNWANTED:
        code, words = (COMPLETE_CODE, "everything") if has_everything else (PARTIAL_CODE, "a part of it")
        text = f"{destination}: has {words}"
        moves.note(db, job_id, now, from_state=state, to_state=state, code=code, text=text)
    close(db, job_id, now)
    return moves.state_of(db, job_id) not in UNWANTED


def postpone(
    db: sqlite3.Connection, job_id: int, destination: str, *, not_before: float, reason: str, now: float
) -> int:
    """Try this destination again from ``not_before`` on; the number of attempts that failed so far."""
    row = db.execute(
        "UPDATE delivery SET attempt = attempt + 1, not_before = ?, reason = ?"
        " WHERE job_id = ? AND destination = ? RETURNING attempt",
        (not_before, reason, job_id, destination),
    ).fetchone()
    if row is None:
        raise LedgerError(f"job {job_id} is not meant for destination {destination!r}")
    state = moves.state_of(db, job_id)
    moves.note(db, job_id, now, from_state=state, to_state=state, text=f"{destination}: {reason}")
    return int(row["attempt"])


def refuse(db: sqlite3.Connection, job_id: int, destination: str, reason: str, now: float) -> None:
    """This destination will not take the job; it is PARKED when no other has anything left to take."""
    cursor = db.execute(
        "UPDATE delivery SET refused = 1, attempt = attempt + 1, reason = ?"
        " WHERE job_id = ? AND destination = ?",
        (reason, job_id, destination),
    )
    if cursor.rowcount != 1:
        raise LedgerError(f"job {job_id} is not meant for destination {destination!r}")
    state = moves.state_of(db, job_id)
    moves.note(
        db, job_id, now, from_state=state, to_state=state, code=REFUSED_CODE, text=f"{destination}: {reason}"
    )
    close(db, job_id, now)


def answers(db: sqlite3.Connection, job_id: int) -> list[sqlite3.Row]:
    """One row an output and destination of the job, with what the destination last said about it."""
    return db.execute(
        "SELECT delivery.destination, output.phase, output.kind, output.series_instance_uid,"
        " output.sop_instance_uid, delivered.status, delivered.at FROM delivery"
        " JOIN output ON output.job_id = delivery.job_id LEFT JOIN delivered"
        " ON delivered.output_id = output.id AND delivered.destination = delivery.destination"
        " WHERE delivery.job_id = ? ORDER BY delivery.destination, output.id",
        (job_id,),
    ).fetchall()


def standing(db: sqlite3.Connection, job_id: int) -> list[sqlite3.Row]:
    """One row a destination of the job: its attempts, its delivered and its total outputs."""
    return db.execute(
        "SELECT delivery.*, (SELECT count(*) FROM output WHERE output.job_id = delivery.job_id) AS outputs,"
        " (SELECT count(*) FROM output JOIN delivered ON delivered.output_id = output.id"
        " WHERE output.job_id = delivery.job_id AND delivered.destination = delivery.destination"
        f" AND {ACCEPTED}) AS delivered,"
        " (SELECT count(*) FROM output JOIN committed ON committed.output_id = output.id"
        " WHERE output.job_id = delivery.job_id AND committed.destination = delivery.destination)"
        " AS committed FROM delivery WHERE job_id = ? ORDER BY destination",
        (job_id,),
    ).fetchall()


def close(db: sqlite3.Connection, job_id: int, now: float) -> None:
    """Move a BUILT job on that no destination has anything left to take of."""
    if moves.state_of(db, job_id) is not State.BUILT:
        return
    if db.execute(f"{PENDING} AND delivery.refused = 0 LIMIT 1", {"job": job_id}).fetchone() is not None:
        return
    refusal = db.execute(
        "SELECT destination, reason FROM delivery WHERE job_id = ? AND refused = 1 ORDER BY destination",
        (job_id,),
    ).fetchone()
    if refusal is None:
        moves.move(db, job_id, State.DELIVERED, now)
    else:
        reason = f"{refusal['destination']}: {refusal['reason']}"
        moves.move(db, job_id, State.PARKED, now, code=REFUSED_CODE, reason=reason)
