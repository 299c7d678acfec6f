from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread, dcmwrite
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    RLELossless,
)

from config.intake import IntakeSettings, SeriesLimits
from node.build import read_examined
from node.errors import REJECTION_CODES, SeriesRejected
from node.series import AIR_HU, frames_of, grid_of, read_header, read_headers, read_series

LIMITS = SeriesLimits()


def rejection(step: Callable[[], object]) -> str:
    """The code a step is rejected with."""
    with pytest.raises(SeriesRejected) as caught:
        step()
    return caught.value.code


def edited(slices: list[Dataset], index: int, **attributes: Any) -> list[Dataset]:
    for keyword, value in attributes.items():
        setattr(slices[index], keyword, value)
    return slices


# --- what a series becomes ----------------------------------------------------------------------


def test_files_in_any_order_become_slices_in_order(ct: Any, write_slices: Any) -> None:
    hu = ct.gradient()
    slices = ct.slices(hu)
    paths = write_slices([slices[i] for i in (3, 9, 0, 5, 7, 1, 8, 2, 6, 4)])
    series = read_series(paths, LIMITS)
    np.testing.assert_array_equal(series.volume.hu, hu.astype(np.float32))
    assert [header.InstanceNumber for header in series.headers] == list(range(1, 11))
    assert all("PixelData" not in header for header in series.headers)
    assert series.frame_numbers == (None,) * 10
    assert series.findings == ()


def test_the_first_three_cosines_are_where_the_column_index_grows(ct: Any, write_slices: Any) -> None:
    paths = write_slices(ct.slices(ct.gradient(4), spacing_mm=(2.5, 0.8, 0.7)))
    geometry = read_series(paths, LIMITS).volume.geometry
    assert geometry.shape == (4, 12, 16)
    assert geometry.spacing_mm == pytest.approx((2.5, 0.8, 0.7))
    assert geometry.directions == ((0, 0, 1), (0, 1, 0), (1, 0, 0))
    assert geometry.position_of((1, 0, 0)) == pytest.approx((-5.0, -6.0, 102.5))
    assert geometry.position_of((0, 1, 0)) == pytest.approx((-5.0, -5.2, 100.0))
    assert geometry.position_of((0, 0, 1)) == pytest.approx((-4.3, -6.0, 100.0))
    assert geometry.frame_of_reference_uid == "1.2.3.9"


@st.composite
def rotations(draw: st.DrawFn) -> np.ndarray:
    """Row and column cosines of any orientation, to six decimals as headers hold them."""
    angles = draw(st.tuples(*[st.floats(-np.pi, np.pi)] * 3))
    (a, b, c), matrix = angles, np.eye(3)
    for cos, sin, i, j in (
        (np.cos(a), np.sin(a), 0, 1),
        (np.cos(b), np.sin(b), 0, 2),
        (np.cos(c), np.sin(c), 1, 2),
    ):
        turn = np.eye(3)
        turn[i, i], turn[j, j], turn[i, j], turn[j, i] = cos, cos, -sin, sin
        matrix = matrix @ turn
    return np.round(matrix[:, :2].T.ravel(), 6)


@given(
    orientation=rotations(),
    spacing=st.tuples(st.floats(0.4, 8), st.floats(0.2, 3), st.floats(0.2, 3)),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
    order=st.permutations(range(7)),
)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_voxel_lies_where_its_own_header_says(
    ct: Any, orientation: Any, spacing: Any, origin: Any, order: list[int]
) -> None:
    slices = ct.slices(ct.gradient(7), spacing_mm=spacing, origin_mm=origin, orientation=orientation)
    geometry = grid_of([slices[i] for i in order])
    for index, ds in enumerate(slices):
        row, column = np.array(ds.ImageOrientationPatient[:3]), np.array(ds.ImageOrientationPatient[3:])
        expected = np.array(ds.ImagePositionPatient) + row * spacing[2] * 5 + column * spacing[1] * 3
        assert geometry.position_of((index, 3, 5)) == pytest.approx(expected.tolist(), abs=0.02)


