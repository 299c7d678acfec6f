"""How the destinations themselves stand: their breakers, what waits for them, and their stand-ins."""

from __future__ import annotations

import sqlite3

from node.ledger import moves
from node.ledger.deliveries import ACCEPTED, LIVE
from node.ledger.rows import BreakerRecord
from node.states import State

OWED = (
    "FROM delivery JOIN job ON job.id = delivery.job_id WHERE job.state = 'BUILT' AND delivery.refused = 0"
    " AND EXISTS (SELECT 1 FROM output WHERE output.job_id = job.id"
    " AND NOT EXISTS (SELECT 1 FROM delivered WHERE delivered.output_id = output.id"
    f" AND delivered.destination = delivery.destination AND {ACCEPTED}) AND {LIVE})"
)
"""Jobs with the destinations that have not taken them in full, and may still do so."""


def read(db: sqlite3.Connection, destination: str) -> BreakerRecord:
    """The destination's breaker; a closed one where none was kept."""
    row = db.execute("SELECT * FROM breaker WHERE destination = ?", (destination,)).fetchone()
    return BreakerRecord(destination) if row is None else BreakerRecord(**dict(row))


def keep(db: sqlite3.Connection, record: BreakerRecord) -> None:
    """Write the destination's breaker."""
    db.execute(
        "INSERT OR REPLACE INTO breaker (destination, failures, opened_at, reason, changed_at)"
        " VALUES (?, ?, ?, ?, ?)",
        (record.destination, record.failures, record.opened_at, record.reason, record.changed_at),
    )


def waiting(db: sqlite3.Connection) -> dict[str, tuple[int, float]]:
    """How many jobs each destination has not taken yet, and since when the oldest waits."""
    rows = db.execute(
        "SELECT delivery.destination, count(*) AS jobs, min(delivery.owed_since) AS since"
        f" {OWED} GROUP BY delivery.destination"
    )
    return {row["destination"]: (row["jobs"], row["since"]) for row in rows}


def hasten(db: sqlite3.Connection, destination: str, now: float) -> None:
    """What waits for this destination waits no longer."""
    db.execute(
        "UPDATE delivery SET not_before = :now WHERE destination = :destination AND not_before > :now"
        " AND job_id IN (SELECT id FROM job WHERE state = 'BUILT')",
        {"destination": destination, "now": now},
    )


def overdue(db: sqlite3.Connection, destination: str, fallback: str, owed_before: float) -> list[int]:
    """Jobs this destination is owed since before then, and that do not go to ``fallback`` yet."""
    rows = db.execute(
        f"SELECT job.id {OWED} AND delivery.destination = :destination"
        " AND delivery.owed_since <= :owed_before"
        " AND NOT EXISTS (SELECT 1 FROM delivery AS other WHERE other.job_id = job.id"
        " AND other.destination = :fallback) ORDER BY job.id",
        {"destination": destination, "fallback": fallback, "owed_before": owed_before},
    )
    return [row["id"] for row in rows]


def stand_in(db: sqlite3.Connection, job_id: int, destination: str, fallback: str, now: float) -> bool:
    """Send the BUILT job to ``fallback`` too; False, and nothing done, where it goes there already."""
    state = moves.state_of(db, job_id)
    if state is not State.BUILT:
        return False
    cursor = db.execute(
        "INSERT OR IGNORE INTO delivery (job_id, destination, owed_since, fallback_for) VALUES (?, ?, ?, ?)",
        (job_id, fallback, now, destination),
    )
    if cursor.rowcount == 1:
        text = f"{fallback} stands in for {destination}"
        moves.note(db, job_id, now, from_state=state, to_state=state, text=text)
    return cursor.rowcount == 1
