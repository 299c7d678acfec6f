"""What a destination answers for one instance, and the table that says what the answer means.

Statuses are DIMSE numbers (PS3.7 Annex C); a destination that speaks something else translates into them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Verdict(StrEnum):
    """What one status means for a delivery."""

    DELIVERED = "DELIVERED"
    """The peer has the instance."""
    WAIT = "WAIT"
    """The peer asks to be tried again later."""
    REFUSED = "REFUSED"
    """The peer will never take it like this: a person is needed."""


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """One row: statuses ``first`` to ``last`` mean ``verdict``, says the standard in section ``source``."""

    first: int
    last: int
    verdict: Verdict
    meaning: str
    source: str


STORE_STATUSES: tuple[StoreStatus, ...] = (
    StoreStatus(0x0000, 0x0000, Verdict.DELIVERED, "Success", "PS3.4 Table B.2-1"),
    StoreStatus(0xB000, 0xB000, Verdict.DELIVERED, "Warning: coercion of data elements", "PS3.4 Table B.2-1"),
    StoreStatus(0xB006, 0xB006, Verdict.DELIVERED, "Warning: elements discarded", "PS3.4 Table B.2-1"),
    StoreStatus(0xB007, 0xB007, Verdict.DELIVERED, "Warning: other SOP class", "PS3.4 Table B.2-1"),
    StoreStatus(0xB001, 0xB005, Verdict.DELIVERED, "Warning: peculiar to the peer", "PS3.7 C.4"),
    StoreStatus(0xB008, 0xBFFF, Verdict.DELIVERED, "Warning: peculiar to the peer", "PS3.7 C.4"),
    StoreStatus(0x0001, 0x0001, Verdict.DELIVERED, "Warning: requested optional attributes", "PS3.7 C.4"),
    StoreStatus(0x0107, 0x0107, Verdict.DELIVERED, "Warning: attribute list error", "PS3.7 C.4"),
    StoreStatus(0x0116, 0x0116, Verdict.DELIVERED, "Warning: attribute value out of range", "PS3.7 C.4"),
    StoreStatus(
        0x0111, 0x0111, Verdict.DELIVERED, "Duplicate SOP instance: it is there already", "PS3.7 C.5"
    ),
    StoreStatus(0xA700, 0xA7FF, Verdict.WAIT, "Refused: out of resources", "PS3.4 Table B.2-1"),
    StoreStatus(0x0213, 0x0213, Verdict.WAIT, "Resource limitation", "PS3.7 C.5"),
    StoreStatus(0x0110, 0x0110, Verdict.WAIT, "Processing failure", "PS3.7 C.5"),
    StoreStatus(0x0210, 0x0210, Verdict.WAIT, "Duplicate invocation", "PS3.7 9.1.1.1.9"),
    StoreStatus(0xFE00, 0xFE00, Verdict.WAIT, "Cancelled by the peer", "PS3.7 C.3"),
    StoreStatus(0xA900, 0xA9FF, Verdict.REFUSED, "Error: other SOP class", "PS3.4 Table B.2-1"),
    StoreStatus(0xC000, 0xCFFF, Verdict.REFUSED, "Error: cannot understand", "PS3.4 Table B.2-1"),
    StoreStatus(0x0117, 0x0117, Verdict.REFUSED, "Invalid object instance", "PS3.7 9.1.1.1.9"),
    StoreStatus(0x0122, 0x0122, Verdict.REFUSED, "Refused: SOP class not supported", "PS3.7 9.1.1.1.9"),
    StoreStatus(0x0124, 0x0124, Verdict.REFUSED, "Refused: not authorised", "PS3.7 9.1.1.1.9"),
    StoreStatus(0x0211, 0x0211, Verdict.REFUSED, "Unrecognised operation", "PS3.7 9.1.1.1.9"),
    StoreStatus(0x0212, 0x0212, Verdict.REFUSED, "Mistyped argument", "PS3.7 9.1.1.1.9"),
)
"""Every status a C-STORE may end with and what the node does about it."""

UNKNOWN_STATUS = StoreStatus(0x0000, 0xFFFF, Verdict.REFUSED, "A status the standard does not name", "none")


def store_status(status: int) -> StoreStatus:
    """The row of :data:`STORE_STATUSES` for ``status``; what no row names counts as refused."""
    for row in STORE_STATUSES:
        if row.first <= status <= row.last:
            return row
    return UNKNOWN_STATUS


def words_of(status: int) -> str:
    """A status for people: ``0xA700 Refused: out of resources``."""
    return f"0x{status:04X} {store_status(status).meaning}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a destination says about one file. "Wait" is the last answer of a delivery."""

    path: Path
    sop_instance_uid: str
    status: int

    @property
    def verdict(self) -> Verdict:
        """What :attr:`status` means."""
        return store_status(self.status).verdict
