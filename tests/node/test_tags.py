from __future__ import annotations

import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from node import tags


def raw(keyword: str, vr: str, value: bytes) -> Dataset:
    """A dataset whose element is still bytes, as it is after reading a file."""
    ds = Dataset()
    tag = Tag(keyword)
    ds._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    return ds


def test_missing_and_empty_values_are_none() -> None:
    ds = Dataset()
    ds.SeriesDescription = ""
    assert tags.value(ds, "SeriesDescription") is None
    assert tags.value(ds, "PatientID") is None
    assert tags.text(ds, "PatientID") == ""
    assert tags.number(ds, "KVP") is None


def test_several_values_are_joined_by_a_backslash() -> None:
    ds = Dataset()
    ds.ImageType = ["ORIGINAL", "PRIMARY ", "AXIAL"]
    assert tags.words(ds, "ImageType") == ["ORIGINAL", "PRIMARY", "AXIAL"]
    assert tags.text(ds, "ImageType") == "ORIGINAL\\PRIMARY\\AXIAL"


@pytest.mark.parametrize("value", [b"1\\2", b"1\\2\\x", b"", b"1\\2\\nan", b"1\\2\\inf", b"1\\2\\3\\4"])
def test_numbers_are_all_there_and_finite_or_none(value: bytes) -> None:
    assert tags.numbers(raw("ImagePositionPatient", "DS", value), "ImagePositionPatient", 3) is None


def test_numbers_of_the_right_count_are_given() -> None:
    ds = raw("ImagePositionPatient", "DS", b"1\\-2.5\\3e1")
    assert tags.numbers(ds, "ImagePositionPatient", 3) == (1.0, -2.5, 30.0)


def test_what_cannot_be_parsed_is_none_and_no_error() -> None:
    assert tags.value(raw("Rows", "US", b"\x01"), "Rows") is None
    assert tags.number(raw("KVP", "DS", b"much"), "KVP") is None


def test_text_that_is_a_sequence_of_broken_items_is_none_and_no_error() -> None:
    item = bytes.fromhex("feff00e0 0c000000 10002000 4644 0400 31323334")
    assert tags.text(raw("PatientID", "SQ", item), "PatientID") == ""


def test_items_of_what_is_no_sequence_are_none() -> None:
    ds = Dataset()
    ds.PatientID = "17"
    ds.SourceImageSequence = [Dataset()]
    assert tags.items(ds, "PatientID") == []
    assert tags.items(ds, "ReferencedSeriesSequence") == []
    assert len(tags.items(ds, "SourceImageSequence")) == 1


def test_reading_a_bad_value_warns_nobody() -> None:
    """pydicom's warning would quote the value; warnings are errors here."""
    assert tags.text(raw("SOPInstanceUID", "UI", b"REM SAMPLES 1"), "SOPInstanceUID") == "REM SAMPLES 1"
