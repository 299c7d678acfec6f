"""Outputs that must not be shown any longer, and the notes that say so (IHE RAD TF-3 4.66, rejection notes).

A note is a job of its own that is BUILT from the start: the deliver lanes bring it where the rejected outputs
went. What was rejected is sent nowhere and asked about nowhere from then on, and the result that takes its
place waits at a destination until the note is there: two live results of one series are never at one place.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence

from node.ledger import deliveries, moves
from node.ledger.deliveries import LIVE, NAMEABLE
from node.ledger.rows import Output, Rejection
from node.states import MOVES, State


def expect(db: sqlite3.Connection, job_id: int) -> None:
    """A job was superseded: where it went somewhere, a note is due once a later generation is built."""
    if went_to(db, job_id) and live(db, job_id, None):
        db.execute("INSERT INTO unannounced (job_id) VALUES (?)", (job_id,))


def superseded(db: sqlite3.Connection) -> list[sqlite3.Row]:
    """SUPERSEDED jobs that went somewhere and were not rejected, once a later generation was built."""
    return db.execute(
        "SELECT job.* FROM job WHERE job.id IN (SELECT job_id FROM unannounced)"
        " AND EXISTS (SELECT 1 FROM job AS later JOIN output AS made ON made.job_id = later.id"
        " WHERE later.series_instance_uid = job.series_instance_uid AND later.generation > job.generation)"
        f" AND {NAMEABLE.format(job='job')} ORDER BY job.id"
    ).fetchall()


def made_by(db: sqlite3.Connection, model: str, since: float) -> list[sqlite3.Row]:
    """Jobs built since then of which the model (its id or digest) made outputs that were not rejected."""
    return db.execute(
        "SELECT job.* FROM job WHERE EXISTS (SELECT 1 FROM synthesis JOIN output"
        " ON output.job_id = synthesis.job_id AND output.phase = synthesis.phase"
        " WHERE synthesis.job_id = job.id AND :model IN (synthesis.model_id, synthesis.model_digest)"
        f" AND {LIVE}) AND (SELECT max(at) FROM event WHERE event.job_id = job.id"
        " AND event.from_state = 'READY' AND event.to_state = 'BUILT') >= :since ORDER BY job.id",
        {"model": model, "since": since},
    ).fetchall()


def live(db: sqlite3.Connection, job_id: int, phases: Collection[str] | None) -> list[sqlite3.Row]:
    """The job's outputs of these phases (all without) that were not rejected, in their order."""
    rows = db.execute(
        f"SELECT output.* FROM output WHERE output.job_id = ? AND {LIVE} ORDER BY output.id",
        (job_id,),
    )
    return [row for row in rows if phases is None or row["phase"] in phases]


def went_to(db: sqlite3.Connection, job_id: int) -> list[str]:
    """Destinations that something of the job was sent to, or may have been."""
    rows = db.execute(
        "SELECT destination FROM delivery WHERE job_id = ? AND started_at IS NOT NULL ORDER BY destination",
        (job_id,),
    )
    return [row["destination"] for row in rows]


def places(db: sqlite3.Connection) -> dict[str, int]:
    """Destinations that results went to which can still be rejected, and of how many jobs."""
    rows = db.execute(
        "SELECT destination, count(*) FROM delivery JOIN job ON job.id = delivery.job_id"
        " WHERE started_at IS NOT NULL AND job.rejects IS NULL"
        f" AND EXISTS (SELECT 1 FROM output WHERE output.job_id = job.id AND {LIVE})"
        f" AND {NAMEABLE.format(job='job')} GROUP BY destination ORDER BY destination"
    )
    return dict(rows)


def reject(
    db: sqlite3.Connection,
    job_id: int,
    rejected: Collection[str],
    note: Output,
    path: str,
    *,
    destinations: Collection[str],
    calling_ae: str,
    reason: str,
    recall: bool,
    now: float,
) -> Rejection | None:
    """Reject the job's outputs of these UIDs by ``note``, whose file the ledger stores as ``path``.

    The note becomes a job for those of ``destinations`` the outputs went to; with none of them there is no
    note. Recalled outputs were all of the job: it is RECALLED. None, and nothing done, where one of the UIDs
    is not a live output of the job any more.
    """
    rows = [row for row in live(db, job_id, None) if row["sop_instance_uid"] in rejected]
    if len(rows) != len(set(rejected)) or not rows:
        return None
    targets = [name for name in went_to(db, job_id) if name in destinations]
    note_id = _open(db, job_id, note, path, targets, calling_ae, reason, now) if targets else None
    db.executemany(
        "INSERT INTO rejected (output_id, note_id, at) VALUES (?, ?, ?)",
        [(row["id"], note_id, now) for row in rows],
    )
    if not live(db, job_id, None):
        db.execute("DELETE FROM unannounced WHERE job_id = ?", (job_id,))
    words = f"{reason}; rejection note: job {note_id}" if targets else reason
    _tell(db, job_id, words, now, recall=recall)
    return Rejection(job_id, note_id, tuple(targets))


