"""The deliver lane: what is BUILT goes to one destination, and every answer is kept.

Each destination has a lane of its own, so a slow one holds up no other. An answer is in the ledger before the
next file is sent: after a crash, or after a peer that broke off, only what is missing is sent.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field

import structlog

from config.settings import Destination
from node.destinations import DESTINATIONS
from node.flow import Action, Failure, attempt
from node.lane import Means, Rest
from node.ledger import Job

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class DeliverLane:
    """One destination's lane."""

    means: Means
    destination: Destination
    rest: Rest = field(init=False)

    def __post_init__(self) -> None:
        self.rest = Rest(self.means)

    def run(self) -> None:
        """Deliver every job that is due, oldest first, until one fails or the node stops."""
        means = self.means
        means.beat()
        if self.rest.is_on():
            return
        for job in means.ledger.due(self.destination.name, means.clock()):
            outcome = attempt(lambda job=job: self.deliver(job))  # type: ignore[misc]
            if isinstance(outcome, Failure):
                self.put_off(job, outcome)
                return
            if means.stopping.is_set():
                return

    def deliver(self, job: Job) -> None:
        """Send what this destination does not have yet of ``job``; raises what the destination raises."""
        means = self.means
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
        seconds = round(means.clock() - began, 3)
        self.tell("delivered", job, instances=len(outputs), seconds=seconds)

        if not means.ledger.begin_delivery(job.id, self.destination.name, means.clock()):
            return  # superseded or recalled since it was found
    def put_off(self, job: Job, failure: Failure) -> None:
        """Try ``job`` again later, or, where that is useless or was tried often enough, call it refused."""
        ledger, now = self.means.ledger, self.means.clock()
        failures = 1 + self.failures_of(job)
        delay_s = self.means.delay_s(failures)
        self.rest.begin(delay_s)
        if failure.disposition.action is Action.RETRY and failures < self.means.retry.max_attempts:
            ledger.postpone(job.id, self.destination.name, now + delay_s, failure.reason, now)
            self.tell("delivery put off", job, reason=failure.reason, delay_s=round(delay_s, 1))
            return
        reason = failure.reason if failures == 1 else f"{failure.reason} (attempt {failures})"
        ledger.refuse(job.id, self.destination.name, reason, now)
        self.tell("delivery refused", job, reason=failure.reason, trace=failure.trace)

    def failures_of(self, job: Job) -> int:
        """Attempts at this destination that have failed so far."""
        standing = {each.destination: each for each in self.means.ledger.deliveries(job.id)}
        return standing[self.destination.name].attempt

    def tell(self, event: str, job: Job, **facts: object) -> None:
        """One line of the log."""
        log.info(event, job=job.id, destination=self.destination.name, **facts)