@given(
    gaps=st.lists(st.floats(0.4, 8), min_size=3, max_size=9),
    jitter=st.floats(0, 0.04),
)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_slices_are_a_grid_exactly_when_their_gaps_agree(ct: Any, gaps: list[float], jitter: float) -> None:
    slices = ct.slices(ct.gradient(len(gaps) + 1))
    places = np.concatenate([[0.0], np.cumsum(gaps)])
    step, start = np.polyfit(np.arange(len(places)), places, 1)
    off = np.abs(places - start - step * np.arange(len(places))).max()
    for number, (ds, place) in enumerate(zip(slices, places, strict=True)):
        ds.ImagePositionPatient = [0, 0, float(place) + jitter * (-1) ** number]
    if off > max(0.06, 0.01 * step) + 2 * jitter + 1e-6:
        assert rejection(lambda: grid_of(slices)) == "NOT-A-GRID"
    elif off + 3 * jitter < 0.05:
        assert grid_of(slices).spacing_mm[0] == pytest.approx(step, abs=0.05)


def test_positions_rounded_to_a_tenth_of_a_millimetre_are_a_grid(ct: Any) -> None:
    slices = ct.slices(ct.gradient(40), spacing_mm=(1.25, 0.8, 0.7))
    for ds in slices:
        ds.ImagePositionPatient = [round(float(x), 1) for x in ds.ImagePositionPatient]
    assert grid_of(slices).spacing_mm[0] == pytest.approx(1.25, abs=0.01)


def test_one_slice_takes_its_spacing_from_the_header(ct: Any) -> None:
    (one,) = ct.slices(ct.gradient(1))
    assert grid_of([one]).spacing_mm[0] == 2.5
    one.SpacingBetweenSlices = -4
    assert grid_of([one]).spacing_mm[0] == 4
    del one.SpacingBetweenSlices, one.SliceThickness
    assert grid_of([one]).spacing_mm[0] == 1


def test_a_missing_frame_of_reference_is_a_finding_and_no_rejection(ct: Any, write_slices: Any) -> None:
    slices = ct.slices(ct.gradient(4))
    for ds in slices:
        del ds.FrameOfReferenceUID
    series = read_series(write_slices(slices), LIMITS)
    assert series.volume.geometry.frame_of_reference_uid is None
    assert [finding.code for finding in series.findings] == ["NO-FRAME-OF-REFERENCE"]


def test_a_lossy_past_is_a_finding(ct: Any, write_slices: Any) -> None:
    series = read_series(write_slices(ct.slices(ct.gradient(4), LossyImageCompression="01")), LIMITS)
    assert [finding.code for finding in series.findings] == ["LOSSY-SOURCE"]


# --- no grid ------------------------------------------------------------------------------------


def missing_slice(slices: list[Dataset]) -> None:
    del slices[4]


def doubled_slice(slices: list[Dataset]) -> None:
    slices[4].ImagePositionPatient = slices[5].ImagePositionPatient


def all_at_one_place(slices: list[Dataset]) -> None:
    for ds in slices:
        ds.ImagePositionPatient = [0, 0, 0]


def tilted_gantry(slices: list[Dataset]) -> None:
    for index, ds in enumerate(slices):
        x, y, z = ds.ImagePositionPatient
        ds.ImagePositionPatient = [x, y + 0.25 * index, z]


def turned_slice(slices: list[Dataset]) -> None:
    slices[3].ImageOrientationPatient = [0, 1, 0, 1, 0, 0]


def other_size(slices: list[Dataset]) -> None:
    slices[3].Rows = 6


def other_spacing(slices: list[Dataset]) -> None:
    slices[3].PixelSpacing = [0.9, 0.7]


def other_frame_of_reference(slices: list[Dataset]) -> None:
    slices[3].FrameOfReferenceUID = "1.2.3.10"


def no_position(slices: list[Dataset]) -> None:
    del slices[3].ImagePositionPatient


def no_orientation(slices: list[Dataset]) -> None:
    slices[3].ImageOrientationPatient = None


def no_spacing(slices: list[Dataset]) -> None:
    for ds in slices:
        ds.PixelSpacing = [0, 0]


def no_rows(slices: list[Dataset]) -> None:
    for ds in slices:
        ds.Rows = 0


def skewed_cosines(slices: list[Dataset]) -> None:
    for ds in slices:
        ds.ImageOrientationPatient = [1, 0, 0, 0.5, 0.8, 0]


