"""What every output says about itself: made, not acquired; by which model; from which images.

One place for the marks of honesty, so that no output can forget one.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Final

from pydicom.dataset import Dataset
from pydicom.uid import UID

from engine.synthesis import Synthesis
from node import private, tags
from node.outputs.context import OutputContext, ascii_text
from node.outputs.phases import style_of
from node.series import SourceSeries
from node.uids import derive_uid

MAX_IS: Final = 2**31 - 1
"""Largest value of an IS (PS3.5 6.2)."""
MAX_LO: Final = 64
MAX_SH: Final = 16
MAX_ST: Final = 1024

SCANNER: Final = (
    "Manufacturer",
    "InstitutionName",
    "StationName",
    "ManufacturerModelName",
    "DeviceSerialNumber",
    "SoftwareVersions",
)
"""What of the source's General Equipment goes into its Contributing Equipment item (PS3.3 C.12.1.1.5)."""

NOT_ACQUIRED: Final = "NOT ACQUIRED. NO CONTRAST GIVEN."


@dataclass(frozen=True, slots=True)
class Derivation:
    """One series in the making: of which kind, from what, by which model, for which job.

    ``title`` are the words after the prefix in its description; ``rank`` is added to the phase's number, so
    that several kinds sort behind one another.
    """

    kind: str
    title: str
    rank: int
    series: SourceSeries
    synthesis: Synthesis
    context: OutputContext

    @property
    def source(self) -> Dataset:
        """The header that speaks for patient, study and series."""
        return self.series.headers[0]

    @property
    def source_series_uid(self) -> str:
        """The SeriesInstanceUID this one is derived from."""
        return tags.text(self.source, "SeriesInstanceUID")

    @property
    def phase(self) -> str:
        """The phase as a CS value: ARTERIAL, VENOUS …"""
        return self.synthesis.phase.upper()

    def frame_number(self, index: int) -> int | None:
        """The frame of a multi-frame source that slice ``index`` came from, counted from 1."""
        return self.series.frame_numbers[index] if self.series.frame_numbers else None

    def private_values(self) -> dict[int, str]:
        """What the private block says; the UIDs are derived from the same words."""
        return {
            private.SCHEMA: private.SCHEMA_VERSION,
            private.KIND: self.kind,
            private.PHASE: self.phase,
            private.SOURCE_SERIES_UID: self.source_series_uid,
            private.MODEL_ID: ascii_text(self.synthesis.model_id, MAX_LO),
            private.MODEL_DIGEST: self.synthesis.model_digest,
            private.CONFIG_DIGEST: self.context.config_digest,
            private.NODE_DEVICE_UID: self.context.node.device_uid,
            private.GENERATION: str(self.context.generation),
            private.SEED: str(self.synthesis.seed),
        }


def series_uid(block: dict[int, str]) -> str:
    """The SeriesInstanceUID that the values of a private block lead to.

    One for each kind, node, source series, model, configuration, phase, generation and seed. Raises KeyError
    where the block lacks one of them.
    """
    return _uid("series", block, block[private.SOURCE_SERIES_UID])


def instance_uid(block: dict[int, str], source_uid: str, frame: int | None) -> str:
    """The SOPInstanceUID of what was made from one source instance, or from one frame of it."""
    return _uid("instance", block, source_uid if frame is None else f"{source_uid}#{frame}")


def _uid(what: str, block: dict[int, str], source_uid: str) -> str:
    parts = (
        private.KIND,
        private.NODE_DEVICE_UID,
        private.MODEL_DIGEST,
        private.CONFIG_DIGEST,
        private.PHASE,
        private.GENERATION,
        private.SEED,
    )
    return derive_uid(what, source_uid, *(block[part] for part in parts))


def model_device_uid(model_digest: str) -> str:
    """The DeviceUID of the model in Contributing Equipment: one for each set of weights, as IHE AIR asks."""
    return derive_uid("model", model_digest)


def coded(value: str, meaning: str) -> Dataset:
    """A code of the DICOM Controlled Terminology (PS3.16 annex D)."""
    item = Dataset()
    item.CodeValue = value
    item.CodingSchemeDesignator = "DCM"
    item.CodeMeaning = meaning
    return item


# --- references --------------------------------------------------------------------------------------------


def source_reference(derivation: Derivation, index: int) -> Dataset:
    """The source image at slice ``index`` as an item of SourceImageSequence (PS3.3 C.7.6.1.1.4)."""
    item = _image_reference(derivation.series.headers[index])
    frame = derivation.frame_number(index)
    if frame is not None:
        item.ReferencedFrameNumber = frame
    item.SpatialLocationsPreserved = "YES"
    item.PurposeOfReferenceCodeSequence = [coded("121322", "Source image for image processing operation")]
    return item


def referenced_series(derivation: Derivation, indices: Iterable[int]) -> Dataset:
    """The same images, each once, as the item of ReferencedSeriesSequence (PS3.3 C.12.2)."""
    headers = [derivation.series.headers[index] for index in indices]
    references = {tags.text(header, "SOPInstanceUID"): _image_reference(header) for header in headers}
    item = Dataset()
    item.SeriesInstanceUID = UID(derivation.source_series_uid)
    item.ReferencedInstanceSequence = list(references.values())
    return item


