"""Who has taken responsibility for which instance (storage commitment, PS3.4 J).

As SCU: a job is COMMITTED when every destination that is asked to commit (``required``, from the settings)
has committed every output. What a destination lacks is sent again: its deliveries no longer count as answered
with success, and the job is BUILT again. As SCP: what senders ask of us waits here until it is reported.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Sequence

from node.ledger import deliveries, moves
from node.ledger.errors import LedgerError
from node.ledger.rows import CommitmentAnswer, Question, Reference, Request
from node.states import State

UNCOMMITTED = (
    "SELECT output.* FROM output WHERE output.job_id = :job AND NOT EXISTS (SELECT 1 FROM committed"
    " WHERE committed.output_id = output.id AND committed.destination = :destination)"
    f" AND {deliveries.LIVE}"
)
"""The outputs of ``:job`` that ``:destination`` has not committed, but for rejected ones."""

OPEN = (
    "FROM job JOIN delivery ON delivery.job_id = job.id WHERE job.state = 'DELIVERED'"
    " AND delivery.destination = :destination AND job.rejects IS NULL"
    " AND EXISTS (SELECT 1 FROM output WHERE output.job_id = job.id"
    " AND NOT EXISTS (SELECT 1 FROM committed WHERE committed.output_id = output.id"
    " AND committed.destination = :destination)"
    f" AND {deliveries.LIVE})"
)
"""Jobs that ``:destination`` has in full and has not committed.

Rejection notes are not asked about: archives hide them together with what they reject.
"""


def due(
    db: sqlite3.Connection, destination: str, delivered_before: float, now: float, latest: float
) -> list[sqlite3.Row]:
    """The jobs DELIVERED before then, oldest first, that this destination should be asked about now.

    What was delivered after ``now`` or put off beyond ``latest`` was so by a clock that was set back since.
    """
    return db.execute(
        f"SELECT job.* {OPEN} AND (job.updated_at <= :before OR job.updated_at > :now)"
        " AND (delivery.ask_not_before <= :now OR delivery.ask_not_before > :latest) ORDER BY job.id",
        {"destination": destination, "before": delivered_before, "now": now, "latest": latest},
    ).fetchall()


def waiting(db: sqlite3.Connection, destination: str) -> tuple[int, float | None]:
    """How many jobs wait for this destination to commit them, and since when the oldest is DELIVERED."""
    row = db.execute(
        f"SELECT count(*) AS jobs, min(job.updated_at) AS since {OPEN}", {"destination": destination}
    ).fetchone()
    return row["jobs"], row["since"]


def uncommitted(db: sqlite3.Connection, job_id: int, destination: str) -> list[sqlite3.Row]:
    """The job's outputs the destination has not committed, in the order they were built."""
    return db.execute(
        f"{UNCOMMITTED} ORDER BY output.id", {"job": job_id, "destination": destination}
    ).fetchall()


def ask(
    db: sqlite3.Connection,
    transaction_uid: str,
    job_id: int,
    destination: str,
    *,
    not_before: float,
    now: float,
) -> None:
    """Keep a question before it is asked: its report may come before its answer."""
    db.execute(
        "INSERT INTO question (transaction_uid, job_id, destination, asked_at) VALUES (?, ?, ?, ?)",
        (transaction_uid, job_id, destination, now),
    )
    _wait(db, job_id, destination, not_before, None)


def put_off(
    db: sqlite3.Connection, job_id: int, destination: str, *, not_before: float, reason: str, now: float
) -> None:
    """Ask this destination again from ``not_before`` on; a reason that is new is a line of the history."""
    if _wait(db, job_id, destination, not_before, reason) != reason:
        state = moves.state_of(db, job_id)
        moves.note(db, job_id, now, from_state=state, to_state=state, text=f"{destination}: {reason}")


def _wait(
    db: sqlite3.Connection, job_id: int, destination: str, not_before: float, reason: str | None
) -> str | None:
    """One question more, and none before then; the reason of the question before."""
    row = db.execute(
        "SELECT reason FROM delivery WHERE job_id = ? AND destination = ?", (job_id, destination)
    ).fetchone()
    if row is None:
        raise LedgerError(f"job {job_id} is not meant for destination {destination!r}")
    db.execute(
        "UPDATE delivery SET asked = asked + 1, ask_not_before = ?, reason = coalesce(?, reason)"
        " WHERE job_id = ? AND destination = ?",
        (not_before, reason, job_id, destination),
    )
    return None if row["reason"] is None else str(row["reason"])


def question(db: sqlite3.Connection, transaction_uid: str) -> Question | None:
    """What was asked under this transaction UID; None for one that is not ours."""
    row = db.execute(
        "SELECT *, asked_at >= (SELECT max(asked_at) FROM question AS other"
        " WHERE other.job_id = question.job_id AND other.destination = question.destination) AS is_last"
        " FROM question WHERE transaction_uid = ?",
        (transaction_uid,),
    ).fetchone()
    if row is None:
        return None
    return Question(row["job_id"], row["destination"], row["answered_at"] is None and bool(row["is_last"]))


def report(
    db: sqlite3.Connection,
    transaction_uid: str,
    answer: CommitmentAnswer,
    *,
    required: Collection[str],
    now: float,
) -> Question | None:
    """Keep what a report says; None, and nothing kept, for a transaction UID that is not ours.

    What it says is held counts whenever it comes; what it says is lacking counts once, and not where a later
    question was asked: what was lacking then was sent again since.
    """
    asked = question(db, transaction_uid)
    if asked is None:
        return None
    db.execute(
        "UPDATE question SET answered_at = ? WHERE transaction_uid = ? AND answered_at IS NULL",
        (now, transaction_uid),
    )
    heard = answer if asked.is_open else CommitmentAnswer(answer.held)
    record(db, asked.job_id, asked.destination, heard, required=required, now=now)
    return asked


def record(
    db: sqlite3.Connection,
    job_id: int,
    destination: str,
    answer: CommitmentAnswer,
    *,
    required: Collection[str],
    now: float,
) -> None:
    """Keep what the destination says about the job's outputs; others it may name are not ours to keep."""
    rows = uncommitted(db, job_id, destination)
    held = [row for row in rows if Reference(row["sop_class_uid"], row["sop_instance_uid"]) in answer.held]
    db.executemany(
        "INSERT INTO committed (output_id, destination, at) VALUES (?, ?, ?)",
        [(row["id"], destination, now) for row in held],
    )
    done = {row["id"] for row in held}
    lacking = [row for row in rows if row["sop_instance_uid"] in answer.lacking and row["id"] not in done]
    if lacking:
        _send_again(db, job_id, destination, lacking, answer, now)
    close(db, job_id, required, now)


def _send_again(
    db: sqlite3.Connection,
    job_id: int,
    destination: str,
    lacking: Sequence[sqlite3.Row],
    answer: CommitmentAnswer,
    now: float,
) -> None:
    """Just these outputs count as not delivered any more: the deliver lane sends them."""
    state = moves.state_of(db, job_id)
    if state not in {State.DELIVERED, State.BUILT}:
        return
    db.executemany(
        "INSERT INTO delivered (output_id, destination, status, at) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (output_id, destination) DO UPDATE SET status = excluded.status, at = excluded.at",
        [(row["id"], destination, answer.lacking[row["sop_instance_uid"]], now) for row in lacking],
    )
    resent = db.execute(
        "UPDATE delivery SET resent = resent + 1, asked = 0, ask_not_before = 0, attempt = 0, not_before = 0,"
        " owed_since = ? WHERE job_id = ? AND destination = ? RETURNING resent",
        (now, job_id, destination),
    ).fetchone()["resent"]
    words = f"{destination} lacks {len(lacking)} instances it had accepted"
    if state is State.DELIVERED:
        moves.move(db, job_id, State.BUILT, now, reason=words)
    else:
        moves.note(db, job_id, now, from_state=state, to_state=state, text=words)
    if answer.refusal is not None or resent > answer.most_resends:
        reason = answer.refusal or f"it lacks what it accepted, after {resent - 1} times sending it again"
        deliveries.refuse(db, job_id, destination, f"storage commitment: {reason}", now)


