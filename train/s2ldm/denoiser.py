"""Stage 2's network: MONAI's diffusion U-Net without attention, called with t in [0, 1]."""

from __future__ import annotations

import math

import torch
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn

from train.config import PHASES, Phase, TrainConfig
from train.s2ldm.autoencoder import res_block, space_to_depth, stretch

TIME_SCALE = 1000.0


class SourceStem(nn.Module):
    """x_n (B, windows, D, H, W) to ``stem_channels`` channels for every latent cell.

    A cell has 32 voxels or more and a vessel in it a few: here they are looked at where they are still
    apart, by convolutions at patch resolution, before one with the stride of a cell sums up.
    """

    def __init__(self, config: TrainConfig, windows: int) -> None:
        super().__init__()
        self.patch = config.autoencoder.patch_embed
        width, groups = config.diffusion.stem_channels, config.diffusion.norm_groups
        stride = tuple(f // p for f, p in zip(config.autoencoder.factor, self.patch, strict=True))
        self.layers = nn.Sequential(
            nn.Conv3d(windows * math.prod(self.patch), width, kernel_size=3, padding=1),
            res_block(width, groups),
            nn.GroupNorm(groups, width),
            nn.SiLU(),
            nn.Conv3d(width, width, kernel_size=stride, stride=stride),
        )

    def forward(self, x: Tensor) -> Tensor:
        """What the cells of x hold, (B, stem_channels, d, h, w)."""
        return self.layers(space_to_depth(x, self.patch))


class SourceCells(nn.Module):
    """x_n (B, windows, D, H, W) to a channel for every voxel of a latent cell, in every window."""

    def __init__(self, config: TrainConfig, windows: int) -> None:
        super().__init__()
        self.factor = config.autoencoder.factor

    def forward(self, x: Tensor) -> Tensor:
        """The voxels of every cell, (B, windows · voxels, d, h, w)."""
        return space_to_depth(x, self.factor)


class Denoiser(nn.Module):
    """(z_t, E_n, t) to the prediction: the bridge's velocity, ε or v; the output starts at zero.

    With ``source_condition`` x_n is a fourth input, with ``soft_window_hu`` in two windows.
    ``literal`` never shows E_n or x_n to the network; the argument is there so that all graphs look alike.
    With ``phase_condition`` it is told each row's place in ``PHASES``; ``phase`` is what it takes for granted
    where it is not told.
    """

    def __init__(self, config: TrainConfig, phase: Phase | None = None) -> None:
        super().__init__()
        this, autoencoder = config.diffusion, config.autoencoder
        self.told_phase = this.phase_condition
        self.phase = None if phase is None else PHASES.index(phase)
        self.sees_source = this.formulation != "literal"
        latent_channels = autoencoder.latent_channels
        self.soft_window = config.soft_window
        windows = 2 if self.soft_window else 1
        self.source, told = None, 0
        if self.sees_source and this.source_condition == "cells":
            self.source, told = SourceCells(config, windows), windows * math.prod(autoencoder.factor)
        elif self.sees_source and this.source_condition == "stem":
            self.source, told = SourceStem(config, windows), this.stem_channels
        self.unet = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=latent_channels * (2 if self.sees_source else 1) + told,
            out_channels=latent_channels,
            num_res_blocks=this.res_blocks,
            channels=this.channels,
            attention_levels=[False] * len(this.channels),
            norm_num_groups=this.norm_groups,
            num_head_channels=this.norm_groups,
            num_class_embeds=len(PHASES) if this.phase_condition else None,
        )
        # MONAI always puts attention in the middle; at 8 × 32 × 32 that is 67 million pairs a head.
        self.unet.middle_block.attention = nn.Identity()

    def forward(
        self, z_t: Tensor, e_n: Tensor, t: Tensor, x: Tensor | None = None, phase: Tensor | None = None
    ) -> Tensor:
        """z_t, E_n (B, C, d, h, w), t (B,) in [0, 1], x = x_n (B, 1, D, H, W), phase (B,) of integers."""
        return self.answer(z_t, e_n, t, self.look(x), phase)

    def look(self, x: Tensor | None) -> Tensor | None:
        """What the network is told of x_n, the same at every t; None where it is not shown."""
        if self.source is None:
            return None
        if x is None:
            raise ValueError("this denoiser is conditioned on x_n")
        return self.source(torch.cat([x, stretch(x, *self.soft_window)], dim=1) if self.soft_window else x)

    def answer(
        self, z_t: Tensor, e_n: Tensor, t: Tensor, seen: Tensor | None, phase: Tensor | None = None
    ) -> Tensor:
        """``forward`` with ``seen`` = ``look(x)``, for samplers of several steps."""
        inputs = [z_t, e_n] if self.sees_source else [z_t]
        inputs = inputs if seen is None else [*inputs, seen]
        return self.unet(torch.cat(inputs, dim=1), t * TIME_SCALE, class_labels=self._classes(phase, z_t))

    def _classes(self, phase: Tensor | None, z_t: Tensor) -> Tensor | None:
        if not self.told_phase:
            return None
        if phase is None and self.phase is None:
            raise ValueError("this denoiser has to be told the phase")
        return torch.full((len(z_t),), self.phase, device=z_t.device) if phase is None else phase


def split_phase(
    config: TrainConfig, x_n: Tensor, rest: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """What came with x_n without the phases, and the phases (B,): the only one, where one is learnt.

    None where the network is not told.
    """
    if not config.diffusion.phase_condition:
        return rest, None
    if config.data.phase == "both":
        return rest[:-1], rest[-1]
    return rest, torch.full((len(x_n),), PHASES.index(config.data.phase), device=x_n.device)
