"""Settings of CTA-GAN; defaults are what was published."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from config.base import Frozen
from train.config import BundleConfig, RunConfig, Weight
from train.gan.config import (
    RESNET_FACTOR,
    AdamConfig,
    DiscriminatorConfig,
    PlainLoopConfig,
    RegistrationConfig,
    ResNetConfig,
    require_multiples,
)
from train.planes import View

Share = Annotated[float, Field(gt=0, lt=1)]


class CTAGANStage(Frozen):
    """ResNet-9, a discriminator a scale, a registration network (the corrector)."""

    view: View = View()
    generator: ResNetConfig = ResNetConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    registration: RegistrationConfig = RegistrationConfig()
    adversarial: Literal["bce", "least_squares"] = "least_squares"
    adversarial_weight: Weight = 1.0
    correction: Weight = 20.0
    smoothness: Weight = 10.0
    centre_crops: tuple[Share, ...] = (0.5,)
    """In-plane shares around the centre, where the great vessels are; each has a discriminator of its own."""
    centre_adversarial: Weight = 0.1
    """Weight of the adversarial term on each centre crop."""
    centre_correction: Weight = 2.0
    """Weight of the corrected L1 on each centre crop."""
    optimiser: AdamConfig = AdamConfig(lr=1e-4, hold=0.7)
    """45 epochs at a constant rate, 20 of linear decay."""
    loop: PlainLoopConfig = PlainLoopConfig()


class CTAGANConfig(RunConfig):
    """One CTA-GAN of one phase."""

    ctagan: CTAGANStage = CTAGANStage()
    bundle: BundleConfig = BundleConfig(name="ctagan")

    @model_validator(mode="after")
    def _sizes_fit(self) -> CTAGANConfig:
        factor = max(RESNET_FACTOR, self.ctagan.registration.factor)
        require_multiples(self.data.crop, self.ctagan.view, factor, 2 * RESNET_FACTOR)
        return self
