"""An evaluation says what the issue's scripts read, with the source as it is beside the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from config.settings import Settings
from engine.phantom import PhantomOptions, make_phantom
from engine.phantom.phantom import Phantom
from engine.session import SessionPolicy
from export.bundle import export_bundle
from node.cli import app
from node.models import ModelStore
from train import evaluate as evaluation
from train import report
from train.evaluate import active_bundles, evaluate, organ_summary
from train.measure import changes

SMALL = PhantomOptions(shape=(32, 96, 96), spacing_mm=(9.0, 4.0, 4.0))


@pytest.fixture(scope="module")
def bundle(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated") / "venous"
    export_bundle(trained.stage_two, folder)
    return folder


@pytest.fixture
def small_phantoms(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(seed: int, options: PhantomOptions) -> Phantom:
        return make_phantom(seed, SMALL)

    monkeypatch.setattr(evaluation, "make_phantom", make)


def test_the_json_is_what_the_issue_asks_for(bundle: Path, small_phantoms: None) -> None:
    arguments = [
        "evaluate",
        "--bundle",
        str(bundle),
        "--phantom-seed",
        "9100",
        "--cases",
        "2",
        "--threads",
        "1",
    ]
    result = CliRunner().invoke(app, [*arguments, "--provider", "cpu", "--json"])
    assert result.exit_code == 0, result.output
    phase = json.loads(result.stdout)["phases"]["venous"]
    assert {"psnr", "ssim", "nmse", "mae_hu", "psnr_bundle_window"} <= phase["identity"].keys()
    assert phase["identity"].keys() == phase["model"].keys()
    assert {"aorta", "portal_vein", "liver", "renal_cortex", "spleen"} <= phase["organs"].keys()
    assert {"identity_mae_hu", "model_mae_hu", "true_hu", "model_hu"} <= phase["organs"]["aorta"].keys()
    assert {"fat", "bone", "air", "muscle"} == phase["controls"].keys()
    assert phase["cases"] == 2


def test_tables_name_every_organ(bundle: Path, small_phantoms: None) -> None:
    arguments = ["evaluate", "--bundle", str(bundle), "--cases", "1", "--threads", "1", "--provider", "cpu"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert all(word in result.output for word in ("psnr", "portal_vein", "muscle", "source as is"))


def test_air_is_left_as_it_is_by_the_whole_engine(bundle: Path, small_phantoms: None) -> None:
    result = evaluate([bundle], [9100], SessionPolicy(provider="cpu", threads=1))
    assert abs(result["phases"]["venous"]["controls"]["air"]["mean_abs_change_hu"]) < 1


def test_two_models_of_a_phase_are_not_measured_as_one(bundle: Path) -> None:
    asked = CliRunner().invoke(app, ["evaluate", *("--bundle", str(bundle)) * 2, "--cases", "1"])
    assert asked.exit_code == 78
    assert "the second of phase" in asked.output


def test_a_folder_that_is_no_bundle_ends_with_78(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["evaluate", "--bundle", str(tmp_path)])
    assert result.exit_code == 78
    assert "not a usable bundle" in result.output


def test_an_average_patient_for_everyone_has_slope_zero() -> None:
    source, true = np.full(4, 40.0), np.array([140.0, 160.0, 180.0, 200.0])
    average = organ_summary(np.stack([source, true, np.full(4, 170.0)], axis=1))
    assert average["slope"] == pytest.approx(0.0)
    assert average["variance_ratio"] == pytest.approx(0.0)
    assert average["bias_hu"] == pytest.approx(0.0)
    assert average["model_mae_hu"] == pytest.approx(20.0)
    assert average["identity_mae_hu"] == pytest.approx(130.0)
    exact = organ_summary(np.stack([source, true, true], axis=1))
    assert exact["slope"] == exact["variance_ratio"] == pytest.approx(1.0)
    assert "slope" not in organ_summary(np.ones((2, 3)))


def test_controls_are_measured_against_the_source() -> None:
    source, truth, made = (np.full((2, 2, 2), v, np.float32) for v in (0.0, 5.0, 3.0))
    made[0] = -3.0
    assert changes(source, truth, made, np.ones((2, 2, 2), bool)) == (0.0, 3.0, 5.0)


def test_the_picture_shows_source_synthesis_truth_and_error(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "make_phantom", lambda seed, options: make_phantom(seed, SMALL))
    report.write_picture(tmp_path / "p.png", [bundle], 9100, SessionPolicy(provider="cpu", threads=1))
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_the_active_bundles_are_those_of_the_node(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "shipped"
    (shipped / "arterial").mkdir(parents=True)
    (shipped / "venous").mkdir()
    monkeypatch.setattr(evaluation, "SHIPPED", shipped)
    env = {"S2NODE_STORAGE__DATA_DIR": str(tmp_path / "data")}
    assert active_bundles(env) == [shipped / "arterial", shipped / "venous"]
    settings = Settings.model_validate({"storage": {"data_dir": tmp_path / "data"}})
    store = ModelStore(settings, shipped=shipped)
    store.activate(bundle)
    assert active_bundles(env) == [shipped / "arterial", store.active()["venous"]]
