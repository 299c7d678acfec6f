"""Jobs whose files go while their rows stay.

The ledger says PURGED first and the files go after, so that no new job comes to share a file that is about to
go; what a crash leaves of the files is known and removed by the next purge.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection

from node.ledger import moves
from node.states import State

PURGED_CODE = "PURGED"
"""The code of the note that a SUPERSEDED job's files were purged: it has no move to say so."""


def purgeable(
    db: sqlite3.Connection, states: Collection[State], before: float, only: int | None = None
) -> list[sqlite3.Row]:
    """Jobs in these states since before then that were not purged, oldest first, or ``only`` this one."""
    marks = ", ".join("?" * len(states))
    return db.execute(
        f"SELECT * FROM job WHERE state IN ({marks}) AND updated_at <= ? AND id = coalesce(?, id)"
        " AND NOT EXISTS (SELECT 1 FROM purge WHERE purge.job_id = job.id) ORDER BY id",
        (*states, before, only),
    ).fetchall()


def begin(db: sqlite3.Connection, job_id: int, states: Collection[State], before: float, now: float) -> bool:
    """Move the job to PURGED (a SUPERSEDED one stays so); False where it is no longer one to purge."""
    if not purgeable(db, states, before, only=job_id):
        return False
    state = moves.state_of(db, job_id)
    if state is State.SUPERSEDED:
        words = "its files were purged"
        moves.note(db, job_id, now, from_state=state, to_state=state, code=PURGED_CODE, text=words)
    else:
        moves.move(db, job_id, State.PURGED, now, reason=f"was {state}")
    db.execute("INSERT INTO purge (job_id, at) VALUES (?, ?)", (job_id, now))
    return True


def files(db: sqlite3.Connection, job_id: int) -> list[str]:
    """The job's files, as the ledger stores their paths, without those that a living job still holds."""
    rows = db.execute(
        "SELECT path FROM output WHERE job_id = :job UNION ALL SELECT path FROM instance WHERE job_id = :job"
        " AND NOT EXISTS (SELECT 1 FROM instance AS other JOIN job ON job.id = other.job_id"
        " WHERE other.sop_instance_uid = instance.sop_instance_uid AND other.path = instance.path"
        " AND other.job_id <> :job AND job.state NOT IN ('PURGED', 'SUPERSEDED'))",
        {"job": job_id},
    )
    return [str(row["path"]) for row in rows]


def unfinished(db: sqlite3.Connection) -> list[int]:
    """Jobs that were purged and whose files may still be there."""
    return [row["job_id"] for row in db.execute("SELECT job_id FROM purge WHERE emptied_at IS NULL")]


def finish(db: sqlite3.Connection, job_id: int, now: float) -> None:
    """The job's files are gone."""
    db.execute("UPDATE purge SET emptied_at = ? WHERE job_id = ?", (now, job_id))
