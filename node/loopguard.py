"""Is this an object of ours, or another synthetic one? Then it is taken, counted and dropped.

An archive that routes everything it stores to the node sends the node's own series back: without this rule
12 syntheses were made in 22 seconds. A refusal would invite retries, so the answer is success. Any one mark
is enough: after an archive's anonymisation SyntheticData, ImageType and 109100 survive, the private block
and the UIDs do not.
"""

from __future__ import annotations

from typing import Final

from pydicom.dataset import Dataset

from node import tags
from node.private import PRIVATE_CREATOR, PRIVATE_GROUP

SYNTHESIZING_EQUIPMENT: Final = "109100"
"""DCM code of a Contributing Equipment item that made synthetic data (PS3.16 CID 7005)."""

MARK_TAGS: Final = (0x00080008, 0x0008001C, 0x0018A001)
"""ImageType, SyntheticData, ContributingEquipmentSequence: with group 0071, all that :func:`is_own` reads."""


def is_own(ds: Dataset) -> str | None:
    """What marks the header as synthetic, in words, or None. Reads nothing beyond group 0071."""
    if tags.text(ds, "SyntheticData").upper() == "YES":
        return "Synthetic Data (0008,001C) is YES"
    if "SYNTHETIC" in (word.upper() for word in tags.words(ds, "ImageType")):
        return "Image Type (0008,0008) holds SYNTHETIC"
    if any(_synthesizes(item) for item in tags.items(ds, "ContributingEquipmentSequence")):
        return "Contributing Equipment (0018,A001) holds a synthesizing equipment"
    if _has_private_creator(ds):
        return "it carries this node's private block"
    return None


def _synthesizes(equipment: Dataset) -> bool:
    purposes = tags.items(equipment, "PurposeOfReferenceCodeSequence")
    return any(tags.text(purpose, "CodeValue") == SYNTHESIZING_EQUIPMENT for purpose in purposes)


def _has_private_creator(ds: Dataset) -> bool:
    """Whether one of (0071,0010–00FF) is our creator, also where it came as UN bytes (PS3.5 7.8.1)."""
    creators = (ds[tag].value for tag in ds.keys() if tag.group == PRIVATE_GROUP and 0x10 <= tag.elem <= 0xFF)  # noqa: SIM118
    return any(_words(creator) == PRIVATE_CREATOR for creator in creators)


def _words(value: object) -> str:
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    return text.rstrip("\x00 ")
