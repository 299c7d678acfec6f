"""Quality over sampler steps, and the rule by which the fewest are chosen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from engine.bundle import SamplerSpec
from engine.phantom import PhantomOptions, make_phantom
from engine.pipeline import open_engine
from engine.session import SessionPolicy
from export.bundle import export_bundle
from node.cli import app
from train import evaluate as evaluation
from train.sweep import fitting, judged

SMALL = PhantomOptions(shape=(24, 64, 64), spacing_mm=(9.0, 6.0, 6.0))
GOOD = {"psnr": 30.0, "ssim": 0.9, "mae_hu": 10.0, "organ_error_hu": 5.0}


@pytest.fixture(scope="module")
def bundle(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swept") / "venous"
    export_bundle(trained.stage_two, folder)
    return folder


def test_the_command_writes_a_table_a_plot_and_json(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "make_phantom", lambda seed, options: make_phantom(seed, SMALL))
    arguments = ["--bundle", str(bundle), "--cases", "1", "--steps", "2", "--steps", "1", "--threads", "1"]
    result = CliRunner().invoke(
        app, ["evaluate", "--sweep-steps", *arguments, "--out", str(tmp_path), "--json"]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found == json.loads((tmp_path / "sweep.json").read_text())
    [(name, swept)] = found["phases"]["venous"]["samplers"].items()
    assert name == "bridge"
    assert [row["steps"] for row in swept["rows"]] == [1, 2]
    assert swept["reference"] == 2
    assert "| venous | bridge | 1" in (tmp_path / "sweep.md").read_text()
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_the_fewest_steps_are_those_where_nothing_is_a_hundredth_worse() -> None:
    worse = GOOD | {"psnr": 29.6, "steps": 1}
    as_good = GOOD | {"mae_hu": 10.09, "steps": 2}
    most = GOOD | {"steps": 8}
    assert judged([worse, as_good, most])["fewest"] == 2
    assert judged([worse, GOOD | {"organ_error_hu": 5.1, "steps": 2}, most])["fewest"] == 8


def test_only_samplers_that_fit_what_was_trained_are_tried() -> None:
    assert fitting(SamplerSpec(name="bridge", formulation="bridge", steps=2)) == ("bridge",)
    assert fitting(SamplerSpec(name="ddim", formulation="conditional", steps=4)) == ("ddim", "dpm_solver")


def test_another_sampler_leaves_graphs_and_digest_as_they_are(bundle: Path) -> None:
    engine = open_engine(bundle, SessionPolicy(provider="cpu", threads=1))
    other = engine.with_sampler(SamplerSpec(name="bridge", formulation="bridge", steps=3))
    assert (other.bundle.digest, other.provider) == (engine.bundle.digest, engine.provider)
    assert other.bundle.manifest.sampler.steps == 3  # type: ignore[union-attr]
    assert engine.bundle.manifest.sampler.steps != 3  # type: ignore[union-attr]
