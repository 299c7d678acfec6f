"""Stage 2 on crops that were encoded once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from train import loop
from train.config import TrainConfig
from train.data import training_pairs
from train.s2ldm import encoded
from train.s2ldm.train_diffusion import load_frozen, train_diffusion

CROPS = 3


@pytest.fixture(scope="module")
def config(trained: Any) -> TrainConfig:
    values = trained.config.model_dump()
    values["diffusion"]["encoded_crops"] = CROPS
    values["diffusion"]["loop"] |= {"steps": 2, "validation_crops": 1}
    return TrainConfig.model_validate(values)


def test_a_batch_holds_source_crops_and_what_the_encoder_makes_of_them(
    trained: Any, config: TrainConfig, tmp_path: Path
) -> None:
    fabric = loop.start(config.diffusion.loop)
    autoencoder, _ = load_frozen(trained.stage_one, trained.config)
    pairs = training_pairs(config.data, trained.cache)
    batches = encoded.encoded_pairs(config, fabric, autoencoder, pairs, tmp_path)
    x_n, e_n, e_c = batches.batch(0, 5, 4)
    assert x_n.shape == (4, 1, *config.data.crop)
    assert torch.allclose(e_n, autoencoder.encode(x_n), atol=1e-2)
    assert not torch.equal(e_n, e_c)
    assert all(map(torch.equal, batches.batch(0, 5, 4), (x_n, e_n, e_c)))
    assert len(batches.latents) == CROPS


def test_crops_are_encoded_once_for_all_runs_and_anew_for_another_autoencoder(
    trained: Any, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_diffusion(config, trained.stage_one, tmp_path / "first", trained.cache)
    assert json.loads((tmp_path / "first" / "run.json").read_text())["finished"]
    monkeypatch.setattr(encoded, "encode_crops", lambda *_: pytest.fail("encoded again"))
    train_diffusion(config, trained.stage_one, tmp_path / "second", trained.cache)
    autoencoder, _ = load_frozen(trained.stage_one, trained.config)
    before = encoded.digest(config, autoencoder)
    with torch.no_grad():
        next(autoencoder.parameters()).add_(1e-3)
    assert encoded.digest(config, autoencoder) != before
    assert [np.load(f).shape[:2] for f in trained.cache.glob("latents-*.npy")] == [(CROPS, 2)]


def test_the_key_is_in_the_digest_once_it_is_set(trained: Any, config: TrainConfig) -> None:
    assert config.digest("autoencoder") == trained.config.digest("autoencoder")
    assert config.digest("diffusion") != trained.config.digest("diffusion")
