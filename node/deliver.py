"""The deliver lane: what is BUILT goes to one destination, and every answer is kept.

Each destination has a lane of its own, so a slow one holds up no other. An answer is in the ledger before the
next file is sent: after a crash, or after a peer that broke off, only what is missing is sent. A destination
that fails several times in a row is left alone until it answers a probe; what it is owed for too long, or
will not take, goes to its fallback too.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from typing import Final

import structlog

from config.settings import Destination
from node.breaker import Breaker
from node.destinations import DESTINATIONS, PROBES
from node.errors import DestinationUnreachable
from node.flow import DISPOSITIONS, Action, Failure, attempt
from node.lane import Means, Rest
from node.ledger import Job

log = structlog.get_logger(__name__)

UNREACHABLE: Final = DISPOSITIONS[DestinationUnreachable]
"""What follows where it is the destination that failed; a disk of ours that fails says nothing about it."""
HOUR_S: Final = 3600.0


@dataclass(slots=True)
class DeliverLane:
    """One destination's lane, which moves its ``breaker``."""

    means: Means
    destination: Destination
    breaker: Breaker
    rest: Rest = field(init=False)

    def __post_init__(self) -> None:
        self.rest = Rest(self.means)

    def run(self) -> None:
        """Deliver every job that is due, oldest first, until one fails or the node stops."""
        means = self.means
        means.beat()
        self.fall_back()
        if self.breaker.is_open and not self.is_back():
            return
        if self.rest.is_on():
            return
        for job in means.ledger.due(self.destination.name, means.clock(), means.latest()):
            outcome = attempt(lambda job=job: self.deliver(job))  # type: ignore[misc]
            if isinstance(outcome, Failure):
                self.judge(outcome)
                self.put_off(job, outcome)
                return
            if means.stopping.is_set():
                return

    def deliver(self, job: Job) -> None:
        """Send what this destination does not have yet of ``job``; raises what the destination raises."""
        means = self.means
        if not means.ledger.begin_delivery(job.id, self.destination.name, means.clock()):
            return  # superseded or recalled since it was found
        outputs = means.ledger.pending_outputs(job.id, self.destination.name)
        began = means.clock()
        send = DESTINATIONS[self.destination.kind]
        with closing(send(self.destination, [output.path for output in outputs])) as answers:  # type: ignore[type-var]
            for answer in answers:
                is_wanted = means.ledger.record_delivery(
                    answer.sop_instance_uid, self.destination.name, answer.status, means.clock()
                )
                means.beat()
                if means.stopping.is_set() or not is_wanted:
                    return
        self.breaker.answered()
        seconds = round(means.clock() - began, 3)
        self.tell("delivered", job, instances=len(outputs), seconds=seconds)

    def is_back(self) -> bool:
        """Ask a destination that is left alone whether it is there, where it is time to ask."""
        if not self.breaker.is_probe_due():
            return False
        probe = PROBES[self.destination.kind]
        outcome = attempt(lambda: probe(self.destination))
        if isinstance(outcome, Failure):
            self.breaker.unanswered(outcome.reason)
            return False
        if self.breaker.answered():
            self.means.ledger.hasten(self.destination.name, self.means.clock())
        return True

    def judge(self, failure: Failure) -> None:
        """What a delivery that failed says about the destination: silent, or there, or nothing."""
        if failure.disposition == UNREACHABLE:
            self.breaker.failed(failure.reason)
        elif failure.disposition.action is Action.PARK:
            self.breaker.answered()

    def put_off(self, job: Job, failure: Failure) -> None:
        """Try ``job`` again later, or, where that is useless or was tried often enough, call it refused."""
        ledger, now = self.means.ledger, self.means.clock()
        failures = 1 + self.failures_of(job)
        delay_s = self.means.delay_s(failures)
        self.rest.begin(delay_s)
        action = failure.disposition.action
        if action is Action.WAIT or (action is Action.RETRY and failures < self.means.retry.max_attempts):
            ledger.postpone(job.id, self.destination.name, now + delay_s, failure.reason, now)
            self.tell("delivery put off", job, reason=failure.reason, delay_s=round(delay_s, 1))
            return
        reason = failure.reason if failures == 1 else f"{failure.reason} (attempt {failures})"
        if self.destination.fallback:
            ledger.stand_in(job.id, self.destination.name, self.destination.fallback, now)
        ledger.refuse(job.id, self.destination.name, reason, now)
        self.tell("delivery refused", job, reason=failure.reason, trace=failure.trace)

    def fall_back(self) -> None:
        """Let the fallback, where there is one, stand in for what this destination is owed for too long."""
        fallback, now = self.destination.fallback, self.means.clock()
        if not fallback:
            return
        owed_before = now - self.destination.after_hours * HOUR_S
        for number in self.means.ledger.fall_back(self.destination.name, fallback, owed_before, now):
            log.warning("fallback stands in", job=number, destination=self.destination.name, by=fallback)

    def failures_of(self, job: Job) -> int:
        """Attempts at this destination that have failed so far."""
        standing = {each.destination: each for each in self.means.ledger.deliveries(job.id)}
        return standing[self.destination.name].attempt

    def tell(self, event: str, job: Job, **facts: object) -> None:
        """One line of the log."""
        log.info(event, job=job.id, destination=self.destination.name, **facts)
