"""ALDM from top to bottom.

``s2node train aldm --config config/train/aldm.toml --phase venous --out runs/aldm``

Kim and Park 2024: a VQ-GAN for both phases (L1, commitment), SPADE from E_n to E_c (L1 of latents), a
diffusion model of E_c that sees E_n and SPADE's guess (ε, squared error). One run trains them one after the
other by shares of its budget, so that it is comparable with methods of one part.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.optim.swa_utils import AveragedModel

from engine import samplers
from engine.bundle import SamplerSpec
from engine.schedule import scaled_linear
from engine.volume import Float32
from train import ranks
from train.aldm.config import AldmConfig, AldmStage
from train.aldm.networks import PHASES, Denoiser, Spade, Vqgan
from train.data import Pairs
from train.gan.player import Player, average_of, enlist, improve
from train.loop import Parts, Plan, count_parameters, train

STAGE = "aldm"
SCALE_LATENTS = 64


def train_aldm(config: AldmConfig, out: Path, cache: Path, resume: bool = False) -> Path:
    """Train until the budget is spent or a stop is asked for; returns the checkpoint's path."""
    plan = Plan(STAGE, config, config.aldm.loop)
    return train(plan, lambda fabric: build(config, fabric), out, cache, resume)


def sampler_spec(config: AldmStage) -> SamplerSpec:
    """What the engine is told about running the denoiser."""
    low, high = config.denoiser.beta_schedule
    return SamplerSpec(
        name="ddim",
        formulation="conditional",
        steps=config.sampler.steps,
        sigma=config.sampler.eta,
        T=config.denoiser.timesteps,
        beta_start=low,
        beta_end=high,
        prediction="epsilon",
    )


def build(config: AldmConfig, fabric: Fabric) -> AldmTraining:
    """Three networks and their optimisers."""
    this, channels = config.aldm, config.aldm.vqgan.latent_channels
    denoiser = Denoiser(this.denoiser, channels)
    return AldmTraining(
        config,
        fabric,
        vqgan=enlist(fabric, Vqgan(this.vqgan), this.vqgan.optimiser),
        spade=enlist(fabric, Spade(this.spade, channels), this.spade.optimiser),
        ema=average_of(fabric, denoiser, this.denoiser.ema),
        denoiser=enlist(fabric, denoiser, this.denoiser.optimiser),
    )


