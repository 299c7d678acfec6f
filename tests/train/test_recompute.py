"""Gradient checkpointing changes memory and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from lightning.fabric import Fabric
from torch.autograd.graph import saved_tensors_hooks

from train.config import TrainConfig
from train.recompute import recompute
from train.s2ldm.autoencoder import StageOne, SyncreticAutoencoder
from train.s2ldm.denoiser import Denoiser
from train.s2ldm.train_joint import JointTraining, LatentTranslator, assemble

X_N, X_C = torch.rand(2, 1, 1, 8, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1
LATENT = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(4))


def kept_and_gradients(model: torch.nn.Module, *inputs: torch.Tensor) -> tuple[int, dict[str, torch.Tensor]]:
    """Numbers held for the backward pass, and the gradient of every parameter that has one."""
    held: list[int] = []
    with saved_tensors_hooks(lambda x: (held.append(x.numel()), x)[1], lambda x: x):
        out = model(*inputs)
    first = out.from_c if isinstance(out, StageOne) else out[0]
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


def joint(tiny: TrainConfig, thrifty: bool) -> JointTraining:
    """Stage 3 before its first step, with or without the switch."""
    loop = tiny.joint.loop.model_copy(update={"recompute": thrifty})
    config = tiny.model_copy(update={"joint": tiny.joint.model_copy(update={"loop": loop})})
    torch.manual_seed(0)
    translator = LatentTranslator(config, 1.0)
    torch.nn.init.normal_(translator.autoencoder.exit.last.weight)
    torch.nn.init.normal_(translator.denoiser.unet.out[2].conv.weight)
    return assemble(config, Fabric(accelerator="cpu", devices=1), translator, {})


def test_stage_three_keeps_less_for_the_same_gradients_and_its_average_is_let_be(tiny: TrainConfig) -> None:
    plain, thrifty = joint(tiny, False), joint(tiny, True)
    kept, expected = kept_and_gradients(plain.translator, X_N)
    kept_less, got = kept_and_gradients(thrifty.translator, X_N)
    assert kept_less < 0.8 * kept
    assert got.keys() == expected.keys()
    assert all(torch.allclose(got[name], value, atol=1e-6) for name, value in expected.items())
    average = thrifty.ema.module
    for block in (*average.denoiser.unet.down_blocks, *average.autoencoder.decoder.blocks):
        assert "forward" not in vars(block)


def test_the_switch_changes_no_digest(tiny: TrainConfig) -> None:
    values = tiny.model_dump()
    for stage in ("autoencoder", "diffusion", "joint"):
        values[stage]["loop"]["recompute"] = True
    thrifty = TrainConfig.model_validate(values)
    assert [thrifty.digest(stage) for stage in ("diffusion", "joint")] == [
        tiny.digest(stage) for stage in ("diffusion", "joint")
    ]
