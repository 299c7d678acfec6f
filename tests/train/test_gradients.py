"""Every term of stage 1 and every formulation of stage 2 moves what it should and nothing else."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from train import loop
from train.config import TrainConfig
from train.s2ldm import train_autoencoder as one
from train.s2ldm.autoencoder import SyncreticAutoencoder
from train.s2ldm.denoiser import Denoiser
from train.s2ldm.train_diffusion import DiffusionTraining, freeze

X_N, X_C = torch.rand(2, 2, 1, 4, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
SMALL = {
    "data": {"crop": (4, 16, 16)},
    "autoencoder": {
        "channels": (8, 8), "latent_channels": 4, "norm_groups": 4, "head_channels": 8,
        "quantizer": {"codes": 16}, "loss": {"frequency": 0.1}, "source_skip": "none",
    },
    "diffusion": {"channels": (8, 8), "norm_groups": 4},
}  # fmt: skip


def small(**diffusion: object) -> TrainConfig:
    return TrainConfig.model_validate(SMALL | {"diffusion": SMALL["diffusion"] | diffusion})


def reached(model: torch.nn.Module) -> set[str]:
    """The parts in which some parameter has a gradient that is not zero everywhere."""
    found = (n for n, p in model.named_parameters() if p.grad is not None and p.grad.any())
    return {name.split(".")[0] for name in found}


@pytest.mark.parametrize(
    ("term", "parts"),
    [
        ("loss/rec", {"encoder", "decoder", "exit"}),
        ("loss/frequency", {"encoder", "decoder", "exit"}),
        ("loss/translate", {"encoder", "decoder", "exit"}),
        ("loss/quan", {"encoder"}),
        ("loss/sim", {"encoder"}),
    ],
)
def test_each_term_of_equation_2_reaches_its_parts(term: str, parts: set[str]) -> None:
    torch.manual_seed(0)
    config = small()
    model = SyncreticAutoencoder(config.autoencoder).train()
    terms = one.stage_one_terms(config, model(X_N, X_C), X_N, X_C, progress=1.0)
    terms[term].backward()
    assert reached(model) == parts


def training(config: TrainConfig) -> DiffusionTraining:
    """Stage 2 on an autoencoder that has learnt nothing."""
    fabric = loop.start(config.diffusion.loop)
    frozen = freeze(SyncreticAutoencoder(config.autoencoder))
    denoiser = Denoiser(config)
    ema = torch.optim.swa_utils.AveragedModel(denoiser)
    denoiser, optimiser = fabric.setup(denoiser, torch.optim.AdamW(denoiser.parameters(), lr=1e-2))
    return DiffusionTraining(config, fabric, denoiser, ema, optimiser, frozen, 1.0, {}, Path())


def test_stage_two_weighs_the_cells_of_what_differs_from_its_surroundings() -> None:
    stage = training(small(local=2.0))
    vessel = X_N.clone()
    vessel[..., 4:8, 4:8] += 0.4
    weight = stage.cell_weight(X_N, vessel)
    assert weight is not None
    assert weight.shape == (len(X_N), 1, 2, 4, 4)
    assert (weight[..., 1, 1] > 1.2 * weight[..., 3, 3]).all()
    assert stage.step(0.5, X_N, X_C)["loss/diff"] > 0
    assert training(small()).cell_weight(X_N, vessel) is None


@pytest.mark.parametrize(
    "diffusion",
    [
        {"formulation": "bridge"},
        {"formulation": "conditional", "sampler": {"name": "ddim"}},
        {"formulation": "conditional", "prediction": "v", "sampler": {"name": "ddim"}},
        {"formulation": "literal", "sampler": {"name": "ddim"}},
    ],
    ids=lambda d: "-".join(map(str, [d["formulation"], d.get("prediction", "")])),
)
def test_every_formulation_moves_all_of_the_denoiser_and_nothing_of_stage_one(
    diffusion: dict[str, object],
) -> None:
    method = training(small(**diffusion))
    frozen = copy.deepcopy(method.autoencoder.state_dict())
    before = copy.deepcopy(method.denoiser.state_dict())
    for _ in range(3):
        method.step(0.5, X_N, X_C)
    after: dict[str, Tensor] = method.autoencoder.state_dict()
    assert all(torch.equal(frozen[name], value) for name, value in after.items())
    assert all(p.grad is None for p in method.autoencoder.parameters())
    still = [n for n, value in method.denoiser.state_dict().items() if torch.equal(before[n], value)]
    assert not still