@dataclass(slots=True)
class AldmTraining(Parts):
    """Everything ALDM moves, and how (``train.loop.Method``); ``scale`` is 0 while the autoencoder learns."""

    parts = ("vqgan", "spade", "denoiser", "ema")
    numbers = ("scale",)
    config: AldmConfig
    fabric: Fabric
    vqgan: Player
    spade: Player
    denoiser: Player
    ema: AveragedModel
    scale: float = 0.0
    pairs: Pairs | None = None

    @property
    def phase(self) -> int:
        """The class of this run."""
        return PHASES.index(self.config.data.phase)

    def begin(self, pairs: Pairs, resumed: bool) -> Pairs:
        """Remember the pairs: the latents' scale is measured on them later."""
        self.pairs = pairs
        return pairs

    def step(self, progress: float, x_n: Tensor, x_c: Tensor) -> dict[str, Tensor]:
        """One step of the part whose turn it is."""
        this = self.config.aldm
        if progress < this.autoencoder_share:
            return self.step_vqgan(progress, x_n, x_c)
        if not self.scale:
            self.scale = self.latent_scale()
        e_n, e_c = self.encode(x_n), self.encode(x_c)
        if progress < this.autoencoder_share + this.spade_share:
            return self.step_spade(progress, e_n, e_c)
        return self.step_denoiser(progress, e_n, e_c)

    def step_vqgan(self, progress: float, x_n: Tensor, x_c: Tensor) -> dict[str, Tensor]:
        """Rebuild both phases."""
        self.vqgan.network.train()
        x = torch.cat([x_n, x_c])
        rebuilt, l_quan = self.vqgan.network(x, len(x_n))
        l_rec = (rebuilt - x).abs().mean()
        o = self.config.aldm.vqgan.optimiser
        skipped = improve(self.fabric, [self.vqgan], l_rec + l_quan, o, progress)
        return {"loss/rec": l_rec.detach(), "loss/quan": l_quan.detach(), "skipped": skipped}

    def step_spade(self, progress: float, e_n: Tensor, e_c: Tensor) -> dict[str, Tensor]:
        """Guess E_c."""
        l_latent = (self.spade.network(e_n, self.phase) - e_c).abs().mean()
        skipped = improve(self.fabric, [self.spade], l_latent, self.config.aldm.spade.optimiser, progress)
        return {"loss/spade": l_latent.detach(), "skipped": skipped}

    def step_denoiser(self, progress: float, e_n: Tensor, e_c: Tensor) -> dict[str, Tensor]:
        """Noise E_c and ask for the noise."""
        this = self.config.aldm.denoiser
        schedule = scaled_linear(this.timesteps, *this.beta_schedule)
        tau = (ranks.rand(len(e_c), e_c.device) * this.timesteps).long().clamp_max(this.timesteps - 1)
        a = torch.from_numpy(schedule.alpha_bar).float().to(e_c.device)[tau].reshape(-1, 1, 1, 1, 1)
        epsilon = ranks.randn(tuple(e_c.shape), e_c.device)
        z_t = a.sqrt() * e_c + (1 - a).sqrt() * epsilon
        guess = self.guess(e_n)
        answer = self.denoiser.network(z_t, e_n, guess, tau / this.timesteps, self.phase)
        l_diff = F.mse_loss(answer.float(), epsilon)
        skipped = improve(self.fabric, [self.denoiser], l_diff, this.optimiser, progress)
        self.ema.update_parameters(self.denoiser.network.module)
        return {"loss/diff": l_diff.detach(), "skipped": skipped}

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """The scaled latent, fp32, of the frozen autoencoder."""
        with self.fabric.autocast():
            return self.vqgan.bare.eval().encode(x).float() * self.scale

    @torch.no_grad()
    def guess(self, e_n: Tensor) -> Tensor:
        """SPADE's, frozen, fp32."""
        with self.fabric.autocast():
            return self.spade.bare(e_n, self.phase).float()

    @torch.no_grad()
    def latent_scale(self) -> float:
        """1 / standard deviation of E_c about zero over 64 training latents."""
        assert self.pairs is not None
        self.scale, squares, count = 1.0, 0.0, 0
        for i in range(SCALE_LATENTS):
            _, x_c = self.pairs.batch(self.config.aldm.loop.seed + 1, i, 1)
            e_c = self.encode(self.fabric.to_device(x_c)).double()
            squares, count = squares + float(e_c.square().sum()), count + e_c.numel()
        return float((count / squares) ** 0.5)

    def show(self, x_n: Tensor, x_c: Tensor, seed: int) -> dict[str, Tensor]:
        """What the autoencoder rebuilds; once it is frozen SPADE's guess, and what is sampled."""
        scale, self.scale = self.scale, self.scale or 1.0
        rebuilt = self.decode(self.encode(x_c))
        if not scale:
            self.scale = scale
            return {"rebuilt": rebuilt}
        e_n = self.encode(x_n)
        guess = self.guess(e_n)
        sampled = self.sample(e_n, guess, seed)
        return {"rebuilt": rebuilt, "spade": self.decode(guess), "model": self.decode(sampled)}

    def decode(self, z: Tensor) -> Tensor:
        """x of a scaled latent, fp32."""
        with self.fabric.autocast():
            return self.vqgan.bare.eval().decode(z / self.scale).float()

    def sample(self, e_n: Tensor, guess: Tensor, seed: int) -> Tensor:
        """Run the engine's own DDIM on the averaged denoiser."""
        spec, denoiser = sampler_spec(self.config.aldm), self.ema.module.eval()

        def predict(z: Float32, source: Float32, t: float) -> Float32:
            z_t = self.fabric.to_device(torch.from_numpy(np.ascontiguousarray(z)))
            with self.fabric.autocast():
                answer: Tensor = denoiser(z_t, e_n, guess, z_t.new_full((len(z_t),), t), self.phase)
            return answer.float().cpu().numpy()

        source = e_n.cpu().numpy()
        shape = (samplers.noise_fields(spec), *source.shape)
        noise = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
        return self.fabric.to_device(torch.from_numpy(samplers.sample(spec, predict, source, noise)))

    def facts(self) -> dict[str, Any]:
        """For the run card."""
        parts = {name: getattr(self, name).network for name in ("vqgan", "spade", "denoiser")}
        return {"parameters": count_parameters(parts), "latent_scale": self.scale}