def long_cosines(slices: list[Dataset]) -> None:
    for ds in slices:
        ds.ImageOrientationPatient = [2, 0, 0, 0, 1, 0]


@pytest.mark.parametrize(
    "spoil",
    [
        missing_slice, doubled_slice, all_at_one_place, tilted_gantry, turned_slice, other_size,
        other_spacing, other_frame_of_reference, no_position, no_orientation, no_spacing, no_rows,
        skewed_cosines, long_cosines,
    ],
    ids=lambda spoil: spoil.__name__,
)  # fmt: skip
def test_slices_that_are_no_regular_grid_are_rejected(
    ct: Any, spoil: Callable[[list[Dataset]], None]
) -> None:
    slices = ct.slices(ct.gradient())
    spoil(slices)
    assert rejection(lambda: grid_of(slices)) == "NOT-A-GRID"


def test_a_tilt_within_tolerance_passes(ct: Any) -> None:
    slices = ct.slices(ct.gradient())
    for index, ds in enumerate(slices):
        x, y, z = ds.ImagePositionPatient
        ds.ImagePositionPatient = [x, y + 0.02 * index, z]
    assert grid_of(slices).shape == (10, 12, 16)


def test_no_slices_are_too_few() -> None:
    assert rejection(lambda: grid_of([])) == "TOO-FEW-SLICES"


@pytest.mark.parametrize("keyword", ["SeriesInstanceUID", "StudyInstanceUID", "PatientID"])
def test_files_of_two_subjects_are_rejected(ct: Any, write_slices: Any, keyword: str) -> None:
    paths = write_slices(edited(ct.slices(ct.gradient()), 2, **{keyword: "1.9"}))
    assert rejection(lambda: read_series(paths, LIMITS)) == "IDENTITY"


# --- Hounsfield units ---------------------------------------------------------------------------


def test_every_slice_has_its_own_slope_and_intercept(ct: Any, write_slices: Any) -> None:
    hu = ct.gradient(4)
    slices = ct.slices(hu)
    edited(slices, 1, RescaleSlope=2, RescaleIntercept=-500)
    found = read_series(write_slices(slices), LIMITS).volume.hu
    np.testing.assert_array_equal(found[0], hu[0])
    np.testing.assert_array_equal(found[1], (hu[1].astype(np.float32) + 1024) * 2 - 500)


@pytest.mark.parametrize("stated", ["63536", "-2000"])
def test_padding_beside_signed_pixels_is_read_as_they_are(ct: Any, write_slices: Any, stated: str) -> None:
    hu = ct.gradient(4)
    hu[:, 0, :] = -2000 + -1024  # stored as -2000
    slices = ct.slices(hu)
    for ds in slices:
        value = int(stated)
        ds.add_new("PixelPaddingValue", "SS" if value < 0 else "US", value)
    series = read_series(write_slices(slices), LIMITS)
    assert (series.volume.hu[:, 0, :] == AIR_HU).all()
    np.testing.assert_array_equal(series.volume.hu[:, 1:, :], hu[:, 1:, :])
    assert [finding.code for finding in series.findings] == ["PADDING-REPAINTED"]


def test_padding_may_be_a_range(ct: Any, write_slices: Any) -> None:
    hu = ct.gradient(4)
    hu[:, 0, :8], hu[:, 0, 8:] = -1010, -1015
    slices = ct.slices(hu)
    for ds in slices:
        ds.add_new("PixelPaddingValue", "SS", 14)
        ds.add_new("PixelPaddingRangeLimit", "SS", 9)
    found = read_series(write_slices(slices), LIMITS).volume.hu
    assert (found[:, 0, :] == AIR_HU).all()


def test_padding_that_names_tissue_is_not_believed(ct: Any, write_slices: Any) -> None:
    hu = ct.gradient(4)
    slices = ct.slices(hu)
    for ds in slices:
        ds.add_new("PixelPaddingValue", "SS", 1024 + 55)
    series = read_series(write_slices(slices), LIMITS)
    np.testing.assert_array_equal(series.volume.hu, hu)
    assert [finding.code for finding in series.findings] == ["PADDING-IGNORED"]


