from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from node import private
from node.outputs import OUTPUTS, to_bytes
from node.verify import verify, verify_dataset


@pytest.fixture(params=sorted(OUTPUTS))
def output(request, kit) -> Dataset:
    """One instance of every kind, as read from its file."""
    return first(kit, request.param)


@pytest.fixture
def ct_slice(kit) -> Dataset:
    return first(kit, "ct_series")


def first(kit, kind: str) -> Dataset:
    series = kit.source()
    [ds, *_] = OUTPUTS[kind](series, kit.synthesis(series), kit.context())
    return dcmread(BytesIO(to_bytes(ds)))


def problems(ds: Dataset) -> str:
    return "; ".join(verify_dataset(ds).problems)


def save(ds: Dataset, path: Path) -> Path:
    ds.save_as(path)
    return path


def anonymise(ds: Dataset) -> None:
    """What Orthanc's anonymisation does: no private tags, no descriptions, other UIDs."""
    ds.remove_private_tags()
    for keyword in ("SeriesDescription", "DerivationDescription", "ImageComments", "DeviceUID"):
        ds.pop(keyword, None)
    ds.SeriesInstanceUID, ds.SOPInstanceUID = "2.25.1", "2.25.2"
    ds.ReferencedSeriesSequence[0].SeriesInstanceUID = "2.25.3"


def test_an_untouched_output_is_ours_and_has_no_problem(output, tmp_path):
    found = verify(save(output, tmp_path / "a.dcm"))
    assert found.ours
    assert found.phase == "arterial"
    assert found.model_id == "test-arterial-1.0.0"
    assert found.model_digest == "ab" * 32
    assert found.generation == 1
    assert found.problems == ()


def test_the_row_is_plain_json(output, tmp_path):
    row = verify(save(output, tmp_path / "a.dcm")).row()
    assert json.loads(json.dumps(row)) == row
    assert row["path"] == str(tmp_path / "a.dcm")


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, RLELossless, JPEG2000Lossless])
def test_another_transfer_syntax_changes_nothing(ct_slice, tmp_path, syntax):
    path = tmp_path / "a.dcm"
    if syntax.is_compressed:
        ct_slice.compress(syntax, generate_instance_uid=False)
        ct_slice.save_as(path)
    else:
        ct_slice.file_meta.TransferSyntaxUID = syntax
        ct_slice.save_as(path)
    found = verify(path)
    assert found.ours
    assert found.problems == ()


def test_an_anonymised_output_is_ours_by_what_is_left(ct_slice):
    anonymise(ct_slice)
    found = verify_dataset(ct_slice)
    assert found.ours
    assert (found.phase, found.model_id, found.model_digest) == ("arterial", "test-arterial-1.0.0", "ab" * 32)
    assert found.source_series_uid == "2.25.3"
    assert found.generation is None
    assert "the private block was stripped" in found.problems
    assert "the series description does not say SYNTHETIC" in found.problems


def test_the_acquisition_itself_is_not_ours(kit):
    found = verify(kit.files()[0])
    assert not found.ours
    assert found.problems == ()


def test_somebody_elses_synthetic_image_is_not_ours_and_said_so(kit):
    ds = dcmread(kit.files()[0])
    ds.SyntheticData = "YES"
    assert not verify_dataset(ds).ours
    assert "without this node's marks" in problems(ds)


def test_what_is_no_dicom_file_is_not_ours(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("hello")
    assert verify(path).problems == ("not a DICOM file",)


def test_a_truncated_file_is_a_problem_and_no_traceback(ct_slice, tmp_path):
    path = tmp_path / "a.dcm"
    path.write_bytes(to_bytes(ct_slice)[:700])
    found = verify(path)
    assert not found.ours or found.problems


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        verify(tmp_path / "none.dcm")


def change(ds: Dataset, keyword: str, value: object) -> None:
    setattr(ds, keyword, value)


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda ds: ds.pop("SyntheticData"), "SyntheticData is not YES"),
        (lambda ds: change(ds, "SyntheticData", "NO"), "SyntheticData is not YES"),
        (
            lambda ds: change(ds, "ImageType", ["ORIGINAL", "PRIMARY", "AXIAL"]),
            "ImageType does not say SYNTHETIC",
        ),
        (
            lambda ds: change(ds, "SeriesDescription", "ARTERIAL"),
            "the series description does not say SYNTHETIC",
        ),
        (lambda ds: ds.pop("ImageComments"), "the image comments do not say NOT ACQUIRED"),
        (lambda ds: change(ds, "ContrastBolusAgent", "IOHEXOL"), "contrast attributes are present"),
        (lambda ds: ds.pop("ContributingEquipmentSequence"), "the model (109100) is not in Contributing"),
        (
            lambda ds: change(ds.ContributingEquipmentSequence[-1], "DeviceUID", "2.25.9"),
            "the model's DeviceUID does not follow from its digest",
        ),
        (lambda ds: change(ds, "SeriesInstanceUID", "2.25.9"), "the series UID does not follow"),
        (lambda ds: change(ds, "SOPInstanceUID", "2.25.9"), "the instance UID does not follow"),
        (lambda ds: ds.pop("ReferencedSeriesSequence"), "the source series is not referenced"),
        (
            lambda ds: change(ds.ReferencedSeriesSequence[0], "SeriesInstanceUID", "2.25.9"),
            "the referenced series is not the one in the private block",
        ),
        (lambda ds: change(ds, "RescaleIntercept", -1024), "rescale slope and intercept are not 1 and 0"),
        (lambda ds: change(ds, "WindowCenter", [40, 300]), "there is not exactly one window"),
        (lambda ds: change(ds, "PixelRepresentation", 0), "not signed 16 bit"),
        (lambda ds: ds.pop("PixelData"), "the pixels cannot be decoded"),
        (
            lambda ds: change(ds, "PixelData", np.zeros((ds.Rows, ds.Columns), np.int16).tobytes()),
            "every pixel has the same value",
        ),
        (lambda ds: ds.pop((0x0071, 0x1000 | private.SEED)), "the private block lacks Noise Seed"),
        (
            lambda ds: change(ds[0x0071, 0x1000 | private.SCHEMA], "value", "99"),
            "the private block has schema 99, not 1",
        ),
    ],
)
def test_every_change_is_named(ct_slice, edit, problem):
    edit(ct_slice)
    assert verify_dataset(ct_slice).ours
    assert problem in problems(ct_slice)


def test_a_block_with_an_unreadable_generation_has_none(ct_slice):
    ct_slice.add_new((0x0071, 0x1000 | private.GENERATION), "UN", b"two ")
    assert verify_dataset(ct_slice).generation is None
