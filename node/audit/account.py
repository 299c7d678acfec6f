"""What has to be told to an auditor: from the ledger's events, a start, a stop and alerts to messages."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Final

from pydicom import dcmread
from pydicom.dataset import Dataset

from config.settings import Settings, StoreDestination
from node import tags
from node.alarm import Alert, AlertKind
from node.audit.message import (
    APPLICATION,
    APPLICATION_ACTIVITY,
    APPLICATION_START,
    APPLICATION_STOP,
    DESTINATION,
    DESTINATION_MEDIA,
    EXPORT,
    INSTANCES_ACCESSED,
    INSTANCES_TRANSFERRED,
    JOB_NUMBER,
    LAUNCHER,
    NODE_AUTHENTICATION,
    PATIENT_NUMBER,
    RESTRICTED_FUNCTION,
    SECURITY_ALERT,
    SOURCE,
    STUDY_UID,
    Action,
    Code,
    Message,
    Outcome,
    Participant,
    Source,
    Thing,
    counted,
)
from node.destinations.answer import Verdict, store_status
from node.flow import Failure, attempt
from node.ledger import Event, Followed, Instance, Job, Ledger, Output
from node.ledger.deliveries import COMPLETE_CODE, PARTIAL_CODE, REFUSED_CODE
from node.ledger.moves import EXPORTED_CODE
from node.ledger.purging import PURGED_CODE
from node.ledger.quarantine import REMOVED_CODE
from node.series import read_header
from node.states import State
from node.users import user_of

UNKNOWN = "unknown"
"""In place of a patient whose images are gone, or whose header cannot be read."""

Instances = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Account:
    """Makes the messages of one node."""

    settings: Settings
    ledger: Ledger

    @property
    def source(self) -> Source:
        """Who keeps this account."""
        return Source(self.settings.listen.ae_title, self.settings.audit.site)

    def activity(self, at: float, *, starts: bool) -> Message:
        """The node starts or stops (A.5.3.1)."""
        person = Participant(user_of(os.getuid()), LAUNCHER, is_requestor=True)
        kind = APPLICATION_START if starts else APPLICATION_STOP
        return Message(
            APPLICATION_ACTIVITY, Action.EXECUTE, at, (self._node(APPLICATION), person), types=(kind,)
        )

    def alert(self, alert: Alert, times: int, at: float) -> Message:
        """What a peer tried (A.5.3.11), ``times`` times since it was told last."""
        peer = Participant(alert.calling_ae or alert.address or UNKNOWN, SOURCE, address=alert.address)
        words = f"{alert.kind}: {alert.words}" + (f" ({times} times)" if times > 1 else "")
        return Message(
            SECURITY_ALERT,
            Action.EXECUTE,
            at,
            (self._node(APPLICATION), peer),
            outcome=Outcome.MINOR,
            types=(ALERT_TYPES[alert.kind],),
            words=words,
        )

    def of_event(self, followed: Followed) -> Iterator[Message]:
        """What the event of a job means, in none, one or more messages."""
        event = followed.event
        job = self.ledger.job(event.job_id)
        if event.from_state is event.to_state:
            yield from self._noted(job, event)
            return
        if event.from_state is State.RECEIVING:
            yield self._received(job, event.at)
        if event.from_state is State.BUILT:
            yield from self._left(job, event)
        tell = TOLD.get(event.to_state)
        if tell is not None:
            yield from tell(self, job, event)

    def _received(self, job: Job, at: float) -> Message:
        """A series came (A.5.3.7): we hold it now and did not before, "C"."""
        sender = Participant(job.calling_ae, SOURCE, is_requestor=True, ae_title=job.calling_ae)
        receiver = self._node(DESTINATION)
        things = self._things(job, self._held(job))
        return Message(INSTANCES_TRANSFERRED, Action.CREATE, at, (sender, receiver), things)

    def _made(self, job: Job, event: Event) -> Iterator[Message]:
        """The source was read and outputs were made (A.5.3.6), unless the job comes back with what it had."""
        if event.from_state not in MAKING:
            return
        if held := self._held(job):
            yield self._accessed(job, event.at, Action.READ, held)
        yield self._accessed(job, event.at, Action.CREATE, self._outputs(job))

    def _removed(self, job: Job, event: Event) -> Iterator[Message]:
        """Files were removed: all but those that a later generation of the series holds (A.5.3.6)."""
        gone = set(self.ledger.purged_files(job.id))
        if removed := counted(each.sop_class_uid for each in self._files(job) if each.path in gone):
            yield self._accessed(job, event.at, Action.DELETE, removed)

    def _discarded(self, job: Job, event: Event) -> Iterator[Message]:
        """What lay in quarantine, set aside under UIDs of the job's instances, was removed (A.5.3.6)."""
        removed = counted(iter(self.ledger.removed_classes(job.id, event.at)))
        yield self._accessed(job, event.at, Action.DELETE, removed, words=event.note or "")

    def _accessed(
        self, job: Job, at: float, action: Action, instances: Instances, words: str = ""
    ) -> Message:
        node = self._node(APPLICATION, is_requestor=True)
        return Message(INSTANCES_ACCESSED, action, at, (node,), self._things(job, instances), words=words)

    def _exported(self, job: Job, event: Event) -> Iterator[Message]:
        """A person took the files out of the node (A.5.3.5)."""
        user, words = _parts(event)
        person = Participant(user, SOURCE, is_requestor=True)
        file = Participant("file", DESTINATION_MEDIA)
        things = self._things(job, counted(each.sop_class_uid for each in self._files(job)))
        yield Message(EXPORT, Action.READ, event.at, (person, file), things, words=words)

    def _noted(self, job: Job, event: Event) -> Iterator[Message]:
        tell = NOTED.get(event.code or "")
        if tell is not None:
            yield from tell(self, job, event)

    def _completed(self, job: Job, event: Event) -> Iterator[Message]:
        destination, _ = _parts(event)
        yield self._transferred(job, event.at, destination, self._outputs(job))

    def _refused(self, job: Job, event: Event) -> Iterator[Message]:
        destination, _ = _parts(event)
        words = f"{destination} refused it"
        yield self._transferred(job, event.at, destination, self._outputs(job), Outcome.SERIOUS, words)

    def _taken(self, job: Job, event: Event) -> Iterator[Message]:
        """A destination took what was on its way when the rest was no longer wanted."""
        destination, _ = _parts(event)
        yield from self._part(job, event.at, destination)

    def _left(self, job: Job, event: Event) -> Iterator[Message]:
        """Nothing more is sent: what destinations took that never had everything was not told yet."""
        told = {_parts(each)[0] for each in self.ledger.events(job.id) if each.code == COMPLETE_CODE}
        for destination in self.ledger.went_to(job.id):
            if destination not in told:
                yield from self._part(job, event.at, destination)

    def _part(self, job: Job, at: float, destination: str) -> Iterator[Message]:
        taken = {
            answer.sop_instance_uid
            for answer in self.ledger.answers(job.id)
            if answer.destination == destination
            and answer.status is not None
            and store_status(answer.status).verdict is Verdict.DELIVERED
        }
        outputs = self.ledger.outputs(job.id)
        if part := counted(each.sop_class_uid for each in outputs if each.sop_instance_uid in taken):
            words = f"{len(taken)} of {len(outputs)} instances"
            yield self._transferred(job, at, destination, part, words=words)

    def _transferred(
        self,
        job: Job,
        at: float,
        destination: str,
        instances: Instances,
        outcome: Outcome = Outcome.SUCCESS,
        words: str = "",
    ) -> Message:
        """Instances went to a destination, or it will not take them (A.5.3.7).

        "R", since we do not know whether it held the instances before.
        """
        peers = (self._node(SOURCE, is_requestor=True), self._peer(destination))
        things = self._things(job, instances)
        return Message(INSTANCES_TRANSFERRED, Action.READ, at, peers, things, outcome=outcome, words=words)

    def _node(self, role: Code, *, is_requestor: bool = False) -> Participant:
        return Participant(
            str(os.getpid()), role, is_requestor, self.settings.listen.ae_title, socket.gethostname()
        )

    def _peer(self, name: str) -> Participant:
        known = {destination.name: destination for destination in self.settings.destinations}
        peer = known.get(name)
        if isinstance(peer, StoreDestination):
            return Participant(peer.ae_title, DESTINATION, ae_title=peer.ae_title, address=peer.host)
        return Participant(name, DESTINATION)

    def _files(self, job: Job) -> Iterator[Instance | Output]:
        yield from self.ledger.instances(job.id)
        yield from self.ledger.outputs(job.id)

    def _held(self, job: Job) -> Instances:
        return counted(instance.sop_class_uid for instance in self.ledger.instances(job.id))

    def _outputs(self, job: Job) -> Instances:
        return counted(output.sop_class_uid for output in self.ledger.outputs(job.id))

    def _things(self, job: Job, instances: Instances) -> tuple[Thing, ...]:
        """Study and patient, or only the job where patients are not to be named."""
        if self.settings.audit.identities == "job":
            return (Thing(f"job {job.id}", JOB_NUMBER, "2", "20", instances=instances),)
        number, name = self._patient(job)
        study = Thing(job.study_instance_uid, STUDY_UID, "2", "3", instances=instances)
        return study, Thing(number, PATIENT_NUMBER, "1", "1", name)

    def _patient(self, job: Job) -> tuple[str, str]:
        """Patient ID and name, from the first file that can be read, or what a purge left of it."""
        paths = [instance.path for instance in self.ledger.instances(job.id)[:1]]
        paths += [output.path for output in self.ledger.outputs(job.id)[:1]]
        for path in paths:
            header = attempt(lambda path=path: read_header(path, self.settings.intake.limits))  # type: ignore[misc]
            if not isinstance(header, Failure):
                return named_in(header)
        kept = self.ledger.identity(job.id)
        return (UNKNOWN, "") if kept is None else named_in(dcmread(BytesIO(kept)))


