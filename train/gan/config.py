"""What the comparison methods can be told; defaults are what was published."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from config.base import Frozen
from train.config import Fraction, LoopConfig, Shape
from train.planes import View

Count = Annotated[int, Field(ge=0)]


class PlainLoopConfig(LoopConfig):
    """A loop whose exported weights are the last ones: none of the published GANs averages."""

    ema: Fraction = 0.0

    @model_validator(mode="after")
    def _nothing_is_recomputed(self) -> PlainLoopConfig:
        if self.recompute:
            raise ValueError("recompute: only the stages of the S²LDM can")
        return self


class AdamConfig(Frozen):
    """Adam at a constant rate for the share ``hold`` of the budget, then falling linearly to nothing."""

    lr: PositiveFloat = 2e-4
    betas: tuple[Fraction, Fraction] = (0.5, 0.999)
    hold: Fraction = 0.5
    clip: PositiveFloat = 1e6
    """Largest gradient norm; the default never bites, the published methods do not clip."""


class ResNetConfig(Frozen):
    """The ResNet-9 generator."""

    channels: PositiveInt = 64
    blocks: PositiveInt = 9
    residual: bool = False
    """True is ours: x_n + G(x_n), for budgets in which a generator does not even learn to copy."""


class DiscriminatorConfig(Frozen):
    """The PatchGAN; 3 layers judge 70 × 70 pixels."""

    channels: PositiveInt = 64
    layers: PositiveInt = 3
    pool: Count = 50
    """Past fakes kept for the discriminator; 0 shows it only the newest."""


class RegistrationConfig(Frozen):
    """The registration network R."""

    channels: tuple[PositiveInt, ...] = (32, 32, *[64] * 12)
    """Pairs (down, up), one a level; every level but the first halves the image."""

    @property
    def factor(self) -> int:
        """What image sizes must be multiples of."""
        return 2 ** (len(self.channels) // 2)

    @model_validator(mode="after")
    def _channels_are_pairs(self) -> RegistrationConfig:
        if len(self.channels) < 2 or len(self.channels) % 2:
            raise ValueError(f"channels {self.channels} are not pairs")
        return self


RESNET_FACTOR = 4


def require_multiples(crop: Shape, view: View, factor: int, least: int) -> None:
    """ValueError where a network cannot halve ``crop`` as often as it does."""
    seen = crop[-view.spatial_dims :]
    if any(size % factor or size < least for size in seen):
        raise ValueError(f"data.crop {crop}: {seen} must be multiples of {factor}, at least {least}")