def _open(
    db: sqlite3.Connection,
    job_id: int,
    note: Output,
    path: str,
    targets: Sequence[str],
    calling_ae: str,
    reason: str,
    now: float,
) -> int:
    """The note as a BUILT job with one output and its deliveries."""
    study = db.execute("SELECT study_instance_uid FROM job WHERE id = ?", (job_id,)).fetchone()[0]
    words = f"rejects job {job_id}: {reason}"
    cursor = db.execute(
        "INSERT INTO job (series_instance_uid, generation, study_instance_uid, calling_ae, state, reason,"
        " progress, created_at, updated_at, last_received_at, rejects)"
        " VALUES (?, 1, ?, ?, ?, ?, 1, ?, ?, ?, ?)",
        (note.series_instance_uid, study, calling_ae, State.BUILT, words, now, now, now, job_id),
    )
    note_id = int(cursor.lastrowid or 0)
    moves.note(db, note_id, now, from_state=None, to_state=State.BUILT, text=words)
    db.execute(
        "INSERT INTO output (job_id, phase, kind, series_instance_uid, sop_instance_uid, sop_class_uid, path,"
        " sha256) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            note_id,
            note.phase,
            note.kind,
            note.series_instance_uid,
            note.sop_instance_uid,
            note.sop_class_uid,
            path,
            note.sha256,
        ),
    )
    db.executemany(
        "INSERT INTO delivery (job_id, destination, owed_since) VALUES (?, ?, ?)",
        [(note_id, name, now) for name in targets],
    )
    return note_id


def _tell(db: sqlite3.Connection, job_id: int, words: str, now: float, *, recall: bool) -> None:
    """A line in the history of the rejected job, which moves on where it has nothing left."""
    state = moves.state_of(db, job_id)
    if recall and State.RECALLED in MOVES[state] and not live(db, job_id, None):
        moves.move(db, job_id, State.RECALLED, now, reason=words)
        return
    moves.note(db, job_id, now, from_state=state, to_state=state, text=words)
    deliveries.close(db, job_id, now)


def forgo(db: sqlite3.Connection, destinations: Collection[str], now: float) -> None:
    """Take open notes off these destinations; a note that has no other one is done."""
    rows = db.execute(
        "SELECT delivery.job_id, destination FROM delivery JOIN job ON job.id = delivery.job_id"
        " WHERE job.rejects IS NOT NULL AND job.state IN ('BUILT', 'PARKED') ORDER BY delivery.job_id"
    ).fetchall()
    for row in rows:
        if row["destination"] not in destinations:
            continue
        note_id = row["job_id"]
        db.execute("DELETE FROM delivery WHERE job_id = ? AND destination = ?", tuple(row))
        if moves.state_of(db, note_id) is State.PARKED:
            moves.move(db, note_id, State.BUILT, now, reason=f"{row['destination']} gets no notes")
        deliveries.close(db, note_id, now)


def keep_identity(db: sqlite3.Connection, job_id: int, header: bytes) -> None:
    """Keep whose the job is beyond its files, for a note that may have to be written later."""
    db.execute("INSERT OR REPLACE INTO identity (job_id, header) VALUES (?, ?)", (job_id, header))


def identity(db: sqlite3.Connection, job_id: int) -> bytes | None:
    """What was kept of the job's identity when it was purged."""
    row = db.execute("SELECT header FROM identity WHERE job_id = ?", (job_id,)).fetchone()
    return None if row is None else bytes(row["header"])


def forget_identities(db: sqlite3.Connection, before: float) -> int:
    """Forget whose the jobs purged before then were; how many."""
    cursor = db.execute(
        "DELETE FROM identity WHERE job_id IN (SELECT job_id FROM purge WHERE at <= ?)", (before,)
    )
    return cursor.rowcount
