"""CTA-GAN from top to bottom.

``s2node train ctagan --config config/train/ctagan.toml --phase venous --out runs/ctagan``

The non-contrast CT angiography GAN of Lyu et al. 2023: RegGAN's objective, and for every centre crop c of the
fake and of the target 0.1 · L_adv(D_c) + 2 · |c(G(x_n) ∘ φ) − c(x_c)|.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from train.ctagan.config import CTAGANConfig, CTAGANStage
from train.data import Pairs
from train.gan.adversary import Discriminator, ImagePool, discriminator_loss, fooling_loss
from train.gan.generators import ResNetGenerator
from train.gan.player import Player, average_of, enlist, improve, watching
from train.gan.registration import Registration, centre_crop, smoothness
from train.loop import Parts, Plan, count_parameters, train
from train.planes import Translator

STAGE = "ctagan"
WHOLE = 1.0


def train_ctagan(config: CTAGANConfig, out: Path, cache: Path, resume: bool = False) -> Path:
    """Train until the budget is spent or a stop is asked for; returns the checkpoint's path."""
    plan = Plan(STAGE, config, config.ctagan.loop)
    return train(plan, lambda fabric: build(config, fabric), out, cache, resume)


@dataclass(frozen=True, slots=True)
class Scale:
    """``share`` of the plane that a discriminator and a corrected L1 look at, and how much both count."""

    share: float
    adversarial: float
    correction: float

    def look(self, x: Tensor) -> Tensor:
        """The part of ``x`` this scale sees."""
        return x if self.share == WHOLE else centre_crop(x, self.share)


def scales(config: CTAGANStage) -> list[Scale]:
    """The whole image first, then every centre crop."""
    whole = Scale(WHOLE, config.adversarial_weight, config.correction)
    crops = [Scale(c, config.centre_adversarial, config.centre_correction) for c in config.centre_crops]
    return [whole, *crops]


def build_translator(config: CTAGANConfig) -> Translator:
    """The generator as the engine calls it."""
    view, g = config.ctagan.view, config.ctagan.generator
    network = ResNetGenerator(view.spatial_dims, view.channels, g.channels, g.blocks)
    return Translator(network, view, g.residual)


def build(config: CTAGANConfig, fabric: Fabric) -> CTAGANTraining:
    """Generator, registration network, a discriminator a scale."""
    this, dims, d = config.ctagan, config.ctagan.view.spatial_dims, config.ctagan.discriminator
    translator = build_translator(config)
    judges = [Discriminator(dims, 1, d.channels, d.layers, scalar=True) for _ in scales(this)]
    return CTAGANTraining(
        config,
        fabric,
        ema=average_of(fabric, translator, this.loop.ema),
        generator=enlist(fabric, translator, this.optimiser),
        registration=enlist(fabric, Registration(dims, this.registration.channels), this.optimiser),
        discriminators=[enlist(fabric, judge, this.optimiser) for judge in judges],
        pool=ImagePool(d.pool),
    )


@dataclass(slots=True)
class CTAGANTraining(Parts):
    """Everything CTA-GAN moves, and how (``train.loop.Method``)."""

    parts = ("generator", "registration", "ema", "pool", "discriminators")
    config: CTAGANConfig
    fabric: Fabric
    ema: AveragedModel
    generator: Player
    registration: Player
    discriminators: list[Player]
    pool: ImagePool

    def begin(self, pairs: Pairs, resumed: bool) -> Pairs:
        """Nothing to prepare."""
        return pairs

    def step(self, progress: float, x_n: Tensor, x_c: Tensor) -> dict[str, Tensor]:
        """Generator and registration together, then the discriminators of all scales."""
        this = self.config.ctagan
        fake, real = (this.view.fold(x) for x in (self.generator.network(x_n), x_c))
        warped, flow = self.registration.network(fake, real)
        l_smooth = this.smoothness * smoothness(flow)
        with watching(self.fabric, *self.discriminators):
            l_corr, l_adv = self.generator_terms(fake, warped, real)
        players = [self.generator, self.registration]
        skipped = improve(self.fabric, players, l_corr + l_smooth + l_adv, this.optimiser, progress)
        self.ema.update_parameters(self.generator.network.module)
        l_d = self.discriminator_terms(real, self.pool.query(fake))
        skipped += improve(self.fabric, self.discriminators, l_d, this.optimiser, progress)
        return {
            "loss/correction": l_corr.detach(),
            "loss/smoothness": l_smooth.detach(),
            "loss/adversarial": l_adv.detach(),
            "discriminator": l_d.detach(),
            "flow_voxels": flow.detach().abs().mean(),
            "skipped": skipped,
        }

    def generator_terms(self, fake: Tensor, warped: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """(corrected L1, adversarial), each summed over the scales."""
        this = self.config.ctagan
        corrected, fooled = [], []
        for scale, judge in zip(scales(this), self.discriminators, strict=True):
            corrected.append(scale.correction * (scale.look(warped) - scale.look(real)).abs().mean())
            fooled.append(scale.adversarial * fooling_loss(judge.bare, scale.look(fake), this.adversarial))
        return torch.stack(corrected).sum(), torch.stack(fooled).sum()

    def discriminator_terms(self, real: Tensor, fake: Tensor) -> Tensor:
        """Sum over the scales; each discriminator has its own term."""
        this = self.config.ctagan
        terms = [
            discriminator_loss(judge.network, scale.look(real), scale.look(fake), this.adversarial)
            for scale, judge in zip(scales(this), self.discriminators, strict=True)
        ]
        return torch.stack(terms).sum()

    def show(self, x_n: Tensor, x_c: Tensor, seed: int) -> dict[str, Tensor]:
        """The translation, not registered."""
        with self.fabric.autocast():
            return {"model": self.ema.module.eval()(x_n).float()}

    def facts(self) -> dict[str, Any]:
        """For the run card."""
        judges = {f"discriminator_{i}": judge.network for i, judge in enumerate(self.discriminators)}
        parts = {"generator": self.generator.network, "registration": self.registration.network}
        return {"parameters": count_parameters(parts | judges)}