def _image_reference(header: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = UID(tags.text(header, "SOPClassUID"))
    item.ReferencedSOPInstanceUID = UID(tags.text(header, "SOPInstanceUID"))
    return item


# --- marks -------------------------------------------------------------------------------------------------


def describe(ds: Dataset, derivation: Derivation) -> None:
    """What every kind of output says in the same way; ``ds`` holds the source's identity already."""
    _describe_series(ds, derivation)
    _describe_derivation(ds, derivation)
    describe_equipment(ds, derivation.context)
    put_dates(ds, derivation.context)
    ds.SyntheticData = "YES"
    ds.ContentQualification = derivation.context.content_qualification
    ds.BurnedInAnnotation = "NO"
    ds.ContributingEquipmentSequence = contributing_equipment(derivation)
    private.write_private_block(ds, derivation.private_values())


def _describe_series(ds: Dataset, derivation: Derivation) -> None:
    """General Series (PS3.3 C.7.3.1): UID, number, and words a reader cannot miss; 64 characters at most."""
    number = tags.number(derivation.source, "SeriesNumber")
    words = derivation.title if number is None else f"{derivation.title} (from S{number:.0f})"
    prefix = ascii_text(derivation.context.description_prefix, MAX_LO - len(words) - 1)
    ds.SeriesInstanceUID = UID(series_uid(derivation.private_values()))
    ds.SeriesNumber = series_number(number, derivation)
    ds.SeriesDescription = f"{prefix} {words}"


def series_number(source_number: float | None, derivation: Derivation) -> int:
    """Source × factor + offset + phase + rank, or just phase + rank where that is no legal IS."""
    context = derivation.context
    k = style_of(derivation.synthesis.phase).number + derivation.rank
    number = int(source_number or 0) * context.series_number_factor + context.series_number_offset + k
    return number if 0 < number <= MAX_IS else k


def _describe_derivation(ds: Dataset, derivation: Derivation) -> None:
    """General Image (PS3.3 C.7.6.1.1.3): provenance in words, with the findings of reader and engine."""
    synthesis = derivation.synthesis
    findings = "".join(
        f" Note: {finding.text}." for finding in (*derivation.series.findings, *synthesis.findings)
    )
    ds.ImageComments = NOT_ACQUIRED
    ds.DerivationDescription = ascii_text(
        f"Synthetic {synthesis.phase} phase computed by {synthesis.model_name} {synthesis.model_version} "
        f"({synthesis.model_id}, sha256 {synthesis.model_digest}) from non-contrast series "
        f"{derivation.source_series_uid}. {NOT_ACQUIRED}{findings}",
        MAX_ST,
    )


def describe_equipment(ds: Dataset, context: OutputContext) -> None:
    """General Equipment (PS3.3 C.7.5.1): the node, since it produced the instance."""
    node = context.node
    ds.Manufacturer = ascii_text(node.manufacturer, MAX_LO)
    ds.ManufacturerModelName = ascii_text(node.model_name, MAX_LO)
    ds.StationName = ascii_text(node.station_name, MAX_SH)
    ds.DeviceSerialNumber = ascii_text(node.device_serial_number, MAX_LO)
    ds.DeviceUID = UID(node.device_uid)
    ds.SoftwareVersions = [ascii_text(version, MAX_LO) for version in node.software_versions]


def put_dates(ds: Dataset, context: OutputContext) -> None:
    """Series, content and creation date and time: the job's, in the source's time zone."""
    created = context.created_in(tags.text(ds, "TimezoneOffsetFromUTC"))
    date, time = created.strftime("%Y%m%d"), created.strftime("%H%M%S")
    ds.SeriesDate = ds.ContentDate = ds.InstanceCreationDate = date
    ds.SeriesTime = ds.ContentTime = ds.InstanceCreationTime = time


def contributing_equipment(derivation: Derivation) -> list[Dataset]:
    """What the source already named, then its scanner (109101), then the model (109100)."""
    earlier = tags.items(derivation.source, "ContributingEquipmentSequence")
    return [*deepcopy(earlier), _scanner(derivation.source), _model(derivation)]


def _scanner(source: Dataset) -> Dataset:
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [coded("109101", "Acquisition Equipment")]
    for keyword in SCANNER:
        if tags.text(source, keyword):
            item[keyword] = deepcopy(source[keyword])
    if "Manufacturer" not in item:
        item.Manufacturer = "UNKNOWN"
    return item


def _model(derivation: Derivation) -> Dataset:
    synthesis = derivation.synthesis
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [coded("109100", "Synthesizing Equipment")]
    item.Manufacturer = ascii_text(derivation.context.node.manufacturer, MAX_LO)
    item.ManufacturerModelName = ascii_text(synthesis.model_name, MAX_LO)
    versions = (synthesis.model_version, synthesis.model_id, synthesis.model_digest)
    item.SoftwareVersions = [ascii_text(version, MAX_LO) for version in versions]
    item.DeviceUID = UID(model_device_uid(synthesis.model_digest))
    how = f"{synthesis.sampler}, {synthesis.steps} steps, seed {synthesis.seed}"
    item.ContributionDescription = ascii_text(how, MAX_ST)
    return item
