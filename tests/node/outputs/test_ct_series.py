from __future__ import annotations

from datetime import UTC, datetime
from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from config.intake import SeriesLimits
from engine.synthesis import Finding
from node.outputs import to_bytes
from node.outputs.ct_series import make_ct_series, to_stored
from node.outputs.phases import PHASE_STYLES
from node.outputs.provenance import coded
from node.series import read_series


def made(kit, edit=lambda _: None, phase="arterial", context=None, **changes):
    series = kit.source(edit)
    return series, list(
        make_ct_series(series, kit.synthesis(series, phase, **changes), context or kit.context())
    )


def test_one_slice_a_source_slice_in_the_same_place_to_the_byte(kit):
    paths = kit.files()
    _, slices = made(kit)
    assert len(slices) == len(paths)
    files = [dcmread(BytesIO(to_bytes(ds))) for ds in slices]
    for path, ds in zip(paths, files, strict=True):
        source = dcmread(path)
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
            assert ds.get_item(keyword).value == source.get_item(keyword).value
        assert ds.FrameOfReferenceUID == source.FrameOfReferenceUID
        assert (ds.KVP, ds.AcquisitionDate, ds.AcquisitionNumber) == (120, source.AcquisitionDate, 1)
        assert (ds.Rows, ds.Columns) == (source.Rows, source.Columns)


@pytest.mark.parametrize("phase", PHASE_STYLES)
def test_the_image_type_and_the_window_name_the_phase(kit, phase):
    _, slices = made(kit, phase=phase)
    for ds in slices:
        assert list(ds.ImageType) == ["DERIVED", "SECONDARY", "AXIAL", "SYNTHETIC", phase.upper()]
        assert ds.WindowCenterWidthExplanation == f"SYNTHETIC {phase.upper()}"
        assert ds.SOPClassUID.name == "CT Image Storage"


def test_series_numbers_sort_behind_the_source_in_the_order_of_phases(kit):
    numbers = [made(kit, phase=phase)[1][0].SeriesNumber for phase in ("arterial", "venous")]
    assert numbers == [201, 202]
    context = kit.context(series_number_factor=1000, series_number_offset=50)
    assert made(kit, context=context)[1][0].SeriesNumber == 2051


@pytest.mark.parametrize("number", [2147483647, -5, None])
def test_a_series_number_that_would_not_be_legal_is_the_phases_own(kit, number):
    def renumber(ds):
        ds.SeriesNumber = number

    assert made(kit, renumber)[1][0].SeriesNumber == 1


def test_the_description_names_the_source_and_stays_within_64_characters(kit):
    assert made(kit)[1][0].SeriesDescription == "AI-SYNTHETIC ARTERIAL (from S2)"
    long = kit.context(description_prefix="AI-SYNTHETIC RESEARCH ONLY " * 5)
    description = made(kit, context=long)[1][0].SeriesDescription
    assert len(description) <= 64
    assert description.endswith("ARTERIAL (from S2)")


def test_a_source_without_a_number_is_not_named(kit):
    def strip(ds):
        del ds.SeriesNumber

    assert made(kit, strip)[1][0].SeriesDescription == "AI-SYNTHETIC ARTERIAL"


def test_instance_numbers_are_the_sources_where_they_tell_slices_apart(kit):
    def from_100(ds):
        ds.InstanceNumber = 100 - ds.InstanceNumber

    assert [ds.InstanceNumber for ds in made(kit, from_100)[1]] == [99, 98, 97, 96, 95, 94]


@pytest.mark.parametrize("value", [7, None])
def test_instance_numbers_are_counted_where_the_sources_do_not(kit, value):
    def same(ds):
        ds.InstanceNumber = value

    assert [ds.InstanceNumber for ds in made(kit, same)[1]] == [1, 2, 3, 4, 5, 6]


def test_metal_is_clipped_and_never_wraps():
    hu = np.array([[[-40000.0, -0.6, 0.4, 40000.0]]], np.float32)
    assert to_stored(hu).tolist() == [[[-32768, -1, 0, 32767]]]


def test_the_derivation_says_model_source_and_findings_in_ascii(kit):
    series, slices = made(kit, findings=(Finding("FAR", "the slices lie 6 mm apart"),))
    text = slices[0].DerivationDescription
    assert text.isascii()
    assert len(text) <= 1024
    for word in ("S2LDM test 1.0.0", "ab" * 32, series.headers[0].SeriesInstanceUID, "6 mm apart"):
        assert word in text


def test_times_are_written_in_the_sources_time_zone(kit):
    def zoned(ds):
        ds.TimezoneOffsetFromUTC = "-0330"

    context = kit.context(created=datetime(2026, 1, 1, 1, 0, tzinfo=UTC))
    ds = made(kit, zoned, context=context)[1][0]
    assert (ds.SeriesDate, ds.SeriesTime, ds.TimezoneOffsetFromUTC) == ("20251231", "213000", "-0330")


def test_earlier_contributing_equipment_is_kept(kit):
    def deidentified(ds):
        item = Dataset()
        item.PurposeOfReferenceCodeSequence = [coded("109104", "De-identifying Equipment")]
        item.Manufacturer = "OTHER"
        ds.ContributingEquipmentSequence = [item]

    items = made(kit, deidentified)[1][0].ContributingEquipmentSequence
    codes = [item.PurposeOfReferenceCodeSequence[0].CodeValue for item in items]
    assert codes == ["109104", "109101", "109100"]


def test_a_real_series_keeps_its_place_to_the_byte(kit, ct_dir):
    paths = sorted((ct_dir / "ncct_abdomen_ge_acrin001").glob("*.dcm"))[:4]
    series = read_series(paths, SeriesLimits())
    files = [
        dcmread(BytesIO(to_bytes(ds))) for ds in make_ct_series(series, kit.synthesis(series), kit.context())
    ]
    sources = {ds.SOPInstanceUID: ds for ds in map(dcmread, paths)}
    assert len(files) == 4
    for ds in files:
        source = sources[ds.SourceImageSequence[0].ReferencedSOPInstanceUID]
        for keyword in (
            "ImagePositionPatient",
            "ImageOrientationPatient",
            "PixelSpacing",
            "PatientName",
            "StudyDate",
        ):
            assert ds.get_item(keyword).value == source.get_item(keyword).value
