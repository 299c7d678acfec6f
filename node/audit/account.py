"""What has to be told to an auditor: from the ledger's events, a start, a stop and alerts to messages."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Final

from pydicom import dcmread
from pydicom.dataset import Dataset

from config.settings import Settings, StoreDestination
from node.alarm import Alert, AlertKind
from node.audit.message import (
    APPLICATION,
    APPLICATION_ACTIVITY,
    APPLICATION_START,
    APPLICATION_STOP,
    DESTINATION,
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
from node.flow import Failure, attempt
from node.ledger import Event, Followed, Job, Ledger
from node.ledger.deliveries import COMPLETE_CODE, REFUSED_CODE
from node.series import read_header
from node.states import State

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
        yield self._accessed(job, event.at, Action.DELETE, self._held(job))

    def _accessed(self, job: Job, at: float, action: Action, instances: Instances) -> Message:
        node = self._node(APPLICATION, is_requestor=True)
        return Message(INSTANCES_ACCESSED, action, at, (node,), self._things(job, instances))

    def _noted(self, job: Job, event: Event) -> Iterator[Message]:
        """A destination has everything of a job, or will not take it (A.5.3.7).

        "R", since we do not know whether it held the instances before.
        """
        outcome = DELIVERIES.get(event.code or "")
        if outcome is None or event.from_state is not State.BUILT:
            return
        destination = (event.note or "").partition(": ")[0]
        yield Message(
            INSTANCES_TRANSFERRED,
            Action.READ,
            event.at,
            (self._node(SOURCE, is_requestor=True), self._peer(destination)),
            self._things(job, self._outputs(job)),
            outcome=outcome,
            words="" if outcome is Outcome.SUCCESS else f"{destination} refused it",
        )

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


def user_of(uid: int) -> str:
    """The user's name, or its number where there is no entry for it, as in containers."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def named_in(header: Dataset) -> tuple[str, str]:
    """Patient ID and name of a header."""
    return str(header.get("PatientID") or UNKNOWN), str(header.get("PatientName") or "")


TOLD: Mapping[State, Callable[[Account, Job, Event], Iterator[Message]]] = {
    State.BUILT: Account._made,
    State.PURGED: Account._removed,
}
"""What a job's coming to a state means; leaving RECEIVING means that it was received."""

MAKING: Final = frozenset({State.READY, None})
"""Where a job stood before its outputs were made: a rejection note is BUILT from the start."""

DELIVERIES: Mapping[str, Outcome] = {COMPLETE_CODE: Outcome.SUCCESS, REFUSED_CODE: Outcome.SERIOUS}
"""What a note of the ledger on a delivery means, by its code."""

ALERT_TYPES: Mapping[AlertKind, Code] = {
    AlertKind.REFUSED: NODE_AUTHENTICATION,
    AlertKind.TLS: NODE_AUTHENTICATION,
    AlertKind.CROWDED: RESTRICTED_FUNCTION,
    AlertKind.TOO_LONG: RESTRICTED_FUNCTION,
}
"""EventTypeCode of an alert (CID 403 of PS3.16)."""
