"""The page of an evaluation holds every table and picture in one file, the worst case first."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from engine.phantom import PhantomOptions, make_phantom
from engine.volume import Volume
from train.cases import Case, phantom_case
from train.evaluate import PhaseRows, add_case, as_json, summary
from train.html import _worst, html_table, p_value, page, spread, write_page

COARSE = PhantomOptions(shape=(20, 64, 64), spacing_mm=(14.0, 6.0, 6.0), noise_hu=8.0)
SEEDS = (1, 2, 4, 5)
FACTS = {"model_id": "<test & co>", "model_digest": "", "window_hu": (-200.0, 400.0), "provider": "cpu"}


@cache
def measured() -> dict[str, PhaseRows]:
    """A method that gives every patient the oracle's image, 20 HU too bright in the last."""
    found = {phase: PhaseRows(dict(FACTS)) for phase in ("arterial", "venous")}
    for seed in SEEDS:
        case = phantom_case(make_phantom(seed, COARSE))
        assert case.oracle is not None
        for phase, rows in found.items():
            shift = np.float32(20 if seed == SEEDS[-1] else 0)
            add_case(rows, case, phase, case.oracle.noise_free[phase] + shift * case.body)
    return found


def test_the_oracle_stands_beside_identity_and_model() -> None:
    found = summary(measured()["venous"])
    assert found["oracle"].keys() == found["identity"].keys() == found["model"].keys()
    assert found["oracle"]["mae_hu"] < found["identity"]["mae_hu"]
    liver = found["organs"]["liver"]
    assert liver["oracle_mae_hu"] < liver["identity_mae_hu"]
    assert liver["model_mae_interval_hu"][0] <= liver["model_mae_hu"] <= liver["model_mae_interval_hu"][1]
    assert liver["limits_of_agreement_hu"][0] < liver["bias_hu"] < liver["limits_of_agreement_hu"][1]
    assert set(found["p_against_identity"]) == set(found["intervals"]) == {"psnr", "ssim", "nmse", "mae_hu"}


def test_a_flat_shift_of_the_body_changes_no_vessels_contrast() -> None:
    vessels = summary(measured()["arterial"])["thin_vessels"]
    assert vessels["share_of_oracle"] == pytest.approx(1, abs=0.05)
    assert vessels["oracle_hu"] > 10


def test_the_source_itself_gains_no_contrast_and_changes_no_control() -> None:
    for row in measured()["arterial"].identity:
        assert row["vessels"]["made"] == 0
        assert row["controls"]["muscle"][:2] == (0.0, 0.0)


def test_the_summary_is_plain_json() -> None:
    assert json.loads(json.dumps(as_json(measured())))["phases"]["arterial"]["cases"] == len(SEEDS)


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    write_page(tmp_path / "out" / "page.html", {"venous": measured()["venous"]})
    text = (tmp_path / "out" / "page.html").read_text()
    assert re.findall(r"(?:src|href)=\"(?!data:image/png;base64,)", text) == []
    assert "url(" not in text
    assert text.count("<img") == 2 + 2 * len(SEEDS)
    for words in ("Bland–Altman", "Slope", "portal vein", "muscle", "SSIM", "PSNR", "vessels", "z flicker"):
        assert words in text
    assert "&lt;test &amp; co&gt;" in text
    rows = json.loads((tmp_path / "out" / "page.json").read_text())["rows"]
    assert len(rows["venous"]["model"]) == len(SEEDS)


def test_the_worst_case_is_named_first() -> None:
    text = "".join(_worst(measured()["venous"], pictures=0))
    cases = re.findall(r"<td>(phantom \d+)</td>", text)
    assert cases[0] == f"phantom {SEEDS[-1]}"
    assert sorted(cases) == [f"phantom {seed}" for seed in SEEDS]


def test_a_pair_without_labels_makes_a_page_without_organs() -> None:
    phantom = make_phantom(2, COARSE)
    bare = Case(
        "patient 1", 1, Volume(phantom.phases["ncct"], phantom.geometry), phantom.phases, phantom.labels > 0
    )
    rows = PhaseRows(dict(FACTS))
    add_case(rows, bare, "venous", phantom.phases["ncct"])
    text = page({"venous": rows})
    assert "No labels came with these cases" in text
    assert "oracle</th>" not in text
    assert rows.oracle == []


def test_numbers_are_written_with_spread_and_interval() -> None:
    assert spread([1.0, 1.0], 1) == "1.0 ± 0.0 [1.0, 1.0]"
    assert p_value(1e-6) == "< 0.001"
    assert p_value(0.25) == "0.250"
    assert "<th>b" not in html_table([("a", "b"), ("1", "")])
