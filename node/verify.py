"""Is this file ours, from which model and which source, and does it still say so honestly?

The private block is the best witness: the series and instance UIDs follow from it. An archive's anonymisation
removes it and changes UIDs; then SyntheticData, ImageType and the 109100 item of Contributing Equipment are
what is left, and the answer says which of them are missing.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
from pydicom import dcmread
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import CTImageStorage

from node import private, tags
from node.outputs.phases import PHASE_STYLES
from node.outputs.provenance import instance_uid, model_device_uid, series_uid

SYNTHESIZING_EQUIPMENT: Final = "109100"
"""Purpose of a Contributing Equipment item (PS3.16 CID 7005)."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Verification:
    """What one file says about its origin. ``problems`` are sentences; an untouched output of ours has none.

    ``ours`` says that the object carries our marks, not that nobody else could write them: nothing is signed.
    """

    path: str
    ours: bool
    kind: str | None = None
    phase: str | None = None
    model_id: str | None = None
    model_digest: str | None = None
    source_series_uid: str | None = None
    generation: int | None = None
    problems: tuple[str, ...] = ()

    def row(self) -> dict[str, object]:
        """The row of ``s2node verify --json``."""
        return {**asdict(self), "problems": list(self.problems)}


def verify(path: Path) -> Verification:
    """Judge one file. What is no readable DICOM file is not ours, with a problem; only OSError is raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return verify_dataset(dcmread(path), str(path))
        except InvalidDicomError:
            return Verification(str(path), ours=False, problems=("not a DICOM file",))
        except tags.PARSE_ERRORS as error:
            problem = f"the file cannot be read ({type(error).__name__})"
            return Verification(str(path), ours=False, problems=(problem,))


def verify_dataset(ds: Dataset, path: str = "") -> Verification:
    """Judge one dataset that was read with its pixels."""
    block = private.read_private_block(ds)
    model = _model_item(ds)
    digest = block.get(private.MODEL_DIGEST) or _digest_in(model)
    if not block and (digest is None or "SYNTHETIC" not in _marks(ds)):
        return Verification(path, ours=False, problems=_foreign(ds))
    versions = tags.words(model, "SoftwareVersions") if model else []
    generation = block.get(private.GENERATION, "")
    return Verification(
        path,
        ours=True,
        kind=block.get(private.KIND),
        phase=block.get(private.PHASE, _phase_of(ds) or "").lower() or None,
        model_id=block.get(private.MODEL_ID) or (versions[1] if len(versions) == 3 else None),
        model_digest=digest,
        source_series_uid=block.get(private.SOURCE_SERIES_UID) or _referenced_series_uid(ds),
        generation=int(generation) if generation.isdecimal() else None,
        problems=tuple(problem for check in CHECKS for problem in check(ds, block)),
    )


# --- evidence ----------------------------------------------------------------------------------------------


def _model_item(ds: Dataset) -> Dataset | None:
    for item in tags.items(ds, "ContributingEquipmentSequence"):
        for purpose in tags.items(item, "PurposeOfReferenceCodeSequence"):
            if tags.text(purpose, "CodeValue") == SYNTHESIZING_EQUIPMENT:
                return item
    return None


def _digest_in(model: Dataset | None) -> str | None:
    versions = tags.words(model, "SoftwareVersions") if model else []
    return next((version for version in versions if _SHA256.fullmatch(version)), None)


def _marks(ds: Dataset) -> set[str]:
    """SYNTHETIC where the flag or ImageType says so."""
    flagged = tags.text(ds, "SyntheticData") == "YES"
    return {*tags.words(ds, "ImageType"), *(["SYNTHETIC"] if flagged else [])}


def _phase_of(ds: Dataset) -> str | None:
    known = {phase.upper() for phase in PHASE_STYLES}
    return next((word for word in tags.words(ds, "ImageType") if word in known), None)


def _referenced_series_uid(ds: Dataset) -> str | None:
    for item in tags.items(ds, "ReferencedSeriesSequence"):
        return tags.text(item, "SeriesInstanceUID") or None
    return None


def _foreign(ds: Dataset) -> tuple[str, ...]:
    if "SYNTHETIC" in _marks(ds):
        return ("synthetic, but without this node's marks",)
    return ()


# --- problems ----------------------------------------------------------------------------------------------


def _flag(ds: Dataset, _: dict[int, str]) -> Iterator[str]:
    if tags.text(ds, "SyntheticData") != "YES":
        yield "SyntheticData is not YES"
    if tags.text(ds, "SOPClassUID") == CTImageStorage and "SYNTHETIC" not in tags.words(ds, "ImageType"):
        yield "ImageType does not say SYNTHETIC"


def _words(ds: Dataset, _: dict[int, str]) -> Iterator[str]:
    if "SYNTHETIC" not in tags.text(ds, "SeriesDescription").upper():
        yield "the series description does not say SYNTHETIC"
    if "NOT ACQUIRED" not in tags.text(ds, "ImageComments"):
        yield "the image comments do not say NOT ACQUIRED"


def _contrast(ds: Dataset, _: dict[int, str]) -> Iterator[str]:
    if any(keyword_for_tag(tag).startswith("ContrastBolus") for tag in ds.keys()):  # noqa: SIM118
        yield "contrast attributes are present although none was given"


def _model(ds: Dataset, block: dict[int, str]) -> Iterator[str]:
    model = _model_item(ds)
    if model is None:
        yield "the model (109100) is not in Contributing Equipment"
        return
    digest = block.get(private.MODEL_DIGEST) or _digest_in(model)
    if digest is None or tags.text(model, "DeviceUID") != model_device_uid(digest):
        yield "the model's DeviceUID does not follow from its digest"


def _block(ds: Dataset, block: dict[int, str]) -> Iterator[str]:
    if not block:
        yield "the private block was stripped"
        return
    missing = [name for offset, (_, name) in private.DICTIONARY.items() if offset not in block]
    if missing:
        yield f"the private block lacks {', '.join(missing)}"
    elif block[private.SCHEMA] != private.SCHEMA_VERSION:
        yield f"the private block has schema {block[private.SCHEMA]}, not {private.SCHEMA_VERSION}"
    else:
        yield from _uids(ds, block)


def _uids(ds: Dataset, block: dict[int, str]) -> Iterator[str]:
    """UIDs are functions of the block: where they differ, one of the two was changed."""
    if tags.text(ds, "SeriesInstanceUID") != series_uid(block):
        yield "the series UID does not follow from the private block"
    made_from: tuple[str, int | None] = (block[private.SOURCE_SERIES_UID], None)
    for item in tags.items(ds, "SourceImageSequence"):
        frame = tags.number(item, "ReferencedFrameNumber")
        made_from = (tags.text(item, "ReferencedSOPInstanceUID"), None if frame is None else int(frame))
    if tags.text(ds, "SOPInstanceUID") != instance_uid(block, *made_from):
        yield "the instance UID does not follow from the private block and the source image"


def _references(ds: Dataset, block: dict[int, str]) -> Iterator[str]:
    referenced = _referenced_series_uid(ds)
    if referenced is None:
        yield "the source series is not referenced"
    elif block.get(private.SOURCE_SERIES_UID, referenced) != referenced:
        yield "the referenced series is not the one in the private block"


def _pixels(ds: Dataset, _: dict[int, str]) -> Iterator[str]:
    if tags.text(ds, "SOPClassUID") != CTImageStorage:
        return
    if (tags.number(ds, "RescaleSlope"), tags.number(ds, "RescaleIntercept")) != (1, 0):
        yield "rescale slope and intercept are not 1 and 0"
    if len(tags.words(ds, "WindowCenter")) != 1:
        yield "there is not exactly one window"
    try:
        stored = ds.pixel_array
    except tags.PARSE_ERRORS as error:
        yield f"the pixels cannot be decoded ({type(error).__name__})"
        return
    if stored.dtype != np.int16:
        yield f"the pixels are {stored.dtype}, not signed 16 bit"
    elif stored.min() == stored.max():
        yield "every pixel has the same value"


CHECKS: Final[tuple[Callable[[Dataset, dict[int, str]], Iterator[str]], ...]] = (
    _flag,
    _words,
    _contrast,
    _model,
    _block,
    _references,
    _pixels,
)
"""Every check sees the dataset and its private block, and yields sentences."""
