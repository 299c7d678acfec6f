"""Instances that were set aside: other bytes came under a SOP Instance UID that a job already holds."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from node.ledger import moves
from node.ledger.rows import SetAside

REMOVED_CODE = "QUARANTINE-PURGED"
"""The code of the note that instances which were set aside beside the job's are gone."""


def record(db: sqlite3.Connection, aside: SetAside, path: str, now: float) -> None:
    """Keep one, with a line in the job's history; one that comes again counts once more."""
    known = db.execute(
        "UPDATE quarantined SET at = ?, times = times + 1, removed_at = NULL WHERE path = ?", (now, path)
    )
    if known.rowcount:
        return
    db.execute(
        "INSERT INTO quarantined (job_id, path, sha256, bytes, calling_ae, reason, at, sop_class_uid)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            aside.job_id,
            path,
            aside.sha256,
            aside.bytes,
            aside.calling_ae,
            aside.reason,
            now,
            aside.sop_class_uid,
        ),
    )
    state = moves.state_of(db, aside.job_id)
    words = f"an instance from {aside.calling_ae} is in quarantine: {aside.reason}"
    moves.note(db, aside.job_id, now, from_state=state, to_state=state, text=words)


def listed(db: sqlite3.Connection, before: float) -> list[sqlite3.Row]:
    """What is in quarantine and came before then, oldest first."""
    return db.execute(
        "SELECT * FROM quarantined WHERE removed_at IS NULL AND at <= ? ORDER BY id", (before,)
    ).fetchall()


def remove(db: sqlite3.Connection, job_id: int, numbers: Sequence[int], now: float) -> None:
    """The files of these, all of one job, are gone: a line in its history."""
    db.executemany(
        "UPDATE quarantined SET removed_at = ? WHERE id = ?", [(now, number) for number in numbers]
    )
    state = moves.state_of(db, job_id)
    words = f"instances removed from quarantine: {len(numbers)}"
    moves.note(db, job_id, now, from_state=state, to_state=state, code=REMOVED_CODE, text=words)


def removed(db: sqlite3.Connection, job_id: int, at: float) -> list[str]:
    """SOP classes of what was removed then, as far as they are known; not of what came again since."""
    rows = db.execute(
        "SELECT sop_class_uid FROM quarantined WHERE job_id = ? AND removed_at = ? AND sop_class_uid <> ''",
        (job_id, at),
    )
    return [row["sop_class_uid"] for row in rows]
