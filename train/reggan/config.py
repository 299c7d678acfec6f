"""Settings of RegGAN; defaults are what was published."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from config.base import Frozen
from train.config import BundleConfig, RunConfig, Shape, Weight
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


class RegGANStage(Frozen):
    """ResNet-9, a discriminator averaged to one number an image, a registration network."""

    view: View = View()
    generator: ResNetConfig = ResNetConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    registration: RegistrationConfig = RegistrationConfig()
    adversarial: Literal["bce", "least_squares"] = "least_squares"
    adversarial_weight: Weight = 1.0
    correction: Weight = 20.0
    """Weight of |fake ∘ flow − x_c|."""
    smoothness: Weight = 10.0
    """Weight of the flow's mean squared gradient."""
    optimiser: AdamConfig = AdamConfig(lr=1e-4, hold=1.0)
    loop: PlainLoopConfig = PlainLoopConfig()

    def require_fit(self, crop: Shape) -> None:
        """ValueError where generator or registration cannot halve ``crop`` as often as they do."""
        factor = max(RESNET_FACTOR, self.registration.factor)
        require_multiples(crop, self.view, factor, 2 * RESNET_FACTOR)


class RegGANConfig(RunConfig):
    """One RegGAN of one phase."""

    reggan: RegGANStage = RegGANStage()
    bundle: BundleConfig = BundleConfig(name="reggan")

    @model_validator(mode="after")
    def _sizes_fit(self) -> RegGANConfig:
        self.reggan.require_fit(self.data.crop)
        return self
