"""Settings of ALDM; defaults are what was published, but for attention (see ``AldmStage``)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from config.base import Frozen
from train.config import BundleConfig, Fraction, RunConfig, Shape, Weight
from train.gan.config import AdamConfig, PlainLoopConfig

Share = Annotated[float, Field(ge=0, lt=1)]


class VqganConfig(Frozen):
    """The autoencoder both phases share."""

    channels: tuple[PositiveInt, ...] = (64, 64, 128)
    """One level each; every level but the last halves all axes: factor 4."""
    res_blocks: PositiveInt = 1
    latent_channels: PositiveInt = 4
    codes: PositiveInt = 8192
    decay: Fraction = 0.99
    commitment: Weight = 0.25
    reseed_below: Weight = 0.01
    norm_groups: PositiveInt = 16
    optimiser: AdamConfig = AdamConfig(lr=1e-5, betas=(0.5, 0.9), hold=1.0)

    @property
    def factor(self) -> Shape:
        """Voxels a latent cell spans along slice, row, column."""
        levels = 2 ** (len(self.channels) - 1)
        return (levels, levels, levels)


class SpadeConfig(Frozen):
    """The translator inside the latent space."""

    channels: tuple[PositiveInt, ...] = (128, 256, 128)
    """Between the latent's channels at either end: four blocks."""
    hidden: PositiveInt = 64
    optimiser: AdamConfig = AdamConfig(lr=2e-5, betas=(0.5, 0.9), hold=1.0)


class DenoiserConfig(Frozen):
    """The diffusion U-Net on (z_t, E_n, SPADE(E_n))."""

    channels: tuple[PositiveInt, ...] = (128, 128, 256)
    res_blocks: PositiveInt = 1
    attention: bool = False
    """True is published: attention from the second level down; it grows with the square of a tile's cells."""
    head_channels: PositiveInt = 32
    norm_groups: PositiveInt = 32
    timesteps: PositiveInt = 1000
    beta_schedule: tuple[PositiveFloat, PositiveFloat] = (0.0015, 0.0195)
    ema: Fraction = 0.9999
    optimiser: AdamConfig = AdamConfig(lr=1e-5, betas=(0.9, 0.999), hold=1.0)


class DdimConfig(Frozen):
    """What service does with the denoiser."""

    name: Literal["ddim"] = "ddim"
    steps: PositiveInt = 200
    eta: Weight = 1.0


class AldmStage(Frozen):
    """Three networks, one after the other, in one run and one budget."""

    autoencoder_share: Share = 0.4
    """Of the budget; then the autoencoder is frozen. 0 is for refreshes, where it has learnt already."""
    spade_share: Share = 0.1
    """Of the budget, after the autoencoder; then SPADE is frozen and the rest is the denoiser's."""
    vqgan: VqganConfig = VqganConfig()
    spade: SpadeConfig = SpadeConfig()
    denoiser: DenoiserConfig = DenoiserConfig()
    sampler: DdimConfig = DdimConfig()
    loop: PlainLoopConfig = PlainLoopConfig()

    @model_validator(mode="after")
    def _shares_leave_something(self) -> AldmStage:
        if self.autoencoder_share + self.spade_share >= 1:
            raise ValueError(
                f"autoencoder_share {self.autoencoder_share} and spade_share {self.spade_share}"
                " leave nothing to the denoiser"
            )
        return self


class AldmConfig(RunConfig):
    """One ALDM of one phase."""

    aldm: AldmStage = AldmStage()
    bundle: BundleConfig = BundleConfig(name="aldm")

    @model_validator(mode="after")
    def _crop_fits(self) -> AldmConfig:
        deepest = 2 ** (len(self.aldm.denoiser.channels) - 1)
        for size, factor in zip(self.data.crop, self.aldm.vqgan.factor, strict=True):
            if size % (factor * deepest):
                raise ValueError(
                    f"data.crop {self.data.crop} must be multiples of {factor * deepest}"
                    f" (factor {self.aldm.vqgan.factor} times {deepest} of the denoiser)"
                )
        return self