def test_undeclared_padding_below_air_is_repainted(ct: Any, write_slices: Any) -> None:
    hu = ct.gradient(4)
    hu[:, :, 0] = -3024
    found = read_series(write_slices(ct.slices(hu)), LIMITS).volume.hu
    assert (found[:, :, 0] == AIR_HU).all()


def test_padding_outside_the_bits_stored_is_padding_and_no_tissue(ct: Any, write_slices: Any) -> None:
    """Masking the unused bits of 63536 in 12 bits stored would make +1072 HU of it."""
    hu = ct.gradient(4)
    slices = ct.slices(hu)
    for ds, one in zip(slices, hu, strict=True):
        stored = (one + 1024).astype("<u2")
        stored[0, :] = 63536
        ds.PixelData = stored.tobytes()
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 12, 11, 0
        ds.add_new("PixelPaddingValue", "US", 63536)
        ds.RescaleIntercept = -1024
    series = read_series(write_slices(slices), LIMITS)
    assert (series.volume.hu[:, 0, :] == AIR_HU).all()
    np.testing.assert_array_equal(series.volume.hu[:, 1:, :], hu[:, 1:, :])


@pytest.mark.parametrize(
    "attributes",
    [
        {"RescaleSlope": None},
        {"RescaleIntercept": None},
        {"RescaleSlope": 0},
        {"RescaleType": "OD"},
        {"RescaleIntercept": 60000},
    ],
    ids=str,
)
def test_what_is_not_in_hounsfield_units_is_rejected(ct: Any, write_slices: Any, attributes: Any) -> None:
    paths = write_slices(ct.slices(ct.gradient(4), **attributes))
    assert rejection(lambda: read_series(paths, LIMITS)) == "NOT-HU"


# --- pixels that cannot be decoded --------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil",
    [
        lambda ds: delattr(ds, "PixelData"),
        lambda ds: setattr(ds, "SamplesPerPixel", 3),
        lambda ds: setattr(ds, "BitsAllocated", 12),
        lambda ds: setattr(ds, "PixelData", ds.PixelData[:100]),
        lambda ds: setattr(ds, "PhotometricInterpretation", "NONSENSE"),
    ],
    ids=["no pixels", "colour", "12 bits allocated", "cut short", "unknown interpretation"],
)
def test_what_cannot_be_decoded_is_rejected(
    ct: Any, write_slices: Any, spoil: Callable[[Dataset], None]
) -> None:
    slices = ct.slices(ct.gradient(4))
    spoil(slices[2])
    paths = write_slices(slices)
    assert rejection(lambda: read_series(paths, LIMITS)) == "UNDECODABLE"


def test_a_file_that_is_no_dicom_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    for content in (b"", b"nothing of the kind", bytes(2000)):
        path.write_bytes(content)
        assert rejection(lambda: read_header(path, LIMITS)) == "NOT-DICOM"


def test_a_missing_file_is_our_own_problem(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_headers([tmp_path / "gone.dcm"])


@given(
    cut=st.integers(0, 900),
    flips=st.lists(st.tuples(st.integers(132, 1200), st.integers(0, 255)), max_size=8),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_end_in_a_code_and_never_in_another_error(
    ct: Any, tmp_path: Path, cut: int, flips: list[tuple[int, int]]
) -> None:
    buffer = BytesIO()
    ct.slices(ct.gradient(1))[0].save_as(buffer, enforce_file_format=True)
    content = bytearray(buffer.getvalue())
    for at, value in flips:
        content[at % len(content)] = value
    path = tmp_path / "damaged.dcm"
    path.write_bytes(content[: len(content) - cut])
    try:
        read_examined([path], IntakeSettings(min_slices=1))
    except SeriesRejected as rejected:
        assert rejected.reason


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("CT_small.dcm", None),
        ("J2K_pixelrep_mismatch.dcm", None),
        ("693_J2KI.dcm", None),
        ("rtstruct.dcm", "NOT-A-GRID"),
        ("MR_small_RLE.dcm", "NOT-HU"),
        ("DICOMDIR", "NOT-A-GRID"),
    ],
)
def test_pydicoms_own_files_read_or_end_in_a_code(name: str, code: str | None) -> None:
    path = Path(str(get_testdata_file(name, download=False)))
    if code:
        assert rejection(lambda: read_series([path], LIMITS)) == code
    else:
        assert read_series([path], LIMITS).volume.hu.max() > 0


