"""The synthesis as a classic CT series: one slice a source slice, in the same study and the same place.

Tags: the conformance statement's table of a synthetic CT series (docs/conformance.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag
from pydicom.uid import UID, CTImageStorage

from engine.synthesis import Synthesis
from engine.volume import Float32
from node import tags
from node.outputs import copied, provenance
from node.outputs.context import OutputContext
from node.outputs.encoding import declare_encoding, encoded
from node.outputs.phases import style_of
from node.outputs.provenance import Derivation
from node.series import SourceSeries

KIND: Final = "ct_series"
INT16_HU: Final = (-32768, 32767)
"""What sixteen signed bits hold; metal beyond it is clipped, never wrapped."""


def make_ct_series(series: SourceSeries, synthesis: Synthesis, context: OutputContext) -> Iterator[Dataset]:
    """CT Image Storage instances in slice order, with pixel data; equal arguments give equal bytes.

    Each is made when it is asked for. Raises ValueError where the synthesis is not on the source's grid, is
    of a phase without a style, or holds numbers that are not finite: the last at the slice that does.
    """
    check_synthesis(series, synthesis)
    derivation = Derivation(KIND, synthesis.phase.upper(), 0, series, synthesis, context)
    shared = encoded(_shared(derivation))
    return (
        _slice(derivation, shared, index, number, to_stored(synthesis.volume.hu[index]))
        for index, number in enumerate(instance_numbers(series))
    )


def check_synthesis(series: SourceSeries, synthesis: Synthesis) -> None:
    """Raise ValueError unless the phase has a style and there is one slice for each header, of its size."""
    style_of(synthesis.phase)
    expected = series.volume.geometry
    if synthesis.volume.geometry != expected or len(series.headers) != expected.shape[0]:
        raise ValueError(
            f"the synthesis is on a grid of {synthesis.volume.geometry.shape}, "
            f"its source on {expected.shape} with {len(series.headers)} headers"
        )


def to_stored(hu: Float32) -> NDArray[np.int16]:
    """HU as signed 16 bit numbers, rounded and clipped; raises ValueError where a number is not finite."""
    if not np.isfinite(hu).all():
        raise ValueError("the synthesis holds numbers that are not finite")
    return np.clip(np.rint(hu), *INT16_HU).astype(np.int16)


def instance_numbers(series: SourceSeries) -> list[int]:
    """The source's instance numbers where they tell the slices apart, else 1, 2, 3 …"""
    found = [tags.number(header, "InstanceNumber") for header in series.headers]
    usable = [int(number) for number in found if number is not None and 0 <= number <= provenance.MAX_IS]
    return usable if len(set(usable)) == len(found) else list(range(1, len(found) + 1))


def _shared(derivation: Derivation) -> Dataset:
    """What every slice says in the same words."""
    ds = Dataset()
    copied.copy_identity(derivation.source, ds)
    provenance.describe(ds, derivation)
    ds.SOPClassUID = CTImageStorage
    ds.Modality = "CT"
    ds.ImageType = ["DERIVED", "SECONDARY", "AXIAL", "SYNTHETIC", derivation.phase]
    _describe_pixels(ds, derivation)
    return ds


def _slice(
    derivation: Derivation,
    shared: Mapping[BaseTag, RawDataElement],
    index: int,
    number: int,
    stored: NDArray[np.int16],
) -> Dataset:
    ds = Dataset(dict(shared))
    header = derivation.series.headers[index]
    _copy_slice(header, ds)
    source_uid, frame = tags.text(header, "SOPInstanceUID"), derivation.frame_number(index)
    ds.SOPInstanceUID = UID(provenance.instance_uid(derivation.private_values(), source_uid, frame))
    ds.InstanceNumber = number
    ds.SourceImageSequence = [provenance.source_reference(derivation, index)]
    ds.ReferencedSeriesSequence = [provenance.referenced_series(derivation, [index])]
    ds.add_new("PixelData", "OW", np.ascontiguousarray(stored, dtype="<i2").tobytes())
    declare_encoding(ds)
    return ds


def _copy_slice(header: Dataset, ds: Dataset) -> None:
    """Place, size and acquisition of the slice, from its own header."""
    copied.copy_elements(header, ds, copied.SLICE)
    copied.fill_empty(ds, copied.TYPE_2_OF_A_CT_SLICE)
    copied.copy_lossy(header, ds)


def _describe_pixels(ds: Dataset, derivation: Derivation) -> None:
    """Image Pixel, Modality LUT and one VOI window (PS3.3 C.7.6.3, C.8.2.1, C.11.2)."""
    phase = derivation.synthesis.phase
    style = style_of(phase)
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    _, ds.Rows, ds.Columns = derivation.series.volume.geometry.shape
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit = 15
    ds.PixelRepresentation = 1
    ds.RescaleIntercept = 0
    ds.RescaleSlope = 1
    ds.RescaleType = "HU"
    ds.WindowCenter = style.window_center_hu
    ds.WindowWidth = style.window_width_hu
    ds.WindowCenterWidthExplanation = f"SYNTHETIC {phase.upper()}"