def close(db: sqlite3.Connection, job_id: int, required: Collection[str], now: float) -> None:
    """DELIVERED → COMMITTED where every destination of ``required`` that the job went to has committed it."""
    if moves.state_of(db, job_id) is not State.DELIVERED:
        return
    went_to = {
        row["destination"]
        for row in db.execute("SELECT destination FROM delivery WHERE job_id = ?", (job_id,))
    }
    asked = sorted(went_to & set(required))
    if asked and not any(uncommitted(db, job_id, destination) for destination in asked):
        moves.move(db, job_id, State.COMMITTED, now, reason=f"committed by {', '.join(asked)}")


# asked of us


def record_request(
    db: sqlite3.Connection,
    calling_ae: str,
    transaction_uid: str,
    references: Sequence[Reference],
    *,
    most_open: int,
    most_bytes: int,
    now: float,
) -> bool:
    """Keep what a sender asks; the same transaction again is answered again. False where too much is open."""
    refs = json.dumps(references)
    waiting = db.execute(
        "SELECT count(*) AS requests, coalesce(sum(length(refs)), 0) AS bytes FROM request"
        " WHERE calling_ae = ? AND transaction_uid <> ? AND closed_at IS NULL",
        (calling_ae, transaction_uid),
    ).fetchone()
    if waiting["requests"] >= most_open or waiting["bytes"] + len(refs) > most_bytes:
        return False
    db.execute(
        "INSERT INTO request (calling_ae, transaction_uid, refs, asked_at) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (calling_ae, transaction_uid) DO UPDATE SET refs = excluded.refs,"
        " asked_at = excluded.asked_at, attempt = 0, not_before = 0, closed_at = NULL, reason = NULL",
        (calling_ae, transaction_uid, refs, now),
    )
    return True


def request_due(db: sqlite3.Connection, calling_ae: str, now: float, latest: float) -> Request | None:
    """The oldest thing this sender asked and should hear about now.

    What was put off beyond ``latest`` was so by a clock that has been set back since.
    """
    row = db.execute(
        "SELECT * FROM request WHERE calling_ae = ? AND closed_at IS NULL"
        " AND (not_before <= ? OR not_before > ?) ORDER BY id LIMIT 1",
        (calling_ae, now, latest),
    ).fetchone()
    return row and Request(
        id=row["id"],
        calling_ae=row["calling_ae"],
        transaction_uid=row["transaction_uid"],
        references=tuple(Reference(*pair) for pair in json.loads(row["refs"])),
        attempt=row["attempt"],
    )


def close_request(db: sqlite3.Connection, request_id: int, reason: str | None, now: float) -> None:
    """The sender has its report, or with a ``reason`` will not get one; what it named is forgotten."""
    db.execute(
        "UPDATE request SET closed_at = ?, reason = ?, refs = '[]' WHERE id = ?", (now, reason, request_id)
    )


def put_off_request(db: sqlite3.Connection, request_id: int, *, not_before: float, reason: str) -> None:
    """Report again from ``not_before`` on."""
    db.execute(
        "UPDATE request SET attempt = attempt + 1, not_before = ?, reason = ? WHERE id = ?",
        (not_before, reason, request_id),
    )


def kept(db: sqlite3.Connection, sop_instance_uid: str) -> sqlite3.Row | None:
    """The received instance of this UID that a living job holds and the node has not purged."""
    row: sqlite3.Row | None = db.execute(
        "SELECT instance.* FROM instance JOIN job ON job.id = instance.job_id"
        " WHERE instance.sop_instance_uid = ? AND job.state NOT IN ('SUPERSEDED', 'PURGED') LIMIT 1",
        (sop_instance_uid,),
    ).fetchone()
    return row
