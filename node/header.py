"""The few elements of a received data set that decide where it goes, without parsing the rest.

What arrives is hostile until shown otherwise: lengths that lie, sequences nested without end, a deflated
megabyte that unpacks to gigabytes. So the data set is walked flat, element by element, within bounds; only
the wanted elements are copied out, and only that excerpt is parsed.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Final, NamedTuple

from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset

from node import tags
from node.errors import NodeError
from node.loopguard import MARK_TAGS
from node.uids import is_plausible_uid

SOP_CLASS, SOP_INSTANCE, STUDY, SERIES = 0x00080016, 0x00080018, 0x0020000D, 0x0020000E
UID_KEYWORDS: Final = {
    SOP_CLASS: "SOPClassUID",
    SOP_INSTANCE: "SOPInstanceUID",
    STUDY: "StudyInstanceUID",
    SERIES: "SeriesInstanceUID",
}
CREATORS: Final = range(0x00710010, 0x00710100)
"""Private creators of group 0071, ours among them."""
WANTED: Final = frozenset({*UID_KEYWORDS, *MARK_TAGS, *CREATORS})

LAST_GROUP: Final = 0x0071
"""Nothing beyond this group is looked at."""

MAX_WANTED_BYTES: Final = 256 * 1024
"""Longest value of an element that is copied out."""
MAX_ELEMENTS: Final = 50_000
"""Most elements that are walked; a megabyte of zeros would be a hundred thousand."""
MAX_DEPTH: Final = 32
"""Deepest nesting of sequences of undefined length that is walked."""
MAX_INFLATED_BYTES: Final = 8 * 1024 * 1024
"""How much of a deflated data set is unpacked to look at its header."""

UNDEFINED: Final = 0xFFFFFFFF
ITEM: Final = 0xFFFEE000
ITEM_END: Final = 0xFFFEE00D
SEQUENCE_END: Final = 0xFFFEE0DD
DELIMITERS: Final = frozenset((ITEM, ITEM_END, SEQUENCE_END))
PIXELS: Final = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))
"""Float, double and integer pixels."""
LEAST_ELEMENT_BYTES: Final = 8
"""Tag and length: no element or item takes less."""

LONG_VRS: Final = frozenset(
    (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
)
"""Value representations with a length of 32 bits in Explicit VR (PS3.5 7.1.2)."""


class HeaderRefused(NodeError):
    """The data set's header cannot be read, or lacks what every instance has; names no value of it."""


class Encoding:
    """How elements are written (PS3.5 7.1, 7.3), with the readers of their heads."""

    __slots__ = ("is_implicit", "is_little_endian", "length", "long_head", "short_head")

    def __init__(self, *, is_implicit: bool, is_little_endian: bool) -> None:
        order = "<" if is_little_endian else ">"
        self.is_implicit = is_implicit
        self.is_little_endian = is_little_endian
        self.short_head = struct.Struct(f"{order}HH2sH").unpack_from
        self.long_head = struct.Struct(f"{order}HHL").unpack_from
        self.length = struct.Struct(f"{order}L").unpack_from


EXPLICIT_LITTLE: Final = Encoding(is_implicit=False, is_little_endian=True)
IMPLICIT_LITTLE: Final = Encoding(is_implicit=True, is_little_endian=True)
ENCODINGS: Final = {
    "1.2.840.10008.1.2": IMPLICIT_LITTLE,
    "1.2.840.10008.1.2.2": Encoding(is_implicit=False, is_little_endian=False),
}
"""Transfer syntaxes that are not Explicit VR Little Endian around their pixels (PS3.5 A)."""

