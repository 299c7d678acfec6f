"""What an archive answers to C-FIND, C-MOVE and C-GET, and what each answer means for us."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from config.settings import ArchivePeer
from node.errors import DestinationRefused, DestinationUnreachable


class Verdict(StrEnum):
    """What follows from one status."""

    DONE = "DONE"
    """The operation is over; how many sub-operations failed is counted beside it."""
    PENDING = "PENDING"
    """More answers come."""
    WAIT = "WAIT"
    """Later it may work."""
    REFUSED = "REFUSED"
    """It will never work like this: a person is needed."""


@dataclass(frozen=True, slots=True)
class RetrieveStatus:
    """One row: statuses ``first`` to ``last`` mean ``verdict``, says the standard in section ``source``.

    ``cure`` may name the fields of an archive in braces, and ``us``, our own AE title.
    """

    first: int
    last: int
    verdict: Verdict
    meaning: str
    source: str
    cure: str = ""


ASK_ITS_LOG: Final = (
    "see the archive's log; many answer so to a C-MOVE when they do not know {us} or cannot reach our port"
)
MOVE_CURE: Final = 'register {us} with this machine\'s address and port at {name}, or write retrieve = "get"'

RETRIEVE_STATUSES: Final[tuple[RetrieveStatus, ...]] = (
    RetrieveStatus(0x0000, 0x0000, Verdict.DONE, "Success", "PS3.4 C.4"),
    RetrieveStatus(0xB000, 0xB000, Verdict.DONE, "Warning: some sub-operations failed", "PS3.4 C.4.2.1.5"),
    RetrieveStatus(0xFF00, 0xFF01, Verdict.PENDING, "Pending", "PS3.4 C.4"),
    RetrieveStatus(0xA700, 0xA7FF, Verdict.WAIT, "Refused: out of resources", "PS3.4 C.4"),
    RetrieveStatus(
        0xA801, 0xA801, Verdict.REFUSED, "Refused: move destination unknown", "PS3.4 C.4.2.1.5", MOVE_CURE
    ),
    RetrieveStatus(
        0xA900,
        0xA9FF,
        Verdict.REFUSED,
        "Identifier does not match SOP class",
        "PS3.4 C.4",
        "the archive cannot be asked like this; of a series it may want the study too",
    ),
    RetrieveStatus(0xC000, 0xCFFF, Verdict.WAIT, "Unable to process", "PS3.4 C.4", ASK_ITS_LOG),
    RetrieveStatus(0xFE00, 0xFE00, Verdict.WAIT, "Cancelled by the archive", "PS3.4 C.4"),
    RetrieveStatus(0x0110, 0x0110, Verdict.WAIT, "Processing failure", "PS3.7 C.5", ASK_ITS_LOG),
    RetrieveStatus(0x0210, 0x0210, Verdict.WAIT, "Duplicate invocation", "PS3.7 C.5"),
    RetrieveStatus(0x0213, 0x0213, Verdict.WAIT, "Resource limitation", "PS3.7 C.5"),
    RetrieveStatus(0x0122, 0x0122, Verdict.REFUSED, "Refused: SOP class not supported", "PS3.7 C.5"),
    RetrieveStatus(
        0x0124,
        0x0124,
        Verdict.REFUSED,
        "Refused: not authorised",
        "PS3.7 C.5",
        "allow {calling_ae_title} to query and to retrieve at {name}",
    ),
    RetrieveStatus(0x0211, 0x0211, Verdict.REFUSED, "Unrecognised operation", "PS3.7 C.5"),
    RetrieveStatus(0x0212, 0x0212, Verdict.REFUSED, "Mistyped argument", "PS3.7 C.5"),
)
"""Every status a C-FIND, C-MOVE or C-GET may be answered with and what the node makes of it."""

UNKNOWN_STATUS: Final = RetrieveStatus(
    0x0000, 0xFFFF, Verdict.REFUSED, "A status the standard does not name", "none", "see the archive's log"
)


def retrieve_status(status: int) -> RetrieveStatus:
    """The row of :data:`RETRIEVE_STATUSES` for ``status``; what no row names counts as refused."""
    for row in RETRIEVE_STATUSES:
        if row.first <= status <= row.last:
            return row
    return UNKNOWN_STATUS


def verdict_of(status: int | None, what: str, archive: ArchivePeer, us: str) -> Verdict:
    """DONE or PENDING; raises DestinationUnreachable or DestinationRefused with what to do about it.

    ``what`` is the operation, such as ``C-MOVE``; ``status`` is None where no answer came.
    """
    if status is None:
        raise DestinationUnreachable(f"no answer to the {what}: timed out or aborted")
    row = retrieve_status(status)
    if row.verdict in {Verdict.DONE, Verdict.PENDING}:
        return row.verdict
    cure = row.cure.format(us=us, name=archive.name, calling_ae_title=archive.calling_ae_title)
    words = f"{row.meaning}, to the {what}" + (f": {cure}" if cure else "")
    if row.verdict is Verdict.REFUSED:
        raise DestinationRefused(status, words)
    raise DestinationUnreachable(f"status 0x{status:04X}: {words}")
