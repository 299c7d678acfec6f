"""One association with an archive: what it lists (C-FIND in the study root model, PS3.4 C.6.2).

What the archive says is not believed further than needed: answers are counted, UIDs have to look like UIDs,
messages have a longest length, and nobody waits longer than the settings say.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import Any, Final

from pydicom.dataset import Dataset
from pynetdicom import build_context
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.presentation import PresentationContext

from config.settings import ArchivePeer, StoreDestination
from node.commitment.ask import series_query
from node.destinations.cstore import OnlyAnswers, associated
from node.errors import DestinationRefused, DestinationUnreachable
from node.pull.answer import verdict_of
from node.scp import CT_CLASSES, MAX_PDU_SLACK_BYTES, PREFERRED_SYNTAXES
from node.uids import is_plausible_uid

FIND: Final = "1.2.840.10008.5.1.4.1.2.2.1"
MOVE: Final = "1.2.840.10008.5.1.4.1.2.2.2"
GET: Final = "1.2.840.10008.5.1.4.1.2.2.3"
"""Study Root Query/Retrieve Information Model (PS3.4 C.6.2)."""
MODELS: Final = {FIND: "C-FIND", MOVE: "C-MOVE", GET: "C-GET"}
SYNTAXES: Final = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")

LOSSY_SYNTAXES: Final = (
    "1.2.840.10008.1.2.4.50",  # JPEG Baseline
    "1.2.840.10008.1.2.4.51",  # JPEG Extended
    "1.2.840.10008.1.2.4.57",  # JPEG Lossless, any selection value
    "1.2.840.10008.1.2.4.81",  # JPEG-LS near-lossless
    "1.2.840.10008.1.2.4.91",  # JPEG 2000
    "1.2.840.10008.1.2.4.203",  # HTJ2K
)
"""Taken by C-GET where an archive holds nothing better; each syntax is a presentation context of its own, so
that an archive may send every file as it is stored."""

LOOK_S: Final = 0.25
"""Seconds between two looks whether to stop waiting for an answer."""
MOST_SERIES: Final = 10_000
"""Series of one study that are listed."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One series as the archive lists it."""

    study_instance_uid: str
    series_instance_uid: str
    modality: str


class Conversation:
    """An open association with ``archive``, for one operation after another; ``us`` is our own AE title."""

    def __init__(self, archive: ArchivePeer, us: str, assoc: Association, messages: Bounded) -> None:
        self.archive = archive
        self.us = us
        self.assoc = assoc
        self._messages = messages

    def begin(self, model: str, limit_s: float) -> None:
        """The next operation takes ``limit_s`` seconds at most; raises where the archive offers none."""
        self.require(model)
        self._messages.begin(limit_s)

    def find(self, query: Dataset, most: int) -> list[Dataset]:
        """Every match; raises DestinationUnreachable or DestinationRefused, also for more than ``most``."""
        self.begin(FIND, self.archive.dimse_timeout_s)
        found: list[Dataset] = []
        status: int | None = None
        for answer, match in self.assoc.send_c_find(query, FIND):
            status = answer.get("Status")
            if match is not None:
                found.append(match)
            if len(found) > most:
                self.assoc.abort()
                raise DestinationRefused(status, f"{self.archive.name} lists more than {most:,}")
        verdict_of(status, "C-FIND", self.archive, self.us)
        return found

    def instances(self, study_instance_uid: str, series_instance_uid: str, most: int) -> frozenset[str]:
        """SOP Instance UIDs of what the archive holds of the series; ``most`` bounds how many."""
        found = self.find(series_query(study_instance_uid, series_instance_uid), most)
        return frozenset(uid for match in found if is_plausible_uid(uid := text_of(match, "SOPInstanceUID")))

    def series(self, study_instance_uid: str, series_instance_uid: str = "") -> list[Listed]:
        """The series of a study, or the one named; the study may be empty where the archive allows it."""
        query = Dataset()
        query.QueryRetrieveLevel = "SERIES"
        query.StudyInstanceUID = study_instance_uid
        query.SeriesInstanceUID = series_instance_uid
        query.Modality = ""
        listed = [
            Listed(
                text_of(match, "StudyInstanceUID") or study_instance_uid,
                text_of(match, "SeriesInstanceUID"),
                text_of(match, "Modality"),
            )
            for match in self.find(query, MOST_SERIES)
        ]
        return [one for one in listed if is_plausible_uid(one.series_instance_uid)]

    def require(self, model: str) -> None:
        """Raise unless the archive takes this operation, and the association is still there."""
        if not self.assoc.is_established:
            raise DestinationUnreachable("the association was aborted")
        if model not in {str(context.abstract_syntax) for context in self.assoc.accepted_contexts}:
            words = f"{self.archive.name} offers no {MODELS[model]} in the study root model to "
            raise DestinationRefused(None, words + self.archive.calling_ae_title)


