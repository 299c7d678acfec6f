"""Settings of the 2.5-D U-Net."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt, model_validator

from config.base import Frozen
from train.config import BundleConfig, OptimiserConfig, RunConfig
from train.gan.config import PlainLoopConfig, require_multiples
from train.planes import View

UNET_FACTOR = 16


class UNet25DStage(Frozen):
    """MONAI's BasicUNet; T(x) = x + Δ(x), Δ begun at zero."""

    view: View = View(neighbours=3)
    features: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (
        32, 32, 64, 128, 256, 32,
    )  # fmt: skip
    """Five levels down, and the last one up."""
    norm: Literal["group", "instance"] = "group"
    """Instance norm forgets absolute HU, group norm less so."""
    norm_groups: PositiveInt = 8
    optimiser: OptimiserConfig = OptimiserConfig()
    loop: PlainLoopConfig = PlainLoopConfig(ema=0.995)


class UNet25DConfig(RunConfig):
    """One 2.5-D U-Net of one phase."""

    unet25d: UNet25DStage = UNet25DStage()
    bundle: BundleConfig = BundleConfig(name="unet25d")

    @model_validator(mode="after")
    def _sizes_fit(self) -> UNet25DConfig:
        require_multiples(self.data.crop, self.unet25d.view, UNET_FACTOR, UNET_FACTOR)
        groups = self.unet25d.norm_groups
        if self.unet25d.norm == "group" and any(width % groups for width in self.unet25d.features):
            raise ValueError(f"features {self.unet25d.features} are not multiples of norm_groups {groups}")
        return self
