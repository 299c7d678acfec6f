"""Stage 2's network: MONAI's diffusion U-Net without attention, called with t in [0, 1]."""

from __future__ import annotations

import math

import torch
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn

from train.config import PHASES, Phase, TrainConfig
from train.s2ldm.autoencoder import space_to_depth, stretch

TIME_SCALE = 1000.0


class Denoiser(nn.Module):
    """(z_t, E_n, t) to the prediction: the bridge's velocity, ε or v; the output starts at zero.

    With ``source_condition = "cells"`` x_n is a fourth input, with ``soft_window_hu`` in two windows.
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
        self.cells = autoencoder.factor if self.sees_source and this.source_condition == "cells" else None
        latent_channels = autoencoder.latent_channels
        self.soft_window = config.soft_window
        voxels = math.prod(self.cells) * (2 if self.soft_window else 1) if self.cells else 0
        self.unet = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=latent_channels * (2 if self.sees_source else 1) + voxels,
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
        seen = [z_t, e_n] if self.sees_source else [z_t]
        if self.cells is not None:
            if x is None:
                raise ValueError("this denoiser is conditioned on x_n")
            seen.append(space_to_depth(x, self.cells))
            if self.soft_window:
                seen.append(space_to_depth(stretch(x, *self.soft_window), self.cells))
        return self.unet(torch.cat(seen, dim=1), t * TIME_SCALE, class_labels=self._classes(phase, z_t))

    def _classes(self, phase: Tensor | None, z_t: Tensor) -> Tensor | None:
        if not self.told_phase:
            return None
        if phase is None and self.phase is None:
            raise ValueError("this denoiser has to be told the phase")
        return torch.full((len(z_t),), self.phase, device=z_t.device) if phase is None else phase
