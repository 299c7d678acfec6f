"""Two files under one SOP Instance UID: what the second says otherwise than the first.

Nothing is decoded. Pixels are compared as they are encoded, and of the headers what turns these pixels into
HU at places in the patient: with another slope or position the same pixels are another image. Functional
groups, which say it of frames, are compared as they are encoded too: written otherwise they count as others.
In another series it is another instance whatever it says: a UID is of one instance alone (PS3.5 9).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Collection
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, Final

from node.header import DEFLATED, HeaderRefused, values_of

PIXEL_DATA: Final = b"\xe0\x7f\x10\x00"
"""The tag (7FE0,0010) in little endian."""
FUNCTIONAL_GROUPS: Final = (b"\x00\x52\x29\x92", b"\x00\x52\x30\x92")
"""The tags (5200,9229) and (5200,9230) in little endian: HU and places of frames (PS3.3 C.7.6.16)."""
UNSEEN: Final = DEFLATED | {"1.2.840.10008.1.2.2"}
"""Transfer syntaxes in which these tags cannot be seen: deflated ones and big endian."""
COMPARED_BYTES: Final = 1024 * 1024

NUMBERS: Final = frozenset(
    {
        0x00200032,  # Image Position (Patient)
        0x00200037,  # Image Orientation (Patient)
        0x00280030,  # Pixel Spacing
        0x00281052,  # Rescale Intercept
        0x00281053,  # Rescale Slope
    }
)
"""Decimal strings (DS): another spelling of the same numbers is no difference."""
BYTES: Final = frozenset(
    {
        0x00280002,  # Samples per Pixel
        0x00280004,  # Photometric Interpretation
        0x00280010,  # Rows
        0x00280011,  # Columns
        0x00280100,  # Bits Allocated
        0x00280101,  # Bits Stored
        0x00280102,  # High Bit
        0x00280103,  # Pixel Representation
        0x00281054,  # Rescale Type
    }
)
"""What is compared as it is written."""

GROUP_LENGTH: Final = struct.Struct("<L")
GROUP_LENGTH_AT, META_AT = 140, 144
"""Where the length of the file meta information lies, and what it counts from (PS3.10 7.1)."""


class Difference(StrEnum):
    """What came first under the UID, in words for the ledger and the sender."""

    PIXELS = "other pixels came first"
    MEANING = "other HU or geometry came first for these pixels"
    WORDS = "another header came first with these pixels"
    SERIES = "an instance of another series came first"

    @property
    def is_harmless(self) -> bool:
        """Whether it is the same image all the same: archives mend names and send again."""
        return self is Difference.WORDS


def difference(first: Path, first_syntax: str, second: Path, second_syntax: str) -> Difference:
    """What differs between two files of this node, each in its transfer syntax; raises OSError."""
    if not UNSEEN.isdisjoint({first_syntax, second_syntax}) or not has_same_pixels(first, second):
        return Difference.PIXELS
    if not has_same_end(first, second, FUNCTIONAL_GROUPS):
        return Difference.MEANING
    meant = meaning_of(first, first_syntax)
    is_same = meant is not None and meant == meaning_of(second, second_syntax)
    return Difference.WORDS if is_same else Difference.MEANING


def has_same_pixels(one: Path, other: Path) -> bool:
    """Whether two files in little endian are the same from Pixel Data (7FE0,0010) on, or both have none.

    Nothing is decoded: other compression counts as other pixels. An icon's pixels may be met first; what
    follows them then has to be the same too.
    """
    return has_same_end(one, other, (PIXEL_DATA,))


def has_same_end(one: Path, other: Path, tags: Collection[bytes]) -> bool:
    """Whether two files are the same from the first of these tags on, or both have none of them."""
    with one.open("rb") as first, other.open("rb") as second:
        found = [_seek(file, tags) for file in (first, second)]
        if not all(found):
            return not any(found)
        while piece := first.read(COMPARED_BYTES):
            if piece != second.read(COMPARED_BYTES):
                return False
        return not second.read(1)


def meaning_of(path: Path, transfer_syntax_uid: str) -> dict[int, object] | None:
    """What the header makes of the pixels: HU and places; None where it cannot be read."""
    with path.open("rb") as file:
        file.seek(GROUP_LENGTH_AT)
        start = META_AT + int(GROUP_LENGTH.unpack(file.read(4))[0])
        for most in (COMPARED_BYTES, -1):
            file.seek(start)
            data = memoryview(file.read(most))
            try:
                found = values_of(data, transfer_syntax_uid, NUMBERS | BYTES, is_whole=most < 0)
            except HeaderRefused:  # perhaps only because it ends later
                continue
            return {tag: _numbers(value) if tag in NUMBERS else value for tag, value in found.items()}
    return None


def _numbers(value: bytes) -> object:
    """The numbers of a decimal string; the text where it holds none."""
    text = value.decode("ascii", "replace").strip(" \x00")
    try:
        return tuple(float(word) for word in text.split("\\"))
    except ValueError:
        return text


def _seek(file: BinaryIO, tags: Collection[bytes]) -> bool:
    """Move to where the first of these tags may lie; False where there is none."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        places = [place for tag in tags if (place := whole.find(tag)) >= 0]
    file.seek(min(places, default=0))
    return bool(places)
