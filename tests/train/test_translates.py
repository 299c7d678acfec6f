"""Whether what has learnt a few cases by heart carries E_n to E_c, under each reading of eq. 4.

Eq. 4 as printed diffuses E_n ⊗ S, and once S is one it never sees E_c: it learns what unenhanced latents look
like, and sampling gives another of them. That is why it is only there to be compared with.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import Adam

from engine import samplers
from train.config import TrainConfig
from train.s2ldm.denoiser import Denoiser
from train.s2ldm.formulation import loss, pose, sampler_spec
from train.s2ldm.train_autoencoder import train_autoencoder
from train.s2ldm.train_diffusion import train_diffusion

STEPS = 300


def latents() -> tuple[Tensor, Tensor]:
    """E_n and E_c of four cases: contrast moves a part of the cells along one direction."""
    generator = torch.Generator().manual_seed(3)
    e_n = torch.randn(4, 4, 2, 8, 8, generator=generator)
    moved = (torch.rand(4, 1, 2, 8, 8, generator=generator) < 0.3).float()
    return e_n, e_n + 2.0 * moved * torch.tensor([1.0, -1.0, 1.0, 0.0]).reshape(1, 4, 1, 1, 1)


def way_covered(config: TrainConfig) -> float:
    """(ẑ − E_n)·(E_c − E_n) / |E_c − E_n|², of the engine's sampler after ``STEPS`` steps on four cases."""
    torch.manual_seed(0)
    e_n, e_c = latents()
    this, denoiser = config.diffusion, Denoiser(config)
    optimiser = Adam(denoiser.parameters(), lr=3e-3)
    for step in range(STEPS):
        problem = pose(this, e_n, e_c, step / STEPS)
        error = loss(this, denoiser(problem.z_t, problem.source, problem.t), problem)
        optimiser.zero_grad()
        error.backward()
        optimiser.step()

    @torch.no_grad()
    def predict(z: Any, source: Any, t: float) -> Any:
        return denoiser(torch.from_numpy(z), torch.from_numpy(source), torch.full((len(z),), t)).numpy()

    spec = sampler_spec(this)
    shape = (samplers.noise_fields(spec), *e_n.shape)
    noise = np.random.default_rng(4).standard_normal(shape, dtype=np.float32)
    z = torch.from_numpy(samplers.sample(spec, predict, e_n.numpy(), noise))
    way = e_c - e_n
    return float(((z - e_n) * way).sum() / way.square().sum())


@pytest.mark.parametrize(
    ("formulation", "sampler", "least", "most"),
    [
        ("bridge", {"name": "bridge", "steps": 2}, 0.9, 1.1),
        ("conditional", {"name": "ddim", "steps": 20}, 0.6, 1.4),
        ("literal", {"name": "ddim", "steps": 20, "strength": 0.5}, -0.3, 0.3),
    ],
)
def test_all_but_the_literal_reading_carry_the_latent_to_the_enhanced_one(
    formulation: str, sampler: dict[str, Any], least: float, most: float
) -> None:
    config = TrainConfig.model_validate(
        {
            "autoencoder": {"latent_channels": 4},
            "diffusion": {
                "formulation": formulation,
                "source_condition": "none",
                "soft_window_hu": None,
                "sigma": 0.0,
                "prediction": "v",
                "channels": (16, 16),
                "norm_groups": 8,
                "sampler": sampler,
            },
        }
    )
    assert least < way_covered(config) < most


def test_s2ldm_learns_four_cases_by_heart_to_three_decibels_above_the_source(
    tiny: TrainConfig, tmp_path: Path
) -> None:
    values = tiny.model_dump()
    values["data"] |= tomllib.loads(Path(__file__).with_name("four_cases.toml").read_text(encoding="utf-8"))
    for part, steps in (("autoencoder", 120), ("diffusion", 40)):
        values[part]["loop"] |= {"steps": steps, "batch": 4, "ema": 0.5, "validation_crops": 8}
    config = TrainConfig.model_validate(values)
    train_autoencoder(config, tmp_path / "one", tmp_path / "cache")
    train_diffusion(config, tmp_path / "one", tmp_path / "two", tmp_path / "cache")
    latest = json.loads((tmp_path / "two" / "run.json").read_text())["latest"]
    assert latest["psnr/model"] > latest["psnr/identity"] + 3.0
