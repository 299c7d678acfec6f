"""The comparison: equal time for every trained row, resumable anywhere, tables that say what they are."""

from __future__ import annotations

import fcntl
import json
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from train.budget import StopRequest
from train.compare import (
    ComparisonChanged,
    ComparisonStopped,
    _attempt,
    command,
    compare,
    config_text,
    plan,
    write_config,
)
from train.config import read_table
from train.measure_row import load_planes
from train.results import page, read_results
from train.rows import CONFIGS, PRESETS, ROWS, Row

pytestmark = pytest.mark.timeout(900)  # the toy comparison starts nine processes, most with torch
TOY = PRESETS["toy"]
VENOUS = ("venous",)
TABLE: dict[str, Row] = {
    "identity": replace(ROWS["identity"], phases=VENOUS),
    "s2ldm": replace(ROWS["s2ldm"], config="tiny.toml", phases=VENOUS),
    "stage1": replace(ROWS["stage1"], config="tiny.toml", phases=VENOUS),
    "oracle": replace(ROWS["oracle"], phases=VENOUS),
}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy comparison of four rows, run once from end to end in its own processes."""
    folder = tmp_path_factory.mktemp("compared")
    compare(TOY, folder, folder / "docs" / "results.md", TABLE)
    return folder


def test_a_comparison_runs_from_nothing_to_its_page(compared: Path) -> None:
    found = read_results(compared, TABLE)
    assert found.keys() == {(name, "venous") for name in TABLE}
    assert all(len(result["rows"]) == TOY.cases for result in found.values())
    assert set(found["s2ldm", "venous"]["trained"]) == {"autoencoder", "diffusion"}
    text = (compared / "docs" / "results.md").read_text()
    assert "Not finished" not in text
    assert "not the paper's data" in text
    assert "0.106 / 25.79 / 0.883" in text
    assert (compared / "docs" / "images" / "results-venous.png").stat().st_size > 5000


def test_stage_1_alone_is_its_own_translator_on_the_first_stage_of_s2ldm(compared: Path) -> None:
    card = json.loads((compared / "bundles" / "stage1-venous" / "bundle.json").read_text())
    assert card["sampler"]["formulation"] == "literal"
    assert card["sampler"]["sdedit_strength"] == 0
    assert not (compared / "runs" / "stage1-venous" / "autoencoder").exists()
    trained = read_results(compared, TABLE)["stage1", "venous"]["trained"]
    assert {name: stage["steps"] for name, stage in trained.items()} == {"autoencoder": 2, "diffusion": 1}


def test_the_oracle_is_nearer_than_the_source_and_the_source_gains_no_contrast(compared: Path) -> None:
    found = read_results(compared, TABLE)
    errors = {
        name: sum(row["body"]["mae_hu_bundle_window"] for row in found[name, "venous"]["rows"])
        for name in ("identity", "oracle")
    }
    assert errors["oracle"] < errors["identity"]


def test_what_is_finished_is_not_done_again_and_what_is_missing_is(compared: Path) -> None:
    said: list[str] = []
    compare(TOY, compared, compared / "docs" / "results.md", TABLE, say=said.append)
    assert said == []
    (compared / "identity-venous.json").unlink()
    compare(TOY, compared, compared / "docs" / "results.md", TABLE, say=said.append)
    assert [line.split(",")[0] for line in said] == ["identity-venous: measure"]


def test_planes_come_back_as_they_were_kept(compared: Path) -> None:
    axial, coronal = load_planes(compared / "oracle-venous.npz")
    assert axial.source.shape == axial.truth.shape == axial.made.shape
    assert coronal.aspect == pytest.approx(TOY.spacing_mm[0] / TOY.spacing_mm[2])


def test_a_folder_of_another_budget_is_refused(compared: Path) -> None:
    with pytest.raises(ComparisonChanged, match="another budget"):
        compare(replace(TOY, hours=9.0), compared, compared / "r.md", TABLE)


def test_two_comparisons_do_not_share_a_folder(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ComparisonStopped, match="is at work there"):
            compare(TOY, tmp_path, tmp_path / "r.md", TABLE)


def test_a_job_that_is_asked_to_stop_says_where_and_starts_nothing(tmp_path: Path) -> None:
    stop = StopRequest()
    stop.event.set()
    job = plan(TOY, tmp_path, TABLE, {})[1]
    assert _attempt(job, stop, 0, lambda line: None) == "s2ldm-venous: asked to stop before train autoencoder"
    assert list(tmp_path.iterdir()) == []


def test_a_failed_process_names_its_log_and_leaves_a_page_that_says_what_is_missing(tmp_path: Path) -> None:
    table = {"x": Row("no such bundle", "comparison", phases=VENOUS)}
    with pytest.raises(ComparisonStopped, match=r"x-venous: measure ended with 1: see .*x-venous\.log"):
        compare(TOY, tmp_path, tmp_path / "r.md", table, reuse={"x": tmp_path / "nothing"})
    assert "not a usable bundle" in (tmp_path / "logs" / "x-venous.log").read_text()
    assert "**Not finished:** 0 of 1" in (tmp_path / "r.md").read_text()


def test_every_trained_row_has_the_same_minutes_and_all_of_them_fit_the_budget(tmp_path: Path) -> None:
    preset = PRESETS["cpu"]
    jobs = plan(preset, tmp_path, ROWS, {})
    minutes = {job.minutes for job in jobs}
    assert len(minutes) == 1
    trained = [job for job in jobs if sum(job.row.loops.values())]
    measured = [job for job in jobs if job.row.reads == "bundle"]
    spent = len(trained) * minutes.pop() + len(measured) * preset.measuring_minutes
    assert spent == pytest.approx(60 * preset.hours * preset.side_by_side)
    assert preset.cases >= 40


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.config])
def test_a_rows_configuration_is_its_file_with_the_rows_budget(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    job = next(job for job in plan(PRESETS["cpu"], tmp_path, ROWS, {}) if job.name == name)
    write_config(job)
    table, base = read_table(job.config), read_table(CONFIGS / row.config)
    assert table["data"] == base["data"]
    assert sum(row.loops.values()) in (0, 1)
    for stage, share in row.loops.items():
        assert table[stage]["loop"]["max_minutes"] == pytest.approx(max(job.minutes * share, 0.05), abs=0.01)
    assert config_text(job) == job.config.read_text()


def test_rows_of_the_papers_tables_carry_its_figures() -> None:
    assert sum(bool(row.paper) for row in ROWS.values() if row.table == "comparison") == 6
    assert [name for name, row in ROWS.items() if row.table == "ablation"] == ["a", "b", "c", "d", "full"]
    assert all(set(row.paper) == set(row.phases) for row in ROWS.values() if row.paper)


def test_a_page_without_results_says_so() -> None:
    text = page({}, ROWS, PRESETS["cpu"])
    assert "**Not finished:** 0 of" in text
    assert "pix2pix (Isola et al.) | – |" in text


def test_an_unknown_preset_or_row_ends_with_78() -> None:
    app = typer.Typer()
    app.command()(command)
    for arguments in (["--preset", "moon"], ["--row", "nobody"], ["--reuse", "nobody=x"]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 78
        assert "is not one of" in result.output
