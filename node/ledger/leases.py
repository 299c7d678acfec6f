"""A running job is a lease on READY: taken, renewed, given back, or let run out."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from node.ledger import moves
from node.ledger.errors import StaleLease
from node.ledger.rows import Output, SynthesisRecord
from node.states import State


def lease(db: sqlite3.Connection, owner: str, now: float, lease_s: float) -> int | None:
    """The oldest READY job that is due and free, now ``owner``'s until ``now + lease_s``; attempt + 1."""
    row = db.execute(
        "UPDATE job SET owner = ?, leased_until = ?, attempt = attempt + 1, progress = 0, updated_at = ?"
        " WHERE id = (SELECT id FROM job WHERE state = 'READY' AND not_before <= ?"
        " AND (leased_until IS NULL OR leased_until <= ?) ORDER BY id LIMIT 1) RETURNING id, attempt",
        (owner, now + lease_s, now, now, now),
    ).fetchone()
    if row is None:
        return None
    _note(db, row["id"], now, f"attempt {row['attempt']} by {owner}")
    return int(row["id"])


def renew(
    db: sqlite3.Connection, job_id: int, owner: str, *, now: float, lease_s: float, progress: float
) -> bool:
    """Hold on to the job; False where it is no longer ``owner``'s and the work should stop."""
    cursor = db.execute(
        "UPDATE job SET leased_until = ?, progress = ?, updated_at = ?"
        " WHERE id = ? AND owner = ? AND state = 'READY'",
        (now + lease_s, progress, now, job_id, owner),
    )
    return cursor.rowcount == 1


def release(
    db: sqlite3.Connection,
    job_id: int,
    owner: str,
    *,
    now: float,
    not_before: float,
    reason: str,
    counted: bool = True,
) -> None:
    """Give the job back, to be tried again from ``not_before`` on; raises StaleLease."""
    cursor = db.execute(
        "UPDATE job SET owner = NULL, leased_until = NULL, not_before = ?, reason = ?, updated_at = ?,"
        " attempt = attempt - ? WHERE id = ? AND owner = ? AND state = 'READY'",
        (not_before, reason, now, int(not counted), job_id, owner),
    )
    if cursor.rowcount != 1:
        raise StaleLease(job_id, owner)
    _note(db, job_id, now, reason)


def working_since(db: sqlite3.Connection, now: float) -> float:
    """When the attempt began that has been running for longest; ``now`` where nothing is running."""
    began = db.execute(
        "SELECT min((SELECT max(at) FROM event WHERE event.job_id = job.id AND event.note LIKE 'attempt %'))"
        " FROM job WHERE state = 'READY' AND owner IS NOT NULL"
    ).fetchone()[0]
    return now if began is None else float(began)


def revoke(db: sqlite3.Connection, now: float, reason: str) -> list[int]:
    """Take every running job from its worker, as if it had never been begun; their numbers."""
    rows = db.execute(
        "UPDATE job SET owner = NULL, leased_until = NULL, not_before = ?, updated_at = ?,"
        " attempt = attempt - 1 WHERE state = 'READY' AND owner IS NOT NULL RETURNING id",
        (now, now),
    ).fetchall()
    for row in rows:
        _note(db, row["id"], now, reason)
    return [row["id"] for row in rows]


def record_built(
    db: sqlite3.Connection,
    job_id: int,
    owner: str,
    *,
    outputs: Sequence[tuple[Output, str]],
    syntheses: Sequence[SynthesisRecord],
    destinations: Sequence[str],
    now: float,
) -> None:
    """READY → BUILT with everything that was built and where it goes; raises StaleLease.

    ``outputs`` are paired with their paths as the ledger stores them.
    """
    held = db.execute(
        "SELECT 1 FROM job WHERE id = ? AND owner = ? AND state = 'READY'", (job_id, owner)
    ).fetchone()
    if held is None:
        raise StaleLease(job_id, owner)
    moves.move(db, job_id, State.BUILT, now)
    db.execute("UPDATE job SET progress = 1 WHERE id = ?", (job_id,))
    db.executemany(
        "INSERT INTO output (job_id, phase, kind, series_instance_uid, sop_instance_uid, sop_class_uid, path,"
        " sha256) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [_output_row(job_id, output, path) for output, path in outputs],
    )
    db.executemany(
        "INSERT INTO synthesis (job_id, phase, model_id, model_digest, seed, sampler, steps, provider,"
        " seconds, findings) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [_synthesis_row(job_id, synthesis) for synthesis in syntheses],
    )
    db.executemany(
        "INSERT INTO delivery (job_id, destination, owed_since) VALUES (?, ?, ?)",
        [(job_id, destination, now) for destination in destinations],
    )


def _note(db: sqlite3.Connection, job_id: int, now: float, text: str) -> None:
    moves.note(db, job_id, now, from_state=State.READY, to_state=State.READY, text=text)


def _output_row(job_id: int, output: Output, path: str) -> tuple[object, ...]:
    return (
        job_id,
        output.phase,
        output.kind,
        output.series_instance_uid,
        output.sop_instance_uid,
        output.sop_class_uid,
        path,
        output.sha256,
    )


def _synthesis_row(job_id: int, synthesis: SynthesisRecord) -> tuple[object, ...]:
    return (
        job_id,
        synthesis.phase,
        synthesis.model_id,
        synthesis.model_digest,
        synthesis.seed,
        synthesis.sampler,
        synthesis.steps,
        synthesis.provider,
        json.dumps(dict(synthesis.seconds)),
        json.dumps(synthesis.findings),
    )


def synthesis_of(row: sqlite3.Row) -> SynthesisRecord:
    """A row of ``synthesis`` as the value it was written from."""
    return SynthesisRecord(
        phase=row["phase"],
        model_id=row["model_id"],
        model_digest=row["model_digest"],
        seed=row["seed"],
        sampler=row["sampler"],
        steps=row["steps"],
        provider=row["provider"],
        seconds=json.loads(row["seconds"]),
        findings=tuple((code, text) for code, text in json.loads(row["findings"])),
    )