def test_a_dataset_without_a_preamble_is_read(ct: Any, tmp_path: Path) -> None:
    (ds,) = ct.slices(ct.gradient(1))
    del ds.file_meta
    path = tmp_path / "bare.dcm"
    for implicit in (True, False):
        dcmwrite(path, ds, implicit_vr=implicit, little_endian=True)
        assert read_series([path], LIMITS).volume.hu[0, 1, 2] == 12


# --- compressed ---------------------------------------------------------------------------------


def test_compressed_slices_decode_to_the_same_numbers(ct: Any, write_slices: Any) -> None:
    slices = ct.slices(ct.gradient(4))
    for ds in slices:
        ds.compress(RLELossless, generate_instance_uid=False)
    np.testing.assert_array_equal(read_series(write_slices(slices), LIMITS).volume.hu, ct.gradient(4))


def test_a_codestream_of_another_size_than_the_header_is_not_decoded(tmp_path: Path) -> None:
    ds = dcmread(Path(str(get_testdata_file("J2K_pixelrep_mismatch.dcm", download=False))))
    ds.Rows = 128
    ds.save_as(tmp_path / "liar.dcm")
    with pytest.raises(SeriesRejected, match="another size") as caught:
        read_series([tmp_path / "liar.dcm"], LIMITS)
    assert caught.value.code == "UNDECODABLE"


def test_a_codestream_that_does_not_say_its_size_is_not_decoded(tmp_path: Path) -> None:
    ds = dcmread(Path(str(get_testdata_file("J2K_pixelrep_mismatch.dcm", download=False))))
    frame = get_frame(ds.PixelData, 0, number_of_frames=1)
    comment = b"\xff\x64\x00\x06\x00\x01hi"  # a marker that may only come behind the size
    ds.PixelData = encapsulate([frame[:2] + comment + frame[2:]])
    ds.save_as(tmp_path / "odd.dcm")
    with pytest.raises(SeriesRejected, match="does not say its size") as caught:
        read_series([tmp_path / "odd.dcm"], LIMITS)
    assert caught.value.code == "UNDECODABLE"


def padded(ct: Any, padding: int, syntax: UID = DeflatedExplicitVRLittleEndian) -> bytes:
    (ds,) = ct.slices(ct.gradient(1))
    ds.add_new(0x00091001, "OB", bytes(padding))
    ds.add_new(0x00090010, "LO", "TEST")
    ds.file_meta.TransferSyntaxUID = syntax
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_a_deflated_file_is_read(ct: Any, tmp_path: Path) -> None:
    path = tmp_path / "deflated.dcm"
    path.write_bytes(padded(ct, 10))
    assert read_series([path], LIMITS).volume.hu[0, 1, 2] == 12


def test_a_deflated_bomb_is_not_inflated(ct: Any, tmp_path: Path) -> None:
    path = tmp_path / "bomb.dcm"
    path.write_bytes(padded(ct, 20_000_000))
    assert path.stat().st_size < 100_000
    limits = SeriesLimits(max_inflated_bytes=1_000_000)
    assert rejection(lambda: read_header(path, limits)) == "TOO-LARGE"


def test_of_a_deflated_file_the_header_alone_stays_in_memory(ct: Any, tmp_path: Path) -> None:
    path = tmp_path / "deflated.dcm"
    path.write_bytes(padded(ct, 20_000_000))
    tracemalloc.start()
    header = read_header(path, LIMITS)
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert header.Rows == 12
    assert held < 1_000_000 < 20_000_000 < most


def test_values_too_long_to_be_of_use_are_left_out_of_a_header(ct: Any, write_slices: Any) -> None:
    ds = ct.slices(ct.gradient(1))[0]
    block = ds.private_block(0x0009, "VENDOR", create=True)
    block.add_new(0x01, "OB", bytes(65_536))
    block.add_new(0x02, "OB", bytes(65_538))
    header = read_header(*write_slices([ds]), LIMITS)
    assert block.get_tag(0x01) in header
    assert block.get_tag(0x02) not in header


