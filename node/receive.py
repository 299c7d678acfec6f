"""One received instance, from its first byte to the answer: the answer is success only once it is safe.

Bytes are kept as they came, and while they come: a preamble and file meta information are put before them,
nothing is decoded or encoded again. What cannot be kept is refused with the status the standard has for it,
and a reason.
"""

from __future__ import annotations

import sqlite3
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import structlog

from node.conflict import Difference, difference
from node.errors import NodeError
from node.filehead import file_head
from node.header import Header, HeaderRefused, header_within, read_header
from node.ledger import Ledger, LedgerUnusable, ReceivedInstance, Recorded, SetAside
from node.loopguard import is_own
from node.spool import Chunk, Draft, NameRefused, Placed, Spool, SpoolFull, inbox_name
from node.states import State

log = structlog.get_logger(__name__)

SUCCESS: Final = 0x0000
COERCED: Final = 0xB000
OUT_OF_RESOURCES: Final = 0xA700
NOT_THE_CLASS: Final = 0xA900
CANNOT_UNDERSTAND: Final = 0xC000
UNFORESEEN: Final = 0xC211

STATUSES: Final[dict[int, tuple[str, str]]] = {
    SUCCESS: ("PS3.7 C.1.1", "stored, or a repeat, or our own object dropped"),
    COERCED: (
        "PS3.4 B.2.3",
        "warning: other pixels, or these with other HU or geometry, or an instance of another series came"
        " first under this SOP Instance UID; that one stays, this one is in quarantine",
    ),
    OUT_OF_RESOURCES: ("PS3.4 B.2.3", "refused: no room, or the disk failed; sending again later may help"),
    NOT_THE_CLASS: (
        "PS3.4 B.2.3",
        "not of the SOP class or instance that was announced, or the class was not granted",
    ),
    CANNOT_UNDERSTAND: ("PS3.4 B.2.3", "the header cannot be read, or a UID is missing or unusable"),
    UNFORESEEN: ("PS3.4 B.2.3", "an error nobody foresaw; nothing was promised"),
}
"""Every status a C-STORE is answered with: the section that defines it and what it means here."""

COMMENT_LENGTH: Final = 64
"""Characters of an Error Comment (0000,0902), VR LO (PS3.5 6.2)."""


class InstanceTooLarge(NodeError):
    """Longer than this node keeps."""


class BrokenOff(NodeError):
    """The sender went away before the data set was whole."""


class NotAsAnnounced(NodeError):
    """The C-STORE request names another SOP class or instance than the data set (PS3.4 B.2.3)."""


ANSWERS: Final[dict[type[Exception], int]] = {
    SpoolFull: OUT_OF_RESOURCES,
    InstanceTooLarge: OUT_OF_RESOURCES,
    LedgerUnusable: OUT_OF_RESOURCES,
    OSError: OUT_OF_RESOURCES,
    sqlite3.OperationalError: OUT_OF_RESOURCES,
    NotAsAnnounced: NOT_THE_CLASS,
    BrokenOff: CANNOT_UNDERSTAND,
    HeaderRefused: CANNOT_UNDERSTAND,
    NameRefused: CANNOT_UNDERSTAND,
}
"""From what was raised to the answer; what no row names, nor the row of a base class, is UNFORESEEN."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A C-STORE request and its data set, not yet believed.

    ``data`` is the whole of it, or its pieces in the order they come; reading those waits for the sender and
    raises BrokenOff where it goes away.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae: str
    data: memoryview | Iterable[bytes]

    @property
    def head(self) -> bytes:
        """What the file of it begins with."""
        return file_head(self.sop_class_uid, self.sop_instance_uid, self.transfer_syntax_uid)


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, and a comment of at most 64 characters where it is no success."""

    status: int
    comment: str = ""


