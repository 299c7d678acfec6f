"""Which phase a series shows, as far as headers and pixels tell: for training's list of cases.

Contrast is judged by the node's own rules (``node.intake``, ``node.enhancement``); its phase by what the
series calls itself, else by the time since the injection began (PS3.3 C.7.6.4).
"""

from __future__ import annotations

import re

from pydicom.dataset import Dataset

from config.intake import IntakeSettings
from engine.cases import UNKNOWN
from node import tags
from node.enhancement import measure_enhancement
from node.intake import AXIAL_COSINE, claims_contrast, enhanced
from node.orientation import is_turned
from node.series import SourceSeries

DESCRIBED: dict[str, re.Pattern[str]] = {
    "arterial": re.compile(r"\bART(?:ERIAL\w*|ERIELLE?|ERIOSA|ERIOS\w*)?\b"),
    "venous": re.compile(r"\bVEN(?:OUS|OES|OS[AO]|EUX|EUSE)?\b|\bPORTAL\w*|\bPV\b"),
}
"""Words of a description that name a phase."""
DELAY_S: dict[str, tuple[float, float]] = {"arterial": (15.0, 50.0), "venous": (55.0, 110.0)}
"""Seconds from the start of the injection to the scan: late arterial about 35, portal venous about 70."""
SECONDS_A_DAY = 86_400.0


def phase_of(series: SourceSeries, rules: IntakeSettings) -> tuple[str, str]:
    """(phase, told by): ncct, arterial, venous or ``-``; pixels, description, delay or ``-``."""
    header = series.headers[0]
    if is_turned(series.volume.geometry, AXIAL_COSINE):
        return UNKNOWN, UNKNOWN
    bright = enhanced(measure_enhancement(series.volume), rules) is not None
    if not bright and not any(claims_contrast(one, rules) for one in series.headers):
        return "ncct", "pixels"
    for told_by, phase in (("description", _described(header)), ("delay", _timed(header))):
        if phase:
            return phase, told_by
    return UNKNOWN, UNKNOWN


def _described(header: Dataset) -> str | None:
    words = f"{tags.text(header, 'SeriesDescription')} {tags.text(header, 'ProtocolName')}".upper()
    found = [phase for phase, pattern in DESCRIBED.items() if pattern.search(words)]
    return found[0] if len(found) == 1 else None


def _timed(header: Dataset) -> str | None:
    start, scan = (_seconds(tags.text(header, k)) for k in ("ContrastBolusStartTime", "AcquisitionTime"))
    if start is None or scan is None:
        return None
    delay = (scan - start) % SECONDS_A_DAY
    return next((phase for phase, (low, high) in DELAY_S.items() if low <= delay <= high), None)


def _seconds(time: str) -> float | None:
    """Seconds since midnight of a TM (PS3.5 6.2): HHMMSS.FFFFFF, at least HHMMSS."""
    found = re.fullmatch(r"(\d\d)(\d\d)(\d\d(?:\.\d{1,6})?)", time)
    return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3]) if found else None