DEFLATED: Final = frozenset({"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})
"""Transfer syntaxes whose data set is one deflated stream (PS3.5 A.5, A.7, A.10)."""


SHORT_VRS: Final = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
"""Value representations with a length of 16 bits in Explicit VR (PS3.5 7.1.2)."""


@dataclass(frozen=True, slots=True)
class Header:
    """Who an instance is. The UIDs are safe as file names; ``marks`` is what the loop guard reads."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    marks: Dataset


def header_within(beginning: memoryview, transfer_syntax_uid: str) -> Header | None:
    """The header of a data set of which this is the beginning, None where more of it has to be seen.

    What is found is what :func:`read_header` finds in the whole: it too stops behind group 0071.
    """
    try:
        return _read(beginning, transfer_syntax_uid, is_whole=False)
    except HeaderRefused:  # perhaps only because it ends early
        return None


def read_header(data: memoryview, transfer_syntax_uid: str) -> Header:
    """The header of an encoded data set (no preamble, no file meta); raises HeaderRefused."""
    return _read(data, transfer_syntax_uid, is_whole=True)


def values_of(
    data: memoryview, transfer_syntax_uid: str, tags_wanted: Collection[int], *, is_whole: bool = True
) -> dict[int, bytes]:
    """These top-level elements, none beyond group 0071, as they are encoded; raises HeaderRefused.

    Also where data that are not the ``is_whole`` end too early. Not for deflated transfer syntaxes.
    """
    encoding = ENCODINGS.get(transfer_syntax_uid, EXPLICIT_LITTLE)
    try:
        found = _wanted(data, encoding, tags_wanted, is_whole=is_whole)
        return {tag: bytes(data[value:end]) for tag, _, value, end in found}
    except tags.PARSE_ERRORS as error:
        raise HeaderRefused("the header cannot be parsed") from error


def has_more_elements(data: memoryview, transfer_syntax_uid: str, most: int) -> bool:
    """Whether a whole data set has more than ``most`` elements and items, those within sequences too.

    pydicom makes an object of each, some 16 us and 600 bytes: two million empty items, which deflate to
    kilobytes, are half a minute and a gigabyte. So they are counted before it is asked. A data set too short
    for so many is not looked at. Not for deflated data: inflate them first.
    """
    if len(data) <= LEAST_ELEMENT_BYTES * most:
        return False
    encoding = ENCODINGS.get(transfer_syntax_uid, EXPLICIT_LITTLE)
    outer: list[Encoding] = []
    at = count = 0
    while at + 12 <= len(data) and count <= most:
        element = _element_at(data, at, encoding)
        is_undefined, at, count = element.length == UNDEFINED, element.value, count + 1
        if element.tag == SEQUENCE_END and outer:
            encoding = outer.pop()
        elif element.tag in PIXELS:
            at = _behind_fragments(data, at) if is_undefined else at + element.length
        elif is_undefined and element.tag != ITEM:
            outer.append(encoding)
            encoding = _within(element, encoding)
        elif element.tag not in DELIMITERS and not _is_sequence(data, element, encoding):
            at += element.length
    return count > most


def _behind_fragments(data: memoryview, at: int) -> int:
    """The end of encapsulated pixels (PS3.5 A.4) whose fragments begin at ``at``: they hold no elements."""
    while at + 8 <= len(data):
        fragment = _element_at(data, at, EXPLICIT_LITTLE)
        if fragment.tag != ITEM:
            return at
        at = fragment.value + fragment.length
    return at


def _is_sequence(data: memoryview, element: Element, encoding: Encoding) -> bool:
    """Whether a value of defined length holds items: by its VR, or by the dictionary where it has none."""
    vr = bytes(data[element.start + 4 : element.start + 6])
    if not encoding.is_implicit and vr.isalpha() and vr.isupper():
        return vr == b"SQ"
    return dictionary_has_tag(element.tag) and dictionary_VR(element.tag) == "SQ"


def _read(data: memoryview, transfer_syntax_uid: str, *, is_whole: bool) -> Header:
    encoding = ENCODINGS.get(transfer_syntax_uid, EXPLICIT_LITTLE)
    try:
        if transfer_syntax_uid in DEFLATED:
            data = memoryview(zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, MAX_INFLATED_BYTES))
        uids, marks = _uids_and_marks(data, encoding, is_whole=is_whole)
    except (OSError, *tags.PARSE_ERRORS) as error:  # OSError: pydicom's word for data that end early
        raise HeaderRefused("the header cannot be parsed") from error
    for tag, keyword in UID_KEYWORDS.items():
        if not is_plausible_uid(uids.get(tag, "")):
            raise HeaderRefused(f"{keyword} is missing or no UID")
    return Header(
        sop_class_uid=uids[SOP_CLASS],
        sop_instance_uid=uids[SOP_INSTANCE],
        study_instance_uid=uids[STUDY],
        series_instance_uid=uids[SERIES],
        marks=marks,
    )


def _uids_and_marks(
    data: memoryview, encoding: Encoding, *, is_whole: bool
) -> tuple[dict[int, str], Dataset]:
    uids: dict[int, str] = {}
    marks = BytesIO()
    for tag, start, value, end in _wanted(data, encoding, WANTED, is_whole=is_whole):
        if tag in UID_KEYWORDS:
            uids[tag] = str(data[value:end], "ascii").strip(" \x00")
        else:
            marks.write(data[start:end])
    marks.seek(0)
    return uids, read_dataset(marks, encoding.is_implicit, encoding.is_little_endian)


class Element(NamedTuple):
    """Where an element lies: it begins at ``start``, its value at ``value``; ``length`` may be UNDEFINED."""

    tag: int
    is_unknown: bool
    start: int
    value: int
    length: int


def _wanted(
    data: memoryview, encoding: Encoding, tags_wanted: Collection[int], *, is_whole: bool
) -> Iterator[tuple[int, int, int, int]]:
    """The wanted top-level elements: tag, where it begins, where its value begins, where it ends.

    Raises HeaderRefused where data that are not the whole end before one knows that there are no more.
    """
    at, size, head, walked = 0, len(data), encoding.short_head, itertools.count(1)
    short_vrs: frozenset[bytes] = frozenset() if encoding.is_implicit else SHORT_VRS
    while at + 8 <= size:
        _refuse_too_many(walked)
        group, number, vr, length = head(data, at)
        if group > LAST_GROUP:
            return
        if vr in short_vrs:  # nearly every element of nearly every file: in one glance
            start, value, at = at, at + 8, at + 8 + length
            if at > size:
                raise HeaderRefused("an element is longer than the data set")
        else:
            element = _element_at(data, at, encoding)
            start, value, at = at, element.value, _end_of(data, element, encoding, walked)
        tag = group << 16 | number
        if tag in tags_wanted:
            if at - value > MAX_WANTED_BYTES:
                raise HeaderRefused("an element of the header is too long")
            yield tag, start, value, at
    if not is_whole:
        raise HeaderRefused("the header does not end here")


def _element_at(data: memoryview, at: int, encoding: Encoding) -> Element:
    """The element that begins at ``at``; raises struct.error where the data ends within its head."""
    group, number, vr, length = encoding.short_head(data, at)
    if encoding.is_implicit or group == 0xFFFE or not (vr.isalpha() and vr.isupper()):
        group, number, length = encoding.long_head(data, at)
    elif vr in LONG_VRS:
        (length,) = encoding.length(data, at + 8)
        return Element(group << 16 | number, vr == b"UN", at, at + 12, length)
    return Element(group << 16 | number, False, at, at + 8, length)


def _refuse_too_many(walked: Iterator[int]) -> None:
    if next(walked) > MAX_ELEMENTS:
        raise HeaderRefused("the header has too many elements")


def _end_of(data: memoryview, element: Element, encoding: Encoding, walked: Iterator[int]) -> int:
    """Where the next element begins; raises HeaderRefused where the value reaches beyond the data."""
    if element.length == UNDEFINED:
        return _end_of_sequence(data, element, encoding, walked)
    end = element.value + element.length
    if end > len(data):
        raise HeaderRefused("an element is longer than the data set")
    return end


def _end_of_sequence(data: memoryview, element: Element, encoding: Encoding, walked: Iterator[int]) -> int:
    """The end of a value of undefined length, nested ones walked without recursion (PS3.5 7.5).

    The content of an unknown (UN) value of undefined length is Implicit VR Little Endian (PS3.5 6.2.2).
    """
    open_: list[tuple[int, Encoding]] = [(SEQUENCE_END, _within(element, encoding))]
    at = element.value
    while open_:
        _refuse_too_many(walked)
        closer, inner = open_[-1]
        found = _element_at(data, at, inner)
        at = found.value
        if found.tag == closer:
            open_.pop()
        elif closer == SEQUENCE_END and found.tag != ITEM:
            raise HeaderRefused("a sequence holds something that is no item")
        elif found.length != UNDEFINED:
            at = _end_of(data, found, inner, walked)
        elif closer == SEQUENCE_END:
            open_.append((ITEM_END, inner))
        else:
            open_.append((SEQUENCE_END, _within(found, inner)))
        if len(open_) > 2 * MAX_DEPTH:
            raise HeaderRefused("sequences are nested too deep")
    return at


def _within(element: Element, encoding: Encoding) -> Encoding:
    return IMPLICIT_LITTLE if element.is_unknown else encoding
