"""Datasets to the bytes of a DICOM file (PS3.10), the same every time; and single elements, unchanged."""

from __future__ import annotations

from contextlib import suppress
from copy import copy, deepcopy
from dataclasses import dataclass
from io import BytesIO
from typing import Final

from pydicom.charset import convert_encodings
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import dcmwrite, write_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, ExplicitVRLittleEndian

from node import tags
from node.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

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


def encoded(ds: Dataset) -> Dataset:
    """The same elements, already encoded: nobody can change them, so that many instances may hold them.

    Whatever holds them needs ``declare_encoding``, as ``ds`` does before.
    """
    declare_encoding(ds)
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = False, True
    write_dataset(buffer, ds)
    return read_dataset(BytesIO(buffer.getvalue()), is_implicit_VR=False, is_little_endian=True)


def declare_encoding(ds: Dataset) -> None:
    """Say that undecoded elements of ``ds`` are Explicit VR Little Endian text in its SpecificCharacterSet.

    Without this, pydicom decodes and encodes them again when writing.
    """
    character_set = ds.get("SpecificCharacterSet")
    encodings = convert_encodings(character_set) if character_set else None
    ds.set_original_encoding(is_implicit_vr=False, is_little_endian=True, character_encoding=encodings)


def file_meta_of(ds: Dataset) -> FileMetaDataset:
    """The file meta information of our files (PS3.10 7.1): Explicit VR Little Endian, our implementation."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID(ds.SOPClassUID)
    meta.MediaStorageSOPInstanceUID = UID(ds.SOPInstanceUID)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return meta


def to_bytes(ds: Dataset) -> bytes:
    """``ds`` as a DICOM file in Explicit VR Little Endian: equal datasets give equal bytes."""
    ds.file_meta = file_meta_of(ds)
    buffer = BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()
