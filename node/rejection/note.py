"""A rejection note: a Key Object Selection Document that says which instances are not to be used and why.

PS3.3 A.35.4 and C.17.6, PS3.16 TID 2010 and CID 7011; what an archive does with it: IHE RAD TF-3 4.66.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from io import BytesIO
from pathlib import Path
from typing import Final

from highdicom.ko import KeyObjectSelection
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import UID, KeyObjectSelectionDocumentStorage

from node import tags
from node.ledger import Output
from node.outputs.context import OutputContext
from node.outputs.copied import CHARACTER_SET, PATIENT, STUDY, TYPE_2, copy_elements, fill_empty
from node.outputs.encoding import declare_encoding, to_bytes
from node.outputs.provenance import describe_equipment, put_dates
from node.uids import derive_uid

KIND: Final = "rejection_note"
"""The kind of a note among the outputs of the ledger."""

SERIES_NUMBER: Final = 9900
"""Behind what a viewer shows first."""

IDENTITY: Final = (*CHARACTER_SET, *PATIENT, *STUDY)
"""What a note copies from what it rejects: patient and study."""

NOT_OF_A_STUDY: Final = frozenset({"PositionReferenceIndicator", "PatientPosition"})


class Reason(StrEnum):
    """Why instances are rejected; a document title of PS3.16 CID 7011 each."""

    QUALITY = "quality"
    """A better result is there, or this one is not good enough: archives may show it on request."""
    SAFETY = "safety"
    """Wrong, and dangerous to look at: archives hide it."""
    EXPIRED = "expired"
    """Not to be kept any longer: archives may delete it."""


TITLES: Final[dict[Reason, Code]] = {
    Reason.QUALITY: Code("113001", "DCM", "Rejected for Quality Reasons"),
    Reason.SAFETY: Code("113037", "DCM", "Rejected for Patient Safety Reasons"),
    Reason.EXPIRED: Code("113039", "DCM", "Data Retention Policy Expired"),
}
"""The document title of each reason (IHE RAD TF-3 Table 4.66.4.1.3-1)."""


@dataclass(frozen=True, slots=True)
class Grounds:
    """Why, as a code and in words of ASCII that a reader of the note sees."""

    reason: Reason
    words: str


def identity_of(path: Path) -> bytes:
    """Patient and study of a DICOM file of ours, as a small DICOM file; raises what reading raises."""
    header = dcmread(path, stop_before_pixels=True)
    kept = Dataset()
    copy_elements(header, kept, IDENTITY)
    kept.SOPClassUID = header.SOPClassUID
    kept.SOPInstanceUID = header.SOPInstanceUID
    declare_encoding(kept)
    return to_bytes(kept)


def make_note(
    identity: bytes, rejected: Sequence[Output], grounds: Grounds, context: OutputContext
) -> Dataset:
    """The note on these instances of one study; equal arguments give equal bytes.

    ``identity`` is a file of :func:`identity_of`. Raises ValueError where nothing is rejected.
    """
    header = dcmread(BytesIO(identity))
    ds = Dataset()
    copy_elements(header, ds, IDENTITY)
    fill_empty(ds, tuple(keyword for keyword in TYPE_2 if keyword not in NOT_OF_A_STUDY))
    describe_equipment(ds, context)
    put_dates(ds, context)
    _identify(ds, rejected, grounds, context)
    _select(ds, rejected, grounds)
    ds.CurrentRequestedProcedureEvidenceSequence = [
        _evidence(tags.text(header, "StudyInstanceUID"), rejected)
    ]
    declare_encoding(ds)
    return ds


def _identify(ds: Dataset, rejected: Sequence[Output], grounds: Grounds, context: OutputContext) -> None:
    """SOP Common and Key Object Document Series (PS3.3 C.12.1, C.17.6.1); UIDs from what and why."""
    parts = (context.node.device_uid, grounds.reason, *sorted(each.sop_instance_uid for each in rejected))
    ds.SOPClassUID = KeyObjectSelectionDocumentStorage
    ds.SOPInstanceUID = UID(derive_uid("rejection-note", *parts))
    ds.SeriesInstanceUID = UID(derive_uid("rejection-note-series", *parts))
    ds.Modality = "KO"
    ds.SeriesNumber = SERIES_NUMBER
    ds.InstanceNumber = 1
    ds.SeriesDescription = f"{context.description_prefix} rejection note"[:64]
    ds.ReferencedPerformedProcedureStepSequence = []


def _select(ds: Dataset, rejected: Sequence[Output], grounds: Grounds) -> None:
    """The content tree (TID 2010)."""
    (container,) = KeyObjectSelection(
        document_title=TITLES[grounds.reason],
        referenced_objects=[_image(each) for each in rejected],
        description=grounds.words,
    )
    for element in container:
        ds[element.tag] = element


def _image(output: Output) -> Dataset:
    """An instance as highdicom wants it; with rows and columns it is referenced as an image."""
    item = Dataset()
    item.SOPClassUID = UID(output.sop_class_uid)
    item.SOPInstanceUID = UID(output.sop_instance_uid)
    item.Rows = item.Columns = 1
    return item


def _evidence(study_instance_uid: str, rejected: Sequence[Output]) -> Dataset:
    """The instances by series (PS3.3 C.17.2, Hierarchical SOP Instance Reference Macro)."""
    by_series: dict[str, list[Dataset]] = {}
    for output in rejected:
        reference = Dataset()
        reference.ReferencedSOPClassUID = UID(output.sop_class_uid)
        reference.ReferencedSOPInstanceUID = UID(output.sop_instance_uid)
        by_series.setdefault(output.series_instance_uid, []).append(reference)
    study = Dataset()
    study.StudyInstanceUID = UID(study_instance_uid)
    study.ReferencedSeriesSequence = []
    for series_instance_uid, references in by_series.items():
        series = Dataset()
        series.SeriesInstanceUID = UID(series_instance_uid)
        series.ReferencedSOPSequence = references
        study.ReferencedSeriesSequence.append(series)
    return study
