"""One log line for every move of a job, and what is counted of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram

from node.alarm import Alert, AlertKind
from node.errors import REJECTION_CODES
from node.flow import PARK_CODES
from node.ledger import Followed, Ledger
from node.states import State

log = structlog.get_logger(__name__)

STATE_SECONDS: Final = (0.1, 1, 5, 15, 60, 300, 900, 3600, 14_400, 86_400)
STAGE_SECONDS: Final = (0.1, 0.5, 1, 5, 15, 30, 60, 120, 300, 600, 1800)
"""Upper ends of the histograms' classes, in seconds."""

LEASED: Final = re.compile(r"attempt (\d+) by ")
"""The ledger's note of a lease: a worker has begun."""

RETRIED: Final[Mapping[State, str]] = {State.BUILT: "deliver", State.DELIVERED: "commit"}
"""What is tried again after a note that is no move, by the job's state."""


class Chronicle:
    """Writes the log line of each move and counts it in ``registry``, from zero at each start of the node."""

    def __init__(self, ledger: Ledger, registry: CollectorRegistry, destinations: Iterable[str] = ()) -> None:
        self._ledger = ledger
        self._destinations = tuple(destinations)
        self._moves = Counter(
            "s2node_moves", "Moves of jobs between states.", ["from_state", "to_state"], registry=registry
        )
        self._rejected = _by_code("s2node_rejected", "Series rejected.", REJECTION_CODES, registry)
        self._parked = _by_code("s2node_parked", "Jobs parked: a person is needed.", PARK_CODES, registry)
        self._state_seconds = Histogram(
            "s2node_state_seconds",
            "Seconds a job was in a state before it left it.",
            ["state"],
            buckets=STATE_SECONDS,
            registry=registry,
        )
        self._stage_seconds = Histogram(
            "s2node_stage_seconds",
            "Seconds of the stages of a synthesis.",
            ["phase", "stage"],
            buckets=STAGE_SECONDS,
            registry=registry,
        )
        self._retries = Counter(
            "s2node_retries", "Steps that had to be tried again.", ["step"], registry=registry
        )
        self._put_off = Counter(
            "s2node_deliveries_put_off",
            "Deliveries that failed for the moment.",
            ["destination"],
            registry=registry,
        )
        self._alerts = Counter("s2node_alerts", "What peers tried and may not.", ["kind"], registry=registry)
        self._begin_at_zero()

    def hear(self, followed: Followed) -> None:
        """Take an event of the ledger."""
        if followed.event.from_state is followed.event.to_state:
            self._count_note(followed)
        else:
            self._tell(followed)
            self._count_move(followed)

    def alarm(self, alert: Alert) -> None:
        """Count an alert; the log has it from where it was noticed."""
        self._alerts.labels(alert.kind).inc()

    def _tell(self, followed: Followed) -> None:
        event = followed.event
        write = log.warning if event.to_state is State.PARKED else log.info
        write(
            "job moved",
            job=event.job_id,
            came_from=None if event.from_state is None else event.from_state.value,
            to=event.to_state.value,
            code=event.code,
        )

    def _count_move(self, followed: Followed) -> None:
        event = followed.event
        self._moves.labels(event.from_state or "", event.to_state).inc()
        if event.to_state is State.REJECTED:
            self._rejected.labels(event.code or "").inc()
        if event.to_state is State.PARKED:
            self._parked.labels(event.code or "").inc()
        if event.from_state is not None and followed.since is not None:
            self._state_seconds.labels(event.from_state).observe(max(0.0, event.at - followed.since))
        if event.to_state is State.BUILT and event.from_state is State.READY:
            self._observe_stages(event.job_id)

    def _observe_stages(self, job_id: int) -> None:
        for synthesis in self._ledger.syntheses(job_id):
            for stage, seconds in synthesis.seconds.items():
                self._stage_seconds.labels(synthesis.phase, stage).observe(seconds)

    def _count_note(self, followed: Followed) -> None:
        state, text = followed.event.to_state, followed.event.note or ""
        leased = LEASED.match(text)
        if leased is not None and int(leased[1]) > 1:
            self._retries.labels("work").inc()
        if state not in RETRIED or followed.event.code is not None:
            return
        destination = text.partition(": ")[0]
        if destination in self._destinations:
            self._retries.labels(RETRIED[state]).inc()
        if state is State.BUILT and destination in self._destinations:
            self._put_off.labels(destination).inc()

    def _begin_at_zero(self) -> None:
        """Have a series for everything from the start, so that the first of its kind is seen as a rise."""
        for step in ("work", *RETRIED.values()):
            self._retries.labels(step)
        for destination in self._destinations:
            self._put_off.labels(destination)
        for kind in AlertKind:
            self._alerts.labels(kind)


def _by_code(name: str, text: str, codes: Iterable[str], registry: CollectorRegistry) -> Counter:
    counter = Counter(name, text, ["code"], registry=registry)
    for code in codes:
        counter.labels(code)
    return counter
