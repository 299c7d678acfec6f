"""What the node can refuse, and the stable codes of rejection.

::

    NodeError
    ├── SeriesRejected(code)        the input is not ours; final
    ├── DestinationUnreachable      nobody answered, or asked to wait; tried again
    └── DestinationRefused(status)  they said no; a person is needed
"""

from __future__ import annotations

REJECTION_CODES: dict[str, str] = {
    "NOT-CT": "the objects are not CT images this node translates",
    "SYNTHETIC": "the series says it is synthetic, or was made by this node",
    "DERIVED": "the series is derived (a reformat, a projection, a map), not an acquisition",
    "LOCALIZER": "the images are localizers (scouts, topograms)",
    "HAS-CONTRAST": "the series already shows or claims contrast",
    "NOT-A-GRID": "the slices do not form one regular grid (gaps, duplicates, tilt, mixed orientation)",
    "TOO-FEW-SLICES": "fewer slices than the model needs",
    "UNDECODABLE": "the pixel data cannot be decoded",
    "NOT-DICOM": "the file is not a DICOM image",
    "IDENTITY": "study, series or instance UIDs are missing or contradictory: nothing could be returned",
    "NOT-HU": "the pixel values cannot be turned into Hounsfield units",
    "KVP-OUT-OF-RANGE": "the tube voltage is outside what the model was made for",
    "SPACING-OUT-OF-RANGE": "slice spacing, thickness or pixel spacing is outside what the model is made for",
    "BODY-PART": "the series names a part of the body the model was not made for",
    "NOT-AXIAL": "the slices are not axial, or are turned in their plane",
    "TOO-LARGE": "a file, a slice or the whole series is larger than the limits set",
    "VOLUME-UNSUPPORTED": "the volume is outside what the model was made for",
}
"""Stable codes and what they mean, one line each; `docs/runbook.md` says what to do about them."""


class NodeError(Exception):
    """Root of every error the node raises on purpose."""


class SeriesRejected(NodeError):
    """The series is not one the node may translate. Final; ``code`` is a key of :data:`REJECTION_CODES`."""

    def __init__(self, code: str, reason: str) -> None:
        if code not in REJECTION_CODES:
            raise ValueError(f"unknown rejection code {code!r}: add it to REJECTION_CODES")
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


class DestinationUnreachable(NodeError):
    """Nobody answered, or the peer asked us to wait: the delivery is tried again later."""


class DestinationRefused(NodeError):
    """The peer said no for good.

    ``status`` is the DIMSE status, or None when no presentation context was accepted.
    """

    def __init__(self, status: int | None, reason: str) -> None:
        shown = "no presentation context" if status is None else f"status 0x{status:04X}"
        super().__init__(f"{shown}: {reason}")
        self.status = status
        self.reason = reason
