"""The four graphs of an ALDM, in family ``s2ldm``: it is sampled by DDIM from a condition in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from engine.bundle import LatentSpec, SamplerSpec
from export.model import facts_of
from train import checkpoint as ckpt
from train.aldm.config import AldmConfig
from train.aldm.networks import PHASES, Denoiser, Spade, Vqgan
from train.aldm.train_aldm import STAGE, sampler_spec
from train.s2ldm.quantizer import VectorQuantizer


class EncoderGraph(nn.Module):
    """x (1, 1, D, H, W) in [-1, 1] to E_n, multiplied by the latent scale."""

    def __init__(self, vqgan: Vqgan, scale: float) -> None:
        super().__init__()
        self.vqgan, self.scale = vqgan, scale

    def forward(self, x: Tensor) -> Tensor:
        """E_n."""
        return self.vqgan.encode(x) * self.scale


class ConditionGraph(nn.Module):
    """E_n to SPADE's guess c of one phase's latent."""

    def __init__(self, spade: Spade, phase: int) -> None:
        super().__init__()
        self.spade, self.phase = spade, phase

    def forward(self, e_n: Tensor) -> Tensor:
        """c."""
        return self.spade(e_n, self.phase)


class DenoiserGraph(nn.Module):
    """(z_t, E_n, t, c) to ε of one phase."""

    def __init__(self, denoiser: Denoiser, phase: int) -> None:
        super().__init__()
        self.denoiser, self.phase = denoiser, phase

    def forward(self, z_t: Tensor, e_n: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """ε."""
        return self.denoiser(z_t, e_n, c, t, self.phase)


class DecoderGraph(nn.Module):
    """z to x_c in [-1, 1]: unscales, quantises, paints."""

    def __init__(self, vqgan: Vqgan, scale: float) -> None:
        super().__init__()
        self.vqgan, self.scale = vqgan, scale

    def forward(self, z: Tensor) -> Tensor:
        """D(z)."""
        return self.vqgan.decode(z / self.scale).clamp(-1, 1)


@dataclass(frozen=True, slots=True)
class AldmModel:
    """A finished ALDM (``export.model.Model``)."""

    config: AldmConfig
    vqgan: Vqgan
    spade: Spade
    denoiser: Denoiser
    scale: float
    facts: Mapping[str, Any]
    family: Literal["s2ldm"] = "s2ldm"

    def graphs(self) -> dict[str, nn.Module]:
        """The modules of the bundle's graphs by name."""
        phase = PHASES.index(self.config.data.phase)
        return {
            "encoder": EncoderGraph(self.vqgan, self.scale).eval(),
            "condition": ConditionGraph(self.spade, phase).eval(),
            "denoiser": DenoiserGraph(self.denoiser, phase).eval(),
            "decoder": DecoderGraph(self.vqgan, self.scale).eval(),
        }

    def inputs(self) -> dict[str, dict[str, Tensor]]:
        """Example inputs of every graph by name: a tile, its latent, t = ½."""
        latent = self.latent()
        cells = [n // f for n, f in zip(self.config.data.crop, latent.factor, strict=True)]
        z = torch.zeros(1, latent.channels, *cells)
        return {
            "encoder": {"x": torch.zeros(1, 1, *self.config.data.crop)},
            "condition": {"e_n": z},
            "denoiser": {"z_t": z, "e_n": z.clone(), "t": torch.full((1,), 0.5), "c": z.clone()},
            "decoder": {"z": z},
        }

    def outputs(self) -> dict[str, str]:
        """The name of every graph's output."""
        return {"encoder": "e_n", "condition": "c", "denoiser": "epsilon", "decoder": "x_c"}

    def latent(self) -> LatentSpec:
        """The space DDIM works in."""
        v = self.config.aldm.vqgan
        return LatentSpec(scale=self.scale, channels=v.latent_channels, factor=v.factor)

    def sampler(self) -> SamplerSpec:
        """DDIM, conditional, ε."""
        return sampler_spec(self.config.aldm)

    def quantizer(self) -> VectorQuantizer:
        """The decoder's."""
        return self.vqgan.quantizer


def load_model(file: Path) -> AldmModel:
    """The weights of a checkpoint, the denoiser's averaged. Raises CheckpointUnusable."""
    found = ckpt.load(file, STAGE)
    config, states = AldmConfig.model_validate_json(found.config), found.states
    if not states["scale"]:
        raise ckpt.CheckpointUnusable(file, "was stopped before the denoiser's turn came; resume it first")
    this, channels = config.aldm, config.aldm.vqgan.latent_channels
    return AldmModel(
        config,
        vqgan=_filled(Vqgan(this.vqgan), states["vqgan"]["network"]),
        spade=_filled(Spade(this.spade, channels), states["spade"]["network"]),
        denoiser=_filled(Denoiser(this.denoiser, channels), ckpt.averaged(states["ema"])),
        scale=float(states["scale"]),
        facts=facts_of(found),
    )


def _filled(network: Any, weights: Mapping[str, Tensor]) -> Any:
    """``network`` with ``weights``, frozen; strict."""
    network.load_state_dict(weights)
    return network.requires_grad_(False).eval()
