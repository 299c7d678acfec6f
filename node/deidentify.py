"""Files without a patient, for support: the Basic Application Level Confidentiality Profile (PS3.15 E).

The table of attributes and what is done to each is dicom-anonymizer's, edition 2026c; it is applied inside
sequences too. Pixels stay: a series of heads could still be recognised, and what is burnt in stays burnt in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from dicomanonymizer import simpledicomanonymizer as profile  # type: ignore[import-untyped]
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filewriter import dcmwrite

from node import tags
from node.errors import NodeError
from node.outputs.provenance import coded

EDITION: Final = "dicomfields_2026c"
METHOD: Final = "PS3.15 E Basic Profile 2026c"
STANDARDS_ROOT: Final = "1.2.840.10008."
"""UIDs of the standard itself: classes and syntaxes, which name nobody."""
UID: Final = re.compile(r"(?<![\d.])\d+(?:\.\d+){2,}(?![\d.])")


class NotDeidentified(NodeError):
    """The file cannot be read, or holds something the profile's table cannot be applied to."""


class Pseudonyms:
    """New UIDs for old ones, the same everywhere in one case and different in the next."""

    def __init__(self, uids: dict[str, str]) -> None:
        self._uids = uids

    def text(self, text: str) -> str:
        """``text`` with every UID replaced but those of one or two parts, which look like numbers."""
        return UID.sub(lambda found: self.uid(found[0]), text)

    def uid(self, uid: str) -> str:
        """What stands for ``uid``, whatever it looks like: itself for those of the standard."""
        return uid if uid.startswith(STANDARDS_ROOT) else str(profile.get_UID(uid))


@contextmanager
def pseudonyms() -> Iterator[Pseudonyms]:
    """One case; what stood for what is forgotten when it ends. Not for several threads at once."""
    profile.dictionary.clear()
    try:
        yield Pseudonyms(profile.dictionary)
    finally:
        profile.dictionary.clear()


def deidentified(path: Path) -> bytes:
    """The file after the profile, in its own transfer syntax; raises NotDeidentified."""
    rules: dict[Any, Any] = profile.initialize_actions(EDITION)
    try:
        ds = dcmread(path)
        _clean(ds, rules)
        ds.PatientIdentityRemoved = "YES"
        ds.DeidentificationMethod = METHOD
        ds.DeidentificationMethodCodeSequence = [coded("113100", "Basic Application Confidentiality Profile")]
        buffer = BytesIO()
        dcmwrite(buffer, ds, enforce_file_format=True)
    except (OSError, InvalidDicomError, NotImplementedError, *tags.PARSE_ERRORS) as error:
        raise NotDeidentified(f"a file is left out: {type(error).__name__}") from error
    return buffer.getvalue()


def _clean(ds: Dataset, rules: dict[Any, Any]) -> None:
    """Apply the rules to the data set and to every item of what they left of its sequences."""
    profile.anonymize_dataset(ds, base_rules_gen=lambda: dict(rules))
    for element in ds:
        if element.VR == "SQ":
            for item in element.value:
                _clean(item, rules)
