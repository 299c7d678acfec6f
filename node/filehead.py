"""What every DICOM file of ours begins with: preamble, prefix and file meta information (PS3.10 7.1)."""

from __future__ import annotations

import struct
from typing import Final

from node.uids import IMPLEMENTATION_CLASS_UID

PREAMBLE: Final = bytes(128) + b"DICM"


def file_head(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """The bytes before a data set in this transfer syntax.

    Without Implementation Version Name and Source AE Title, which are optional: the same data set makes the
    same file whoever sent it and whichever version of this node writes it.
    """
    elements = b"".join(
        (
            b"\x02\x00\x01\x00OB\x00\x00\x02\x00\x00\x00\x00\x01",  # File Meta Information Version
            _uid_element(0x0002, sop_class_uid),  # Media Storage SOP Class UID
            _uid_element(0x0003, sop_instance_uid),  # Media Storage SOP Instance UID
            _uid_element(0x0010, transfer_syntax_uid),
            _uid_element(0x0012, IMPLEMENTATION_CLASS_UID),
        )
    )
    group_length = struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(elements))
    return PREAMBLE + group_length + elements


def _uid_element(number: int, uid: str) -> bytes:
    """(0002,number) in Explicit VR Little Endian, padded to even length (PS3.5 7.1.2, 6.2)."""
    value = uid.encode("ascii", "replace")
    value += b"\x00" * (len(value) % 2)
    return struct.pack("<HH2sH", 2, number, b"UI", len(value)) + value
