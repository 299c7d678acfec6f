"""Is this series ours to translate? Rules with stable codes, by what the tags say and by what the pixels say.

A rule is a function from a header to the reason why not, or None; :data:`RULES` holds them in the order in
which they are asked, so a series that breaks several is always rejected with the same code. Reasons name
attributes and numbers, never a patient's values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

from config.intake import IntakeSettings
from engine.synthesis import Finding
from engine.volume import Geometry
from node import tags
from node.enhancement import ENHANCED_HU, VESSEL_HU, Enhancement, measure_enhancement
from node.errors import SeriesRejected
from node.loopguard import is_own
from node.orientation import is_turned
from node.series import SourceSeries, frames_of, grid_of
from node.uids import is_plausible_uid

CT_CLASSES = frozenset({CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage})
"""SOP classes the node reads (PS3.4 B.5)."""

LOCALIZER_WORDS = frozenset({"LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW", "SCANOGRAM"})
"""Words of ImageType or ScanOptions that mean a projection (PS3.3 C.8.2.1.1.1 and vendors' own)."""

DERIVED_WORDS = frozenset(
    {
        "DERIVED", "MPR", "MIP", "MINIP", "MIN_IP", "MAX_IP", "REFORMATTED", "CSA MPR", "VMI", "MAT_SPECIFIC",
        "MAT_REMOVED", "MAT_MODIFIED", "MAT_FRACTIONAL", "MAT_VALUE_BASED", "EFF_ATOMIC_NUM",
        "ELECTRON_DENSITY", "IODINE", "VNC", "PERFUSION", "SCREEN SAVE", "SUBTRACTION", "SUBTRACT",
    }
)  # fmt: skip
"""Words of ImageType that mean something was computed from an acquisition (PS3.3 C.8.2.1.1.1, C.8.15.1.1)."""

NO_AGENT = frozenset(
    {
        "", "C-", "-", "--", "0", "NO", "N", "NONE", "NIL", "NULL", "N/A", "NA", "NEIN", "NON", "SANS",
        "SENZA", "SIN", "OHNE", "WITHOUT", "W/O", "NATIVE", "NATIV", "PLAIN", "NOT APPLIED",
        "NOT ADMINISTERED",
        "NO CONTRAST", "NON CONTRAST", "NON-CONTRAST", "NONCONTRAST", "WITHOUT CONTRAST",
        "UNENHANCED",
    }
)  # fmt: skip
"""Values of ContrastBolusAgent and ContrastBolusRoute that mean that nothing was given."""

CONTRAST_AMOUNTS = ("ContrastBolusVolume", "ContrastBolusTotalDose", "ContrastFlowRate")
"""Attributes whose positive value means that something was given (PS3.3 C.7.6.4)."""

NEGATED = re.compile(
    r"\b(?:W/?O|WITHOUT|NON|NO|SANS|OHNE|SIN|SENZA|PRE)[\s\-_./]*(?:I\.?V\.?)?[\s\-_.]*"
    r"(?:CONTRAST\w*|CE|KM|INJ\w*|ENHANC\w*|MDC|IV)\b|\bUNENHANCED\b|\bNONCONTRAST\b|\bC-"
)
"""Words of a series description that deny contrast; taken away before claims are looked for."""

CLAIMED = re.compile(
    r"CONTRAST|(?:^|[^A-Z])C\+|\+\s?C\b|\bIV\+|\bKM\b|\bMDC\b|\bCE\b|\bCECT\b|\bINJECT\w*|\bENHANCED\b"
    r"|\bANGIO\w*|\bCTA\b|\bART(?:ERIAL\w*|ERIELLE?|ERIOSA|ERIOS\w*)?\b|\bVEN(?:OUS|OES|OS[AO]|EUX|EUSE)?\b"
    r"|\bPORTAL\w*|\bPV\b|\bDELAYED\b|\bTARDI\w*|\bNEPHROGR\w*|\bEXCRET\w*|\bUROGR\w*"
)
"""Words of a series description that claim contrast or name a phase of it."""

AXIAL_COSINE = 0.8
"""Slices, rows or columns further than 37 degrees from an axial image's are not taken."""

Rule = Callable[[Dataset, IntakeSettings], str | None]


def examine_headers(headers: Sequence[Dataset], rules: IntakeSettings) -> None:
    """Ask all that headers can answer; raises SeriesRejected with the code of the first broken rule."""
    slices = [flat for header in headers for flat in frames_of(header)]
    for code, rule in RULES:
        for header in slices:
            if reason := rule(header, rules):
                raise SeriesRejected(code, reason)
    if len(slices) < rules.min_slices:
        raise SeriesRejected(
            "TOO-FEW-SLICES", f"{len(slices)} slices, at least {rules.min_slices} are needed"
        )
    _check_instances(headers)
    _check_range(grid_of(headers, rules.limits), rules)


def examine_series(series: SourceSeries, rules: IntakeSettings) -> tuple[Finding, ...]:
    """Ask the pixels; returns what a reader should know, raises SeriesRejected (HAS-CONTRAST)."""
    measured = measure_enhancement(series.volume)
    if reason := enhanced(measured, rules):
        raise SeriesRejected("HAS-CONTRAST", reason)
    return tuple(_findings(series.headers[0], measured, rules))


def enhanced(measured: Enhancement, rules: IntakeSettings) -> str | None:
    """Why the pixels look enhanced, or None."""
    if measured.enhanced_share > rules.max_enhanced_share:
        return (
            f"{measured.enhanced_share:.1%} of the soft tissue is above {ENHANCED_HU:.0f} HU, "
            f"at most {rules.max_enhanced_share:.1%} is expected without contrast"
        )
    if measured.vessel_mm2 > rules.max_vessel_mm2:
        return (
            f"{measured.vessel_mm2:.0f} mm2 in front of the spine are above {VESSEL_HU:.0f} HU, "
            f"at most {rules.max_vessel_mm2:.0f} mm2 are expected without contrast"
        )
    return None


# --- rules about one header ---------------------------------------------------------------------


def _synthetic(header: Dataset, rules: IntakeSettings) -> str | None:
    return is_own(header)


def _not_ct(header: Dataset, rules: IntakeSettings) -> str | None:
    if tags.text(header, "Modality").upper() != "CT":
        return "Modality is not CT"
    sop_class = tags.text(header, "SOPClassUID")
    return (
        "the SOP class is not a CT image the node reads"
        if sop_class and sop_class not in CT_CLASSES
        else None
    )


def _localizer(header: Dataset, rules: IntakeSettings) -> str | None:
    found = _upper(header, "ImageType") | _upper(header, "ScanOptions")
    return "ImageType or ScanOptions names a localizer" if found & LOCALIZER_WORDS else None


def _derived(header: Dataset, rules: IntakeSettings) -> str | None:
    found = sorted(_upper(header, "ImageType") & DERIVED_WORDS)
    if found:
        return f"ImageType holds {found[0]}"
    volumetric = tags.text(header, "VolumetricProperties").upper()
    return "VolumetricProperties is not VOLUME" if volumetric not in ("", "VOLUME") else None


def claims_contrast(header: Dataset, rules: IntakeSettings) -> str | None:
    """Why the header says that contrast was given, or None; an empty header says nothing."""
    for keyword in ("ContrastBolusAgent", "ContrastBolusRoute"):
        if not _means_none(tags.text(header, keyword)):
            return f"{keyword} names something"
    for keyword in CONTRAST_AMOUNTS:
        if (tags.number(header, keyword) or 0) > 0:
            return f"{keyword} is above zero"
    if tags.items(header, "ContrastBolusAgentSequence") and not _usage_denied(header):
        return "ContrastBolusAgentSequence names something"
    claims = CLAIMED.search(NEGATED.sub(" ", tags.text(header, "SeriesDescription").upper()))
    return "SeriesDescription claims contrast or a phase of it" if claims else None


def _identity(header: Dataset, rules: IntakeSettings) -> str | None:
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        if not is_plausible_uid(tags.text(header, keyword)):
            return f"{keyword} is missing or is no UID"
    return None


def _body_part(header: Dataset, rules: IntakeSettings) -> str | None:
    named = tags.text(header, "BodyPartExamined").upper()
    return f"BodyPartExamined is {named}" if named in rules.refused_body_parts else None


def _kvp(header: Dataset, rules: IntakeSettings) -> str | None:
    kvp = tags.number(header, "KVP")
    if kvp is None or rules.min_kvp <= kvp <= rules.max_kvp:
        return None
    return f"{kvp:g} kV, {rules.min_kvp:g} to {rules.max_kvp:g} kV are taken"


def _thickness(header: Dataset, rules: IntakeSettings) -> str | None:
    thickness = tags.number(header, "SliceThickness")
    if thickness is None or thickness <= rules.max_slice_thickness_mm:
        return None
    return f"slices are {thickness:g} mm thick, at most {rules.max_slice_thickness_mm:g} mm are taken"


RULES: tuple[tuple[str, Rule], ...] = (
    ("SYNTHETIC", _synthetic),
    ("NOT-CT", _not_ct),
    ("LOCALIZER", _localizer),
    ("DERIVED", _derived),
    ("HAS-CONTRAST", claims_contrast),
    ("IDENTITY", _identity),
    ("BODY-PART", _body_part),
    ("KVP-OUT-OF-RANGE", _kvp),
    ("SPACING-OUT-OF-RANGE", _thickness),
)
"""Code and rule, in the order in which every slice is asked; number and grid of slices come after."""


def _upper(header: Dataset, keyword: str) -> set[str]:
    return {word.upper() for word in tags.words(header, keyword)}


def _means_none(text: str) -> bool:
    return text.upper().strip(" .") in NO_AGENT


def _usage_denied(header: Dataset) -> bool:
    """Whether a multi-frame object says that no agent it lists was administered (C.7.6.16.2.12)."""
    usage = tags.items(header, "ContrastBolusUsageSequence")
    return bool(usage) and all(
        tags.text(one, "ContrastBolusAgentAdministered").upper() == "NO" for one in usage
    )


# --- rules about all of them --------------------------------------------------------------------


def _check_instances(headers: Sequence[Dataset]) -> None:
    uids = [tags.text(header, "SOPInstanceUID") for header in headers]
    if repeated := len(uids) - len(set(uids)):
        raise SeriesRejected(
            "IDENTITY", f"{repeated} of {len(uids)} files repeat another one's SOPInstanceUID"
        )


def _check_range(geometry: Geometry, rules: IntakeSettings) -> None:
    step, row_mm, column_mm = geometry.spacing_mm
    if is_turned(geometry, AXIAL_COSINE):
        raise SeriesRejected("NOT-AXIAL", "the slices are not axial, or are turned in their plane")
    for name, spacing, low, high in (
        ("slice", step, rules.min_slice_spacing_mm, rules.max_slice_spacing_mm),
        ("row", row_mm, rules.min_pixel_spacing_mm, rules.max_pixel_spacing_mm),
        ("column", column_mm, rules.min_pixel_spacing_mm, rules.max_pixel_spacing_mm),
    ):
        if not low <= spacing <= high:
            raise SeriesRejected(
                "SPACING-OUT-OF-RANGE", f"{name} spacing {spacing:g} mm, {low:g} to {high:g} mm are taken"
            )


def _findings(header: Dataset, measured: Enhancement, rules: IntakeSettings) -> Iterator[Finding]:
    if (
        measured.enhanced_share > rules.max_enhanced_share / 2
        or measured.vessel_mm2 > rules.max_vessel_mm2 / 2
    ):
        yield Finding(
            "NEAR-CONTRAST",
            f"{measured.enhanced_share:.1%} of the soft tissue is above {ENHANCED_HU:.0f} HU, "
            "more than is usual without contrast",
        )
    if measured.soft_tissue_ml < rules.min_soft_tissue_ml:
        yield Finding("LITTLE-SOFT-TISSUE", "too little soft tissue to see whether contrast was given")
    if tags.number(header, "KVP") is None:
        yield Finding("KVP-UNKNOWN", "the source states no tube voltage")
