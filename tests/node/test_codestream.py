from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.encaps import get_frame

from node.codestream import JP2_SIGNATURE, coded_size


def first_frame(name: str) -> tuple[bytes, tuple[int, int]]:
    ds = dcmread(Path(str(get_testdata_file(name, download=False))))
    return get_frame(ds.PixelData, 0, number_of_frames=1), (ds.Rows, ds.Columns)


@pytest.mark.parametrize(
    "name",
    ["J2K_pixelrep_mismatch.dcm", "JPEG2000.dcm", "JPEG-lossy.dcm", "MR_small_jpeg_ls_lossless.dcm"],
)
def test_the_size_of_a_compressed_frame_is_read_from_its_own_header(name: str) -> None:
    frame, size = first_frame(name)
    assert coded_size(frame) == size


def test_a_jp2_file_is_searched_for_its_codestream() -> None:
    codestream, size = first_frame("JPEG2000.dcm")
    box = (8 + 4).to_bytes(4, "big") + b"ftyp" + b"jp2 "
    wrapped = (
        JP2_SIGNATURE + b"\r\n\x87\n" + box + (8 + len(codestream)).to_bytes(4, "big") + b"jp2c" + codestream
    )
    assert coded_size(wrapped) == size


def test_a_box_with_a_long_length_is_read_and_stepped_over() -> None:
    codestream, size = first_frame("JPEG2000.dcm")
    long = b"\0\0\0\x01"
    free = long + b"free" + (16 + 5).to_bytes(8, "big") + b"12345"
    held = long + b"jp2c" + (16 + len(codestream)).to_bytes(8, "big") + codestream
    assert coded_size(JP2_SIGNATURE + b"\r\n\x87\n" + free + held) == size


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"run length encoded",
        b"\xff\x4f\xff\x51 cut short",
        JP2_SIGNATURE + b"\r\n\x87\n" + bytes(16),  # a box of length 0 would be searched for ever
        JP2_SIGNATURE + b"\r\n\x87\n" + b"\0\0\0\x08ftyp",
        b"\xff\xd8\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xff\xd8 no marker follows",
    ],
)
def test_what_has_no_size_has_none(frame: bytes) -> None:
    assert coded_size(frame) is None


@given(start=st.sampled_from([b"\xff\xd8", b"\xff\x4f\xff\x51", JP2_SIGNATURE]), rest=st.binary(max_size=300))
def test_any_bytes_end_in_a_size_or_none(start: bytes, rest: bytes) -> None:
    size = coded_size(start + rest)
    assert size is None or len(size) == 2
