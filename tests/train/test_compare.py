"""The comparison: equal time for every trained row, resumable anywhere, tables that say what they are."""

from __future__ import annotations

import fcntl
import json
import math
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from train import checkpoint
from train.budget import StopRequest
from train.cases import ORGANS
from train.compare import (
    ComparisonChanged,
    ComparisonStopped,
    _attempt,
    command,
    compare,
    config_text,
    other_minutes,
    plan,
    training_minutes,
    write_config,
)
from train.config import load_train_config, read_table
from train.measure_row import Spec, load_planes, measure_row
from train.results import _lost_table, best_bars, page, read_results
from train.rows import CONFIGS, PRESETS, ROWS, BudgetTooSmall, Row, is_trained

KEPT = Path(__file__).resolve().parents[2] / "docs" / "results"


def read_json(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found


pytestmark = pytest.mark.timeout(900)  # the toy comparison starts nine processes, most with torch
TOY = PRESETS["toy"]
VENOUS = ("venous",)
SMALL_UNET: dict[str, dict[str, object]] = {
    "data": {
        "spacing_mm": [6.0, 4.0, 4.0], "crop": [8, 32, 32], "phantom_shape": [24, 80, 80],
        "noise_hu": [6.0, 10.0], "organ_bias": 0.7,
    },
    "unet25d": {"features": [8, 8, 8, 8, 8, 8]},
}  # fmt: skip
TABLE: dict[str, Row] = {
    "identity": replace(ROWS["identity"], phases=VENOUS),
    "s2ldm": replace(ROWS["s2ldm"], config="tiny.toml", phases=VENOUS),
    "unet25d": replace(ROWS["unet25d"], phases=VENOUS, changes=SMALL_UNET),
    "stage1": replace(ROWS["stage1"], config="tiny.toml", phases=VENOUS),
    "shipped": replace(ROWS["shipped"], phases=VENOUS),
    "oracle": replace(ROWS["oracle"], phases=VENOUS),
}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy comparison of six rows, run once from end to end in its own processes."""
    folder = tmp_path_factory.mktemp("compared")
    compare(TOY, folder, folder / "docs" / "results.md", TABLE, kept=folder / "kept")
    return folder


def test_a_comparison_runs_from_nothing_to_its_page(compared: Path) -> None:
    found = read_results(compared, TABLE)
    assert found.keys() == {(name, "venous") for name in TABLE}
    assert all(len(result["rows"]) == TOY.cases for result in found.values())
    assert set(found["s2ldm", "venous"]["trained"]) == {"autoencoder", "diffusion", "joint"}
    text = (compared / "docs" / "results.md").read_text()
    assert "Not finished" not in text
    assert "not the paper's data" in text
    assert "0.106 / 25.79 / 0.883" in text
    assert (compared / "docs" / "images" / "results-venous.png").stat().st_size > 5000


def test_every_row_says_how_long_its_processes_took_and_the_page_their_sum(compared: Path) -> None:
    found = read_results(compared, TABLE)
    assert found["identity", "venous"]["wall_seconds"].keys() == {"measure"}
    spent = found["s2ldm", "venous"]["wall_seconds"]
    assert spent.keys() == {"train", "export", "measure"}
    hours = sum(sum(result["wall_seconds"].values()) for result in found.values()) / 3600
    text = (compared / "docs" / "results.md").read_text()
    assert f"Wall-clock hours, 1 rows side by side: {hours:.2f} (train " in text
    assert list((compared / "wall").iterdir()) == []
    older = {key: {k: v for k, v in row.items() if k != "wall_seconds"} for key, row in found.items()}
    assert "Wall-clock" not in page(older, TABLE, TOY)
    assert "Wall-clock" not in page(found | {("oracle", "venous"): older["oracle", "venous"]}, TABLE, TOY)


def test_a_comparison_told_to_stop_while_a_stage_learns_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    often = {"unet25d.loop": {"checkpoint_minutes": 0.005, "validation_crops": 1}}
    table = {"unet25d": replace(TABLE["unet25d"], changes=SMALL_UNET | often)}
    toy, run = replace(TOY, steps=200), tmp_path / "runs" / "unet25d-venous" / "unet25d"

    def stop_when_it_learns() -> None:
        while not (run / "checkpoint.pt").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=stop_when_it_learns, daemon=True)
    watcher.start()
    with pytest.raises(ComparisonStopped, match="train unet25d ended with 0"):
        compare(toy, tmp_path, tmp_path / "r.md", table)
    stopped = checkpoint.load(run / "checkpoint.pt").step
    assert 0 < stopped < 200
    assert not read_json(run / "run.json")["finished"]
    spent = read_json(tmp_path / "wall" / "unet25d-venous.json")["train"]
    said: list[str] = []
    compare(toy, tmp_path, tmp_path / "r.md", table, say=said.append)
    assert [line.split(",")[0] for line in said[3:]] == [
        "unet25d-venous: train unet25d", "unet25d-venous: export", "unet25d-venous: measure",
    ]  # fmt: skip
    card = read_json(run / "run.json")
    assert card["finished"]
    assert card["steps"] > stopped
    assert read_results(tmp_path, table)["unet25d", "venous"]["wall_seconds"]["train"] > spent


def test_stage_1_alone_is_an_autoencoder_of_its_own_that_is_told_to_translate(compared: Path) -> None:
    card = json.loads((compared / "bundles" / "stage1-venous" / "bundle.json").read_text())
    assert card["sampler"]["formulation"] == "literal"
    assert card["sampler"]["sdedit_strength"] == 0
    run = json.loads((compared / "runs" / "stage1-venous" / "autoencoder" / "run.json").read_text())
    assert run["config"]["autoencoder"]["loop"]["max_minutes"] == TOY.row_minutes
    assert run["config"]["autoencoder"]["loss"]["translate"] == 1.0
    trained = read_results(compared, TABLE)["stage1", "venous"]["trained"]
    assert {name: stage["steps"] for name, stage in trained.items()} == {"autoencoder": 2, "diffusion": 1}


def test_the_page_says_what_a_release_has_to_reach_and_whether_a_method_is_better(compared: Path) -> None:
    text = (compared / "docs" / "results.md").read_text()
    for title in (TABLE["s2ldm"].title, TABLE["shipped"].title):
        assert f"asked of: {title}" in text
    assert text.count("venous: mean absolute error in the body at most 1.5") == 2
    assert "Made on: " in text


def test_rows_kept_by_an_earlier_run_fill_the_table_elsewhere(compared: Path, tmp_path: Path) -> None:
    said: list[str] = []
    page = tmp_path / "docs" / "results.md"
    compare(TOY, tmp_path / "new", page, TABLE, say=said.append, kept=compared / "kept")
    assert not [line for line in said if "min" in line.split()]
    assert page.read_text() == (compared / "docs" / "results.md").read_text()
    kept = sorted(file.name for file in (compared / "kept").iterdir())
    assert kept == sorted(f"{name}-venous.{kind}" for name in TABLE for kind in ("json", "npz"))
    text = "".join(file.read_text() for file in (compared / "kept").glob("*.json"))
    assert str(compared) not in text
    assert max(file.stat().st_size for file in (compared / "kept").iterdir()) < 20_000


def test_a_kept_row_of_another_budget_is_made_anew_and_one_that_no_budget_touches_is_taken(
    compared: Path, tmp_path: Path
) -> None:
    longer, said = replace(TOY, hours=9.0), []
    with pytest.raises(ComparisonStopped, match="left for the next run"):
        compare(
            longer, tmp_path, tmp_path / "r.md", TABLE, say=said.append, kept=compared / "kept",
            stop_after_s=0.0,
        )  # fmt: skip
    assert [line.split(":")[0] for line in said if "made anew" in line] == [
        f"{name}-venous" for name in ("s2ldm", "unet25d", "stage1")
    ]
    assert read_results(tmp_path, TABLE).keys() == {(n, "venous") for n in ("identity", "shipped", "oracle")}


def test_a_measurement_goes_on_from_its_last_phantom(compared: Path, tmp_path: Path) -> None:
    job = next(job for job in plan(TOY, compared, TABLE, {}) if job.name == "identity")
    spec = Spec.model_validate_json((compared / "specs" / f"{job.key}.json").read_text())
    spec = spec.model_copy(update={"out": tmp_path / "identity-venous.json"})
    whole = json.loads(job.result.read_text())
    first = {key: value for key, value in whole.items() if key not in ("machine", "commit", "wall_seconds")}
    begun = first | {"rows": [whole["rows"][0] | {"case": "kept from before"}], "seconds": [0.0]}
    (tmp_path / "identity-venous.part.json").write_text(json.dumps(begun))
    measure_row(spec)
    found = json.loads(spec.out.read_text())
    assert [row["case"] for row in found["rows"]] == ["kept from before", whole["rows"][1]["case"]]
    assert found["rows"][1] == whole["rows"][1]
    assert [file.suffix for file in tmp_path.iterdir()] == [".json"]
    (tmp_path / "identity-venous.part.json").write_text(json.dumps(begun | {"made_of": "something else"}))
    measure_row(spec)
    assert json.loads(spec.out.read_text())["rows"] == whole["rows"]


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
    assert [line.split(",")[0] for line in said] == [
        "6 rows and phases", "all: 6 rows and phases", "left: 0 rows and phases",
    ]  # fmt: skip
    (compared / "identity-venous.json").unlink()
    compare(TOY, compared, compared / "docs" / "results.md", TABLE, say=said.append)
    assert said[-1].startswith("identity-venous: measure, ")


def test_planes_come_back_as_they_were_kept(compared: Path) -> None:
    axial, coronal = load_planes(compared / "shipped-venous.npz")
    (small,) = load_planes(compared / "kept" / "shipped-venous.npz")
    shown = np.clip(axial.made, -200, 400)
    assert np.abs(small.made - shown).max() <= 2
    assert small.aspect == axial.aspect
    assert axial.source.shape == axial.truth.shape == axial.made.shape
    assert coronal.aspect == pytest.approx(TOY.spacing_mm[0] / TOY.spacing_mm[2])


def test_a_folder_of_another_budget_is_refused(compared: Path) -> None:
    with pytest.raises(ComparisonChanged, match=r"s2ldm-venous\.json is of another comparison"):
        compare(replace(TOY, hours=9.0), compared, compared / "r.md", TABLE)
    with pytest.raises(ComparisonChanged, match=r"identity-venous\.json is of another comparison"):
        compare(replace(TOY, cases=3), compared, compared / "r.md", TABLE)


def test_two_comparisons_do_not_share_a_folder(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ComparisonStopped, match="is at work there"):
            compare(TOY, tmp_path, tmp_path / "r.md", TABLE)


def test_a_job_that_is_asked_to_stop_says_where_and_starts_nothing(tmp_path: Path) -> None:
    stop = StopRequest()
    stop.event.set()
    job = plan(TOY, tmp_path, TABLE, {})[1]
    assert (
        _attempt(job, stop, 0, lambda line: None, lambda: math.inf)
        == "s2ldm-venous: asked to stop before train autoencoder"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_failed_process_names_its_log_and_leaves_a_page_that_says_what_is_missing(tmp_path: Path) -> None:
    table = {"x": Row("no such bundle", "comparison", phases=VENOUS)}
    with pytest.raises(ComparisonStopped, match=r"x-venous: measure ended with 1: see .*x-venous\.log"):
        compare(TOY, tmp_path, tmp_path / "r.md", table, reuse={"x": tmp_path / "nothing"})
    assert "not a usable bundle" in (tmp_path / "logs" / "x-venous.log").read_text()
    assert "**Not finished:** 0 of 1" in (tmp_path / "r.md").read_text()


@pytest.mark.parametrize("hours", [3.0, 5.0])
def test_every_trained_row_has_the_same_minutes_and_all_of_them_fit_the_budget(
    tmp_path: Path, hours: float
) -> None:
    preset = replace(PRESETS["cpu"], hours=hours)
    jobs = plan(preset, tmp_path, ROWS, {})
    minutes = {job.minutes for job in jobs}
    assert len(minutes) == 1
    assert minutes.pop() >= preset.least_minutes
    spent = preset.prepare_minutes + sum(training_minutes(job) + other_minutes(job) for job in jobs)
    assert spent == pytest.approx(60 * hours * preset.side_by_side)
    assert preset.cases >= 40


def test_the_table_takes_five_hours_on_two_cores_at_the_pace_of_the_kept_rows(
    tmp_path: Path,
) -> None:
    preset = PRESETS["cpu"]
    jobs = plan(preset, tmp_path, ROWS, {})
    hours = (preset.prepare_minutes + sum(training_minutes(job) + other_minutes(job) for job in jobs)) / 60
    assert hours / preset.side_by_side <= 5.0
    took = {(kept["row"], kept["phase"]): kept["seconds"] for kept in map(read_json, KEPT.glob("*.json"))}
    for (name, phase), seconds in took.items():
        assert ROWS[name].seconds == pytest.approx(seconds, rel=0.1, abs=0.1), (name, phase)


def test_the_table_has_every_row_that_is_asked_for_in_both_phases() -> None:
    comparison = {name: row.phases for name, row in ROWS.items() if row.table == "comparison"}
    assert comparison == dict.fromkeys(
        (
            "identity", "unet25d", "cyclegan", "pix2pix", "reggan", "ctagan", "aldm", "s2ldm", "stage1",
            "shipped", "oracle", "limit",
        ),
        ("arterial", "venous"),
    )  # fmt: skip
    assert sum(map(is_trained, ROWS.values())) == 8 + 5


def test_hours_that_measuring_alone_takes_are_refused_with_how_many_would_do(tmp_path: Path) -> None:
    with pytest.raises(BudgetTooSmall, match=r"1 hours are too few: .* give --hours 2\.\d or more"):
        plan(replace(PRESETS["cpu"], hours=1.0), tmp_path, ROWS, {})


def test_a_row_more_is_no_other_budget_for_the_others(tmp_path: Path) -> None:
    fewer = {name: row for name, row in ROWS.items() if name != "stage1"}
    of_all, of_fewer = (
        {job.key: job.made_of for job in plan(PRESETS["cpu"], tmp_path, table, {})} for table in (ROWS, fewer)
    )
    assert of_fewer.items() < of_all.items()


def test_s2ldms_row_divides_its_minutes_as_the_shipped_model_did() -> None:
    shipped = load_train_config(CONFIGS / "demo.toml")
    minutes = {stage: getattr(shipped, stage).loop.max_minutes for stage in ROWS["s2ldm"].loops}
    assert ROWS["s2ldm"].loops == {stage: m / sum(minutes.values()) for stage, m in minutes.items()}
    assert ROWS["s2ldm"].config == "demo.toml"


def test_the_plan_is_said_and_nothing_is_done(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, ["--plan", "--hours", "4", "--folder", str(tmp_path / "none")])
    assert result.exit_code == 0
    assert "29 rows and phases, 21 of them trained for " in result.output
    assert "about 4.0 h" in result.output
    assert list(tmp_path.iterdir()) == []


def test_the_digest_of_a_row_follows_its_figures_and_not_its_folder(tmp_path: Path) -> None:
    def made_of(name: str, folder: Path, **changes: Any) -> str:
        jobs = plan(replace(PRESETS["cpu"], **changes), folder, ROWS, {})
        return next(job.made_of for job in jobs if job.name == name)

    for name in ("identity", "aldm", "stage1", "shipped"):
        assert made_of(name, tmp_path) == made_of(name, tmp_path / "elsewhere")
        assert made_of(name, tmp_path) != made_of(name, tmp_path, cases=41)
        depends = name in ("aldm", "stage1")
        assert (made_of(name, tmp_path) != made_of(name, tmp_path, hours=4.5)) == depends


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.config])
def test_a_rows_configuration_is_its_file_with_the_rows_budget(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    job = next(job for job in plan(PRESETS["cpu"], tmp_path, ROWS, {}) if job.name == name)
    write_config(job)
    table, base = read_table(job.config), read_table(CONFIGS / row.config)
    assert table["data"] == base["data"]
    assert sum(row.loops.values()) == pytest.approx(1) or sum(row.loops.values()) == 0
    for stage, share in row.loops.items():
        assert table[stage]["loop"]["max_minutes"] == pytest.approx(max(job.minutes * share, 0.05), abs=0.01)
    assert config_text(job) == job.config.read_text()


def test_stage_1_alone_differs_from_s2ldms_in_what_its_loss_asks_for(tmp_path: Path) -> None:
    tables = {}
    for name in ("s2ldm", "stage1"):
        job = next(job for job in plan(PRESETS["cpu"], tmp_path, ROWS, {}) if job.name == name)
        write_config(job)
        tables[name] = read_table(job.config)["autoencoder"]
    assert tables["stage1"].pop("loop")["max_minutes"] == PRESETS["cpu"].row_minutes
    assert tables["stage1"].pop("loss") == tables["s2ldm"].pop("loss") | {"translate": 1.0}
    tables["s2ldm"].pop("loop")
    assert tables["stage1"] == tables["s2ldm"]


def test_rows_of_the_papers_tables_carry_its_figures() -> None:
    assert sum(bool(row.paper) for row in ROWS.values() if row.table == "comparison") == 6
    assert [name for name, row in ROWS.items() if row.table == "ablation"] == ["a", "b", "c", "d", "full"]
    assert all(set(row.paper) == set(row.phases) for row in ROWS.values() if row.paper)


def result(ssim: float, errors: dict[str, float]) -> dict[str, Any]:
    """Three patients with that SSIM and those organ errors, give or take a little."""
    rows = [
        {
            "body": {"ssim": ssim + more},
            "organs": {
                organ: {"source": 40.0, "truth": 100.0, "made": 100.0 + error + 10 * more}
                for organ, error in errors.items()
            },
        }
        for more in (-0.01, 0.0, 0.01)
    ]
    return {"rows": rows}


def test_what_a_comparison_method_does_better_is_named() -> None:
    found = {
        ("s2ldm", "venous"): result(0.90, {"liver": 5.0, "aorta": 40.0}),
        ("pix2pix", "venous"): result(0.80, {"liver": 9.0, "aorta": 20.0}),
        ("aldm", "venous"): result(0.905, {"liver": 30.0, "aorta": 90.0}),
    }
    ssim, organs = best_bars(found, ROWS, "s2ldm", "venous")
    assert ssim["reached"]
    assert ssim["measured"] == "0.900; best: aldm 0.905"
    assert not organs["reached"]
    assert organs["measured"] == "1 of 2 organs; aorta 40.0 HU, pix2pix 20.0 HU"
    assert list(best_bars({("s2ldm", "venous"): found["s2ldm", "venous"]}, ROWS, "s2ldm", "venous")) == []


def patients(*means: tuple[float, float, float]) -> dict[str, Any]:
    """Patients with these mean HU of an aorta in source, truth and synthesis."""
    names = ("source", "truth", "made")
    rows = [
        {"organs": {"aorta": dict(zip(names, each, strict=True))}, "body": {"ssim": 0.9}} for each in means
    ]
    return {"rows": rows}


def test_where_another_method_is_better_it_is_said_what_the_error_is_made_of() -> None:
    found = {
        ("shipped", "venous"): patients((40, 140, 150), (50, 160, 170), (60, 150, 190)),
        ("pix2pix", "venous"): patients((40, 140, 141), (50, 160, 161), (60, 150, 151)),
        ("limit", "venous"): patients((40, 140, 150), (50, 160, 150), (60, 150, 150)),
    }
    _, *rows = _lost_table(found, ROWS)
    assert [row[0] for row in rows] == ["aorta, venous"] * 3
    assert [row[1] for row in rows] == [ROWS[name].title for name in ("shipped", "pix2pix", "limit")]
    ours, theirs, _ = (row[2:] for row in rows)
    assert ours == ("20.0", "+20.0", "8.2 (8.2)", "-0.50", "+1.00")
    assert theirs == ("1.0", "+1.0", "8.2 (8.2)", "+1.00", "-0.50")
    assert len(list(_lost_table({("shipped", "venous"): found["shipped", "venous"]}, ROWS))) == 1


def test_the_organs_tables_have_a_column_for_all_that_is_measured() -> None:
    columns = " | ".join(organ.replace("_", " ") for organ in ORGANS)
    assert page({}, ROWS, PRESETS["cpu"]).count(f"| method | {columns} |") == 2
    assert "ivc" in ORGANS


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
