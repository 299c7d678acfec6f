"""The deliver lane: what is BUILT goes to one destination, and every answer is kept.

Each destination has a lane of its own, so a slow one holds up no other. An answer is in the ledger before the
next file is sent: after a crash, or after a peer that broke off, only what is missing is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from random import Random
from threading import Event

import structlog

from config.settings import Destination, RetrySettings
from node.destinations import DESTINATIONS
from node.flow import Action, Failure, attempt, retry_delay_s
from node.ledger import Job, Ledger

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class DeliverLane:
    """One destination's lane. ``clock`` gives epoch seconds; ``beat`` is called at every sign of life.

    After a failure the whole lane pauses for at most ``retry.first_s``, so a peer that is down is knocked at
    once in that time and not once for every job that waits.
    """

    ledger: Ledger
    destination: Destination
    retry: RetrySettings
    rng: Random
    clock: Callable[[], float]
    stopping: Event
    beat: Callable[[], None]
    paused_until: float = 0.0

    def run(self) -> None:
        """Deliver every job that is due, oldest first, until one fails or the node stops."""
        self.beat()
        if self.clock() < self.paused_until:
            return
        for job in self.ledger.due(self.destination.name, self.clock()):
            outcome = attempt(lambda job=job: self.deliver(job))  # type: ignore[misc]
            if isinstance(outcome, Failure):
                self.put_off(job, outcome)
                return
            if self.stopping.is_set():
                return

    def deliver(self, job: Job) -> None:
        """Send what this destination does not have yet of ``job``; raises what the destination raises."""
        outputs = self.ledger.pending_outputs(job.id, self.destination.name)
        began = self.clock()
        send = DESTINATIONS[self.destination.kind]
        with closing(send(self.destination, [output.path for output in outputs])) as answers:  # type: ignore[type-var]
            for answer in answers:
                self.ledger.record_delivery(
                    answer.sop_instance_uid, self.destination.name, answer.status, self.clock()
                )
                self.beat()
                if self.stopping.is_set():
                    return
        seconds = round(self.clock() - began, 3)
        self.tell("delivered", job, instances=len(outputs), seconds=seconds)

    def put_off(self, job: Job, failure: Failure) -> None:
        """Try ``job`` again later, or, where that is useless or was tried often enough, call it refused."""
        now = self.clock()
        failures = 1 + self.failures_of(job)
        delay_s = retry_delay_s(failures, self.retry, self.rng)
        self.paused_until = now + min(delay_s, self.retry.first_s)
        if failure.disposition.action is Action.RETRY and failures < self.retry.max_attempts:
            self.ledger.postpone(job.id, self.destination.name, now + delay_s, failure.reason, now)
            self.tell("delivery put off", job, reason=failure.reason, delay_s=round(delay_s, 1))
            return
        reason = failure.reason if failures == 1 else f"{failure.reason} (attempt {failures})"
        self.ledger.refuse(job.id, self.destination.name, reason, now)
        self.tell("delivery refused", job, reason=failure.reason, trace=failure.trace)

    def failures_of(self, job: Job) -> int:
        """Attempts at this destination that have failed so far."""
        standing = {each.destination: each for each in self.ledger.deliveries(job.id)}
        return standing[self.destination.name].attempt

    def tell(self, event: str, job: Job, **facts: object) -> None:
        """One line of the log."""
        log.info(event, job=job.id, destination=self.destination.name, **facts)
