"""The methods S²LDM is compared with: where their configuration, their training and their network are.

Places are imported when a method is used, so that listing them costs nothing.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.config import RunConfig, load_config


@dataclass(frozen=True, slots=True)
class Entry:
    """One comparison method; its name is also its stage in checkpoints and its section in configurations."""

    summary: str
    config: str
    """``module:class`` of its configuration, a RunConfig."""
    train: str
    """``module:function``: (config, out, cache, resume) to the checkpoint's path."""
    translator: str | None
    """``module:function``: config to the network the engine calls; None where the family has more graphs."""

    def load(self, file: Path) -> RunConfig:
        """Its configuration. Raises TrainConfigInvalid."""
        return load_config(file, self.config_class())

    def config_class(self) -> type[RunConfig]:
        """Its configuration's class."""
        found: type[RunConfig] = pkgutil.resolve_name(self.config)
        return found

    def trainer(self) -> Callable[..., Path]:
        """What trains it."""
        found: Callable[..., Path] = pkgutil.resolve_name(self.train)
        return found

    def builder(self) -> Callable[[Any], Any]:
        """What builds its translator."""
        assert self.translator is not None
        found: Callable[[Any], Any] = pkgutil.resolve_name(self.translator)
        return found


METHODS: dict[str, Entry] = {
    "pix2pix": Entry(
        "pix2pix: a conditional GAN on pairs (U-Net, PatchGAN, L1).",
        "train.pix2pix.config:Pix2PixConfig",
        "train.pix2pix.train_pix2pix:train_pix2pix",
        "train.pix2pix.train_pix2pix:build_translator",
    ),
    "cyclegan": Entry(
        "CycleGAN: two translators that undo each other, without pairs.",
        "train.cyclegan.config:CycleGANConfig",
        "train.cyclegan.train_cyclegan:train_cyclegan",
        "train.cyclegan.train_cyclegan:build_translator",
    ),
    "reggan": Entry(
        "RegGAN: a GAN with a registration network that forgives misregistration.",
        "train.reggan.config:RegGANConfig",
        "train.reggan.train_reggan:train_reggan",
        "train.reggan.train_reggan:build_translator",
    ),
    "ctagan": Entry(
        "CTA-GAN: RegGAN's objective, and again on the centre of the image.",
        "train.ctagan.config:CTAGANConfig",
        "train.ctagan.train_ctagan:train_ctagan",
        "train.ctagan.train_ctagan:build_translator",
    ),
    "aldm": Entry(
        "ALDM: latent diffusion conditioned by SPADE in the latent space.",
        "train.aldm.config:AldmConfig",
        "train.aldm.train_aldm:train_aldm",
        None,
    ),
    "unet25d": Entry(
        "2.5-D U-Net with L1: plain regression, the row the paper lacks.",
        "train.unet25d.config:UNet25DConfig",
        "train.unet25d.train_unet25d:train_unet25d",
        "train.unet25d.train_unet25d:build_translator",
    ),
}
