"""Datasets to the bytes of a DICOM file (PS3.10), the same every time; and single elements, unchanged."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import suppress
from copy import copy, deepcopy
from dataclasses import dataclass
from io import BytesIO
from typing import Final, cast

from pydicom.charset import convert_encodings, default_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_data_element, write_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from node import tags
from node.filehead import file_head

STRING_VRS: Final = frozenset(
    {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"}
)
"""VRs whose bytes do not depend on the transfer syntax (PS3.5 6.2): they may be copied as they are."""


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance as the file it will be."""

    sop_class_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    data: bytes

    @classmethod
    def of(cls, ds: Dataset) -> Instance:
        """``ds``, encoded."""
        return cls(ds.SOPClassUID, ds.SeriesInstanceUID, ds.SOPInstanceUID, to_bytes(ds))


def copy_element(source: Dataset, target: Dataset, keyword: str) -> None:
    """Copy one element, byte for byte where it was not decoded yet; nothing where no readable one is.

    Undecoded text keeps its bytes whatever its character set, even where no decoder could read it. A sequence
    without items is not copied: most may not be empty.
    """
    tag = Tag(keyword)
    element = source.get_item(tag) if tag in source else None
    vr = dictionary_VR(tag)
    if isinstance(element, RawDataElement) and vr in STRING_VRS:
        target[tag] = _raw_copy(element, tag, vr)
    elif element is not None and (vr != "SQ" or tags.items(source, keyword)):
        with suppress(*tags.PARSE_ERRORS):
            target[tag] = deepcopy(source[tag]) if vr == "SQ" else copy(source[tag])


def _raw_copy(element: RawDataElement, tag: BaseTag, vr: str) -> RawDataElement:
    """An undecoded element with the standard's VR and an even length (PS3.5 6.2)."""
    value = bytes(element.value or b"")
    if len(value) % 2:
        value += b"\x00" if vr == "UI" else b" "
    return RawDataElement(tag, vr, len(value), value, 0, False, True)


def encoded(ds: Dataset) -> Mapping[BaseTag, RawDataElement]:
    """The elements of ``ds``, encoded: nobody can change them, so that many instances may hold them.

    Whatever holds them needs ``declare_encoding``.
    """
    declare_encoding(ds)
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = False, True
    write_dataset(buffer, ds)
    read = read_dataset(BytesIO(buffer.getvalue()), is_implicit_VR=False, is_little_endian=True)
    return {tag: cast(RawDataElement, read.get_item(tag)) for tag in sorted(read.keys())}


def declare_encoding(ds: Dataset) -> None:
    """Say that undecoded elements of ``ds`` are Explicit VR Little Endian text in its SpecificCharacterSet.

    Without this, pydicom decodes and encodes them again when writing.
    """
    ds.set_original_encoding(is_implicit_vr=False, is_little_endian=True, character_encoding=_encodings(ds))


def to_bytes(ds: Dataset) -> bytes:
    """``ds`` as a DICOM file in Explicit VR Little Endian: equal datasets give equal bytes."""
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = False, True
    buffer.write(file_head(ds.SOPClassUID, ds.SOPInstanceUID, ExplicitVRLittleEndian))
    if ds.original_encoding == (False, True) and ds.original_character_set == _encodings(ds):
        _write_declared(buffer, ds)
    else:
        write_dataset(buffer, ds)
    return buffer.getvalue()


def _write_declared(buffer: DicomBytesIO, ds: Dataset) -> None:
    """What ``write_dataset`` writes, sooner: most elements of an output are undecoded, and stay so."""
    character_set = ds.get("SpecificCharacterSet", default_encoding)
    for tag in sorted(ds.keys()):
        element = ds.get_item(tag)
        if isinstance(element, RawDataElement):
            buffer.write(_explicit(element))
        else:
            write_data_element(buffer, element, character_set)


def _explicit(element: RawDataElement) -> bytes:
    """An undecoded element in Explicit VR Little Endian (PS3.5 7.1.2)."""
    value = element.value or b""
    length = "<2xL" if element.VR in EXPLICIT_VR_LENGTH_32 else "<H"
    tag = struct.pack("<HH2s", element.tag.group, element.tag.element, str(element.VR).encode())
    return tag + struct.pack(length, len(value)) + value


def _encodings(ds: Dataset) -> str | list[str]:
    """pydicom's names for the character sets of ``ds``."""
    character_set = ds.get("SpecificCharacterSet")
    return convert_encodings(character_set) if character_set else default_encoding