@contextmanager
def conversation(
    archive: ArchivePeer, us: str, stopping: Event, max_message_bytes: int
) -> Iterator[Conversation]:
    """An association with the archive; raises DestinationUnreachable or DestinationRefused.

    Nothing is waited for once ``stopping`` is set; the archive's messages have at most ``max_message_bytes``.
    """
    with associated(peer_of(archive), contexts_of(archive)) as assoc:
        messages = Bounded(assoc, stopping, archive.dimse_timeout_s, max_message_bytes)
        assoc.dimse = messages
        try:
            yield Conversation(archive, us, assoc, messages)
        except BaseException:
            if assoc.is_established:  # perhaps in the middle of an operation, which a release would wait for
                assoc.abort()
            raise


class Bounded(OnlyAnswers):
    """Waits no longer than wanted, for one answer and in all, and takes no message longer than allowed.

    An archive that answers a little now and then would otherwise keep a lane for days.
    """

    def __init__(self, assoc: Association, stopping: Event, timeout_s: float, max_message_bytes: int) -> None:
        super().__init__(assoc)
        self._stopping = stopping
        self._timeout_s = timeout_s
        self._max_message_bytes = max_message_bytes + MAX_PDU_SLACK_BYTES
        self._is_deaf = False
        self._end = time.monotonic() + timeout_s

    def begin(self, limit_s: float) -> None:
        """From now on ``limit_s`` seconds are left for everything that is to come."""
        self._end = time.monotonic() + limit_s

    def get_msg(self, block: bool = False) -> Any:
        """The next message for one who waits for it; (None, None) when time is up or the node ends."""
        until = min(time.monotonic() + self._timeout_s, self._end)
        while block and not self._stopping.is_set() and time.monotonic() < until:
            try:
                return self.msg_queue.get(timeout=LOOK_S)
            except queue.Empty:
                continue
        return None, None

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take the next fragment; one too many ends the wait, upon which the association is aborted."""
        if self._is_deaf:
            return
        parts = (self.message.encoded_command_set, self.message.data_set) if self.message else ()
        if sum(part.tell() for part in parts if part) > self._max_message_bytes:
            self._is_deaf = True
            self.message = None
            self.msg_queue.put((None, None))
            return
        super().receive_primitive(primitive)


def contexts_of(archive: ArchivePeer) -> list[PresentationContext]:
    """C-FIND, and C-MOVE, or C-GET with the CT classes in the SCP role."""
    contexts = [build_context(FIND, list(SYNTAXES))]
    if archive.retrieve == "move":
        return [*contexts, build_context(MOVE, list(SYNTAXES))]
    contexts.append(build_context(GET, list(SYNTAXES)))
    for sop_class in CT_CLASSES:
        for syntax in (*PREFERRED_SYNTAXES, *LOSSY_SYNTAXES):
            context = build_context(sop_class, syntax)
            context.scu_role, context.scp_role = False, True
            contexts.append(context)
    return contexts


def peer_of(archive: ArchivePeer) -> StoreDestination:
    """The archive as an association's other side."""
    return StoreDestination(
        name=archive.name,
        host=archive.host,
        port=archive.port,
        ae_title=archive.ae_title,
        calling_ae_title=archive.calling_ae_title,
        tls=archive.tls,
        tls_name=archive.tls_name,
        connect_timeout_s=archive.connect_timeout_s,
        acse_timeout_s=archive.acse_timeout_s,
        dimse_timeout_s=archive.dimse_timeout_s,
        network_timeout_s=archive.dimse_timeout_s,
        max_pdu_bytes=archive.max_pdu_bytes,
    )


def text_of(match: Dataset, keyword: str) -> str:
    """One value of a match as text, empty where there is none."""
    return str(match.get(keyword) or "").strip(" \x00")
