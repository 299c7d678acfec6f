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

ACCEPTED = "(delivered.status IN (0, 1, 263, 273, 278) OR delivered.status BETWEEN 45056 AND 49151)"
"""Success, warnings (0x0001, 0x0107, 0x0116, 0xBxxx), duplicate (0x0111): the peer has it (PS3.7 Annex C)."""

PENDING = (
    "SELECT output.* FROM output JOIN delivery ON delivery.job_id = output.job_id WHERE output.job_id = :job"
    " AND NOT EXISTS (SELECT 1 FROM delivered WHERE delivered.output_id = output.id"
    f" AND delivered.destination = delivery.destination AND {ACCEPTED})"
)
"""The outputs of ``:job``, once for each destination that does not have them."""


def due(db: sqlite3.Connection, destination: str, now: float) -> list[sqlite3.Row]:
    """The BUILT jobs, oldest first, that this destination should be tried with now."""
    return db.execute(
        "SELECT job.* FROM job JOIN delivery ON delivery.job_id = job.id"
        " WHERE job.state = 'BUILT' AND delivery.destination = :destination AND delivery.refused = 0"
        " AND delivery.not_before <= :now AND EXISTS (SELECT 1 FROM output WHERE output.job_id = job.id"
        " AND NOT EXISTS (SELECT 1 FROM delivered WHERE delivered.output_id = output.id"
        f" AND delivered.destination = :destination AND {ACCEPTED})) ORDER BY job.id",
        {"destination": destination, "now": now},
    ).fetchall()


def pending(db: sqlite3.Connection, job_id: int, destination: str) -> list[sqlite3.Row]:
    """The job's outputs this destination does not have yet, in the order they were built."""
    return db.execute(
        f"{PENDING} AND delivery.destination = :destination ORDER BY output.id",
        {"job": job_id, "destination": destination},
    ).fetchall()


def record(db: sqlite3.Connection, sop_instance_uid: str, destination: str, status: int, now: float) -> None:
    """Keep what the destination answered for one output; the last one to arrive moves BUILT → DELIVERED."""
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
    _close(db, output["job_id"], now)


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
    _close(db, job_id, now)


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


def _close(db: sqlite3.Connection, job_id: int, now: float) -> None:
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
