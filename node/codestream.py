"""The size a compressed frame says it has, read before a decoder is given the bytes.

A decoder allocates what the codestream asks for, not what the DICOM header promises, so a few bytes could ask
for gigabytes. Layouts: JPEG 2000 SIZ (ISO/IEC 15444-1 A.5.1), JPEG and JPEG-LS SOF (ISO/IEC 10918-1 B.2.2).
"""

from __future__ import annotations

SOC_SIZ = b"\xff\x4f\xff\x51"
SOI = b"\xff\xd8"
JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  "
START_OF_FRAME = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}


def coded_size(frame: bytes) -> tuple[int, int] | None:
    """(rows, columns) of a JPEG, JPEG-LS or JPEG 2000 frame; None where it is none of these or cut short."""
    if frame.startswith(SOC_SIZ):
        return _j2k_size(frame)
    if frame.startswith(JP2_SIGNATURE):
        codestream = _jp2_codestream(frame)
        return _j2k_size(codestream) if codestream.startswith(SOC_SIZ) else None
    return _jpeg_size(frame) if frame.startswith(SOI) else None


def _jp2_codestream(frame: bytes) -> bytes:
    """What the ``jp2c`` box of a JP2 file holds; empty where there is none or a box length makes no sense."""
    offset = 12
    while offset + 8 <= len(frame):
        length, head = int.from_bytes(frame[offset : offset + 4], "big"), 8
        if length == 1:  # the length is behind the type, in eight bytes (ISO/IEC 15444-1 I.4)
            length, head = int.from_bytes(frame[offset + 8 : offset + 16], "big"), 16
        if frame[offset + 4 : offset + 8] == b"jp2c":
            return frame[offset + head :]
        if length < head:
            return b""
        offset += length
    return b""


def _j2k_size(codestream: bytes) -> tuple[int, int] | None:
    if len(codestream) < 24:
        return None
    xsize, ysize, xoffset, yoffset = (
        int.from_bytes(codestream[at : at + 4], "big") for at in (8, 12, 16, 20)
    )
    return (ysize - yoffset, xsize - xoffset)


def _jpeg_size(frame: bytes) -> tuple[int, int] | None:
    offset = 2
    while offset + 9 <= len(frame) and frame[offset] == 0xFF:
        marker = frame[offset + 1]
        if marker in START_OF_FRAME:
            rows, columns = (int.from_bytes(frame[at : at + 2], "big") for at in (offset + 5, offset + 7))
            return (rows, columns)
        offset += 1 if marker == 0xFF else 2 + int.from_bytes(frame[offset + 2 : offset + 4], "big")
    return None
