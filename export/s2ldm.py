"""The graphs of an S²LDM as the engine calls them, taken from a stage 2 checkpoint."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from engine.bundle import LatentSpec, SamplerSpec
from export.model import facts_of
from train import checkpoint as ckpt
from train.config import Phase, TrainConfig
from train.s2ldm.autoencoder import SyncreticAutoencoder
from train.s2ldm.denoiser import Denoiser
from train.s2ldm.formulation import sampler_spec
from train.s2ldm.quantizer import VectorQuantizer

STAGE = "diffusion"
JOINT = "joint"
SOFT, FINE = "exit.soft.weight", "exit.fine.layers.0.weight"
"""What only an exit that stage 3 has widened has."""


class EncoderGraph(nn.Module):
    """x (1, 1, D, H, W) in [-1, 1] to E_n, multiplied by the latent scale."""

    def __init__(self, autoencoder: SyncreticAutoencoder, scale: float) -> None:
        super().__init__()
        self.autoencoder, self.scale = autoencoder, scale

    def forward(self, x: Tensor) -> Tensor:
        """E_n."""
        return self.autoencoder.encode(x) * self.scale


class ConditionGraph(nn.Module):
    """x to c, what the denoiser is told of it at every t."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor) -> Tensor:
        """c."""
        return self.denoiser.look(x)


class ConditionedGraph(nn.Module):
    """(z_t, E_n, t, c) to the prediction."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, z_t: Tensor, e_n: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """v."""
        return self.denoiser.answer(z_t, e_n, t, c)


class DecoderGraph(nn.Module):
    """z to x_c in [-1, 1]: unscales, quantises where training said so, paints."""

    def __init__(self, autoencoder: SyncreticAutoencoder, scale: float) -> None:
        super().__init__()
        self.autoencoder, self.scale = autoencoder, scale

    def forward(self, z: Tensor) -> Tensor:
        """D(z)."""
        return self.autoencoder.decode(z / self.scale, z).clamp(-1, 1)


class SourceDecoderGraph(DecoderGraph):
    """The same for ``source_skip = "residual"``: D(z, x) = x + Δ(z, x)."""

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """D(z, x)."""
        return self.autoencoder.decode(z / self.scale, x).clamp(-1, 1)


@dataclass(frozen=True, slots=True)
class Model:
    """A finished S²LDM: what was trained, under which configuration, for how long."""

    config: TrainConfig
    autoencoder: SyncreticAutoencoder
    denoiser: Denoiser
    scale: float
    facts: Mapping[str, Any]
    family: Literal["s2ldm"] = "s2ldm"

    def outputs(self) -> dict[str, str]:
        """The name of every graph's output."""
        condition = {"condition": "c"} if self.is_conditioned else {}
        return {"encoder": "e_n", **condition, "denoiser": "v", "decoder": "x_c"}

    @property
    def is_conditioned(self) -> bool:
        """Whether the denoiser is shown the source."""
        return self.denoiser.source is not None

    def latent(self) -> LatentSpec:
        """The space the sampler works in."""
        autoencoder = self.config.autoencoder
        return LatentSpec(scale=self.scale, channels=autoencoder.latent_channels, factor=autoencoder.factor)

    def sampler(self) -> SamplerSpec:
        """What the engine is told about running the denoiser."""
        return sampler_spec(self.config.diffusion)

    def quantizer(self) -> VectorQuantizer | None:
        """What the decoder rounds latents with, if it does."""
        return self.autoencoder.quantizer

    def graphs(self) -> dict[str, nn.Module]:
        """The modules of the bundle's graphs by name."""
        residual = self.config.autoencoder.source_skip == "residual"
        decoder = SourceDecoderGraph if residual else DecoderGraph
        denoiser: dict[str, nn.Module] = {"denoiser": self.denoiser}
        if self.is_conditioned:
            denoiser = {
                "condition": ConditionGraph(self.denoiser),
                "denoiser": ConditionedGraph(self.denoiser),
            }
        return {
            "encoder": EncoderGraph(self.autoencoder, self.scale).eval(),
            **denoiser,
            "decoder": decoder(self.autoencoder, self.scale).eval(),
        }

    def inputs(self) -> dict[str, dict[str, Tensor]]:
        """Example inputs of every graph by name: a tile, its latent, t = ½."""
        x = torch.zeros(1, 1, *self.config.data.crop)
        channels = self.config.autoencoder.latent_channels
        cells = [n // f for n, f in zip(self.config.data.crop, self.config.autoencoder.factor, strict=True)]
        z = torch.zeros(1, channels, *cells)
        source = {"x": x} if self.config.autoencoder.source_skip == "residual" else {}
        denoiser = {"denoiser": {"z_t": z, "e_n": z.clone(), "t": torch.full((1,), 0.5)}}
        if self.is_conditioned:
            with torch.no_grad():
                c = self.denoiser.look(x)
            assert c is not None
            denoiser = {"condition": {"x": x}, "denoiser": denoiser["denoiser"] | {"c": c}}
        return {"encoder": {"x": x}, **denoiser, "decoder": {"z": z, **source}}


def load_model(file: Path) -> Model:
    """The averaged weights of a stage 2 checkpoint. Raises CheckpointUnusable."""
    found = ckpt.load(file, STAGE)
    config = TrainConfig.model_validate_json(found.config)
    states = found.states
    return Model(
        config=config,
        autoencoder=build_autoencoder(config, states["autoencoder"]),
        denoiser=build_denoiser(config, ckpt.averaged(states["ema"])),
        scale=float(states["scale"]),
        facts=facts_of(found),
    )


def of_phase(model: Model, phase: Phase) -> Model:
    """One phase of a model that serves both: its denoiser takes the phase for granted."""
    config = model.config.with_phase(phase)
    return replace(model, config=config, denoiser=build_denoiser(config, model.denoiser.state_dict()))


def load_joint_model(file: Path) -> Model:
    """The averaged weights of a stage 3 checkpoint. Raises CheckpointUnusable."""
    found = ckpt.load(file, JOINT)
    config = TrainConfig.model_validate_json(found.config)
    weights = ckpt.averaged(found.states["ema"])
    return Model(
        config=config,
        autoencoder=build_autoencoder(config, part(weights, "autoencoder.")),
        denoiser=build_denoiser(config, part(weights, "denoiser.")),
        scale=float(found.states["scale"]),
        facts=facts_of(found),
    )


def part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights of one module among those of a larger one."""
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def build_autoencoder(config: TrainConfig, weights: Mapping[str, Tensor]) -> SyncreticAutoencoder:
    """Stage 1's network with ``weights``, widened where stage 3 has widened it; strict."""
    autoencoder = as_wide_as(config, weights)
    autoencoder.load_state_dict(weights)
    return autoencoder.requires_grad_(False).eval()


def as_wide_as(config: TrainConfig, names: Container[str]) -> SyncreticAutoencoder:
    """Stage 1's network with what stage 3 has added to it, if its weights are among ``names``."""
    window = config.soft_window if SOFT in names else None
    fine_blocks = config.joint.fine_blocks if FINE in names else 0
    return SyncreticAutoencoder(config.autoencoder, window, fine_blocks)


def build_denoiser(config: TrainConfig, weights: Mapping[str, Tensor]) -> Denoiser:
    """Stage 2's network with ``weights``; strict."""
    phase = None if config.data.phase == "both" else config.data.phase
    denoiser = Denoiser(config, phase)
    denoiser.load_state_dict(weights)
    return denoiser.requires_grad_(False).eval()
