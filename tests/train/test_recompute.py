"""Gradient checkpointing changes memory and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from train.config import TrainConfig
from train.recompute import recompute
from train.s2ldm.autoencoder import SyncreticAutoencoder
from train.s2ldm.denoiser import Denoiser

X_N, X_C = torch.rand(2, 1, 1, 8, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1
LATENT = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(4))


def kept_and_gradients(model: torch.nn.Module, *inputs: torch.Tensor) -> tuple[int, dict[str, torch.Tensor]]:
    """Numbers held for the backward pass, and the gradient of every parameter that has one."""
    held: list[int] = []
    with saved_tensors_hooks(lambda x: (held.append(x.numel()), x)[1], lambda x: x):
        out = model(*inputs)
    first = out if isinstance(out, torch.Tensor) else out.from_c
    first.square().mean().backward()
    return sum(held), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("part", ["autoencoder", "denoiser"])
def test_less_is_kept_and_the_gradients_are_the_same(tiny: TrainConfig, part: str) -> None:
    torch.manual_seed(0)
    plain: torch.nn.Module
    if part == "autoencoder":
        plain, inputs = SyncreticAutoencoder(tiny.autoencoder).eval(), (X_N, X_C)
        torch.nn.init.normal_(plain.exit.last.weight)
    else:
        plain, inputs = Denoiser(tiny), (LATENT, LATENT, torch.tensor([0.5]), X_N)
        torch.nn.init.normal_(plain.unet.out[2].conv.weight)
    thrifty = copy.deepcopy(plain)
    names = ("encoder", "decoder") if part == "autoencoder" else ("down_blocks", "up_blocks")
    for name in names:
        recompute(getattr(thrifty, name).blocks if part == "autoencoder" else getattr(thrifty.unet, name))
    assert list(thrifty.state_dict()) == list(plain.state_dict())
    kept, expected = kept_and_gradients(plain, *inputs)
    kept_less, got = kept_and_gradients(thrifty, *inputs)
    assert kept_less < 0.8 * kept
    assert got.keys() == expected.keys()
    assert all(torch.allclose(got[name], value, atol=1e-7) for name, value in expected.items())


def test_the_switch_changes_no_digest(tiny: TrainConfig) -> None:
    values = tiny.model_dump()
    for stage in ("autoencoder", "diffusion"):
        values[stage]["loop"]["recompute"] = True
    assert TrainConfig.model_validate(values).digest("diffusion") == tiny.digest("diffusion")
