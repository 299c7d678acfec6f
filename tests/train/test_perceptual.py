"""The perceptual loss: from a file of weights on this disk, or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from train.config import PerceptualConfig, TrainConfig, TrainConfigInvalid
from train.s2ldm.perceptual import BLOCKS, load_perceptual
from train.s2ldm.train_autoencoder import train_autoencoder


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    """A VGG-16 of four channels a layer, under torchvision's names, with a layer that is not used."""
    generator, wide = torch.Generator().manual_seed(0), 3
    state: dict[str, torch.Tensor] = {"classifier.0.weight": torch.zeros(2, 2)}
    for number in (n for block in BLOCKS for n in block):
        state[f"features.{number}.weight"] = torch.randn(4, wide, 3, 3, generator=generator) / 3
        state[f"features.{number}.bias"] = torch.zeros(4)
        wide = 4
    torch.save(state, tmp_path / "vgg.pth")
    return tmp_path / "vgg.pth"


def test_it_is_nothing_for_the_same_image_and_grows_with_blur(weights_file: Path) -> None:
    loss = load_perceptual(weights_file, slices=3)
    x = torch.rand(2, 1, 6, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    less, more = (torch.nn.functional.avg_pool3d(x, (1, k, k), 1, (0, k // 2, k // 2)) for k in (3, 7))
    assert float(loss(x, x)) == 0
    assert 0 < float(loss(less, x)) < float(loss(more, x))


def test_gradients_reach_what_was_painted_and_no_weight(weights_file: Path) -> None:
    loss = load_perceptual(weights_file, slices=2)
    painted, target = (torch.rand(1, 1, 4, 16, 16, requires_grad=True) for _ in range(2))
    loss(painted, target).backward()
    assert painted.grad is not None
    assert painted.grad.abs().sum() > 0
    assert target.grad is None
    assert all(p.grad is None and not p.requires_grad for p in loss.parameters())
    assert painted.grad[:, :, [0, 3]].abs().sum() > 0
    assert painted.grad[:, :, 1:3].abs().sum() == 0, (
        "two slices of four are looked at: the first and the last"
    )


def test_a_file_that_is_not_there_or_no_vgg_is_named_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(
        TrainConfigInvalid, match=r"none\.pth: there is no such file: get torchvision's VGG-16"
    ):
        load_perceptual(tmp_path / "none.pth", 1)
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(TrainConfigInvalid, match=r"other\.pth: is no state of VGG-16 .*features\.0\.weight"):
        load_perceptual(tmp_path / "other.pth", 1)
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(TrainConfigInvalid, match=r"text\.pth: is no state of VGG-16"):
        load_perceptual(tmp_path / "text.pth", 1)


def test_a_weight_without_a_file_is_refused() -> None:
    with pytest.raises(ValidationError, match="needs weights_file"):
        PerceptualConfig(weight=0.1)


def test_stage_one_trains_with_it_and_is_otherwise_the_same_run(
    trained: Any, weights_file: Path, tmp_path: Path
) -> None:
    values = trained.config.model_dump()
    assert TrainConfig.model_validate(values).digest("autoencoder") == trained.config.digest("autoencoder")
    values["autoencoder"]["perceptual"] = {"weight": 0.1, "weights_file": str(weights_file)}
    values["autoencoder"]["loop"] |= {"steps": 2, "validation_crops": 1, "log_steps": 1}
    config = TrainConfig.model_validate(values)
    train_autoencoder(config, tmp_path / "one", trained.cache)
    card = json.loads((tmp_path / "one" / "run.json").read_text())
    assert card["latest"]["loss/perceptual"] > 0
    assert len(card["perceptual"]) == 64
