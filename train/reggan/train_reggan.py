"""RegGAN from top to bottom.

``s2node train reggan --config config/train/reggan.toml --phase venous --out runs/reggan``

min over G and R of L_adv(G) + λ_corr |G(x_n) ∘ φ − x_c| + λ_smooth |∇φ|², φ = R(G(x_n), x_c) (Kong et al.
2021, mode NC + R): what does not lie on its target is taken for misregistration as far as a smooth flow can
mend it. R is gone in service.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from train.data import Pairs
from train.gan.adversary import Discriminator, ImagePool, discriminator_loss, fooling_loss
from train.gan.generators import ResNetGenerator
from train.gan.player import Player, average_of, enlist, improve, watching
from train.gan.registration import Registration, smoothness
from train.loop import Parts, Plan, count_parameters, train
from train.planes import Translator
from train.reggan.config import RegGANConfig

STAGE = "reggan"


def train_reggan(config: RegGANConfig, out: Path, cache: Path, resume: bool = False) -> Path:
    """Train until the budget is spent or a stop is asked for; returns the checkpoint's path."""
    plan = Plan(STAGE, config, config.reggan.loop)
    return train(plan, lambda fabric: build(config, fabric), out, cache, resume)


def build_translator(config: RegGANConfig) -> Translator:
    """The generator as the engine calls it."""
    view, g = config.reggan.view, config.reggan.generator
    network = ResNetGenerator(view.spatial_dims, view.channels, g.channels, g.blocks)
    return Translator(network, view, g.residual)


def build(config: RegGANConfig, fabric: Fabric) -> RegGANTraining:
    """Three networks and their optimisers."""
    this, dims = config.reggan, config.reggan.view.spatial_dims
    translator = build_translator(config)
    judge = Discriminator(dims, 1, this.discriminator.channels, this.discriminator.layers, scalar=True)
    return RegGANTraining(
        config,
        fabric,
        ema=average_of(fabric, translator, this.loop.ema),
        generator=enlist(fabric, translator, this.optimiser),
        registration=enlist(fabric, Registration(dims, this.registration.channels), this.optimiser),
        discriminator=enlist(fabric, judge, this.optimiser),
        pool=ImagePool(this.discriminator.pool),
    )


@dataclass(slots=True)
class RegGANTraining(Parts):
    """Everything RegGAN moves, and how (``train.loop.Method``)."""

    parts = ("generator", "registration", "discriminator", "ema", "pool")
    config: RegGANConfig
    fabric: Fabric
    ema: AveragedModel
    generator: Player
    registration: Player
    discriminator: Player
    pool: ImagePool

    def begin(self, pairs: Pairs, resumed: bool) -> Pairs:
        """Nothing to prepare."""
        return pairs

    def step(self, progress: float, x_n: Tensor, x_c: Tensor) -> dict[str, Tensor]:
        """Generator and registration together, then the discriminator."""
        this, judge = self.config.reggan, self.discriminator
        fake, real = (this.view.fold(x) for x in (self.generator.network(x_n), x_c))
        warped, flow = self.registration.network(fake, real)
        l_corr = this.correction * (warped - real).abs().mean()
        l_smooth = this.smoothness * smoothness(flow)
        with watching(self.fabric, judge):
            l_adv = this.adversarial_weight * fooling_loss(judge.bare, fake, this.adversarial)
        players = [self.generator, self.registration]
        skipped = improve(self.fabric, players, l_corr + l_smooth + l_adv, this.optimiser, progress)
        self.ema.update_parameters(self.generator.network.module)
        l_d = discriminator_loss(judge.network, real, self.pool.query(fake), this.adversarial)
        skipped += improve(self.fabric, [judge], l_d, this.optimiser, progress)
        return {
            "loss/correction": l_corr.detach(),
            "loss/smoothness": l_smooth.detach(),
            "loss/adversarial": l_adv.detach(),
            "discriminator": l_d.detach(),
            "flow_voxels": flow.detach().abs().mean(),
            "skipped": skipped,
        }

    def show(self, x_n: Tensor, x_c: Tensor, seed: int) -> dict[str, Tensor]:
        """The translation, not registered."""
        with self.fabric.autocast():
            return {"model": self.ema.module.eval()(x_n).float()}

    def facts(self) -> dict[str, Any]:
        """For the run card."""
        names = ("generator", "registration", "discriminator")
        return {"parameters": count_parameters({name: getattr(self, name).network for name in names})}
