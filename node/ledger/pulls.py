"""What archives were asked about series that are quiet, and the word that lets such a series go on."""

from __future__ import annotations

import sqlite3

from node.ledger import moves
from node.ledger.rows import Pull
from node.states import State


def pull(db: sqlite3.Connection, job_id: int) -> Pull | None:
    """How far an archive was asked about the job; None where none was."""
    row = db.execute("SELECT archive, attempt, held FROM pull WHERE job_id = ?", (job_id,)).fetchone()
    return None if row is None else Pull(row["archive"], row["attempt"], row["held"])


def record(db: sqlite3.Connection, job_id: int, asked: Pull, reason: str, now: float) -> None:
    """Keep how far the archive was asked, and say why in the job's history; only while it is RECEIVING."""
    state = moves.state_of(db, job_id)
    if state is not State.RECEIVING:
        return
    db.execute(
        "INSERT INTO pull (job_id, archive, attempt, held) VALUES (?, ?, ?, ?) ON CONFLICT (job_id) DO UPDATE"
        " SET archive = excluded.archive, attempt = excluded.attempt, held = excluded.held",
        (job_id, asked.archive, asked.attempt, asked.held),
    )
    moves.note(db, job_id, now, from_state=state, to_state=state, text=reason)
