from __future__ import annotations

import warnings
from io import BytesIO

import pytest
from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from node.outputs.copied import copy_body_part, copy_identity
from node.outputs.encoding import copy_element


@pytest.mark.parametrize(
    ("part", "side", "expected"),
    [
        ("ABDOMEN", None, ("ABDOMEN", None)),
        ("ABDOMEN", "L", ("ABDOMEN", None)),
        ("KIDNEY", "L", ("KIDNEY", "L")),
        ("KIDNEY", None, ("KIDNEY", "")),
        ("KIDNEY", "U", ("KIDNEY", "")),
        (None, None, (None, "")),
        ("Bauch", None, (None, "")),
    ],
)
def test_a_side_is_given_known_or_empty_never_wrong(part, side, expected):
    source, target = Dataset(), Dataset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if part:
            source.BodyPartExamined = part
        if side:
            source.Laterality = side
        copy_body_part(source, target)
    laterality = target.Laterality if "Laterality" in target else None
    assert (
        target.get("BodyPartExamined"),
        "" if "Laterality" in target and not laterality else laterality,
    ) == (expected)


def test_what_the_standard_requires_is_there_even_if_empty():
    source, target = Dataset(), Dataset()
    source.StudyInstanceUID, source.SeriesInstanceUID = "1.2", "1.3"
    copy_identity(source, target)
    for keyword in ("PatientName", "StudyDate", "AccessionNumber", "PatientPosition"):
        assert keyword in target
        assert not target[keyword].value
    assert target.FrameOfReferenceUID.startswith("2.25.")


def implicit(ds: Dataset) -> Dataset:
    buffer = BytesIO()
    ds.save_as(buffer, implicit_vr=True, little_endian=True)
    return dcmread(buffer, force=True)


def test_an_element_of_odd_length_is_padded():
    source, target = Dataset(), Dataset()
    for keyword, value in (("PatientID", b"abc"), ("StudyInstanceUID", b"1.2")):
        source[Tag(keyword)] = RawDataElement(Tag(keyword), None, 3, value, 0, True, True)
        copy_element(source, target, keyword)
    assert target.get_item("PatientID").value == b"abc "
    assert target.get_item("StudyInstanceUID").value == b"1.2\x00"


def test_elements_of_an_implicit_source_get_the_standards_vr():
    ds = Dataset()
    ds.PatientName, ds.Rows = "A^B", 512
    source, target = implicit(ds), Dataset()
    for keyword in ("PatientName", "Rows"):
        copy_element(source, target, keyword)
    assert [target.get_item(keyword).VR for keyword in ("PatientName", "Rows")] == ["PN", "US"]


def test_an_element_that_cannot_be_parsed_is_left_out():
    source, target = Dataset(), Dataset()
    source[Tag("Rows")] = RawDataElement(Tag("Rows"), "US", 3, b"abc", 0, False, True)
    copy_element(source, target, "Rows")
    assert "Rows" not in target


def test_an_absent_element_is_not_invented():
    target = Dataset()
    copy_element(Dataset(), target, "PatientName")
    assert len(target) == 0
