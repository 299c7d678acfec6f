"""Ask a destination to answer for a job: storage commitment (PS3.4 J), or C-FIND where it offers none.

Each destination that is asked has a lane of its own. A question that is not answered is asked again, with
growing waits and without end: the job stays DELIVERED meanwhile, and nothing of it is purged.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Final
from uuid import uuid4

import structlog
from pydicom.dataset import Dataset
from pynetdicom import build_context, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.presentation import PresentationContext

from config.settings import StoreDestination
from node.breaker import Breaker
from node.commitment.hear import Commitments
from node.commitment.wire import (
    NO_SUCH_INSTANCE,
    PUSH_MODEL,
    PUSH_MODEL_INSTANCE,
    REQUEST_ACTION,
    SYNTAXES,
    Named,
    references_of,
    written,
)
from node.destinations.cstore import OnlyAnswers, associated
from node.errors import DestinationRefused, DestinationUnreachable
from node.flow import Failure, attempt
from node.lane import Means, Rest
from node.ledger import CommitmentAnswer, Job, Output, Reference

log = structlog.get_logger(__name__)

STUDY_ROOT_FIND: Final = "1.2.840.10008.5.1.4.1.2.2.1"
SUCCESS: Final = 0x0000
PENDING: Final = frozenset({0xFF00, 0xFF01})
HOLD_S: Final = 3.0
"""Seconds an association stays open for peers that report on it; others open one to us."""
LOOK_S: Final = 0.02
"""Seconds between two looks whether the report came."""
SPARE_ANSWERS: Final = 1000
"""C-FIND answers beyond the expected ones after which a peer is not listened to any longer."""
LOOKS_BEFORE_RESENDING: Final = 2
"""Queries that have to miss an instance before it is sent again: archives index what they took later."""


@dataclass(slots=True)
class AskLane:
    """One destination's questions; none while its ``breaker`` is open."""

    means: Means
    destination: StoreDestination
    commitments: Commitments
    breaker: Breaker
    hold_s: float = HOLD_S
    rest: Rest = field(init=False)

    def __post_init__(self) -> None:
        self.rest = Rest(self.means)

    def run(self) -> None:
        """Ask about every job that is due, oldest first, until one question fails or the node stops."""
        self.means.beat()
        if self.rest.is_on() or self.breaker.is_open:
            return
        now = self.means.clock()
        delivered_before = now - self.destination.commitment_wait_s
        latest = self.means.latest(self.destination.commitment_timeout_s)
        for job in self.means.ledger.commitments_due(self.destination.name, delivered_before, now, latest):
            outcome = attempt(lambda job=job: self.ask(job))  # type: ignore[misc]
            if isinstance(outcome, Failure):
                self.put_off(job, outcome.reason)
                return
            self.means.beat()
            if self.means.stopping.is_set():
                return

    def ask(self, job: Job) -> None:
        """One association: a request where it is wanted and offered, else a query; raises why neither."""
        outputs = self.means.ledger.uncommitted_outputs(job.id, self.destination.name)
        heard = Heard(self.commitments)
        with associated(self.destination, self.contexts(), heard.on_report) as assoc:
            offered = {str(context.abstract_syntax) for context in assoc.accepted_contexts}
            if PUSH_MODEL in offered:
                assoc.dimse = heard.dimse_of(assoc)
                self.request(assoc, job, outputs, heard)
            elif STUDY_ROOT_FIND in offered:
                self.query(assoc, job, outputs)
            else:
                raise DestinationRefused(None, "the peer offers neither storage commitment nor C-FIND")

    def contexts(self) -> list[PresentationContext]:
        """C-FIND, and before it the Push Model where a request is wanted."""
        find = build_context(STUDY_ROOT_FIND, list(SYNTAXES))
        wants = self.destination.commitment == "request"
        return [build_context(PUSH_MODEL, list(SYNTAXES)), find] if wants else [find]

    def request(self, assoc: Association, job: Job, outputs: list[Output], heard: Heard) -> None:
        """Keep the question, ask it, and stay a moment for peers that report on the same association."""
        transaction_uid = f"2.25.{uuid4().int}"
        now = self.means.clock()
        waits_s = self.destination.commitment_timeout_s + self.delay_s(job)
        self.means.ledger.record_question(
            transaction_uid, job.id, self.destination.name, not_before=now + waits_s, now=now
        )
        named = Named(transaction_uid, references_of(outputs))
        answer, _ = assoc.send_n_action(written(named), REQUEST_ACTION, PUSH_MODEL, PUSH_MODEL_INSTANCE)
        status = answer.get("Status")
        if status is None:
            raise DestinationUnreachable("no answer to the request for storage commitment")
        if status != SUCCESS:
            raise DestinationRefused(int(status), "the request for storage commitment was refused")
        self.tell("commitment asked", job, instances=len(outputs))
        self.stay(assoc, transaction_uid, heard)

    def stay(self, assoc: Association, transaction_uid: str, heard: Heard) -> None:
        """Wait until the report came, here or elsewhere, or for ``hold_s``."""
        until = time.monotonic() + self.hold_s
        while assoc.is_established and time.monotonic() < until and not self.means.stopping.is_set():
            question = self.means.ledger.question(transaction_uid)
            if heard.is_done(answered=question is not None and not question.is_open):
                return
            time.sleep(LOOK_S)

    def query(self, assoc: Association, job: Job, outputs: list[Output]) -> None:
        """Look which instances the peer lists; what it misses twice is sent again."""
        wanted = {output.sop_instance_uid: output for output in outputs}
        found: set[str] = set()
        for series in dict.fromkeys(output.series_instance_uid for output in outputs):
            found |= listed(assoc, series_query(job.study_instance_uid, series), wanted)
            self.means.beat()
        missing = [uid for uid in wanted if uid not in found]
        looks = 1 + self.asked(job)
        resend = missing if looks >= LOOKS_BEFORE_RESENDING else []
        answer = CommitmentAnswer(
            held=frozenset(Reference(wanted[uid].sop_class_uid, uid) for uid in found),
            lacking=dict.fromkeys(resend, NO_SUCH_INSTANCE),
            most_resends=self.destination.commitment_resends,
        )
        self.commitments.keep_found(job.id, self.destination.name, answer)
        if missing and not resend:
            raise DestinationUnreachable(f"the peer lists {len(found)} of {len(wanted)} instances")

    def put_off(self, job: Job, reason: str) -> None:
        """Ask about ``job`` again later; the whole lane pauses for at most ``retry.first_s``."""
        now, delay_s = self.means.clock(), self.delay_s(job)
        self.rest.begin(delay_s)
        self.means.ledger.put_off_question(job.id, self.destination.name, now + delay_s, reason, now)
        self.tell("commitment put off", job, reason=reason, delay_s=round(delay_s, 1))

    def delay_s(self, job: Job) -> float:
        """Seconds to wait after one more question that led to nothing."""
        return self.means.delay_s(1 + self.asked(job))

    def asked(self, job: Job) -> int:
        """Questions so far since this destination has everything."""
        standing = {each.destination: each for each in self.means.ledger.deliveries(job.id)}
        return standing[self.destination.name].asked

    def tell(self, event: str, job: Job, **facts: object) -> None:
        """One line of the log."""
        log.info(event, job=job.id, destination=self.destination.name, **facts)