def _parts(event: Event) -> tuple[str, str]:
    """Whom a note is about, a destination or a user, and what it says."""
    name, _, words = (event.note or "").partition(": ")
    return name, words


def named_in(header: Dataset) -> tuple[str, str]:
    """Patient ID and name of a header, as far as they can be read: no stranger's value stops the audit."""
    return tags.text(header, "PatientID") or UNKNOWN, tags.text(header, "PatientName")


TOLD: Mapping[State, Callable[[Account, Job, Event], Iterator[Message]]] = {
    State.BUILT: Account._made,
    State.PURGED: Account._removed,
}
"""What a job's coming to a state means; leaving RECEIVING means that it was received."""

MAKING: Final = frozenset({State.READY, None})
"""Where a job stood before its outputs were made: a rejection note is BUILT from the start."""

NOTED: Mapping[str, Callable[[Account, Job, Event], Iterator[Message]]] = {
    COMPLETE_CODE: Account._completed,
    REFUSED_CODE: Account._refused,
    PARTIAL_CODE: Account._taken,
    PURGED_CODE: Account._removed,
    REMOVED_CODE: Account._discarded,
    EXPORTED_CODE: Account._exported,
}
"""What a note of the ledger that is no move means, by its code."""

ALERT_TYPES: Mapping[AlertKind, Code] = {
    AlertKind.REFUSED: NODE_AUTHENTICATION,
    AlertKind.TLS: NODE_AUTHENTICATION,
    AlertKind.CROWDED: RESTRICTED_FUNCTION,
    AlertKind.TOO_LONG: RESTRICTED_FUNCTION,
    AlertKind.COMMITMENT: RESTRICTED_FUNCTION,
}
"""EventTypeCode of an alert (CID 403 of PS3.16)."""
