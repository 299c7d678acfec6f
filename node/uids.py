"""UIDs this node makes, and which UIDs of others it will use as file names."""

from __future__ import annotations

import re
from typing import Final
from uuid import UUID, uuid5

UID_SCHEMA: Final = "1"
"""First part of every derived UID; raise it when the meaning of the parts changes."""

NAMESPACE: Final = UUID("6f0c2b0e-5d1a-5b6e-9c57-2f8f4f0c9f3d")
SEPARATOR: Final = "\x1f"

IMPLEMENTATION_CLASS_UID: Final = "1.2.826.0.1.3680043.8.498.53419020712220809118977343737859"
"""Of this implementation (PS3.7 D.3.3.2). Fixed and, as PS3.5 B.2 advises for this use, not under 2.25."""

IMPLEMENTATION_VERSION_NAME: Final = "S2NODE_1"

_PLAUSIBLE = re.compile(r"[0-9][0-9.]{0,63}", re.ASCII)


def derive_uid(kind: str, *parts: str) -> str:
    """``2.25.`` and the uuid5 of (schema, kind, parts): the same words give the same UID (PS3.5 B.2).

    ``['a', 'b']`` and ``['ab']`` differ: parts are joined by a separator. Raises ValueError for a part that
    holds the separator.
    """
    words = (UID_SCHEMA, kind, *parts)
    for word in words:
        if SEPARATOR in word:
            raise ValueError(f"a part of a UID holds the separator U+001F: {word!r}")
    return f"2.25.{uuid5(NAMESPACE, SEPARATOR.join(words)).int}"


def is_plausible_uid(text: str) -> bool:
    """Whether ``text`` may name a file: 1 to 64 digits and dots, beginning with a digit.

    Looser than PS3.5 9.1 on purpose: real senders write leading zeros and trailing dots, and no string of
    digits and dots that begins with a digit can leave its folder.
    """
    return _PLAUSIBLE.fullmatch(text) is not None