class Heard:
    """Whether a report came on the association that asked, and whether our answer to it went out."""

    def __init__(self, commitments: Commitments) -> None:
        self._commitments = commitments
        self._began = Event()
        self._answered = Event()

    def on_report(self, event: evt.Event) -> tuple[int, None]:
        """Answer an N-EVENT-REPORT on the association that asked."""
        self._began.set()
        return self._commitments.on_report(event)

    def is_done(self, *, answered: bool) -> bool:
        """Whether there is nothing to wait for: we answered here, or the report came by another way."""
        return self._answered.is_set() or (answered and not self._began.is_set())

    def dimse_of(self, assoc: Association) -> OnlyAnswers:
        """The association's messages, with a look at what we answer."""
        return _Watched(assoc, self._answered)


class _Watched(OnlyAnswers):
    """Notes when the answer to a report has been handed to the upper layer."""

    def __init__(self, assoc: Association, answered: Event) -> None:
        super().__init__(assoc)
        self._answered = answered

    def send_msg(self, primitive: Any, context_id: int) -> None:
        """Send a message of ours."""
        super().send_msg(primitive, context_id)
        if isinstance(primitive, N_EVENT_REPORT):
            self._answered.set()


def series_query(study_instance_uid: str, series_instance_uid: str) -> Dataset:
    """The instances of one series, in the study root model (PS3.4 C.6.2.1)."""
    query = Dataset()
    query.QueryRetrieveLevel = "IMAGE"
    query.StudyInstanceUID = study_instance_uid
    query.SeriesInstanceUID = series_instance_uid
    query.SOPInstanceUID = ""
    return query


def listed(assoc: Association, query: Dataset, wanted: Iterable[str]) -> set[str]:
    """Which of the ``wanted`` instances a C-FIND lists; others it names are not kept."""
    expected, found, status = set(wanted), set[str](), None
    most = len(expected) + SPARE_ANSWERS
    for number, (answer, match) in enumerate(assoc.send_c_find(query, STUDY_ROOT_FIND)):
        status = answer.get("Status")
        if status in PENDING and match is not None:
            found |= expected & {str(match.get("SOPInstanceUID", ""))}
        if number > most:
            assoc.abort()
            raise DestinationUnreachable("the peer lists more instances than one series has")
    if status is None:
        raise DestinationUnreachable("no answer to the C-FIND")
    if status != SUCCESS:
        raise DestinationRefused(int(status), "the C-FIND failed")
    return found
