"""The node's private block (PS3.5 7.8.1): what machines read back from an object of ours.

Importing this module registers the block's dictionary with pydicom, so that its elements keep their VR after
a hop through Implicit VR Little Endian, where they would otherwise come back as UN bytes.
"""

from __future__ import annotations

from typing import Final

from pydicom.datadict import add_private_dict_entries
from pydicom.dataset import Dataset

PRIVATE_GROUP: Final = 0x0071
PRIVATE_CREATOR: Final = "S2NODE 1.0"

SCHEMA: Final = 0x01
KIND: Final = 0x02
PHASE: Final = 0x03
SOURCE_SERIES_UID: Final = 0x04
MODEL_ID: Final = 0x05
MODEL_DIGEST: Final = 0x06
CONFIG_DIGEST: Final = 0x07
NODE_DEVICE_UID: Final = 0x08
GENERATION: Final = 0x09
SEED: Final = 0x0A

SCHEMA_VERSION: Final = "1"
"""Written to (0071,xx01); grows when the meaning of an element changes."""

DICTIONARY: Final[dict[int, tuple[str, str]]] = {
    SCHEMA: ("LO", "Schema Version"),
    KIND: ("LO", "Output Kind"),
    PHASE: ("CS", "Synthetic Phase"),
    SOURCE_SERIES_UID: ("UI", "Source Series Instance UID"),
    MODEL_ID: ("LO", "Model Identifier"),
    MODEL_DIGEST: ("LO", "Model Bundle SHA-256"),
    CONFIG_DIGEST: ("LO", "Configuration SHA-256"),
    NODE_DEVICE_UID: ("UI", "Node Device UID"),
    GENERATION: ("IS", "Generation of the Source Series"),
    SEED: ("LO", "Noise Seed"),
}
"""Element offset to (VR, name); every element has value multiplicity 1."""

add_private_dict_entries(
    PRIVATE_CREATOR,
    {(PRIVATE_GROUP << 16) | offset: (vr, "1", name, "") for offset, (vr, name) in DICTIONARY.items()},
)


def has_private_block(ds: Dataset) -> bool:
    """Whether ``ds`` carries our private creator, whatever block number it was given."""
    return PRIVATE_CREATOR in ds.private_creators(PRIVATE_GROUP)


def write_private_block(ds: Dataset, values: dict[int, str]) -> None:
    """Put ``values`` (element offset to text) into our block of ``ds``; an unknown offset is a KeyError."""
    block = ds.private_block(PRIVATE_GROUP, PRIVATE_CREATOR, create=True)
    for offset, value in sorted(values.items()):
        block.add_new(offset, DICTIONARY[offset][0], value)


def read_private_block(ds: Dataset) -> dict[int, str]:
    """The elements of our block as text, by offset; empty where the block was stripped or never there."""
    if not has_private_block(ds):
        return {}
    block = ds.private_block(PRIVATE_GROUP, PRIVATE_CREATOR)
    return {offset: _text(block[offset].value) for offset in DICTIONARY if offset in block}


def _text(value: object) -> str:
    """An element's value as text, also where it arrived as UN bytes padded to even length."""
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    return text.rstrip("\x00 ")
