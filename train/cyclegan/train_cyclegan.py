"""CycleGAN from top to bottom.

``s2node train cyclegan --config config/train/cyclegan.toml --phase venous --out runs/cyclegan``

G: x_n to x_c and F: x_c to x_n, against D_c and D_n: least squares + λ_n |F(G(x_n)) − x_n|
+ λ_c |G(F(x_c)) − x_c| + identity terms (Zhu et al. 2017, eq. 3 and section 5.2). Crops of the two phases are
drawn on their own, so no step knows which x_c belongs to its x_n.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from train.cyclegan.config import CycleGANConfig
from train.data import Pairs
from train.gan.adversary import Discriminator, ImagePool, discriminator_loss, fooling_loss
from train.gan.generators import ResNetGenerator
from train.gan.player import Player, average_of, enlist, improve, watching
from train.loop import Parts, Plan, count_parameters, train
from train.planes import Translator

STAGE = "cyclegan"
OTHER_STREAM = 1_000_003
"""Added to the seed for the crops of the other phase."""


def train_cyclegan(config: CycleGANConfig, out: Path, cache: Path, resume: bool = False) -> Path:
    """Train until the budget is spent or a stop is asked for; returns the checkpoint's path."""
    plan = Plan(STAGE, config, config.cyclegan.loop)
    return train(plan, lambda fabric: build(config, fabric), out, cache, resume)


@dataclass(frozen=True, slots=True)
class Unpaired:
    """Source crops of one stream, target crops of another."""

    pairs: Pairs

    def batch(self, seed: int, step: int, size: int) -> tuple[Tensor, Tensor]:
        """(x_n, x_c) that do not belong together."""
        return self.pairs.batch(seed, step, size)[0], self.pairs.batch(seed + OTHER_STREAM, step, size)[1]


def build_translator(config: CycleGANConfig) -> Translator:
    """A generator; G and F are built alike."""
    view, g = config.cyclegan.view, config.cyclegan.generator
    network = ResNetGenerator(view.spatial_dims, view.channels, g.channels, g.blocks)
    return Translator(network, view, g.residual)


def build(config: CycleGANConfig, fabric: Fabric) -> CycleGANTraining:
    """Four networks and their optimisers."""
    this = config.cyclegan
    there, back = build_translator(config), build_translator(config)
    d = this.discriminator
    judges = [Discriminator(this.view.spatial_dims, 1, d.channels, d.layers) for _ in range(2)]
    ema = average_of(fabric, there, this.loop.ema)
    players = [enlist(fabric, network, this.optimiser) for network in (there, back, *judges)]
    return CycleGANTraining(config, fabric, ema, *players, pool_n=ImagePool(d.pool), pool_c=ImagePool(d.pool))


@dataclass(slots=True)
class CycleGANTraining(Parts):
    """Everything CycleGAN moves, and how (``train.loop.Method``)."""

    parts = ("there", "back", "judge_n", "judge_c", "ema", "pool_n", "pool_c")
    config: CycleGANConfig
    fabric: Fabric
    ema: AveragedModel
    there: Player
    back: Player
    judge_n: Player
    judge_c: Player
    pool_n: ImagePool
    pool_c: ImagePool

    def begin(self, pairs: Pairs, resumed: bool) -> Unpaired:
        """Take the pairs apart."""
        return Unpaired(pairs)

    def step(self, progress: float, x_n: Tensor, x_c: Tensor) -> dict[str, Tensor]:
        """Both generators, then both discriminators."""
        this = self.config.cyclegan
        fake_c, fake_n = self.there.network(x_n), self.back.network(x_c)
        fold = this.view.fold
        terms = self.cycle_terms(x_n, x_c, fake_n, fake_c)
        with watching(self.fabric, self.judge_n, self.judge_c):
            terms["loss/adversarial_c"] = fooling_loss(self.judge_c.bare, fold(fake_c), this.adversarial)
            terms["loss/adversarial_n"] = fooling_loss(self.judge_n.bare, fold(fake_n), this.adversarial)
        total = torch.stack(list(terms.values())).sum()
        skipped = improve(self.fabric, [self.there, self.back], total, this.optimiser, progress)
        self.ema.update_parameters(self.there.network.module)
        skipped += self.judge(self.judge_c, self.pool_c, fold(x_c), fold(fake_c), progress, terms)
        skipped += self.judge(self.judge_n, self.pool_n, fold(x_n), fold(fake_n), progress, terms)
        return {name: value.detach() for name, value in terms.items()} | {"skipped": skipped}

    def cycle_terms(self, x_n: Tensor, x_c: Tensor, fake_n: Tensor, fake_c: Tensor) -> dict[str, Tensor]:
        """There and back again, both ways round; and nothing to do for what is of the right phase already."""
        this, g, f = self.config.cyclegan, self.there.network, self.back.network
        terms = {
            "loss/cycle_n": this.cycle_n * distance(f(fake_c), x_n),
            "loss/cycle_c": this.cycle_c * distance(g(fake_n), x_c),
        }
        if this.identity:
            terms["loss/identity_n"] = this.identity * this.cycle_n * distance(f(x_n), x_n)
            terms["loss/identity_c"] = this.identity * this.cycle_c * distance(g(x_c), x_c)
        return terms

    def judge(
        self,
        judge: Player,
        pool: ImagePool,
        real: Tensor,
        fake: Tensor,
        progress: float,
        terms: dict[str, Tensor],
    ) -> Tensor:
        """One step of a discriminator; its loss goes into ``terms``."""
        this = self.config.cyclegan
        loss = discriminator_loss(judge.network, real, pool.query(fake), this.adversarial)
        terms["discriminator_c" if judge is self.judge_c else "discriminator_n"] = loss
        return improve(self.fabric, [judge], loss, this.optimiser, progress)

    def show(self, x_n: Tensor, x_c: Tensor, seed: int) -> dict[str, Tensor]:
        """G(x_n)."""
        with self.fabric.autocast():
            return {"model": self.ema.module.eval()(x_n).float()}

    def facts(self) -> dict[str, Any]:
        """For the run card."""
        names = ("there", "back", "judge_n", "judge_c")
        return {"parameters": count_parameters({name: getattr(self, name).network for name in names})}


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference."""
    return (a - b).abs().mean()
