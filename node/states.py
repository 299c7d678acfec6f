"""The states of a job, and the only moves between them.

A job is one generation of one series. A running job is a lease on READY, not a state of its own, so a
killed worker costs one lease time-out and nothing else.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a job stands."""

    RECEIVING = "RECEIVING"
    SETTLED = "SETTLED"
    READY = "READY"
    BUILT = "BUILT"
    DELIVERED = "DELIVERED"
    COMMITTED = "COMMITTED"
    RECALLED = "RECALLED"
    PURGED = "PURGED"
    REJECTED = "REJECTED"
    PARKED = "PARKED"
    SUPERSEDED = "SUPERSEDED"


MOVES: dict[State, frozenset[State]] = {
    State.RECEIVING: frozenset({State.SETTLED, State.REJECTED, State.PARKED}),
    State.SETTLED: frozenset({State.READY, State.REJECTED, State.PARKED, State.SUPERSEDED}),
    State.READY: frozenset({State.BUILT, State.REJECTED, State.PARKED, State.SUPERSEDED}),
    State.BUILT: frozenset({State.DELIVERED, State.PARKED, State.RECALLED, State.SUPERSEDED}),
    State.DELIVERED: frozenset(
        {State.COMMITTED, State.BUILT, State.RECALLED, State.PURGED, State.SUPERSEDED}
    ),
    State.COMMITTED: frozenset({State.RECALLED, State.PURGED, State.SUPERSEDED}),
    State.RECALLED: frozenset({State.PURGED, State.SUPERSEDED}),
    State.PURGED: frozenset({State.SUPERSEDED}),
    State.REJECTED: frozenset({State.READY, State.PURGED, State.SUPERSEDED}),
    State.PARKED: frozenset(
        {State.SETTLED, State.READY, State.BUILT, State.RECALLED, State.PURGED, State.SUPERSEDED}
    ),
    State.SUPERSEDED: frozenset(),
}
"""From a state to the states it may move to; every move is a row in the ledger's ``event`` table.

DELIVERED goes back to BUILT where a destination says that it lacks instances after all.
"""

PURGEABLE: tuple[State, ...] = (
    State.COMMITTED,
    State.DELIVERED,
    State.REJECTED,
    State.PARKED,
    State.RECALLED,
    State.SUPERSEDED,
)
"""States whose files an administrator may let go; without being named only COMMITTED."""

FINAL: frozenset[State] = frozenset({State.PURGED, State.RECALLED, State.REJECTED, State.SUPERSEDED})
"""States nothing leaves by itself."""
