"""The data sets of storage commitment (PS3.3 C.14, PS3.4 J.3), written, and read without believing them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from io import BytesIO
from typing import Final

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import UID

from node import tags
from node.errors import NodeError
from node.ledger import Output, Reference
from node.uids import is_plausible_uid

PUSH_MODEL: Final = "1.2.840.10008.1.20.1"
"""Storage Commitment Push Model SOP Class."""
PUSH_MODEL_INSTANCE: Final = "1.2.840.10008.1.20.1.1"
"""Its one well-known instance (PS3.4 J.3.5)."""
SYNTAXES: Final = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
"""Transfer syntaxes it is spoken in: both little endian, neither deflated."""
REQUEST_ACTION: Final = 1
"""Action Type ID of a request (PS3.4 J.3.2.1)."""
ALL_HELD, SOME_FAILED = 1, 2
"""Event Type IDs of a report (PS3.4 J.3.3.1)."""

MOST_REFERENCES: Final = 20_000
"""References of one request or report that are read."""
MOST_BYTES: Final = 8 * 1024 * 1024
"""Longest data set that is read; so many references take half of it."""
ITEM: Final = b"\xfe\xff\x00\xe0"
"""How an item begins (PS3.5 7.5), little endian; no UID holds these bytes."""

TRANSACTION_UID: Final = 0x00081195
REFERENCED: Final = 0x00081199
FAILED: Final = 0x00081198
CLASS_UID: Final = 0x00081150
INSTANCE_UID: Final = 0x00081155
FAILURE_REASON: Final = 0x00081197


class Cure(StrEnum):
    """What the node does about an instance that the peer did not commit."""

    SEND_AGAIN = "SEND_AGAIN"
    """The peer does not have it: the deliver lane sends it."""
    ASK_AGAIN = "ASK_AGAIN"
    """The peer may have it: it is asked again after the time-out."""
    PERSON = "PERSON"
    """Neither helps: the job is parked."""


@dataclass(frozen=True, slots=True)
class FailureReason:
    """One row: what a failure reason (0008,1197) means and what follows."""

    code: int
    cure: Cure
    meaning: str


PROCESSING_FAILURE: Final = 0x0110
NO_SUCH_INSTANCE: Final = 0x0112
CLASS_CONFLICT: Final = 0x0119

FAILURE_REASONS: Final[dict[int, FailureReason]] = {
    row.code: row
    for row in (
        FailureReason(PROCESSING_FAILURE, Cure.ASK_AGAIN, "Processing failure"),
        FailureReason(NO_SUCH_INSTANCE, Cure.SEND_AGAIN, "No such object instance"),
        FailureReason(CLASS_CONFLICT, Cure.PERSON, "Class/instance conflict"),
        FailureReason(0x0122, Cure.PERSON, "Referenced SOP class not supported"),
        FailureReason(0x0131, Cure.ASK_AGAIN, "Duplicate transaction UID"),
        FailureReason(0x0213, Cure.ASK_AGAIN, "Resource limitation"),
    )
}
"""Every reason of PS3.3 C.14.1.1."""


def failure_reason(code: int) -> FailureReason:
    """The row for ``code``; one the standard does not name is taken for an instance that is not there."""
    return FAILURE_REASONS.get(code) or FailureReason(NO_SUCH_INSTANCE, Cure.SEND_AGAIN, f"0x{code:04X}")


class NotUnderstood(NodeError):
    """A data set of storage commitment that cannot be used; names no value of it."""


@dataclass(frozen=True, slots=True)
class Named:
    """What a request or a report names: its transaction, instances, and failed ones with their reasons."""

    transaction_uid: str
    held: tuple[Reference, ...]
    failed: tuple[tuple[Reference, int], ...] = ()


def written(named: Named) -> Dataset:
    """The data set of a request, or of a report (PS3.4 tables J.3-1 and J.3-2)."""
    ds = Dataset()
    ds.TransactionUID = named.transaction_uid
    if named.held:
        ds.ReferencedSOPSequence = [_item(reference) for reference in named.held]
    if named.failed:
        ds.FailedSOPSequence = [_item(reference, reason) for reference, reason in named.failed]
    return ds


def _item(reference: Reference, reason: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = reference.sop_class_uid
    item.ReferencedSOPInstanceUID = reference.sop_instance_uid
    if reason is not None:
        item.FailureReason = reason
    return item


def read(data: BytesIO | None, transfer_syntax_uid: str) -> Named:
    """What the data set names; raises NotUnderstood for one that is none, is too long or names no UIDs."""
    encoded = b"" if data is None else data.getvalue()
    if not 0 < len(encoded) <= MOST_BYTES or encoded.count(ITEM) > MOST_REFERENCES:
        raise NotUnderstood("the data set is missing, too long or has too many items")
    try:
        ds = read_dataset(BytesIO(encoded), UID(transfer_syntax_uid).is_implicit_VR, True)
        named = Named(
            _uid(ds, TRANSACTION_UID),
            tuple(_reference(item) for item in _items(ds, REFERENCED)),
            tuple((_reference(item), _number(item, FAILURE_REASON)) for item in _items(ds, FAILED)),
        )
    except (OSError, *tags.PARSE_ERRORS) as error:
        raise NotUnderstood("the data set cannot be parsed") from error
    if not (named.held or named.failed):
        raise NotUnderstood("no instance is referenced")
    return named


def _items(ds: Dataset, tag: int) -> Sequence[Dataset]:
    if tag not in ds:
        return []
    element = ds[tag]
    if element.VR != "SQ":
        raise NotUnderstood("a sequence is none")
    return list(element.value)


def _reference(item: Dataset) -> Reference:
    return Reference(_uid(item, CLASS_UID), _uid(item, INSTANCE_UID))


def _uid(ds: Dataset, tag: int) -> str:
    """The UID as it came: pydicom would warn about, and quote, a value that is none."""
    value = getattr(ds.get_item(tag), "value", None)
    text = value.decode("ascii", "replace").strip(" \x00") if isinstance(value, bytes) else ""
    if not is_plausible_uid(text):
        raise NotUnderstood("a UID is missing or no UID")
    return text


def _number(ds: Dataset, tag: int) -> int:
    """An unsigned short, 0 where there is none."""
    value = getattr(ds.get_item(tag), "value", None)
    return int.from_bytes(value[:2], "little") if isinstance(value, bytes) else 0


def references_of(outputs: Iterable[Output]) -> tuple[Reference, ...]:
    """What outputs are called in a request."""
    return tuple(Reference(output.sop_class_uid, output.sop_instance_uid) for output in outputs)
