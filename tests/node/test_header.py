from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_file_meta_info
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from node.header import (
    MAX_DEPTH,
    MAX_ELEMENTS,
    MAX_INFLATED_BYTES,
    MAX_WANTED_BYTES,
    Header,
    HeaderRefused,
    has_more_elements,
    header_within,
    read_header,
)
from node.uids import is_plausible_uid

IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
JPEG_2000 = "1.2.840.10008.1.2.4.90"
SYNTAXES = (IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED, JPEG_2000)


def header_of(data: bytes, syntax: str = EXPLICIT) -> Header:
    return read_header(memoryview(data), syntax)


def ct() -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, "1.2.3.1"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2", "1.2.3"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    return ds


def encode(ds: Dataset, syntax: str = EXPLICIT) -> bytes:
    out = DicomBytesIO()
    out.is_implicit_VR, out.is_little_endian = syntax == IMPLICIT, syntax != BIG_ENDIAN
    write_dataset(out, ds)
    return deflated(out.getvalue()) if syntax == DEFLATED else out.getvalue()


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def check_is_ct(header: Header) -> None:
    assert header.sop_class_uid == CTImageStorage
    assert (header.study_instance_uid, header.series_instance_uid) == ("1.2", "1.2.3")
    assert header.sop_instance_uid == "1.2.3.1"
    assert header.marks.ImageType == ["ORIGINAL", "PRIMARY", "AXIAL"]


def nested(depth: int, *, undefined: bool) -> Sequence:
    """Sequences within sequences, ``depth`` deep."""
    item = Dataset()
    item.CodeMeaning = "innermost"
    for _ in range(depth - 1):
        outer = Dataset()
        outer.ReferencedSeriesSequence = Sequence([item])
        mark(outer, undefined=undefined)
        item = outer
    return Sequence([item])


def mark(ds: Dataset, *, undefined: bool) -> None:
    """Every sequence of ``ds`` and its items with lengths, or without."""
    for element in ds:
        if element.VR == "SQ":
            element.is_undefined_length = undefined
            for item in element.value:
                item.is_undefined_length_sequence_item = undefined


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_the_uids_are_found_in_every_encoding(syntax: str) -> None:
    check_is_ct(header_of(encode(ct(), syntax), syntax))


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("undefined", [True, False], ids=["undefined", "defined"])
def test_sequences_before_the_uids_are_stepped_over(syntax: str, undefined: bool) -> None:
    ds = ct()
    ds.ReferencedStudySequence = nested(4, undefined=undefined)
    ds.ReferencedImageSequence = Sequence([])
    ds.add_new(0x00091001, "UN", b"private")
    ds.add_new(0x00080014, "UI", "1.2.9")
    mark(ds, undefined=undefined)
    check_is_ct(header_of(encode(ds, syntax), syntax))


def test_an_unknown_value_of_undefined_length_holds_implicit_elements() -> None:
    inner = struct.pack("<HHL", 0x0008, 0x0100, 4) + b"CODE"
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) + inner + struct.pack("<HHL", 0xFFFE, 0xE00D, 0)
    unknown = struct.pack("<HH2sHL", 0x0009, 0x1001, b"UN", 0, 0xFFFFFFFF) + item
    unknown += struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    check_is_ct(header_of(between_groups(unknown)))


def between_groups(element: bytes) -> bytes:
    """A CT header with raw bytes after its group 0008."""
    whole = encode(ct())
    at = whole.index(struct.pack("<HH", 0x0020, 0x000D))
    return whole[:at] + element + whole[at:]


def test_an_element_without_a_vr_is_read_as_implicit() -> None:
    check_is_ct(header_of(between_groups(struct.pack("<HHL", 0x0009, 0x1001, 4) + b"\x01\x02\x03\x04")))


def test_nothing_beyond_the_private_group_is_looked_at() -> None:
    pixels = struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OW", 0, 0xFFFFFF00)
    check_is_ct(header_of(encode(ct()) + pixels))


@pytest.mark.parametrize(
    "keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]
)
def test_a_missing_uid_is_named(keyword: str) -> None:
    ds = ct()
    delattr(ds, keyword)
    with pytest.raises(HeaderRefused, match=f"^{keyword} is missing or no UID$"):
        header_of(encode(ds))


# hostile input


def test_a_length_beyond_the_data_is_refused() -> None:
    lie = struct.pack("<HH2sHL", 0x0009, 0x1001, b"OB", 0, 2**31)
    with pytest.raises(HeaderRefused, match="longer than the data set"):
        header_of(between_groups(lie))


