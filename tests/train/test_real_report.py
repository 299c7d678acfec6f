"""A real, labelled scan has no truth: organs before and after stand beside the average patient's rise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from engine.bundle import read_bundle, write_manifest
from engine.cases import write_nifti
from engine.phantom import PhantomOptions, make_phantom
from engine.phantom.enhancement import TISSUES
from engine.session import SessionPolicy
from engine.volume import Geometry, Volume
from node.cli import app
from train.real_report import Organ, Report, expected_rise, report, rows_of, words

CPU = SessionPolicy(provider="cpu", threads=1)
GAIN = 0.25


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A phantom's unenhanced phase and its labels as NIfTI files, standing for a real scan."""
    folder = tmp_path_factory.mktemp("scan")
    phantom = make_phantom(
        4, PhantomOptions(shape=(24, 80, 80), spacing_mm=(8.0, 5.0, 5.0), phases=("ncct",))
    )
    for name, array in (("ct", phantom.phases["ncct"]), ("labels", phantom.labels.astype(np.float32))):
        write_nifti(folder / f"{name}.nii.gz", Volume(array, phantom.geometry))
    return folder / "ct.nii.gz", folder / "labels.nii.gz"


@pytest.fixture
def found(scan: tuple[Path, Path], translator_bundle: Callable[..., Path]) -> Report:
    """Through models that add a quarter of what lies above 0 HU."""
    bundles = [translator_bundle(phase, gain=GAIN) for phase in ("arterial", "venous")]
    for folder in bundles:
        manifest = read_bundle(folder).manifest
        write_manifest(folder, manifest.model_copy(update={"window_hu": (-200.0, 200.0)}))
    return report(*scan, "phantom", bundles, CPU)


def test_every_organ_has_its_mean_before_and_after_both_phases(found: Report) -> None:
    organs = {organ["tissue"]: organ for organ in found["organs"]}
    assert {"aorta", "liver", "spleen", "renal_cortex", "muscle"} <= organs.keys()
    assert "table" not in organs
    liver = organs["liver"]
    assert 20 < liver["source_hu"] < 80
    assert liver["source_sd_hu"] > 5
    for phase in ("arterial", "venous"):
        gained = liver["phases"][phase]["hu"] - liver["source_hu"]
        assert gained == pytest.approx(GAIN * liver["source_hu"], rel=0.3)
    assert found["models"]["venous"]["model_id"] == "gain-venous-1.0.0"
    assert sum(organ["ml"] for organ in found["organs"]) > 1000


def test_a_table_for_people_says_the_same(found: Report) -> None:
    head, *rows = rows_of(found)
    assert len(head) == 9
    liver = next(row for row in rows if row[0] == "liver")
    organ = next(organ for organ in found["organs"] if organ["tissue"] == "liver")
    assert liver[3] == f"{organ['phases']['arterial']['hu']:.0f}"
    assert liver[5] == f"{organ['phases']['arterial']['expected_rise_hu']:+.0f}"


def organ(tissue: str, gained: float, expected: float, source: float = 40.0) -> Organ:
    return {
        "tissue": tissue,
        "ml": 1.0,
        "source_hu": source,
        "source_sd_hu": 1.0,
        "phases": {"venous": {"hu": source + gained, "expected_rise_hu": expected}},
    }


def test_the_paragraph_names_what_gained_too_little_or_too_much_and_what_did_not_stay() -> None:
    text = words(
        [
            organ("liver", 50, 54), organ("portal_vein", 30, 132), organ("spleen", 200, 77),
            organ("muscle", 6, 7), organ("fat", -4, 0), organ("gallbladder", 11, 0), organ("bowel", 20, 2),
        ],
        ["venous"],
    )  # fmt: skip
    assert "Venous: 1 of 3 organs that enhance" in text
    assert "(liver)" in text
    assert "less (portal vein 23%)" in text
    assert "more (spleen 260%)" in text
    assert "what should stay stayed (fat -4 of ±5 HU, gallbladder +11 of ±15 HU)" in text
    assert "did not stay (muscle +6 of ±5 HU, bowel +20 of ±15 HU)" in text
    assert "do not carry over" in text


def test_the_paragraph_claims_nothing_of_the_patient_where_all_is_well() -> None:
    text = words([organ("liver", 50, 54), organ("muscle", 4, 7)], ["venous"])
    assert "what should stay stayed (muscle +4 of ±5 HU)" in text
    assert "no evidence that this patient would enhance so" in text


def test_the_kept_paragraph_is_what_is_said_of_the_kept_figures() -> None:
    kept = json.loads((Path(__file__).resolve().parents[2] / "docs" / "real-ct.json").read_text())
    assert words(kept["organs"], sorted(kept["models"])) == kept["words"]


def test_the_average_rise_falls_with_the_size_of_the_body() -> None:
    assert expected_rise("liver", "venous", 1.0) == TISSUES["liver"].venous
    assert expected_rise("aorta", "arterial", 1.5) < expected_rise("aorta", "arterial", 1.0)
    assert TISSUES["ivc_infrarenal"].venous < expected_rise("ivc", "venous", 1.0)


def test_the_command_shows_it_and_names_no_file_in_its_json(
    scan: tuple[Path, Path], translator_bundle: Callable[..., Path]
) -> None:
    asked = ["evaluate", "--ncct", str(scan[0]), "--labels", str(scan[1]), "--labels-are", "phantom"]
    asked += ["--bundle", str(translator_bundle("venous")), "--provider", "cpu", "--threads", "1"]
    shown, as_json = (CliRunner().invoke(app, [*asked, *more]) for more in ([], ["--json"]))
    assert shown.exit_code == as_json.exit_code == 0, shown.output
    assert "renal cortex" in shown.output
    assert str(scan[0].parent) not in as_json.stdout
    assert json.loads(as_json.stdout)["words"]


def test_what_does_not_fit_is_said(scan: tuple[Path, Path], tmp_path: Path) -> None:
    alone = CliRunner().invoke(app, ["evaluate", "--ncct", str(scan[0])])
    assert alone.exit_code == 2
    other = np.zeros((4, 8, 8), np.float32)
    write_nifti(tmp_path / "other.nii.gz", Volume(other, Geometry((4, 8, 8), (8.0, 5.0, 5.0))))
    asked = ["evaluate", "--ncct", str(scan[0]), "--labels"]
    wrong = CliRunner().invoke(app, [*asked, str(tmp_path / "other.nii.gz")])
    assert wrong.exit_code == 1
    assert "labels have to lie on the scan's own grid" in wrong.output
    unknown = CliRunner().invoke(app, [*asked, str(scan[1]), "--labels-are", "monai"])
    assert unknown.exit_code == 1
    assert "neither phantom, totalsegmentator nor a file" in unknown.output
