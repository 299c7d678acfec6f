from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage

from config.intake import IntakeSettings
from node.enhancement import Enhancement
from node.errors import REJECTION_CODES, SeriesRejected
from node.intake import RULES, enhanced, examine_headers, examine_series
from node.series import read_series

SETTINGS = IntakeSettings()


def code_of(headers: list[Dataset], rules: IntakeSettings = SETTINGS) -> str | None:
    """The code of the rejection, None where the headers pass."""
    try:
        examine_headers(headers, rules)
    except SeriesRejected as rejected:
        assert rejected.reason
        return rejected.code
    return None


@pytest.fixture
def plain(ct: Any) -> list[Dataset]:
    """Ten headers nothing is wrong with."""
    return ct.slices(ct.gradient())


def test_every_rule_has_a_code_that_is_documented() -> None:
    assert {code for code, _ in RULES} <= REJECTION_CODES.keys()


def test_a_plain_axial_series_passes(plain: list[Dataset]) -> None:
    assert code_of(plain) is None


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ({"SyntheticData": "YES"}, "SYNTHETIC"),
        ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "SYNTHETIC", "ARTERIAL"]}, "SYNTHETIC"),
        ({"Modality": "MR"}, "NOT-CT"),
        ({"SOPClassUID": MRImageStorage}, "NOT-CT"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "LOCALIZER"),
        ({"ScanOptions": "SURVIEW"}, "LOCALIZER"),
        ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL"]}, "DERIVED"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "VMI"]}, "DERIVED"),
        ({"VolumetricProperties": "SAMPLED"}, "DERIVED"),
        ({"SOPInstanceUID": "../../outside"}, "IDENTITY"),
        ({"StudyInstanceUID": ""}, "IDENTITY"),
        ({"SOPClassUID": ""}, "IDENTITY"),
        ({"BodyPartExamined": "HEAD"}, "BODY-PART"),
        ({"KVP": 40}, "KVP-OUT-OF-RANGE"),
        ({"SliceThickness": 20}, "SPACING-OUT-OF-RANGE"),
    ],
    ids=str,
)
def test_a_series_that_is_not_ours_is_rejected_with_its_code(
    plain: list[Dataset], attributes: dict[str, Any], code: str
) -> None:
    for keyword, value in attributes.items():
        setattr(plain[3], keyword, value)
    assert code_of(plain) == code


@pytest.mark.parametrize(
    "agent", ["", "C-", "NONE", "no", "None", "w/o", "NATIVE", "NO CONTRAST", " - ", "N/A"]
)
def test_an_agent_that_means_none_is_no_contrast(ct: Any, agent: str) -> None:
    assert code_of(ct.slices(ct.gradient(), ContrastBolusAgent=agent, ContrastBolusRoute=agent)) is None


@pytest.mark.parametrize(
    "attributes",
    [
        {"ContrastBolusAgent": "ISOVUE300/100"},
        {"ContrastBolusAgent": "APPLIED", "ContrastBolusVolume": 0},
        {"ContrastBolusAgent": "CE"},
        {"ContrastBolusAgent": "ORAL"},
        {"ContrastBolusAgent": "", "ContrastBolusRoute": "Oral & IV"},
        {"ContrastBolusVolume": 90},
        {"ContrastBolusTotalDose": 30},
        {"ContrastFlowRate": [3]},
        {"ContrastBolusAgentSequence": [Dataset()]},
    ],
    ids=str,
)
def test_a_claim_of_contrast_in_any_tag_is_believed(ct: Any, attributes: dict[str, Any]) -> None:
    assert code_of(ct.slices(ct.gradient(), **attributes)) == "HAS-CONTRAST"


@pytest.mark.parametrize(("administered", "code"), [("NO", None), ("YES", "HAS-CONTRAST")])
def test_a_multi_frame_object_may_deny_the_agents_it_lists(
    ct: Any, administered: str, code: str | None
) -> None:
    usage = Dataset()
    usage.ContrastBolusAgentAdministered = administered
    slices = ct.slices(
        ct.gradient(), ContrastBolusAgentSequence=[Dataset()], ContrastBolusUsageSequence=[usage]
    )
    assert code_of(slices) == code


@pytest.mark.parametrize(
    "description",
    [
        "ABD ARTERIAL", "Portal venous 3.0", "CT ABDOMEN WITH CONTRAST", "ABD W/O AND WITH CONTRAST",
        "CTA AORTA",
        "Abdomen KM portalven.", "TAP PORTAL", "ABD C+", "abdo +C", "Delayed 5 min", "ANGIO ABD", "IV+ 3mm",
        "addome con mdc", "POST INJECTION", "CECT LIVER", "phase tardive", "pv 70s", "ART 1.25mm",
    ],
)  # fmt: skip
def test_a_description_that_claims_contrast_is_believed(ct: Any, description: str) -> None:
    assert code_of(ct.slices(ct.gradient(), SeriesDescription=description)) == "HAS-CONTRAST"