def test_a_header_of_nothing_but_empty_elements_is_refused() -> None:
    with pytest.raises(HeaderRefused, match="too many elements"):
        header_of(bytes(8 * (MAX_ELEMENTS + 1)))


def test_a_sequence_of_nothing_but_empty_items_is_refused() -> None:
    opening = struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0)
    with pytest.raises(HeaderRefused, match="too many elements"):
        header_of(between_groups(opening + item * MAX_ELEMENTS))


ZEROS = bytes(8 * 5_000)
"""To pydicom five thousand items where a sequence is, and five thousand elements where none is."""


@pytest.mark.parametrize(
    ("head", "syntax", "is_parsed"),
    [
        (struct.pack("<HH2sHL", 0x5200, 0x9230, b"SQ", 0, 0xFFFFFFFF), ExplicitVRLittleEndian, True),
        (struct.pack("<HH2sHL", 0x5200, 0x9230, b"SQ", 0, len(ZEROS)), ExplicitVRLittleEndian, True),
        (struct.pack("<HH2sHL", 0x0019, 0x1010, b"UN", 0, 0xFFFFFFFF), ExplicitVRLittleEndian, True),
        (struct.pack("<HHL", 0x5200, 0x9230, len(ZEROS)), ImplicitVRLittleEndian, True),
        (struct.pack(">HH2sHL", 0x5200, 0x9230, b"SQ", 0, 0xFFFFFFFF), ExplicitVRBigEndian, True),
        (struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OW", 0, len(ZEROS)), ExplicitVRLittleEndian, False),
        (struct.pack("<HH2sHL", 0x0019, 0x1010, b"OB", 0, len(ZEROS)), ExplicitVRLittleEndian, False),
        (struct.pack("<HHL", 0x0019, 0x1010, len(ZEROS)), ImplicitVRLittleEndian, False),
    ],
)
def test_elements_are_counted_as_pydicom_would_make_them(head: bytes, syntax: str, is_parsed: bool) -> None:
    data = head + ZEROS + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    assert has_more_elements(memoryview(data), syntax, 4_000) is is_parsed
    assert not has_more_elements(memoryview(data), syntax, 5_004)


def test_fragments_of_pixels_are_no_elements_and_what_follows_them_is_counted() -> None:
    head = struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF)
    fragment = struct.pack("<HHL", 0xFFFE, 0xE000, len(ZEROS)) + ZEROS
    end = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    data = head + 2 * fragment + end
    assert not has_more_elements(memoryview(data), ExplicitVRLittleEndian, 1_000)
    assert has_more_elements(memoryview(data + ZEROS), ExplicitVRLittleEndian, 1_000)


def test_an_implicit_sequence_of_unknown_kind_ends_where_it_ends() -> None:
    """What follows it is Explicit VR again: a value whose length is in its last four bytes."""
    unknown = struct.pack("<HH2sHL", 0x0019, 0x1010, b"UN", 0, 0xFFFFFFFF)
    end = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    value = struct.pack("<HH2sHL", 0x0019, 0x1011, b"OB", 0, len(ZEROS)) + ZEROS
    assert not has_more_elements(memoryview(unknown + end + value), ExplicitVRLittleEndian, 1_000)
    assert not has_more_elements(memoryview(end + value), ExplicitVRLittleEndian, 1_000)


def test_an_endless_nesting_is_refused_without_recursion() -> None:
    opening = struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    opening += struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    with pytest.raises(HeaderRefused, match="nested too deep"):
        header_of(between_groups(opening * 100_000))


def test_a_nesting_as_deep_as_allowed_is_walked() -> None:
    ds = ct()
    ds.ReferencedStudySequence = nested(MAX_DEPTH - 1, undefined=True)
    mark(ds, undefined=True)
    check_is_ct(header_of(encode(ds)))


def test_a_sequence_of_something_else_than_items_is_refused() -> None:
    element = struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    element += struct.pack("<HH2sH", 0x0008, 0x0060, b"CS", 2) + b"CT"
    with pytest.raises(HeaderRefused, match="no item"):
        header_of(between_groups(element))


def test_a_sequence_that_never_ends_is_refused() -> None:
    with pytest.raises(HeaderRefused):
        header_of(encode(ct()) + struct.pack("<HH2sHL", 0x0021, 0x1001, b"SQ", 0, 0xFFFFFFFF))


