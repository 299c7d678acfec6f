"""A model of a few steps, exported once, for all tests of the exporter."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.bundle import export_bundle
from train.config import TrainConfig, load_train_config
from train.s2ldm.train_autoencoder import train_autoencoder
from train.s2ldm.train_diffusion import train_diffusion

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def few_steps() -> TrainConfig:
    """``tiny`` with a handful of steps: its output layers have left zero, no more."""
    values = load_train_config(REPOSITORY / "config" / "train" / "tiny.toml").model_dump()
    values["data"] |= {"phantoms": 1}
    for stage in ("autoencoder", "diffusion", "joint"):
        values[stage]["loop"] |= {"steps": 6, "batch": 1, "validation_crops": 1}
    return TrainConfig.model_validate(values)


@pytest.fixture(scope="session")
def checkpoint(few_steps: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    train_autoencoder(few_steps, folder / "one", folder / "cache")
    train_diffusion(few_steps, folder / "one", folder / "two", folder / "cache")
    return folder / "two"


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "venous"
    export_bundle(checkpoint, folder)
    return folder
