"""Reading header values that strangers wrote: missing, empty or broken values are None, never an error.

Importing this module tells pydicom not to validate what it *reads*: its warnings would quote the values,
which may be a patient's, into the log. What is written is still validated.
"""

from __future__ import annotations

import math
import struct
import zlib

from pydicom import config as pydicom_config
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException
from pydicom.multival import MultiValue

pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE

PARSE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    BytesLengthException,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What pydicom and its decoders raise on broken bytes. Not OSError: that is our disk, not their data."""


def value(ds: Dataset, keyword: str) -> object:
    """The value of an element, None where it is absent, empty or cannot be parsed."""
    try:
        found = ds.get(keyword)
    except (OSError, *PARSE_ERRORS):  # pydicom's word for a sequence that ends early; no disk is read here
        return None
    return None if found == "" else found


def text(ds: Dataset, keyword: str) -> str:
    """The value as one stripped string, several values joined by a backslash; "" where there is none."""
    return "\\".join(words(ds, keyword))


def words(ds: Dataset, keyword: str) -> list[str]:
    """Every value of an element as stripped strings."""
    found = value(ds, keyword)
    if found is None:
        return []
    several = found if isinstance(found, MultiValue | list | tuple) else [found]
    try:
        return [str(one).strip() for one in several]
    except (OSError, *PARSE_ERRORS):  # a sequence in place of text, whose items are parsed only now
        return []


def numbers(ds: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Exactly ``count`` finite numbers, else None."""
    parsed = [_finite(word) for word in words(ds, keyword)]
    found = tuple(one for one in parsed if one is not None)
    return found if len(found) == len(parsed) == count else None


def number(ds: Dataset, keyword: str) -> float | None:
    """One finite number, else None."""
    found = numbers(ds, keyword, 1)
    return found[0] if found else None


def items(ds: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence; none where it is absent or is no sequence."""
    found = value(ds, keyword)
    try:
        return [item for item in found if isinstance(item, Dataset)] if found else []  # type: ignore[attr-defined]
    except PARSE_ERRORS:
        return []


def _finite(word: str) -> float | None:
    try:
        parsed = float(word)
    except ValueError:
        return None
    return parsed if math.isfinite(parsed) else None
