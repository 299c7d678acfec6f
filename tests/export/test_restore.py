"""A shipped bundle comes without its checkpoint and is one to go on from all the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.bundle import read_bundle, write_manifest
from engine.errors import BundleInvalid
from export.bundle import load_model
from export.rebuild_demo import SHIPPED
from export.restore import restore
from train import checkpoint as ckpt
from train.config import TrainConfig


def test_a_checkpoint_made_of_a_shipped_bundle_is_the_whole_model_at_its_last_stage(tmp_path: Path) -> None:
    bundle = read_bundle(SHIPPED / "venous")
    run: Any = bundle.manifest.run
    found = ckpt.load(restore(bundle, tmp_path))
    assert (found.stage, found.step) == ("joint", run["steps"])
    assert found.states["optimiser"]["state"] == {}
    model = load_model(tmp_path / ckpt.NAME)
    assert model.config == TrainConfig.model_validate(run["config"])
    sizes = {part: getattr(model, part).parameters() for part in ("autoencoder", "denoiser")}
    assert {part: sum(p.numel() for p in of) for part, of in sizes.items()} == run["parameters"]
    assert model.latent() == bundle.manifest.latent


def test_graphs_that_are_not_what_the_run_card_says_become_no_checkpoint(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED / "venous", tmp_path / "other")
    manifest = read_bundle(tmp_path / "other").manifest
    run: Any = manifest.run
    run["config"]["autoencoder"]["norm_groups"] = 4  # as many weights, another function of them
    write_manifest(tmp_path / "other", manifest)
    with pytest.raises(BundleInvalid, match="HU from what they paint"):
        restore(read_bundle(tmp_path / "other"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
