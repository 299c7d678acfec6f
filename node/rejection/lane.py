"""The notes lane: a rejection note for every superseded result whose successor was built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from node.flow import Failure, attempt
from node.lane import Means
from node.ledger import Job

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Wait:
    """A job whose note could not be written: how often, and when it is tried again, by ``means.elapsed``."""

    failures: int
    until: float


@dataclass(slots=True)
class NotesLane:
    """Has ``announce`` write the notes. A job that fails waits as ``[retry]`` says and stops no other.

    The waits are in memory: a node that starts tries everything at once.
    """

    means: Means
    announce: Callable[[Job], None]
    waits: dict[int, Wait] = field(default_factory=dict)

    def run(self) -> None:
        """Try every job that is due."""
        found = self.means.ledger.superseded()
        self.waits = {job.id: self.waits[job.id] for job in found if job.id in self.waits}
        for job in found:
            if self.means.stopping.is_set():
                return
            if job.id not in self.waits or self.means.elapsed() >= self.waits[job.id].until:
                self._try(job)
                self.means.beat()

    def _try(self, job: Job) -> None:
        outcome = attempt(lambda: self.announce(job))
        if not isinstance(outcome, Failure):
            return
        failures = 1 + (self.waits[job.id].failures if job.id in self.waits else 0)
        delay_s = self.means.delay_s(failures)
        self.waits[job.id] = Wait(failures, self.means.elapsed() + delay_s)
        log.error(
            "rejection note not written", job=job.id, reason=outcome.reason, again_in_s=round(delay_s, 1)
        )