@pytest.mark.parametrize("is_sequence", [True, False])
def test_headers_that_together_take_too_much_memory_are_refused(
    ct: Any, write_slices: Any, is_sequence: bool
) -> None:
    slices = ct.slices(ct.gradient(4))
    for ds in slices:
        block = ds.private_block(0x0009, "VENDOR", create=True)
        if is_sequence:
            block.add_new(0x01, "SQ", [Dataset() for _ in range(1000)])
            for item in block[0x01].value:
                item.Rows = 1
            block[0x01].is_undefined_length = True
        else:
            for number in range(5):
                block.add_new(number, "OB", bytes(60_000))
    paths = write_slices(slices)
    limits = SeriesLimits(max_header_bytes=1024**2)
    assert len(read_headers(paths[:3], limits)) == 3
    assert rejection(lambda: read_headers(paths, limits)) == "TOO-LARGE"


@pytest.mark.parametrize("syntax", [DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_a_million_items_are_counted_and_not_parsed(ct: Any, tmp_path: Path, syntax: UID) -> None:
    whole = padded(ct, 10, syntax)
    meta = whole[: 144 + int.from_bytes(whole[140:144], "little")]
    opening = struct.pack("<HH2sHL", 0x5200, 0x9230, b"SQ", 0, 0xFFFFFFFF)
    bomb = opening + 1_000_000 * struct.pack("<HHL", 0xFFFE, 0xE000, 0)
    bomb += struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    path = tmp_path / "items.dcm"
    path.write_bytes(meta + (zlib.compress(bomb, wbits=-15) if syntax.is_deflated else bomb))
    with pytest.raises(SeriesRejected, match="more than 200000 elements") as caught:
        read_header(path, LIMITS)
    assert caught.value.code == "TOO-LARGE"


def test_a_broken_deflated_stream_is_undecodable(ct: Any, tmp_path: Path) -> None:
    whole = padded(ct, 10)
    path = tmp_path / "broken.dcm"
    path.write_bytes(whole[:-40] + zlib.compress(b"x") + bytes(40))
    assert rejection(lambda: read_series([path], LIMITS)) == "UNDECODABLE"


# --- limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limits",
    [
        {"max_files": 3},
        {"max_file_bytes": 1024},
        {"max_slices": 3},
        {"max_rows": 11},
        {"max_columns": 15},
        {"max_voxels": 700},
    ],
    ids=str,
)
def test_what_is_larger_than_the_limits_is_not_decoded(ct: Any, write_slices: Any, limits: Any) -> None:
    paths = write_slices(ct.slices(ct.gradient(4)))
    assert rejection(lambda: read_series(paths, SeriesLimits(**limits))) == "TOO-LARGE"


def test_a_header_that_promises_millions_of_frames_is_not_believed(ct: Any, write_slices: Any) -> None:
    paths = write_slices(ct.slices(ct.gradient(1), NumberOfFrames=10_000_000))
    assert rejection(lambda: read_series(paths, LIMITS)) == "TOO-LARGE"


# --- multi-frame --------------------------------------------------------------------------------


def multi_frame(ct: Any, hu: np.ndarray) -> Dataset:
    """A Legacy Converted Enhanced CT of the slices, made by highdicom."""
    slices = ct.slices(hu)
    for ds in slices:
        ds.PatientSex, ds.PatientBirthDate, ds.StudyID, ds.AccessionNumber = "O", "", "", ""
        ds.StudyDate, ds.StudyTime, ds.ReferringPhysicianName = "", "", ""
        ds.SeriesNumber, ds.Manufacturer, ds.PatientPosition = 1, "TEST", "HFS"
        ds.AcquisitionNumber, ds.Laterality, ds.BodyPartExamined = 1, "", "ABDOMEN"
    return LegacyConvertedEnhancedCTImage(slices, "1.2.3.50", 2, "1.2.3.50.1", 1)


def test_a_legacy_converted_multi_frame_object_reads_as_its_slices_did(ct: Any, tmp_path: Path) -> None:
    hu = ct.gradient(6)
    multi_frame(ct, hu).save_as(tmp_path / "mf.dcm")
    series = read_series([tmp_path / "mf.dcm"], LIMITS)
    np.testing.assert_array_equal(series.volume.hu, hu)
    assert sorted(series.frame_numbers) == [1, 2, 3, 4, 5, 6]
    assert [header.InstanceNumber for header in series.headers] == list(series.frame_numbers)
    assert series.volume.geometry.spacing_mm == pytest.approx((2.5, 0.8, 0.7))
    assert [header.ImagePositionPatient[2] for header in series.headers] == [
        100,
        102.5,
        105,
        107.5,
        110,
        112.5,
    ]
    assert {header.SOPInstanceUID for header in series.headers} == {"1.2.3.50.1"}
    assert all("PerFrameFunctionalGroupsSequence" not in header for header in series.headers)


def enhanced_ct(ct: Any, hu: np.ndarray) -> Dataset:
    """An Enhanced CT by hand: geometry and rescale in functional groups only."""
    slices = ct.slices(hu)
    ds = slices[0]
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    shared = Dataset()
    orientation, measures, transform, frame_type = Dataset(), Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = ds.ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = ds.PixelSpacing, ds.SliceThickness
    transform.RescaleSlope, transform.RescaleIntercept, transform.RescaleType = 1, -1024, "HU"
    frame_type.FrameType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    shared.PixelValueTransformationSequence, shared.CTImageFrameTypeSequence = [transform], [frame_type]
    groups = []
    for one in slices:
        position, group = Dataset(), Dataset()
        position.ImagePositionPatient = one.ImagePositionPatient
        group.PlanePositionSequence = [position]
        groups.append(group)
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        delattr(ds, keyword)
    ds.SharedFunctionalGroupsSequence = DicomSequence([shared])
    ds.PerFrameFunctionalGroupsSequence = DicomSequence(groups)
    ds.NumberOfFrames = len(slices)
    ds.PixelData = (hu + 1024).astype("<i2").tobytes()
    return ds


def test_an_enhanced_object_reads_from_its_functional_groups(ct: Any, write_slices: Any) -> None:
    hu = ct.gradient(5)
    series = read_series(write_slices([enhanced_ct(ct, hu)]), LIMITS)
    np.testing.assert_array_equal(series.volume.hu, hu)
    assert series.headers[4].ImageType == ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    assert [header.InstanceNumber for header in series.headers] == [1, 2, 3, 4, 5]


def test_flattening_leaves_the_object_as_it_was(ct: Any) -> None:
    ds = enhanced_ct(ct, ct.gradient(3))
    before = ds.to_json()
    flat = frames_of(ds)
    assert len(flat) == 3
    assert ds.to_json() == before


def test_frames_without_positions_of_their_own_are_rejected(ct: Any, write_slices: Any) -> None:
    ds = enhanced_ct(ct, ct.gradient(5))
    ds.PerFrameFunctionalGroupsSequence = ds.PerFrameFunctionalGroupsSequence[:3]
    paths = write_slices([ds])
    assert rejection(lambda: read_series(paths, LIMITS)) == "NOT-A-GRID"


def test_broken_functional_groups_are_undecodable(ct: Any, tmp_path: Path) -> None:
    """A multi-frame header with an attribute that cannot be parsed, met only when it is flattened."""
    ds = enhanced_ct(ct, ct.gradient(3))
    ds.add_new("Rows", "US", 12)
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    broken = buffer.getvalue().replace(b"\x28\x00\x00\x01US\x02\x00", b"\x28\x00\x00\x01US\x01\x00", 1)
    path = tmp_path / "broken.dcm"
    path.write_bytes(broken)
    assert rejection(lambda: read_series([path], LIMITS)) in REJECTION_CODES


def test_a_file_that_ends_within_a_sequence_is_undecodable_and_no_fault_of_the_disk(
    ct: Any, tmp_path: Path
) -> None:
    (ds,) = ct.slices(ct.gradient(1))
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    whole, path = buffer.getvalue(), tmp_path / "cut.dcm"
    at = whole.index(b"\x20\x00\x0d\x00UI")
    path.write_bytes(
        whole[:at] + b"\x08\x00\x40\x11SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    )
    assert rejection(lambda: read_header(path, LIMITS)) == "UNDECODABLE"
