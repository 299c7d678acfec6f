"""What the model added, in HU: synthetic minus source, as a Parametric Map (PS3.3 A.75).

A reader sees at a glance where a synthesis departs from what was measured. Stored values are unsigned 16 bit
with an offset, since few viewers show floating point pixels; the Real World Value Mapping leads back to HU.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from highdicom import (
    PixelMeasuresSequence,
    PlaneOrientationSequence,
    PlanePositionSequence,
    VOILUTTransformation,
)
from highdicom.pm import ParametricMap, RealWorldValueMapping
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from engine.synthesis import Synthesis
from node import tags
from node.outputs import copied, provenance
from node.outputs.context import OutputContext
from node.outputs.ct_series import check_synthesis, to_stored
from node.outputs.encoding import copy_element, declare_encoding
from node.outputs.provenance import Derivation
from node.series import SourceSeries
from node.uids import derive_uid

KIND: Final = "enhancement_map"
RANK: Final = 10
"""Series numbers of maps lie this far behind those of the CT series."""

OFFSET_HU: Final = 4096
"""Stored value = difference in HU + this."""
LARGEST_STORED: Final = 2 * OFFSET_HU - 1
WINDOW_HU: Final = (100, 300)
"""Centre and width of the display window, in HU of difference."""
HOUNSFIELD: Final = Code("[hnsf'U]", "UCUM", "Hounsfield unit")
SUBTRACTION: Final = Code("113062", "DCM", "Pixel by pixel subtraction")


def make_enhancement_map(series: SourceSeries, synthesis: Synthesis, context: OutputContext) -> list[Dataset]:
    """One multi-frame instance, a frame a slice with its position; equal arguments give equal bytes.

    Raises ValueError where the synthesis is not on the source's grid, holds numbers that are not finite, or
    is of a phase without a style.
    """
    check_synthesis(series, synthesis)
    title = f"{synthesis.phase.upper()} ENHANCEMENT MAP"
    derivation = Derivation(KIND, title, RANK, series, synthesis, context)
    ds = _parametric_map(derivation, _stored_difference(series, synthesis))
    copied.copy_identity(derivation.source, ds)
    copied.copy_lossy(derivation.source, ds)
    provenance.describe(ds, derivation)
    _refer(ds, derivation)
    _freeze(ds)
    ds["PixelData"].VR = "OW"
    declare_encoding(ds)
    return [ds]


def _stored_difference(series: SourceSeries, synthesis: Synthesis) -> NDArray[np.uint16]:
    """Synthetic minus source as both would be stored, offset and clipped, a slice at a time."""
    stored = np.empty(series.volume.hu.shape, dtype=np.uint16)
    for index, (made, source) in enumerate(zip(synthesis.volume.hu, series.volume.hu, strict=True)):
        difference = to_stored(made).astype(np.int32) - to_stored(source)
        stored[index] = np.clip(difference + OFFSET_HU, 0, LARGEST_STORED)
    return stored


def _parametric_map(derivation: Derivation, stored: NDArray[np.uint16]) -> Dataset:
    headers = derivation.series.headers
    _, rows_mm, columns_mm = derivation.series.volume.geometry.spacing_mm
    center, width = WINDOW_HU
    return ParametricMap(
        source_images=[_stand_in(derivation, index) for index in range(len(headers))],
        pixel_array=stored,
        series_instance_uid=provenance.series_uid(derivation.private_values()),
        series_number=1,
        sop_instance_uid=_instance_uid(derivation),
        instance_number=1,
        manufacturer=derivation.context.node.manufacturer,
        manufacturer_model_name=derivation.context.node.model_name,
        software_versions=derivation.context.node.software_versions[0],
        device_serial_number=derivation.context.node.device_serial_number,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[_mapping(derivation)],
        voi_lut_transformations=[
            VOILUTTransformation(
                [center + OFFSET_HU], [width], [f"SYNTHETIC {derivation.phase} MINUS SOURCE"]
            )
        ],
        pixel_measures=PixelMeasuresSequence(
            [rows_mm, columns_mm], _thickness_mm(derivation), derivation.series.volume.geometry.spacing_mm[0]
        ),
        plane_orientation=PlaneOrientationSequence("PATIENT", headers[0].ImageOrientationPatient),
        plane_positions=[PlanePositionSequence("PATIENT", header.ImagePositionPatient) for header in headers],
        transfer_syntax_uid=ExplicitVRLittleEndian,
        image_flavor="VOLUME",
        derived_pixel_contrast="SUBTRACTION",
        content_label="ENHANCEMENT",
        content_description=f"SYNTHETIC {derivation.phase} MINUS SOURCE",
        derivation=SUBTRACTION,
    )


def _mapping(derivation: Derivation) -> RealWorldValueMapping:
    return RealWorldValueMapping(
        lut_label="ENHANCEMENT",
        lut_explanation=f"HU, synthetic {derivation.synthesis.phase} minus source",
        unit=HOUNSFIELD,
        value_range=(0, LARGEST_STORED),
        slope=1.0,
        intercept=-float(OFFSET_HU),
    )


def _thickness_mm(derivation: Derivation) -> float:
    stated = tags.number(derivation.source, "SliceThickness")
    return stated if stated is not None and stated > 0 else derivation.series.volume.geometry.spacing_mm[0]


def _instance_uid(derivation: Derivation) -> str:
    return provenance.instance_uid(derivation.private_values(), derivation.source_series_uid, None)


def _stand_in(derivation: Derivation, index: int) -> Dataset:
    """A classic CT header for slice ``index``, without a patient: all that highdicom needs of a source.

    Frames of a multi-frame source have no SOPInstanceUID of their own, so stand-ins get one; `_refer` writes
    the true references.
    """
    header = derivation.series.headers[index]
    ds = Dataset()
    copied.fill_empty(ds, copied.TYPE_2)
    copied.copy_elements(header, ds, ("StudyInstanceUID", "ImagePositionPatient", "ImageOrientationPatient"))
    copied.copy_elements(header, ds, ("PixelSpacing", "Rows", "Columns"))
    ds.SliceThickness = _thickness_mm(derivation)
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = UID(derive_uid("stand-in", str(index)))
    ds.SeriesInstanceUID = UID(derivation.source_series_uid)
    ds.FrameOfReferenceUID = UID(derive_uid("stand-in"))
    ds.Modality = "CT"
    return ds


def _refer(ds: Dataset, derivation: Derivation) -> None:
    """The true references, frame by frame, and each frame's position with the source's own digits."""
    place_of = {
        tags.numbers(header, "ImagePositionPatient", 3): index
        for index, header in enumerate(derivation.series.headers)
    }
    for frame in ds.PerFrameFunctionalGroupsSequence:
        position = frame.PlanePositionSequence[0]
        index = place_of[tags.numbers(position, "ImagePositionPatient", 3)]
        copy_element(derivation.series.headers[index], position, "ImagePositionPatient")
        frame.DerivationImageSequence[0].SourceImageSequence = [
            provenance.source_reference(derivation, index)
        ]
    everything = range(len(derivation.series.headers))
    ds.ReferencedSeriesSequence = [provenance.referenced_series(derivation, everything)]
    ds.pop("SourceImageSequence", None)


def _freeze(ds: Dataset) -> None:
    """highdicom draws this UID at random: derive it instead."""
    uid = UID(derive_uid("dimensions", ds.SOPInstanceUID))
    for item in (*ds.DimensionOrganizationSequence, *ds.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid
