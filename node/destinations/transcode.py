"""A file in what the peer accepts: decoded or encoded again where need be, and never with a loss.

Nothing is ever compressed. Frames that were compressed with a loss before are decoded to the pixels that any
viewer shows, and their header goes on saying so (LossyImageCompression, PS3.3 C.7.6.1.1.5).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

EVERYBODYS: Final = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
"""What every peer knows (PS3.5 10.1), the richer one first."""

WORD_BYTES: Final[Mapping[str, int]] = {"OW": 2, "OL": 4, "OF": 4, "OV": 8, "OD": 8}
"""VRs of words that pydicom keeps as bytes, and their sizes (PS3.5 6.2)."""


def is_convertible(syntax: UID) -> bool:
    """Whether files in ``syntax`` can be written in one of :data:`EVERYBODYS` with the same pixels."""
    if not syntax.is_compressed:
        return True
    try:
        return get_decoder(syntax).is_available
    except NotImplementedError:  # video, and what pydicom has not heard of
        return False


def usable(syntax: UID) -> tuple[UID, ...]:
    """What a file in ``syntax`` may be sent in, its own first."""
    others = [each for each in EVERYBODYS if each != syntax] if is_convertible(syntax) else []
    return (syntax, *others)


def read_as(path: Path, accepted: Collection[str]) -> Dataset:
    """The file as a dataset that can be written in one of the ``accepted`` syntaxes.

    Unchanged where its own is among them, or none is that it can be turned into.
    """
    ds = dcmread(path)
    syntax = ds.file_meta.TransferSyntaxUID
    if syntax in accepted or not is_convertible(syntax):
        return ds
    if syntax == ExplicitVRBigEndian:
        return in_little_endian(ds)
    if syntax.is_compressed:
        ds.decompress(generate_instance_uid=False)
    return ds


def in_little_endian(ds: Dataset) -> Dataset:
    """An Explicit VR Big Endian dataset with every word turned round (PS3.5 7.3)."""
    for element in ds.iterall():
        size = WORD_BYTES.get(element.VR)
        if size is not None and element.value:
            element.value = np.frombuffer(element.value, dtype=f">u{size}").byteswap().tobytes()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.set_original_encoding(is_implicit_vr=False, is_little_endian=True)
    return ds
