"""Settings of pix2pix; defaults are what was published."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from config.base import Frozen
from train.config import BundleConfig, Fraction, RunConfig, Weight
from train.gan.config import AdamConfig, DiscriminatorConfig, PlainLoopConfig
from train.planes import View


class Pix2PixStage(Frozen):
    """U-Net generator, conditional PatchGAN."""

    view: View = View()
    downs: PositiveInt = 8
    """Levels of the U-Net; fewer where the crop cannot be halved as often."""
    channels: PositiveInt = 64
    dropout: Fraction = 0.5
    residual: bool = False
    """True is ours: x_n + G(x_n), for budgets in which a generator does not even learn to copy."""
    discriminator: DiscriminatorConfig = DiscriminatorConfig(pool=0)
    adversarial: Literal["bce", "least_squares"] = "bce"
    l1: Weight = 100.0
    optimiser: AdamConfig = AdamConfig()
    loop: PlainLoopConfig = PlainLoopConfig()


class Pix2PixConfig(RunConfig):
    """One pix2pix of one phase."""

    pix2pix: Pix2PixStage = Pix2PixStage()
    bundle: BundleConfig = BundleConfig(name="pix2pix")
