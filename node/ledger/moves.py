"""Moves between states, and the rule that every one of them is a row in ``event``."""

from __future__ import annotations

import sqlite3

from node.ledger.errors import JobUnknown, MoveRefused
from node.states import MOVES, State

EXPORTED_CODE = "EXPORTED"
"""The code of the note that a person took a job's files out of the node."""


def state_of(db: sqlite3.Connection, job_id: int) -> State:
    """The job's state; raises JobUnknown."""
    row = db.execute("SELECT state FROM job WHERE id = ?", (job_id,)).fetchone()
    if row is None:
        raise JobUnknown(job_id)
    return State(row["state"])


def move(
    db: sqlite3.Connection,
    job_id: int,
    to: State,
    now: float,
    *,
    code: str | None = None,
    reason: str | None = None,
) -> None:
    """Move the job and end its lease; raises JobUnknown, or MoveRefused where MOVES has no such move."""
    state = state_of(db, job_id)
    if to not in MOVES[state]:
        raise MoveRefused(job_id, state, to)
    db.execute(
        "UPDATE job SET state = ?, code = ?, reason = ?, updated_at = ?, owner = NULL, leased_until = NULL"
        " WHERE id = ?",
        (to, code, reason, now, job_id),
    )
    note(db, job_id, now, from_state=state, to_state=to, code=code, text=reason)


def settle(db: sqlite3.Connection, job_id: int, instances: int, now: float, reason: str | None) -> bool:
    """RECEIVING → SETTLED if the job still holds the ``instances`` that were judged; False if not."""
    if not _still_holds(db, job_id, instances):
        return False
    move(db, job_id, State.SETTLED, now, reason=reason)
    return True


def wait_on(
    db: sqlite3.Connection, job_id: int, instances: int, *, not_before: float, reason: str, now: float
) -> None:
    """Leave a RECEIVING job that still holds the judged ``instances`` alone until ``not_before``."""
    if not _still_holds(db, job_id, instances):
        return
    db.execute("UPDATE job SET not_before = ?, updated_at = ? WHERE id = ?", (not_before, now, job_id))
    note(db, job_id, now, from_state=State.RECEIVING, to_state=State.RECEIVING, text=reason)


def follow_clock(db: sqlite3.Connection, now: float, moved_s: float) -> None:
    """No series was heard in the future, none became quieter by a clock set forward, and waits end.

    No destination is owed anything for longer than it was, so that no fallback steps in. Leases are left to
    their owners, who renew them by the new clock; workers take nothing until they have.
    """
    db.execute(
        "UPDATE job SET last_received_at = min(?, last_received_at + ?) WHERE state = ?",
        (now, max(0.0, moved_s), State.RECEIVING),
    )
    db.execute(
        "UPDATE job SET not_before = ? WHERE state IN (?, ?) AND not_before > ?",
        (now, State.RECEIVING, State.READY, now),
    )
    db.execute(
        "UPDATE delivery SET owed_since = min(?, owed_since + ?) WHERE job_id IN"
        " (SELECT id FROM job WHERE state = ?)",
        (now, moved_s, State.BUILT),
    )


def _still_holds(db: sqlite3.Connection, job_id: int, instances: int) -> bool:
    row = db.execute("SELECT state, instances FROM job WHERE id = ?", (job_id,)).fetchone()
    if row is None:
        raise JobUnknown(job_id)
    return bool(row["state"] == State.RECEIVING and row["instances"] == instances)


RETRY_AFTER: dict[State, State] = {
    State.RECEIVING: State.SETTLED,
    State.SETTLED: State.SETTLED,
    State.READY: State.READY,
    State.BUILT: State.BUILT,
}
"""Where a parked job goes again, by where it was parked."""


def retry(db: sqlite3.Connection, job_id: int, now: float) -> State:
    """Send a PARKED or REJECTED job on its way again with its attempts forgotten; says where it went.

    A parked job goes back to where it stood (one parked before intake to SETTLED, for intake to look
    again); a rejected one to READY, past intake, because a person says so. Raises MoveRefused otherwise.
    """
    state = state_of(db, job_id)
    if state is State.REJECTED:
        target = State.READY
    elif state is State.PARKED:
        target = RETRY_AFTER[_state_before_parking(db, job_id)]
    else:
        raise MoveRefused(job_id, state, State.READY)
    move(db, job_id, target, now, reason="tried again by hand")
    db.execute("UPDATE job SET attempt = 0, not_before = 0, progress = 0 WHERE id = ?", (job_id,))
    db.execute(
        "UPDATE delivery SET attempt = 0, not_before = 0, refused = 0, reason = NULL, asked = 0,"
        " ask_not_before = 0, resent = 0 WHERE job_id = ?",
        (job_id,),
    )
    return target


def _state_before_parking(db: sqlite3.Connection, job_id: int) -> State:
    row = db.execute(
        "SELECT from_state FROM event WHERE job_id = ? AND to_state = ? AND from_state <> to_state"
        " ORDER BY id DESC LIMIT 1",
        (job_id, State.PARKED),
    ).fetchone()
    return State(row["from_state"])


def exported(db: sqlite3.Connection, job_id: int, user: str, now: float, *, with_patient: bool) -> None:
    """A person takes the job's files out of the node; raises JobUnknown."""
    state = state_of(db, job_id)
    text = f"{user}: exported it {'with' if with_patient else 'without'} its patient"
    note(db, job_id, now, from_state=state, to_state=state, code=EXPORTED_CODE, text=text)


def note(
    db: sqlite3.Connection,
    job_id: int,
    now: float,
    *,
    from_state: State | None,
    to_state: State,
    code: str | None = None,
    text: str | None = None,
) -> None:
    """Write one line of the job's history."""
    db.execute(
        "INSERT INTO event (job_id, at, from_state, to_state, code, note) VALUES (?, ?, ?, ?, ?, ?)",
        (job_id, now, from_state, to_state, code, text),
    )
