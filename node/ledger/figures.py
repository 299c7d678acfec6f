"""How much there is of everything: counts for monitoring, none of them about a patient."""

from __future__ import annotations

import sqlite3

from node.ledger.rows import Figures
from node.states import State

WAITING = (State.RECEIVING, State.SETTLED, State.READY, State.BUILT, State.PARKED)
"""States whose oldest job is of interest: somebody or something has to act."""
EMPTIED = (State.SUPERSEDED, State.PURGED)
"""States whose instances are not counted: they are gone, or the next generation has them."""


def figures_of(db: sqlite3.Connection) -> Figures:
    """Everything at one moment."""
    return Figures(
        jobs=_jobs(db),
        oldest=_oldest(db),
        instances=_instances(db),
        answers=_answers(db),
        refused=_refused(db),
    )


def _jobs(db: sqlite3.Connection) -> dict[State, int]:
    found = dict(db.execute("SELECT state, count(*) FROM job GROUP BY state").fetchall())
    return {state: found.get(state, 0) for state in State}


def _oldest(db: sqlite3.Connection) -> dict[State, float]:
    marks = ", ".join("?" * len(WAITING))
    rows = db.execute(
        "SELECT state, min((SELECT max(at) FROM event WHERE event.job_id = job.id"
        f" AND event.from_state IS NOT event.to_state)) FROM job WHERE state IN ({marks}) GROUP BY state",
        WAITING,
    )
    return {State(state): at for state, at in rows if at is not None}


def _instances(db: sqlite3.Connection) -> int:
    marks = ", ".join("?" * len(EMPTIED))
    row = db.execute(f"SELECT coalesce(sum(instances), 0) FROM job WHERE state NOT IN ({marks})", EMPTIED)
    return int(row.fetchone()[0])


def _answers(db: sqlite3.Connection) -> dict[tuple[str, int], int]:
    rows = db.execute("SELECT destination, status, count(*) FROM delivered GROUP BY destination, status")
    return {(destination, status): count for destination, status, count in rows}


def _refused(db: sqlite3.Connection) -> dict[str, int]:
    rows = db.execute(
        "SELECT delivery.destination, count(*) FROM delivery JOIN job ON job.id = delivery.job_id"
        " WHERE job.state IN ('BUILT', 'PARKED') AND delivery.refused = 1 GROUP BY delivery.destination"
    )
    return dict(rows.fetchall())
