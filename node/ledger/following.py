"""Who follows the events, and how far each has come: a mark in the ledger, so a restart misses nothing."""

from __future__ import annotations

import sqlite3


def begin_following(db: sqlite3.Connection, follower: str, like: str | None) -> None:
    """Start ``follower`` where ``like`` is, else at what is newest now; one that has a mark keeps it."""
    db.execute(
        "INSERT OR IGNORE INTO follower (name, event_id) SELECT ?, coalesce("
        "(SELECT event_id FROM follower WHERE name = ?), (SELECT max(id) FROM event), 0)",
        (follower, like),
    )


def events_after(db: sqlite3.Connection, follower: str, most: int) -> list[sqlite3.Row]:
    """The next events for ``follower``, oldest first, with the time the job came to where it was before."""
    return db.execute(
        "SELECT event.*, (SELECT max(earlier.at) FROM event AS earlier WHERE earlier.job_id = event.job_id"
        " AND earlier.id < event.id AND earlier.to_state = event.from_state"
        " AND earlier.from_state IS NOT earlier.to_state) AS since FROM event"
        " WHERE id > (SELECT event_id FROM follower WHERE name = ?) ORDER BY id LIMIT ?",
        (follower, most),
    ).fetchall()


def advance_follower(db: sqlite3.Connection, follower: str, event_id: int) -> None:
    """``follower`` has heard everything up to this event."""
    db.execute("UPDATE follower SET event_id = ? WHERE name = ?", (event_id, follower))
