"""Settings of CycleGAN; defaults are what was published."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from config.base import Frozen
from train.config import BundleConfig, RunConfig, Weight
from train.gan.config import (
    RESNET_FACTOR,
    AdamConfig,
    DiscriminatorConfig,
    PlainLoopConfig,
    ResNetConfig,
    require_multiples,
)
from train.planes import View


class CycleGANStage(Frozen):
    """Two ResNet-9 generators, two PatchGANs."""

    view: View = View()
    generator: ResNetConfig = ResNetConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    adversarial: Literal["bce", "least_squares"] = "least_squares"
    cycle_n: Weight = 10.0
    """Weight of |F(G(x_n)) − x_n|."""
    cycle_c: Weight = 10.0
    """Weight of |G(F(x_c)) − x_c|."""
    identity: Weight = 0.5
    """|F(x_n) − x_n| and |G(x_c) − x_c| count this much of the cycle's weights."""
    optimiser: AdamConfig = AdamConfig()
    loop: PlainLoopConfig = PlainLoopConfig()


class CycleGANConfig(RunConfig):
    """One CycleGAN of one phase."""

    cyclegan: CycleGANStage = CycleGANStage()
    bundle: BundleConfig = BundleConfig(name="cyclegan")

    @model_validator(mode="after")
    def _sizes_fit(self) -> CycleGANConfig:
        require_multiples(self.data.crop, self.cyclegan.view, RESNET_FACTOR, 2 * RESNET_FACTOR)
        return self
