"""Stage 1's network (paper, fig. 2): one encoder for both phases, one decoder that only paints x_c."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from monai.networks.nets.autoencoderkl import AEKLResBlock, Decoder, Encoder
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from train import ranks
from train.config import AutoencoderConfig, Shape
from train.s2ldm.quantizer import Quantized, VectorQuantizer

Window = tuple[float, float]
IN_PLANE: dict[str, Any] = {"kernel_size": (1, 3, 3), "padding": (0, 1, 1)}


def space_to_depth(x: Tensor, patch: Shape) -> Tensor:
    """(B, C, D, H, W) to (B, C·pd·ph·pw, D/pd, H/ph, W/pw); no number is lost."""
    b, c, d, h, w = x.shape
    pd, ph, pw = patch
    x = x.reshape(b, c, d // pd, pd, h // ph, ph, w // pw, pw)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, c * pd * ph * pw, d // pd, h // ph, w // pw)


def depth_to_space(x: Tensor, patch: Shape) -> Tensor:
    """The inverse of ``space_to_depth``."""
    b, c, d, h, w = x.shape
    pd, ph, pw = patch
    x = x.reshape(b, c // (pd * ph * pw), pd, ph, pw, d, h, w)
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, c // (pd * ph * pw), d * pd, h * ph, w * pw)


def stretch(x: Tensor, low: float, high: float) -> Tensor:
    """x with [low, high] spread over [-1, 1], and clipped there."""
    return ((x - low) * (2 / (high - low)) - 1).clamp(-1, 1)


def res_block(channels: int, norm_groups: int) -> nn.Module:
    """MONAI's two convolutions around which the input is added."""
    return AEKLResBlock(3, channels, norm_groups, 1e-6, channels)


class StageOne(NamedTuple):
    """What a step of stage 1 needs; ``e_n`` is None unless syncretic, ``from_n`` unless translated too."""

    e_c: Tensor
    e_n: Tensor | None
    from_c: Tensor
    from_n: Tensor | None
    l_quan: Tensor
    codes: Tensor | None


class PlainExit(nn.Module):
    """``source_skip = "none"``, the paper: D(z) alone; one small convolution smooths the pixel shuffle."""

    def __init__(
        self, config: AutoencoderConfig, soft_window: Window | None = None, fine_blocks: int = 0
    ) -> None:
        super().__init__()
        self.patch = config.patch_embed
        self.features = math.prod(self.patch) * config.exit_channels
        self.last = nn.Conv3d(config.exit_channels, 1, **IN_PLANE)

    def forward(self, features: Tensor, x_n: Tensor) -> Tensor:
        """Decoder features at patch resolution to x_c; ``x_n`` is not looked at."""
        return self.last(depth_to_space(features, self.patch))


class PlainBlock(nn.Module):
    """Two convolutions around which the input is added; no normalisation, and begun as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(channels, channels, kernel_size=3, padding=1)
        self.second = nn.Conv3d(channels, channels, kernel_size=3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x and what the block adds."""
        return x + self.second(F.silu(self.first(F.silu(x))))


class FineBranch(nn.Module):
    """What stage 3 adds to Δ: small vessels, painted at patch resolution; begun at zero.

    Between a vein and the liver lie 10 to 20 HU. Normalisation divides by what a whole crop holds, air and
    bone included, and gives the same vein another size in every crop.
    """

    def __init__(self, channels: int, width: int, blocks: int, voxels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(channels, width, kernel_size=3, padding=1),
            *(PlainBlock(width) for _ in range(blocks)),
            nn.SiLU(),
            nn.Conv3d(width, voxels, kernel_size=3, padding=1),
        )
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, seen: Tensor) -> Tensor:
        """Features and source at patch resolution (B, C, d, h, w) to (B, voxels, d, h, w)."""
        return self.layers(seen)


class ResidualExit(nn.Module):
    """``source_skip = "residual"``: D(z, x_n) = x_n + Δ(z, x_n), Δ begun at zero.

    The latent then carries only what contrast adds; anatomy comes from the source, which service has too.
    With ``soft_window``, in x_n's units, x_n is seen in this window besides, by a convolution begun at zero;
    with ``fine_blocks`` a ``FineBranch`` of as many blocks adds to Δ.
    """

    def __init__(
        self, config: AutoencoderConfig, soft_window: Window | None = None, fine_blocks: int = 0
    ) -> None:
        super().__init__()
        self.patch = config.patch_embed
        self.features = config.head_channels - math.prod(self.patch)
        width, full = config.head_channels, config.exit_channels
        blocks = [res_block(width, config.norm_groups) for _ in range(config.exit_blocks)]
        self.merge = nn.Sequential(
            nn.Conv3d(width, width, kernel_size=3, padding=1),
            *blocks,
            nn.GroupNorm(config.norm_groups, width),
            nn.SiLU(),
            nn.Conv3d(width, math.prod(self.patch) * full, kernel_size=3, padding=1),
        )
        self.refine = nn.Sequential(nn.Conv3d(full + 1, 2 * full, **IN_PLANE), nn.SiLU())
        self.last = nn.Conv3d(2 * full, 1, **IN_PLANE)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.soft_window = soft_window
        if soft_window:
            self.soft = nn.Conv3d(math.prod(self.patch), width, kernel_size=3, padding=1)
            nn.init.zeros_(self.soft.weight)
            nn.init.zeros_(self.soft.bias)
        self.fine = None
        if fine_blocks:
            channels = width + (math.prod(self.patch) if soft_window else 0)
            self.fine = FineBranch(channels, width, fine_blocks, math.prod(self.patch))

    def forward(self, features: Tensor, x_n: Tensor) -> Tensor:
        """Decoder features at patch resolution and the source to x_c."""
        seen = [torch.cat([features, space_to_depth(x_n, self.patch)], dim=1)]
        met = self.merge[0](seen[0])
        if self.soft_window:
            seen.append(space_to_depth(stretch(x_n, *self.soft_window), self.patch))
            met = met + self.soft(seen[1])
        merged = self.merge[1:](met)
        full = torch.cat([depth_to_space(merged, self.patch), x_n], dim=1)
        painted = x_n + self.last(self.refine(full))
        if self.fine is None:
            return painted
        return painted + depth_to_space(self.fine(torch.cat(seen, dim=1)), self.patch)


