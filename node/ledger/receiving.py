"""One received instance, one transaction: joined, repeated, in conflict, or late."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

from node.ledger import moves, notes
from node.ledger.rows import ReceivedInstance, Recorded
from node.states import State


def record(db: sqlite3.Connection, received: ReceivedInstance, path: str, now: float) -> Recorded:
    """Give the instance to the living generation of its series, or open the next one.

    A new slice joins a generation that is RECEIVING. Once a generation has left RECEIVING what it holds
    never changes: a new slice then opens the next generation with the old instances and itself, and the old
    generation is SUPERSEDED, whatever was being done with it. A repeat of the same bytes changes nothing,
    unless the node has purged its own: success promises that the bytes are here. What another series holds
    under this SOP Instance UID came first, and this one joins nothing: a UID is of one instance (PS3.5 9).
    ``path`` is as the ledger stores it.
    """
    living = _living_job(db, received)
    if living is not None and living["known_sha256"] is not None:
        hear(db, living["id"], now)
        is_other = living["known_sha256"] != received.sha256
        return Recorded(living["id"], living["generation"], False, conflict=is_other)
    holder = _holder_elsewhere(db, received)
    if holder is not None:
        if living is not None:
            hear(db, living["id"], now)
        return Recorded(holder["id"], holder["generation"], False, conflict=True, in_other_series=True)
    if living is None:
        return _join(db, _open(db, received, 1, now), received, path, now)
    if living["state"] == State.RECEIVING:
        return _join(db, (living["id"], living["generation"]), received, path, now)
    return _open_next(db, living, received, path, now)


def repeat(
    db: sqlite3.Connection, series_instance_uid: str, sop_instance_uid: str, sha256: str
) -> int | None:
    """The living job that already holds exactly these bytes, if one does."""
    row = db.execute(
        "SELECT job.id FROM job JOIN instance ON instance.job_id = job.id"
        " WHERE job.series_instance_uid = ? AND job.state NOT IN ('SUPERSEDED', 'PURGED')"
        " AND instance.sop_instance_uid = ? AND instance.sha256 = ?",
        (series_instance_uid, sop_instance_uid, sha256),
    ).fetchone()
    return None if row is None else int(row["id"])


def _living_job(db: sqlite3.Connection, received: ReceivedInstance) -> sqlite3.Row | None:
    """The living generation of the series, with the digest of its instance of the same UID if it has one.

    What was purged it has no longer: a repeat has to be kept again.
    """
    row: sqlite3.Row | None = db.execute(
        "SELECT id, generation, state, (SELECT sha256 FROM instance WHERE job_id = job.id"
        " AND sop_instance_uid = ? AND job.state <> 'PURGED') AS known_sha256"
        " FROM job WHERE series_instance_uid = ? AND state <> 'SUPERSEDED'",
        (received.sop_instance_uid, received.series_instance_uid),
    ).fetchone()
    return row


def _holder_elsewhere(db: sqlite3.Connection, received: ReceivedInstance) -> sqlite3.Row | None:
    """The oldest job of another series that holds this SOP Instance UID: its files are here, rejected or not.

    A superseded generation holds nothing that the living one of its series does not hold too.
    """
    row: sqlite3.Row | None = db.execute(
        "SELECT job.id, job.generation FROM instance JOIN job ON job.id = instance.job_id"
        " WHERE instance.sop_instance_uid = ? AND job.series_instance_uid <> ?"
        " AND job.state NOT IN ('SUPERSEDED', 'PURGED') ORDER BY instance.job_id LIMIT 1",
        (received.sop_instance_uid, received.series_instance_uid),
    ).fetchone()
    return row


def _open(db: sqlite3.Connection, received: ReceivedInstance, generation: int, now: float) -> tuple[int, int]:
    cursor = db.execute(
        "INSERT INTO job (series_instance_uid, generation, study_instance_uid, calling_ae, state, created_at,"
        " updated_at, last_received_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            received.series_instance_uid,
            generation,
            received.study_instance_uid,
            received.calling_ae,
            State.RECEIVING,
            now,
            now,
            now,
        ),
    )
    job_id = int(cursor.lastrowid or 0)
    moves.note(db, job_id, now, from_state=None, to_state=State.RECEIVING)
    return job_id, generation


def _open_next(
    db: sqlite3.Connection, old: sqlite3.Row, received: ReceivedInstance, path: str, now: float
) -> Recorded:
    moves.move(db, old["id"], State.SUPERSEDED, now, reason="a late slice opened the next generation")
    notes.expect(db, old["id"])
    job = _open(db, received, old["generation"] + 1, now)
    if old["state"] != State.PURGED:  # a purged generation's files are gone
        _copy_instances(db, old["id"], job[0])
    return replace(_join(db, job, received, path, now), superseded_job_id=int(old["id"]))


def _copy_instances(db: sqlite3.Connection, old_job_id: int, job_id: int) -> None:
    cursor = db.execute(
        "INSERT INTO instance (job_id, sop_instance_uid, sop_class_uid, transfer_syntax_uid, path, sha256,"
        " bytes, received_at) SELECT ?, sop_instance_uid, sop_class_uid, transfer_syntax_uid, path, sha256,"
        " bytes, received_at FROM instance WHERE job_id = ?",
        (job_id, old_job_id),
    )
    db.execute("UPDATE job SET instances = ? WHERE id = ?", (cursor.rowcount, job_id))


def _join(
    db: sqlite3.Connection, job: tuple[int, int], received: ReceivedInstance, path: str, now: float
) -> Recorded:
    """Add the instance to ``job`` (id, generation)."""
    job_id, generation = job
    db.execute(
        "INSERT INTO instance (job_id, sop_instance_uid, sop_class_uid, transfer_syntax_uid, path, sha256,"
        " bytes, received_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            job_id,
            received.sop_instance_uid,
            received.sop_class_uid,
            received.transfer_syntax_uid,
            path,
            received.sha256,
            received.bytes,
            now,
        ),
    )
    db.execute(
        "UPDATE job SET instances = instances + 1, last_received_at = max(last_received_at, ?),"
        " not_before = 0, updated_at = ? WHERE id = ?",
        (now, now, job_id),
    )
    return Recorded(job_id, generation, True)


def hear(db: sqlite3.Connection, job_id: int, now: float) -> None:
    """The sender is still at it: the generation waits on, if it is still open."""
    db.execute(
        "UPDATE job SET last_received_at = max(last_received_at, ?) WHERE id = ? AND state = ?",
        (now, job_id, State.RECEIVING),
    )