def test_a_wanted_element_of_great_length_is_refused() -> None:
    ds = ct()
    ds.ContributingEquipmentSequence = Sequence([Dataset()])
    ds.ContributingEquipmentSequence[0].add_new(0x00091001, "UN", bytes(MAX_WANTED_BYTES))
    with pytest.raises(HeaderRefused, match="too long"):
        header_of(encode(ds))


def test_a_deflated_bomb_is_unpacked_no_further_than_its_header_may_reach() -> None:
    ds = ct()
    ds.add_new(0x00431001, "OB", bytes(40 * MAX_INFLATED_BYTES))
    bomb = encode(ds, DEFLATED)
    assert len(bomb) < MAX_INFLATED_BYTES
    with pytest.raises(HeaderRefused, match="longer than the data set"):
        header_of(bomb, DEFLATED)


def test_what_does_not_inflate_is_refused() -> None:
    with pytest.raises(HeaderRefused, match="cannot be parsed"):
        header_of(b"\xff" * 100, DEFLATED)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_beginning_says_what_the_whole_says_or_nothing(syntax: str) -> None:
    ds = ct()
    ds.ReferencedStudySequence = nested(2, undefined=True)
    mark(ds, undefined=True)
    ds.Rows, ds.WindowCenter = 512, 40
    data = encode(ds, syntax) if syntax == DEFLATED else encode(ds, syntax) + encode(pixels(), syntax)
    found = [header_within(memoryview(data)[:length], syntax) for length in range(len(data) + 1)]
    said = [header for header in found if header is not None]
    for header in said:
        check_is_ct(header)
    assert bool(said) == (syntax != DEFLATED), "nothing follows the last group of the deflated one"


def pixels() -> Dataset:
    ds = Dataset()
    ds.add_new(0x7FE00010, "OW", bytes(100))
    return ds


@given(st.data(), st.sampled_from(SYNTAXES))
def test_a_damaged_beginning_says_what_the_whole_says_or_nothing(data: Any, syntax: str) -> None:
    encoded = bytearray(encode(ct(), syntax) + encode(pixels(), EXPLICIT))
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    beginning = memoryview(bytes(encoded))[: data.draw(st.integers(0, len(encoded)))]
    found = header_within(beginning, syntax)
    if found is not None:
        assert header_of(bytes(encoded), syntax) == found


def believable_or_refused(data: bytes, syntax: str) -> None:
    try:
        header = header_of(data, syntax)
    except HeaderRefused:
        return
    uids = (header.sop_instance_uid, header.series_instance_uid, header.study_instance_uid)
    assert all(is_plausible_uid(uid) for uid in uids)


@given(st.binary(max_size=400), st.sampled_from(SYNTAXES))
def test_no_bytes_are_more_than_refused(data: bytes, syntax: str) -> None:
    believable_or_refused(data, syntax)


@given(st.data(), st.sampled_from(SYNTAXES))
def test_no_damage_to_a_header_is_more_than_refused(data: Any, syntax: str) -> None:
    ds = ct()
    ds.ReferencedStudySequence = nested(3, undefined=True)
    mark(ds, undefined=True)
    encoded = bytearray(encode(ds, syntax))
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    believable_or_refused(bytes(encoded[: data.draw(st.integers(0, len(encoded)))]), syntax)


def test_every_real_file_reads_as_pydicom_reads_it(ct_dir: Path) -> None:
    compared = 0
    for path in sorted(ct_dir.rglob("*.dcm")):
        content = path.read_bytes()
        if content[128:132] != b"DICM":
            continue
        meta = read_file_meta_info(path)
        data = memoryview(content)[144 + meta.FileMetaInformationGroupLength :]
        compared += compare(
            data, str(meta.TransferSyntaxUID), lambda p=path: dcmread(p, stop_before_pixels=True)
        )
    assert compared > 100


def compare(data: memoryview, syntax: str, read: Callable[[], Dataset]) -> bool:
    """Whether the header was read; where it was refused, pydicom finds no usable UIDs either."""
    try:
        header = read_header(data, syntax)
    except HeaderRefused:
        ds = read()
        uids = (ds.get("SOPInstanceUID"), ds.get("SeriesInstanceUID"), ds.get("StudyInstanceUID"))
        assert not all(is_plausible_uid(str(uid or "")) for uid in uids)
        return False
    ds = read()
    assert header.sop_instance_uid == ds.SOPInstanceUID
    assert header.series_instance_uid == ds.SeriesInstanceUID
    assert header.marks.get("ImageType") == ds.get("ImageType")
    return True
