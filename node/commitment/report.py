"""Answer senders that asked for storage commitment: what is really here, by N-EVENT-REPORT (PS3.4 J.3.3).

An instance counts as held only where a living job of the ledger has it and its file, read back from the
spool, has the digest it came with. The report goes to the address that the settings have for the requester.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial

import structlog
from pynetdicom import build_context

from config.settings import Requester, StoreDestination
from node.commitment.wire import (
    ALL_HELD,
    CLASS_CONFLICT,
    NO_SUCH_INSTANCE,
    PROCESSING_FAILURE,
    PUSH_MODEL,
    PUSH_MODEL_INSTANCE,
    SOME_FAILED,
    SYNTAXES,
    Named,
    written,
)
from node.destinations.cstore import associated
from node.errors import DestinationRefused, DestinationUnreachable
from node.flow import Failure, attempt
from node.lane import Means
from node.ledger import Instance, Reference, Request

log = structlog.get_logger(__name__)

SUCCESS = 0x0000


@dataclass(slots=True)
class ReportLane:
    """One requester's lane of reports; ``ae_title`` is the node's own."""

    means: Means
    requester: Requester
    ae_title: str

    def run(self) -> None:
        """Report on everything that is due, oldest first, until one report fails or the node stops."""
        self.means.beat()
        means, title = self.means, self.requester.ae_title
        while request := means.ledger.request_due(title, means.clock(), means.latest()):
            outcome = attempt(partial(self.report, request))
            if isinstance(outcome, Failure):
                self.put_off(request, outcome.reason)
                return
            if self.means.stopping.is_set():
                return

    def report(self, request: Request) -> None:
        """Look at every instance, and tell the requester; raises why it could not be told."""
        named = self.found(request)
        tell(peer_of(self.requester, self.ae_title), named)
        self.means.ledger.close_request(request.id, None, self.means.clock())
        log.info("commitment reported", held=len(named.held), failed=len(named.failed))

    def found(self, request: Request) -> Named:
        """The instances asked about, each held or failed with its reason."""
        held: list[Reference] = []
        failed: list[tuple[Reference, int]] = []
        for reference in dict.fromkeys(request.references):
            reason = failure_of(reference, self.means.ledger.kept_instance(reference.sop_instance_uid))
            if reason is None:
                held.append(reference)
            else:
                failed.append((reference, reason))
            self.means.beat()
        return Named(request.transaction_uid, tuple(held), tuple(failed))

    def put_off(self, request: Request, reason: str) -> None:
        """Report again later, or not at all where that was tried often enough: the sender asks again then."""
        now, failures = self.means.clock(), request.attempt + 1
        if failures >= self.means.retry.max_attempts:
            self.means.ledger.close_request(request.id, reason, now)
            log.warning("commitment report given up", reason=reason, attempt=failures)
            return
        delay_s = self.means.delay_s(failures)
        self.means.ledger.put_off_request(request.id, now + delay_s, reason)
        log.info("commitment report put off", reason=reason, delay_s=round(delay_s, 1))


def tell(peer: StoreDestination, named: Named) -> None:
    """Send a report on an association of its own; raises why it was not taken."""
    said, kind = written(named), SOME_FAILED if named.failed else ALL_HELD
    context = build_context(PUSH_MODEL, list(SYNTAXES))
    context.scu_role, context.scp_role = False, True
    with associated(peer, [context]) as assoc:
        answer, _ = assoc.send_n_event_report(said, kind, PUSH_MODEL, PUSH_MODEL_INSTANCE)
    status = answer.get("Status")
    if status is None:
        raise DestinationUnreachable("no answer to the report")
    if status != SUCCESS:
        raise DestinationRefused(int(status), "the report was refused")


def failure_of(reference: Reference, instance: Instance | None) -> int | None:
    """Why the instance is not held; None where it is."""
    if instance is None:
        return NO_SUCH_INSTANCE
    if instance.sop_class_uid != reference.sop_class_uid:
        return CLASS_CONFLICT
    return None if is_whole(instance) else PROCESSING_FAILURE


def is_whole(instance: Instance) -> bool:
    """Whether the file is there with the bytes it came with, read back."""
    try:
        with instance.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == instance.sha256
    except OSError:
        return False


def peer_of(requester: Requester, calling_ae_title: str) -> StoreDestination:
    """The requester as the association's other side."""
    return StoreDestination(
        name="requester",
        host=requester.host,
        port=requester.port,
        ae_title=requester.ae_title,
        calling_ae_title=calling_ae_title,
        tls=requester.tls,
        tls_name=requester.tls_name,
        connect_timeout_s=requester.timeout_s,
        acse_timeout_s=requester.timeout_s,
        dimse_timeout_s=requester.timeout_s,
        network_timeout_s=requester.timeout_s,
    )
