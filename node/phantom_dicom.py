"""A phantom as a CT series: valid, deterministic, and nobody's patient. For the demo and the tests."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage

from engine.volume import Float32, Geometry, Vec3
from node.outputs.encoding import declare_encoding
from node.uids import derive_uid

STUDY_DATE: Final = "20250101"
STUDY_TIME: Final = "120000"
INTERCEPT_HU: Final = -1024
LARGEST_STORED: Final = 4095
"""Twelve unsigned bits, as most scanners write."""
SERIES_NUMBERS: Final[dict[str, int]] = {"ncct": 2, "arterial": 3, "venous": 4}


class PhantomLike(Protocol):
    """What this module needs of `engine.phantom.Phantom`."""

    @property
    def seed(self) -> int:
        """The number the phantom was drawn from."""

    @property
    def geometry(self) -> Geometry:
        """The grid of every phase."""

    @property
    def phases(self) -> Mapping[str, Float32]:
        """HU of each phase."""


def phantom_series(
    phantom: PhantomLike,
    phase: str = "ncct",
    *,
    study_uid: str | None = None,
    patient_name: str | None = None,
) -> list[Dataset]:
    """CT Image Storage instances of one phase, in slice order, with pixel data; deterministic in the phantom.

    Phases of a phantom share study, patient and frame of reference. SyntheticData is left out on purpose: the
    series stands in for an acquisition, and a node drops what says it is synthetic. QualityControlImage YES
    and the patient's name say that it is a phantom (PS3.3 C.7.6.1). Raises KeyError for an unknown phase.
    """
    stored = _to_stored(phantom.phases[phase])
    digest = sha256(stored.tobytes()).hexdigest()
    study = study_uid or derive_uid("phantom-study", str(phantom.seed))
    patient = _patient(phantom.seed, study, patient_name)
    shared = _shared(phantom, phase, digest)
    return [_slice(patient, shared, phantom.geometry, index, stored[index]) for index in range(len(stored))]


def _to_stored(hu: Float32) -> NDArray[np.uint16]:
    stored: NDArray[np.uint16] = np.clip(np.rint(hu) - INTERCEPT_HU, 0, LARGEST_STORED).astype(np.uint16)
    return stored


def _patient(seed: int, study_uid: str, name: str | None) -> Dataset:
    ds = Dataset()
    ds.PatientName = name or f"PHANTOM^SEED{seed:04d}"
    ds.PatientID = f"PHANTOM-{seed:04d}"
    ds.PatientBirthDate = None
    ds.PatientSex = "O"
    ds.StudyInstanceUID = UID(study_uid)
    ds.StudyDate = STUDY_DATE
    ds.StudyTime = STUDY_TIME
    ds.ReferringPhysicianName = None
    ds.StudyID = f"{seed % 10**8}"
    ds.AccessionNumber = f"P{seed % 10**8:08d}"
    ds.StudyDescription = "S2NODE PHANTOM ABDOMEN"
    return ds


def _shared(phantom: PhantomLike, phase: str, digest: str) -> Dataset:
    """Series, frame of reference, equipment and image attributes that all slices share."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = CTImageStorage
    ds.Modality = "CT"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SeriesInstanceUID = UID(derive_uid("phantom-series", str(phantom.seed), phase, digest))
    ds.SeriesNumber = SERIES_NUMBERS.get(phase, 9)
    ds.SeriesDescription = f"PHANTOM {phase.upper()}"
    ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = STUDY_DATE
    ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = STUDY_TIME
    ds.BodyPartExamined = "ABDOMEN"
    ds.PatientPosition = "HFS"
    ds.FrameOfReferenceUID = UID(derive_uid("phantom-frame-of-reference", str(phantom.seed)))
    ds.PositionReferenceIndicator = None
    ds.QualityControlImage = "YES"
    ds.BurnedInAnnotation = "NO"
    _describe_scanner(ds, phantom.geometry)
    return ds


def _describe_scanner(ds: Dataset, geometry: Geometry) -> None:
    ds.Manufacturer = "S2NODE"
    ds.ManufacturerModelName = "PHANTOM"
    ds.StationName = "PHANTOM"
    ds.KVP = 120
    ds.ConvolutionKernel = "PHANTOM"
    ds.AcquisitionNumber = 1
    ds.SliceThickness = _decimal(geometry.spacing_mm[0])
    ds.SpacingBetweenSlices = _decimal(geometry.spacing_mm[0])
    ds.PixelSpacing = [_decimal(geometry.spacing_mm[1]), _decimal(geometry.spacing_mm[2])]
    ds.ImageOrientationPatient = _decimals(geometry.directions[2]) + _decimals(geometry.directions[1])
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = geometry.shape[1:]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = INTERCEPT_HU, 1, "HU"
    ds.WindowCenter, ds.WindowWidth = 50, 400


def _slice(
    patient: Dataset, shared: Dataset, geometry: Geometry, index: int, stored: NDArray[np.uint16]
) -> Dataset:
    ds = Dataset()
    ds.update(patient)
    ds.update(shared)
    position = geometry.position_of((index, 0, 0))
    ds.SOPInstanceUID = UID(derive_uid("phantom-instance", shared.SeriesInstanceUID, str(index)))
    ds.InstanceNumber = index + 1
    ds.ImagePositionPatient = _decimals(position)
    ds.SliceLocation = _decimal(float(np.dot(position, geometry.directions[0])))
    ds.add_new("PixelData", "OW", np.ascontiguousarray(stored, dtype="<u2").tobytes())
    declare_encoding(ds)
    return ds


def _decimals(vector: Vec3) -> list[str]:
    return [_decimal(one) for one in vector]


def _decimal(value: float) -> str:
    """A DS of at most 16 characters (PS3.5 6.2), without a negative zero."""
    return f"{round(value, 6) + 0.0:.6f}"