class Receiver:
    """Takes instances into ``spool`` and ``ledger``; any number of threads may call it at once."""

    def __init__(
        self, spool: Spool, ledger: Ledger, max_instance_bytes: int, clock: Callable[[], float]
    ) -> None:
        self._spool = spool
        self._ledger = ledger
        self._max_instance_bytes = max_instance_bytes
        self._clock = clock

    def take(self, arrival: Arrival) -> Answer:
        """Keep the instance and say so, or say why not; never raises.

        Success means one of: the file and its ledger row are on the disk; exactly these bytes already were;
        the object is marked synthetic, so it is counted and dropped; another header came first with the same
        pixels under this SOP Instance UID, so this one is on the disk in quarantine. With other pixels, or
        where they mean other HU or places, or where the first is of another series, it is there too, and the
        answer is a warning.
        """
        try:
            return self._take(arrival)
        except Exception as error:  # the border: whatever it was, the sender must hear that we do not have it
            return _answer(error)

    def _take(self, arrival: Arrival) -> Answer:
        with self._spool.draft((arrival.head,)) as draft:
            pieces = self._written(arrival, draft)
            header = _header_of(pieces, arrival, draft)
            _check_announced(arrival, header)
            if self._is_own(header):
                self._ledger.count("own_dropped")
                log.info("synthetic instance dropped")
                return Answer(SUCCESS)
            for _ in pieces:
                pass
            return self._keep(arrival, header, draft)

    def _written(self, arrival: Arrival, draft: Draft) -> Iterator[Chunk]:
        """The pieces of the data set, each of them written when it is given."""
        size = 0
        for piece in (arrival.data,) if isinstance(arrival.data, memoryview) else arrival.data:
            size += len(piece)
            if size > self._max_instance_bytes:
                raise InstanceTooLarge(f"an instance has at most {self._max_instance_bytes} bytes here")
            self._spool.require_room(len(piece))
            draft.write(piece)
            yield piece

    def _is_own(self, header: Header) -> bool:
        """Whether the object is synthetic; a series that has a folder in the inbox was asked for before."""
        if is_own(header.marks) is not None:
            return True
        uid = header.series_instance_uid
        return not self._spool.has_series(uid) and self._ledger.is_own_series(uid)

    def _keep(self, arrival: Arrival, header: Header, draft: Draft) -> Answer:
        sha256 = draft.sha256()
        uids = (header.series_instance_uid, header.sop_instance_uid)
        name = inbox_name(*uids, sha256)
        is_known = self._spool.path_of(name).exists()
        if is_known and self._ledger.record_repeat(*uids, sha256, self._clock()) is not None:
            self._ledger.count("repeats")
            return Answer(SUCCESS)
        self._require_room_for(header.series_instance_uid)
        with self._spool.keeping():
            placed = draft.place(name)
            recorded = self._ledger.record_instance(_received(arrival, header, placed), self._clock())
        if recorded.superseded_job_id is not None:
            log.info("late slice", job=recorded.job_id, supersedes=recorded.superseded_job_id)
        if recorded.conflict:
            return self._set_aside(arrival, placed, recorded)
        return Answer(SUCCESS)

    def _require_room_for(self, series_instance_uid: str) -> None:
        """Where the disk fills up, only series that have begun go on; raises SpoolFull for others."""
        if self._spool.has_room_for_new():
            return
        begun = {job.series_instance_uid for job in self._ledger.jobs([State.RECEIVING])}
        if series_instance_uid not in begun:
            raise SpoolFull("only series that have begun are finished")

    def _set_aside(self, arrival: Arrival, placed: Placed, recorded: Recorded) -> Answer:
        """Other bytes than a job holds: into quarantine, with a warning where it is another image."""
        aside = self._spool.quarantine(placed, PurePosixPath(*placed.path.parts[-2:]))
        found = self._difference(arrival, aside, recorded)
        row = SetAside(
            job_id=recorded.job_id,
            path=aside.path,
            sha256=aside.sha256,
            bytes=aside.bytes,
            calling_ae=arrival.calling_ae,
            reason=found,
            sop_class_uid=arrival.sop_class_uid,
        )
        self._ledger.record_set_aside(row, self._clock())
        self._ledger.count("quarantined")
        log.warning("other bytes under a known UID: the first stay, these are in quarantine", job=row.job_id)
        return Answer(SUCCESS) if found.is_harmless else Answer(COERCED, f"in quarantine: {found}")

    def _difference(self, arrival: Arrival, aside: Placed, recorded: Recorded) -> Difference:
        if recorded.in_other_series:
            return Difference.SERIES
        held = self._ledger.instance(recorded.job_id, arrival.sop_instance_uid)
        if held is None:
            return Difference.PIXELS
        return difference(held.path, held.transfer_syntax_uid, aside.path, arrival.transfer_syntax_uid)


def _header_of(pieces: Iterator[Chunk], arrival: Arrival, draft: Draft) -> Header:
    """The header: from the first piece where that holds all of it, else from all that ``draft`` then has.

    Raises HeaderRefused; what is wrong with the first piece may come right with the second.
    """
    found = header_within(memoryview(next(pieces, b"")), arrival.transfer_syntax_uid)
    if found is not None:
        return found
    for _ in pieces:
        pass
    return read_header(draft.view()[len(arrival.head) :], arrival.transfer_syntax_uid)


def _received(arrival: Arrival, header: Header, placed: Placed) -> ReceivedInstance:
    return ReceivedInstance(
        sop_instance_uid=header.sop_instance_uid,
        sop_class_uid=header.sop_class_uid,
        transfer_syntax_uid=arrival.transfer_syntax_uid,
        series_instance_uid=header.series_instance_uid,
        study_instance_uid=header.study_instance_uid,
        calling_ae=arrival.calling_ae,
        path=placed.path,
        sha256=placed.sha256,
        bytes=placed.bytes,
    )


def _check_announced(arrival: Arrival, header: Header) -> None:
    if arrival.sop_class_uid != header.sop_class_uid:
        raise NotAsAnnounced("the data set is of another SOP class than was announced")
    if arrival.sop_instance_uid != header.sop_instance_uid:
        raise NotAsAnnounced("the data set is another SOP instance than was announced")


def _answer(error: Exception) -> Answer:
    status = next((ANSWERS[base] for base in type(error).__mro__ if base in ANSWERS), UNFORESEEN)
    comment = str(error) if isinstance(error, NodeError) else f"not stored: {type(error).__name__}"
    log.warning("instance refused", status=f"0x{status:04X}", reason=comment, at=_place(error))
    return Answer(status, comment[:COMMENT_LENGTH])


def _place(error: Exception) -> str:
    """Where it was raised; not the message, which may quote the data set."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"
