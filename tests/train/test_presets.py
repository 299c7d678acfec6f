"""The presets at their own size, without their memory: counted on torch's meta device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from train.config import TrainConfig, load_train_config
from train.s2ldm.autoencoder import SyncreticAutoencoder
from train.s2ldm.denoiser import Denoiser

FOLDER = Path(__file__).resolve().parents[2] / "config" / "train"


def counted(config: TrainConfig) -> dict[str, tuple[float, float]]:
    """(million parameters, TFLOP for one crop, a multiply-add being two) of the three parts."""
    with torch.device("meta"):
        autoencoder = SyncreticAutoencoder(config.autoencoder).eval()
        denoiser = Denoiser(config).eval()
        x = torch.empty(1, 1, *config.data.crop)
        latent = autoencoder.encode(x)
        calls = {
            "encoder": (autoencoder.encoder, lambda: autoencoder.encode(x)),
            "decoder": (autoencoder.decoder, lambda: autoencoder.decode(latent, x)),
            "denoiser": (denoiser, lambda: denoiser(latent, latent, torch.empty(1), x)),
        }
        found = {}
        for name, (part, call) in calls.items():
            with FlopCounterMode(display=False) as flops:
                call()
            parameters = sum(p.numel() for p in part.parameters()) / 1e6
            found[name] = (parameters, flops.get_total_flops() / 1e12)
    return found


@pytest.mark.parametrize(
    ("name", "encoder", "decoder", "denoiser"),
    [
        ("paper", (2.226, 1.196), (2.669, 1.563), (39.764, 0.343)),
        ("release", (1.215, 0.220), (1.444, 0.380), (29.511, 0.524)),
    ],
)
def test_a_preset_is_built_at_its_size(
    name: str, encoder: tuple[float, float], decoder: tuple[float, float], denoiser: tuple[float, float]
) -> None:
    found = counted(load_train_config(FOLDER / f"{name}.toml"))
    for part, expected in {"encoder": encoder, "decoder": decoder, "denoiser": denoiser}.items():
        assert found[part] == pytest.approx(expected, rel=0.01), part


def test_the_paper_preset_for_a_gpu_is_the_papers_on_phantoms_for_two_hundred_steps() -> None:
    paper, short = (
        load_train_config(FOLDER / f"{name}.toml").model_dump() for name in ("paper", "paper-gpu")
    )
    assert short["data"]["source"] == "phantom"
    assert short["data"]["crop"] == (48, 256, 256)
    differ = {key for key, value in paper.pop("data").items() if short["data"][key] != value}
    assert differ == {"source", "spacing_mm", "phantoms", "validation_phantoms"}
    for stage in ("autoencoder", "diffusion"):
        assert short[stage]["loop"]["steps"] == 200
        paper[stage]["loop"] |= {"steps": 200, "validation_crops": 1}
    assert {key: short[key] for key in paper} == paper


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion", "joint"])
def test_no_stage_of_the_release_keeps_the_budget_of_the_demo(stage: str) -> None:
    release, demo = (
        getattr(load_train_config(FOLDER / f"{name}.toml"), stage).loop.model_dump()
        for name in ("release", "demo")
    )
    assert release["threads"] == 0
    for key in ("steps", "max_minutes", "batch", "ema", "checkpoint_minutes"):
        assert release[key] != demo[key], key
