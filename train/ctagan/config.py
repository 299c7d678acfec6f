"""Settings of CTA-GAN; defaults are what was published."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from train.config import BundleConfig, RunConfig, Weight
from train.gan.config import AdamConfig
from train.reggan.config import RegGANStage

Share = Annotated[float, Field(gt=0, lt=1)]


class CTAGANStage(RegGANStage):
    """RegGAN with a discriminator a scale: it looks at centre crops too, and calls R the corrector."""

    centre_crops: tuple[Share, ...] = (0.5,)
    """In-plane shares around the centre, where the great vessels are; each has a discriminator of its own."""
    centre_adversarial: Weight = 0.1
    """Weight of the adversarial term on each centre crop."""
    centre_correction: Weight = 2.0
    """Weight of the corrected L1 on each centre crop."""
    optimiser: AdamConfig = AdamConfig(lr=1e-4, hold=0.7)
    """45 epochs at a constant rate, 20 of linear decay."""


class CTAGANConfig(RunConfig):
    """One CTA-GAN of one phase."""

    ctagan: CTAGANStage = CTAGANStage()
    bundle: BundleConfig = BundleConfig(name="ctagan")

    @model_validator(mode="after")
    def _sizes_fit(self) -> CTAGANConfig:
        self.ctagan.require_fit(self.data.crop)
        return self
