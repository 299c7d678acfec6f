"""What peers say and ask: reports on our own questions, and requests of senders (PS3.4 J.3).

Both come in threads of pynetdicom and go to the ledger before they are answered. The transaction UID of a
question is random and was told to one peer only: a report that names it is from there, whatever its AE title.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import BoundedSemaphore
from typing import Final, cast

import structlog
from pynetdicom import evt
from pynetdicom.dimse_primitives import N_ACTION, N_EVENT_REPORT

from config.settings import Destination, Settings, StoreDestination
from node.alarm import Alarm, Alert, AlertKind, nobody
from node.commitment.wire import (
    ALL_HELD,
    PUSH_MODEL_INSTANCE,
    REQUEST_ACTION,
    SOME_FAILED,
    Cure,
    Named,
    NotUnderstood,
    failure_reason,
    read,
)
from node.flow import trace_of
from node.ledger import CommitmentAnswer, Ledger, Question
from node.peers import Guests

log = structlog.get_logger(__name__)

SUCCESS: Final = 0x0000
PROCESSING_FAILURE: Final = 0x0110
NO_SUCH_INSTANCE: Final = 0x0112
NO_SUCH_EVENT: Final = 0x0113
INVALID_ARGUMENT: Final = 0x0115
NO_SUCH_ACTION: Final = 0x0123
NOT_AUTHORISED: Final = 0x0124
RESOURCE_LIMITATION: Final = 0x0213

STATUSES: Final[dict[int, tuple[str, str]]] = {
    SUCCESS: ("PS3.7 C.1.1", "a report was kept, or a request was and will be reported on"),
    PROCESSING_FAILURE: ("PS3.7 C.5.15", "an error nobody foresaw, or a disk that failed; nothing was kept"),
    NO_SUCH_INSTANCE: ("PS3.7 C.5.12", "not the well-known instance of the Push Model"),
    NO_SUCH_EVENT: ("PS3.7 C.5.10", "an event type other than 1 and 2"),
    INVALID_ARGUMENT: (
        "PS3.7 C.5.5",
        "the data set cannot be used, or a report names a transaction that is not ours",
    ),
    NO_SUCH_ACTION: ("PS3.7 C.5.9", "an action type other than 1"),
    NOT_AUTHORISED: ("PS3.7 C.5.20", "the calling AE title or its address is not in `requesters`"),
    RESOURCE_LIMITATION: ("PS3.7 C.5.16", "too many requests or reports wait already"),
}
"""Every status an N-ACTION or N-EVENT-REPORT is answered with: its section and what it means here."""

MOST_OPEN: Final = 1000
"""Requests of one sender that may wait for their report."""
MOST_OPEN_BYTES: Final = 64 * 1024**2
"""What these may take in the ledger: some 800,000 instances."""
MOST_AT_ONCE: Final = 8
"""Messages that are read at the same time: pynetdicom starts a thread for every report that comes."""

DEFAULT_RESENDS: Final = 3
"""For a destination that left the settings while its report was under way."""


class Commitments:
    """Storage commitment as it reaches the ledger; any number of threads may call it at once."""

    def __init__(
        self, settings: Settings, ledger: Ledger, clock: Callable[[], float], alarm: Alarm = nobody
    ) -> None:
        self.required = frozenset(each.name for each in settings.destinations if asks(each))
        """Names of the destinations that are asked to commit."""
        self._resends = {
            each.name: each.commitment_resends
            for each in settings.destinations
            if isinstance(each, StoreDestination)
        }
        self._requesters = {
            requester.ae_title: Guests.of((), requester.addresses) for requester in settings.requesters
        }
        self._ledger = ledger
        self._clock = clock
        self._alarm = alarm
        self._room = BoundedSemaphore(MOST_AT_ONCE)

    @property
    def is_wanted(self) -> bool:
        """Whether the listener has a use for the Push Model: reports are awaited, or senders may ask."""
        return bool(self.required or self._requesters)

    def on_report(self, event: evt.Event) -> tuple[int, None]:
        """Answer an N-EVENT-REPORT; never raises."""
        return self._answer(lambda: self._report(event)), None

    def on_request(self, event: evt.Event) -> tuple[int, None]:
        """Answer an N-ACTION; never raises. Success means that the request is on the disk."""
        return self._answer(lambda: self._request(event)), None

    def keep_report(self, named: Named) -> Question | None:
        """Keep what a report names; None for a transaction that is not ours."""
        asked = self._ledger.question(named.transaction_uid)
        if asked is None:
            return None
        answer = answer_of(named, self._resends.get(asked.destination, DEFAULT_RESENDS))
        self._ledger.record_report(named.transaction_uid, answer, self.required, self._clock())
        self.tell(asked.job_id, asked.destination, answer)
        return asked

    def keep_found(self, job_id: int, destination: str, answer: CommitmentAnswer) -> None:
        """Keep what a query found at a destination."""
        self._ledger.record_found(job_id, destination, answer, self.required, self._clock())
        self.tell(job_id, destination, answer)

    def tell(self, job_id: int, destination: str, answer: CommitmentAnswer) -> None:
        """One line of the log."""
        state = str(self._ledger.job(job_id).state)
        log.info(
            "commitment answered",
            job=job_id,
            destination=destination,
            held=len(answer.held),
            lacking=len(answer.lacking),
            state=state,
        )

    def _report(self, event: evt.Event) -> int:
        request = cast(N_EVENT_REPORT, event.request)
        if str(request.AffectedSOPInstanceUID) != PUSH_MODEL_INSTANCE:
            return NO_SUCH_INSTANCE
        if request.EventTypeID not in {ALL_HELD, SOME_FAILED}:
            return NO_SUCH_EVENT
        named = read(request.EventInformation, str(event.context.transfer_syntax))
        if self.keep_report(named) is None:
            log.warning("commitment report dropped", reason="no such transaction was asked")
            return INVALID_ARGUMENT
        return SUCCESS

    def _request(self, event: evt.Event) -> int:
        request = cast(N_ACTION, event.request)
        calling_ae, address = event.assoc.requestor.ae_title.strip(), event.assoc.requestor.address
        guests = self._requesters.get(calling_ae)
        if guests is None or not guests.knows_address(address):
            words = "AE title or address is not in requesters"
            log.warning("commitment request refused", reason=words)
            self._alarm(Alert(AlertKind.COMMITMENT, words, address, calling_ae))
            return NOT_AUTHORISED
        if str(request.RequestedSOPInstanceUID) != PUSH_MODEL_INSTANCE:
            return NO_SUCH_INSTANCE
        if request.ActionTypeID != REQUEST_ACTION:
            return NO_SUCH_ACTION
        named = read(request.ActionInformation, str(event.context.transfer_syntax))
        kept = self._ledger.record_request(
            calling_ae,
            named.transaction_uid,
            named.held,
            most_open=MOST_OPEN,
            most_bytes=MOST_OPEN_BYTES,
            now=self._clock(),
        )
        log.info("commitment requested", instances=len(named.held), kept=kept)
        return SUCCESS if kept else RESOURCE_LIMITATION

    def _answer(self, step: Callable[[], int]) -> int:
        try:
            with self._one_of_few() as has_room:
                return step() if has_room else RESOURCE_LIMITATION
        except NotUnderstood as error:
            log.warning("commitment message refused", reason=str(error))
            return INVALID_ARGUMENT
        except Exception as error:  # the border: the peer must hear that nothing was kept
            log.error("commitment message failed", trace=trace_of(error))  # noqa: TRY400 - a message may name a patient
            return PROCESSING_FAILURE

    @contextmanager
    def _one_of_few(self) -> Iterator[bool]:
        has_room = self._room.acquire(blocking=False)
        try:
            yield has_room
        finally:
            if has_room:
                self._room.release()


def asks(destination: Destination) -> bool:
    """Whether this destination is asked to answer for what it took."""
    return isinstance(destination, StoreDestination) and destination.commitment != "none"


def answer_of(named: Named, most_resends: int) -> CommitmentAnswer:
    """What follows from a report: :data:`FAILURE_REASONS` decides, instance by instance."""
    rows = {reference.sop_instance_uid: failure_reason(code) for reference, code in named.failed}
    final = [row for row in rows.values() if row.cure is Cure.PERSON]
    return CommitmentAnswer(
        held=frozenset(named.held),
        lacking={uid: row.code for uid, row in rows.items() if row.cure is not Cure.ASK_AGAIN},
        refusal=f"{final[0].meaning} ({len(final)} instances)" if final else None,
        most_resends=most_resends,
    )
