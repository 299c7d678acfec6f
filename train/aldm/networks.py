"""ALDM's three networks on MONAI's parts: autoencoder, SPADE translator of latents, diffusion U-Net."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from monai.networks.blocks.spade_norm import SPADE
from monai.networks.nets import DiffusionModelUNet
from monai.networks.nets.autoencoderkl import Decoder, Encoder
from monai.networks.nets.spade_network import SPADENetResBlock
from torch import Tensor, nn

from train.aldm.config import DenoiserConfig, SpadeConfig, VqganConfig
from train.s2ldm.quantizer import VectorQuantizer

PHASES = ("arterial", "venous")
"""Classes of SPADE and of the U-Net's embedding."""


class Vqgan(nn.Module):
    """x of any phase (B, 1, D, H, W) in [-1, 1] to its latent, and back through the codebook.

    As usual in latent diffusion, what is diffused is the latent before quantisation; decoding quantises.
    """

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        shared: dict[str, Any] = {
            "spatial_dims": 3,
            "channels": config.channels,
            "num_res_blocks": [config.res_blocks] * len(config.channels),
            "norm_num_groups": config.norm_groups,
            "norm_eps": 1e-6,
            "attention_levels": [False] * len(config.channels),
            "with_nonlocal_attn": False,
        }
        self.encoder = Encoder(in_channels=1, out_channels=config.latent_channels, **shared)
        self.decoder = Decoder(in_channels=config.latent_channels, out_channels=1, **shared)
        self.quantizer = VectorQuantizer(
            config.latent_channels, config.codes, 1, config.decay, config.commitment, config.reseed_below
        )

    def encode(self, x: Tensor) -> Tensor:
        """The latent before quantisation."""
        return self.encoder(x)

    def decode(self, latent: Tensor) -> Tensor:
        """Quantise and paint."""
        return self.decoder(self.quantizer.lookup(latent))

    def forward(self, x: Tensor, block: int | None = None) -> tuple[Tensor, Tensor]:
        """(rebuilt, commitment loss); in training the codebook follows. ``block``: see the quantiser."""
        quantized = self.quantizer(self.encode(x), block)
        return self.decoder(quantized.latent), quantized.loss


class Spade(nn.Module):
    """E_n to a guess of E_c: residual blocks normalised by what E_n and the phase say at each cell."""

    def __init__(self, config: SpadeConfig, latent_channels: int) -> None:
        super().__init__()
        widths = (latent_channels, *config.channels, latent_channels)
        label = latent_channels + len(PHASES)
        self.blocks = nn.ModuleList(
            SPADENetResBlock(3, before, after, label, config.hidden) for before, after in pairwise(widths)
        )
        for module in self.modules():
            # MONAI instance-normalises gamma and beta, which forgets the level of what they are made from.
            if isinstance(module, SPADE):
                module.mlp_gamma.adn = module.mlp_beta.adn = nn.Identity()

    def forward(self, e_n: Tensor, phase: int) -> Tensor:
        """A latent of E_n's shape."""
        planes = [torch.full_like(e_n[:, :1], float(i == phase)) for i in range(len(PHASES))]
        label, z = torch.cat([e_n, *planes], dim=1), e_n
        for block in self.blocks:
            z = block(z, label)
        return z


class Denoiser(nn.Module):
    """(z_t, E_n, SPADE(E_n)), t in [0, 1) and the phase to ε."""

    def __init__(self, config: DenoiserConfig, latent_channels: int) -> None:
        super().__init__()
        self.timesteps = config.timesteps
        self.unet = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=3 * latent_channels,
            out_channels=latent_channels,
            num_res_blocks=[config.res_blocks] * len(config.channels),
            channels=config.channels,
            attention_levels=[config.attention and level > 0 for level in range(len(config.channels))],
            norm_num_groups=config.norm_groups,
            num_head_channels=config.head_channels,
            num_class_embeds=len(PHASES),
        )
        if not config.attention:
            self.unet.middle_block.attention = nn.Identity()

    def forward(self, z_t: Tensor, e_n: Tensor, guess: Tensor, t: Tensor, phase: int) -> Tensor:
        """Latents (B, C, d, h, w), t (B,)."""
        classes = torch.full((len(z_t),), phase, dtype=torch.long, device=z_t.device)
        return self.unet(torch.cat([z_t, e_n, guess], dim=1), t * self.timesteps, class_labels=classes)
