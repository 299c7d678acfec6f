"""Small CT series made to order: what the reader, intake and everything behind them are tried with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def make_slices(
    hu: np.ndarray,
    *,
    spacing_mm: tuple[float, float, float] = (2.5, 0.8, 0.7),
    origin_mm: tuple[float, float, float] = (-5.0, -6.0, 100.0),
    orientation: Sequence[float] = AXIAL,
    series_uid: str = "1.2.3.4",
    **attributes: Any,
) -> list[Dataset]:
    """One CT dataset a slice of ``hu[slice, row, column]``, stacked along the normal; nothing optional."""
    normal = np.cross(orientation[:3], orientation[3:])
    slices = []
    for index, one in enumerate(np.asarray(hu)):
        ds = Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, f"{series_uid}.{index + 1}"
        ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3", series_uid
        ds.PatientName, ds.PatientID, ds.Modality = "DOE^JANE", "ID0017", "CT"
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.InstanceNumber = index + 1
        ds.FrameOfReferenceUID = "1.2.3.9"
        ds.ImagePositionPatient = [round(float(x), 6) for x in origin_mm + normal * index * spacing_mm[0]]
        ds.ImageOrientationPatient = [float(x) for x in orientation]
        ds.PixelSpacing = [spacing_mm[1], spacing_mm[2]]
        ds.SliceThickness = spacing_mm[0]
        ds.KVP = 120
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
        ds.Rows, ds.Columns = one.shape
        ds.BitsAllocated = ds.BitsStored = 16
        ds.HighBit, ds.PixelRepresentation, ds.SamplesPerPixel = 15, 1, 1
        ds.PhotometricInterpretation = "MONOCHROME2"
        ds.add_new("PixelData", "OW", (np.asarray(one) + 1024).astype("<i2").tobytes())
        for keyword, value in attributes.items():
            setattr(ds, keyword, value)
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        slices.append(ds)
    return slices


def gradient(slices: int = 10, rows: int = 12, columns: int = 16) -> np.ndarray:
    """HU that differ at every voxel: 100 a slice, 10 a row, 1 a column."""
    s, r, c = np.indices((slices, rows, columns))
    return (100 * s + 10 * r + c).astype(np.int16)


@pytest.fixture(scope="session")
def ct() -> SimpleNamespace:
    """``ct.slices`` and ``ct.gradient``: :func:`make_slices` and :func:`gradient`."""
    return SimpleNamespace(slices=make_slices, gradient=gradient)


WriteSlices = Callable[..., list[Path]]


@pytest.fixture
def write_slices(tmp_path: Path) -> WriteSlices:
    """Writes datasets as files, in the order given; returns the paths."""

    def write(slices: Sequence[Dataset], folder: str = "series") -> list[Path]:
        target = tmp_path / folder
        target.mkdir(parents=True, exist_ok=True)
        paths = []
        for ds in slices:
            paths.append(target / f"{len(list(target.iterdir())):04d}.dcm")
            ds.save_as(paths[-1], enforce_file_format=True)
        return paths

    return write
