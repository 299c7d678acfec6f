"""Where finished files go. One entry of :data:`DESTINATIONS` is one kind of destination in the settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from node.destinations import cstore, folder
from node.destinations.answer import Answer

Deliver = Callable[[Any, Sequence[Path]], Iterator[Answer]]
"""From the destination's settings and DICOM files to one answer a file, as they come.

Raises DestinationUnreachable where the rest should be tried again later (what was answered stays delivered),
DestinationRefused where a person is needed. A file that is there already is delivered again without harm.
"""

DESTINATIONS: dict[str, Deliver] = {
    "cstore": cstore.deliver,
    "folder": folder.deliver,
}
"""From ``kind`` in the settings to how files get there."""

Probe = Callable[[Any], None]
"""Looks whether the destination is there, and sends nothing else; raises DestinationUnreachable."""

PROBES: dict[str, Probe] = {
    "cstore": cstore.probe,
    "folder": folder.probe,
}
"""From ``kind`` in the settings to how one looks whether it answers."""