@pytest.mark.parametrize(
    "description",
    [
        "", "PET-CT SERIES", "5/5mm Plain", "ABD W/O CONTRAST", "ABDOMEN WITHOUT IV CONTRAST",
        "NON-CONTRAST ABD",
        "SANS INJECTION", "nativ ohne KM", "UNENHANCED", "abd C-", "senza mdc", "NONCONTRAST",
        "No contrast", "lung", "CT PRE CONTRAST", "Abd 3.0 B30f",
    ],
)  # fmt: skip
def test_a_description_that_denies_it_or_says_nothing_passes(ct: Any, description: str) -> None:
    assert code_of(ct.slices(ct.gradient(), SeriesDescription=description)) is None


def test_the_first_rule_in_the_table_gives_the_code(plain: list[Dataset]) -> None:
    plain[0].ContrastBolusAgent = "OMNIPAQUE"
    plain[9].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    assert code_of(plain) == "LOCALIZER"


def test_reasons_hold_no_value_of_the_patient(ct: Any) -> None:
    slices = ct.slices(ct.gradient(), ContrastBolusAgent="DOE^JANE", SeriesDescription="DOE^JANE CONTRAST")
    with pytest.raises(SeriesRejected) as caught:
        examine_headers(slices, SETTINGS)
    assert "DOE" not in str(caught.value)


def test_too_few_slices_are_rejected(ct: Any) -> None:
    assert code_of(ct.slices(ct.gradient(7))) == "TOO-FEW-SLICES"
    assert code_of(ct.slices(ct.gradient(7)), IntakeSettings(min_slices=7)) is None


def test_an_instance_that_is_there_twice_is_rejected(plain: list[Dataset]) -> None:
    plain[3].SOPInstanceUID = plain[4].SOPInstanceUID
    assert code_of(plain) == "IDENTITY"


def test_a_gap_is_no_grid(plain: list[Dataset]) -> None:
    del plain[4]
    assert code_of(plain) == "NOT-A-GRID"


@pytest.mark.parametrize("orientation", [(0, 1, 0, 0, 0, -1), (0, 1, 0, -1, 0, 0), (0, 1, 0, 1, 0, 0)])
def test_sagittal_and_turned_slices_are_rejected(ct: Any, orientation: tuple[float, ...]) -> None:
    assert code_of(ct.slices(ct.gradient(), orientation=orientation)) == "NOT-AXIAL"


@pytest.mark.parametrize("orientation", [(-1, 0, 0, 0, -1, 0), (1, 0, 0, 0, -1, 0), (-1, 0, 0, 0, 1, 0)])
def test_prone_and_mirrored_slices_pass(ct: Any, orientation: tuple[float, ...]) -> None:
    assert code_of(ct.slices(ct.gradient(), orientation=orientation)) is None


@pytest.mark.parametrize("spacing", [(9.0, 0.8, 0.8), (2.5, 5.0, 0.8), (2.5, 0.8, 0.1), (0.2, 0.8, 0.8)])
def test_a_spacing_the_model_never_saw_is_rejected(ct: Any, spacing: tuple[float, float, float]) -> None:
    assert code_of(ct.slices(ct.gradient(), spacing_mm=spacing)) == "SPACING-OUT-OF-RANGE"


def test_what_the_header_does_not_say_is_not_held_against_it(ct: Any) -> None:
    slices = ct.slices(ct.gradient())
    for ds in slices:
        del ds.KVP, ds.SliceThickness, ds.ImageType, ds.FrameOfReferenceUID, ds.PatientID
    assert code_of(slices) is None


# --- pixels -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "area", "is_enhanced"),
    [(0.0, 0.0, False), (0.015, 40.0, False), (0.016, 0.0, True), (0.0, 41.0, True)],
)
def test_either_measure_alone_means_contrast(share: float, area: float, is_enhanced: bool) -> None:
    assert (enhanced(Enhancement(share, area, 900.0), SETTINGS) is not None) == is_enhanced


def test_a_series_without_tissue_passes_with_findings(ct: Any, write_slices: Any) -> None:
    slices = ct.slices(np.full((10, 12, 16), 40))
    for ds in slices:
        del ds.KVP
    series = read_series(write_slices(slices), SETTINGS.limits)
    assert [finding.code for finding in examine_series(series, SETTINGS)] == [
        "LITTLE-SOFT-TISSUE",
        "KVP-UNKNOWN",
    ]
