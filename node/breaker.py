"""The circuit breaker of a destination: after some failures in a row only a probe goes out.

::

    closed ──retry.break_after transient failures in a row──> open
    closed <──────the probe (a C-ECHO) was answered────────── open, probed every retry.probe_s

An archive that is down for a week-end so costs no job an attempt, and nobody waits for its time-outs. The
state is in the ledger: a restart keeps it, and commands and metrics read it there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import structlog

from node.lane import Means
from node.ledger import BreakerRecord

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Breaker:
    """One destination's breaker, as its last lane left it. Its deliver lane moves it, others look."""

    means: Means
    destination: str
    record: BreakerRecord = field(init=False)
    probe_at: float = 0.0
    """When the next probe may go out, by ``means.elapsed``."""
    silent: int = 0
    """Probes since it opened that nobody answered."""

    def __post_init__(self) -> None:
        self.record = self.means.ledger.breaker(self.destination)

    @property
    def is_open(self) -> bool:
        """Whether the destination is left alone."""
        return self.record.opened_at is not None

    def is_probe_due(self) -> bool:
        """Whether it is time to ask again whether somebody is there."""
        return self.means.elapsed() >= self.probe_at

    def failed(self, reason: str) -> None:
        """One more transient failure in a row; the last one that is borne opens the breaker."""
        failures = self.record.failures + 1
        opened_at = self.record.opened_at
        if opened_at is None and failures >= self.means.retry.break_after:
            opened_at = self.means.clock()
            self.silent = 0
            self.wait()
            log.warning("destination left alone", destination=self.destination, reason=reason)
        self.keep(failures, opened_at, reason)

    def unanswered(self, reason: str) -> None:
        """The probe was not answered."""
        self.silent += 1
        self.wait()
        self.keep(self.record.failures, self.record.opened_at, reason)

    def answered(self) -> bool:
        """The destination answered: closed. Whether it had been away, so that much waits only for this.

        One that answers the first probe was there all the time; its jobs wait as long as they were told to.
        """
        was_away = self.is_open and self.silent > 0
        if self.is_open:
            log.info("destination answers again", destination=self.destination)
        if self.record.failures or self.is_open:
            self.keep(0, None, None)
        self.silent = 0
        return was_away

    def wait(self) -> None:
        """No probe for ``retry.probe_s``, give or take the jitter."""
        spread = self.means.retry.jitter * self.means.rng.uniform(-1.0, 1.0)
        self.probe_at = self.means.elapsed() + self.means.retry.probe_s * (1.0 + spread)

    def keep(self, failures: int, opened_at: float | None, reason: str | None) -> None:
        """Put a new state into the ledger."""
        self.record = BreakerRecord(self.destination, failures, opened_at, reason, self.means.clock())
        self.means.ledger.record_breaker(self.record)
