"""pix2pix from top to bottom.

``s2node train pix2pix --config config/train/pix2pix.toml --phase venous --out runs/pix2pix``

G* = arg min_G max_D E log D(x_n, x_c) + E log(1 − D(x_n, G(x_n))) + λ E |x_c − G(x_n)|, λ = 100 (Isola et al.
2017, eq. 4). Dropout is the generator's only noise; in service it is off, so the same source gives the same
result.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from train.data import Pairs
from train.gan.adversary import Discriminator, ImagePool, discriminator_loss, fooling_loss
from train.gan.generators import UNetGenerator, halvings
from train.gan.player import Player, average_of, enlist, improve, watching
from train.loop import Parts, Plan, count_parameters, train
from train.pix2pix.config import Pix2PixConfig
from train.planes import Translator

STAGE = "pix2pix"


def train_pix2pix(config: Pix2PixConfig, out: Path, cache: Path, resume: bool = False) -> Path:
    """Train until the budget is spent or a stop is asked for; returns the checkpoint's path."""
    plan = Plan(STAGE, config, config.pix2pix.loop)
    return train(plan, lambda fabric: build(config, fabric), out, cache, resume)


def build_translator(config: Pix2PixConfig) -> Translator:
    """The generator as the engine calls it."""
    this = config.pix2pix
    view = this.view
    strides = halvings(config.data.crop[-this.view.spatial_dims :], this.downs)
    network = UNetGenerator(this.view.spatial_dims, view.channels, strides, this.channels, this.dropout)
    return Translator(network, view, this.residual)


def build(config: Pix2PixConfig, fabric: Fabric) -> Pix2PixTraining:
    """Both networks and their optimisers."""
    this = config.pix2pix
    translator = build_translator(config)
    judge = Discriminator(this.view.spatial_dims, 2, this.discriminator.channels, this.discriminator.layers)
    return Pix2PixTraining(
        config,
        fabric,
        ema=average_of(fabric, translator, this.loop.ema),
        generator=enlist(fabric, translator, this.optimiser),
        discriminator=enlist(fabric, judge, this.optimiser),
        pool=ImagePool(this.discriminator.pool),
    )


@dataclass(slots=True)
class Pix2PixTraining(Parts):
    """Everything pix2pix moves, and how (``train.loop.Method``)."""

    parts = ("generator", "discriminator", "ema", "pool")
    config: Pix2PixConfig
    fabric: Fabric
    ema: AveragedModel
    generator: Player
    discriminator: Player
    pool: ImagePool

    def begin(self, pairs: Pairs, resumed: bool) -> Pairs:
        """Nothing to prepare."""
        return pairs

    def step(self, progress: float, x_n: Tensor, x_c: Tensor) -> dict[str, Tensor]:
        """The discriminator first, then the generator against the discriminator so improved."""
        this, judge = self.config.pix2pix, self.discriminator
        fake = self.generator.network(x_n)
        fold = this.view.fold
        a, b, f = fold(x_n), fold(x_c), fold(fake)
        seen = self.pool.query(torch.cat([a, f], dim=1))
        l_d = discriminator_loss(judge.network, torch.cat([a, b], dim=1), seen, this.adversarial)
        skipped = improve(self.fabric, [judge], l_d, this.optimiser, progress)
        l_1 = this.l1 * (fake - x_c).abs().mean()
        with watching(self.fabric, judge):
            l_adv = fooling_loss(judge.bare, torch.cat([a, f], dim=1), this.adversarial)
        skipped += improve(self.fabric, [self.generator], l_adv + l_1, this.optimiser, progress)
        self.ema.update_parameters(self.generator.network.module)
        return {
            "loss/l1": l_1.detach(),
            "loss/adversarial": l_adv.detach(),
            "discriminator": l_d.detach(),
            "skipped": skipped,
        }

    def show(self, x_n: Tensor, x_c: Tensor, seed: int) -> dict[str, Tensor]:
        """The translation."""
        with self.fabric.autocast():
            return {"model": self.ema.module.eval()(x_n).float()}

    def facts(self) -> dict[str, Any]:
        """For the run card."""
        networks = {"generator": self.generator.network, "discriminator": self.discriminator.network}
        return {"parameters": count_parameters(networks)}