EXITS: dict[str, type[PlainExit] | type[ResidualExit]] = {"none": PlainExit, "residual": ResidualExit}


class SyncreticAutoencoder(nn.Module):
    """E: x in [-1, 1] (B, 1, D, H, W) to pre-quantisation latents (B, C, d, h, w); D: latents to x_c.

    Both sides are MONAI's; space-to-depth at the door keeps full-resolution convolutions cheap. D also takes
    x_n, which only the exit of ``source_skip = "residual"`` looks at, in ``soft_window`` too if there is one.
    """

    def __init__(
        self, config: AutoencoderConfig, soft_window: Window | None = None, fine_blocks: int = 0
    ) -> None:
        super().__init__()
        self.config = config
        patch = config.patch_embed
        voxels = patch[0] * patch[1] * patch[2]
        shared = {
            "spatial_dims": 3,
            "channels": config.channels,
            "num_res_blocks": config.res_blocks,
            "norm_num_groups": config.norm_groups,
            "norm_eps": 1e-6,
            "attention_levels": [False] * len(config.channels),
            "with_nonlocal_attn": False,
        }
        moments = 2 if config.quantizer.regularizer == "kl" else 1
        self.encoder = Encoder(in_channels=voxels, out_channels=moments * config.latent_channels, **shared)
        self.exit = EXITS[config.source_skip](config, soft_window, fine_blocks)
        self.decoder = Decoder(
            in_channels=config.latent_channels,
            out_channels=self.exit.features,
            use_convtranspose=True,
            **shared,
        )
        self.quantizer = _quantizer(config) if config.quantizer.regularizer == "vq" else None

    def moments(self, x: Tensor) -> Tensor:
        """The encoder's raw output: means, and with ``kl`` log-variances behind them."""
        return self.encoder(space_to_depth(x, self.config.patch_embed))

    def encode(self, x: Tensor) -> Tensor:
        """Pre-quantisation latent of x; with ``kl`` its mean."""
        return self.moments(x)[:, : self.config.latent_channels]

    def paint(self, latent: Tensor, x_n: Tensor) -> Tensor:
        """D without quantiser."""
        return self.exit(self.decoder(latent), x_n)

    def decode(self, latent: Tensor, x_n: Tensor) -> Tensor:
        """D as in service: quantised first where ``quantize_at_decode`` says so."""
        if self.quantizer is not None and self.config.quantizer.quantize_at_decode:
            latent = self.quantizer.lookup(latent)
        return self.paint(latent, x_n)

    def forward(self, x_n: Tensor, x_c: Tensor) -> StageOne:
        """Encode both with the same weights, quantise, decode both towards x_c."""
        sources = torch.cat([x_c, x_n]) if self.config.syncretic else x_c
        moments = self.moments(sources).float()
        latent, mean, l_quan, codes = self._regularize(moments, batch=len(x_c))
        b = len(x_c)
        translates = self.config.syncretic and self.config.loss.translate > 0
        seen = latent if translates else latent[:b]
        painted = self.paint(seen, x_n.repeat(len(seen) // b, 1, 1, 1, 1)).float()
        return StageOne(
            e_c=mean[:b],
            e_n=mean[b:] if self.config.syncretic else None,
            from_c=painted[:b],
            from_n=painted[b:] if translates else None,
            l_quan=l_quan,
            codes=codes,
        )

    def _regularize(self, moments: Tensor, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        mean = moments[:, : self.config.latent_channels]
        if self.quantizer is not None:
            latent, loss, codes = self._quantize(mean, batch)
            return latent, mean, loss, codes
        if self.config.quantizer.regularizer == "none":
            return mean, mean, mean.new_zeros(()), None
        log_variance = moments[:, self.config.latent_channels :].clamp(-30, 20)
        latent = mean + torch.exp(0.5 * log_variance) * ranks.randn_like(mean, batch)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        return latent, mean, self.config.loss.kl * kl, None

    def _quantize(self, mean: Tensor, batch: int) -> Quantized:
        assert self.quantizer is not None
        if self.config.quantizer.quantize_both or len(mean) == batch:
            return self.quantizer(mean, batch)
        of_c = self.quantizer(mean[:batch])
        with torch.no_grad():
            of_n = self.quantizer.lookup(mean[batch:])
        straight = mean[batch:] + (of_n - mean[batch:]).detach()
        return Quantized(torch.cat([of_c.latent, straight]), of_c.loss, of_c.codes)


def _quantizer(config: AutoencoderConfig) -> VectorQuantizer:
    q = config.quantizer
    return VectorQuantizer(config.latent_channels, q.codes, q.groups, q.decay, q.commitment, q.reseed_below)
