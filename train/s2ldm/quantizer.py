"""Vector quantisation with a codebook that follows the data by moving averages.

MONAI's EMAQuantizer builds all distances and a one-hot at once (268 MB for one demo crop) and never revives
a dead code; this one works in chunks, re-seeds, and cuts the channels into groups (product quantisation).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from train import ranks

CHUNK = 512
"""Rows whose distances are held at a time: few enough to stay in a core's cache."""
LAPLACE = 1e-5


class Quantized(NamedTuple):
    """``latent`` passes gradients straight through; ``loss`` is L_quan; ``codes`` index the codebook."""

    latent: Tensor
    loss: Tensor
    codes: Tensor


class VectorQuantizer(nn.Module):
    """L_quan of eq. 2: the commitment term; the codebook itself is moved by averages (decay) in training."""

    def __init__(
        self, channels: int, codes: int, groups: int, decay: float, commitment: float, reseed_below: float
    ) -> None:
        super().__init__()
        self.groups, self.dim, self.codes = groups, channels // groups, codes
        self.decay, self.commitment, self.reseed_below = decay, commitment, reseed_below
        self.register_buffer("codebook", torch.randn(codes, self.dim))
        self.register_buffer("cluster_size", torch.ones(codes))
        self.register_buffer("cluster_sum", self.codebook.clone())
        self.register_buffer("seeded", torch.zeros((), dtype=torch.bool))
        self.codebook: Tensor
        self.cluster_size: Tensor
        self.cluster_sum: Tensor
        self.seeded: Tensor

    def rows(self, latent: Tensor) -> Tensor:
        """(B, C, D, H, W) to (B·G·D·H·W, C/G)."""
        return latent.reshape(len(latent), self.groups, self.dim, -1).transpose(2, 3).reshape(-1, self.dim)

    def unrows(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of ``rows``."""
        b = shape[0]
        return rows.reshape(b, self.groups, -1, self.dim).transpose(2, 3).reshape(shape)

    def nearest(self, rows: Tensor) -> Tensor:
        """Index of the closest code of every row, by squared Euclidean distance, in chunks."""
        half_norm, codes = 0.5 * self.codebook.square().sum(1), self.codebook.T
        return torch.cat(
            [torch.addmm(half_norm, part, codes, alpha=-1).argmin(1) for part in rows.split(CHUNK)]
        )

    def lookup(self, latent: Tensor) -> Tensor:
        """Replace every part of every cell by its code; what the exported decoder does."""
        rows = self.rows(latent.float())
        return self.unrows(self.codebook[self.nearest(rows)], latent.shape)

    def forward(self, latent: Tensor, block: int | None = None) -> Quantized:
        """Quantise, and in training move the codebook (with all ranks' latents). Always in fp32.

        ``block``: how many cases a phase has, where the latents of both phases lie one after the other.
        """
        with torch.autocast(latent.device.type, enabled=False):
            latent = latent.float()
            rows = self.rows(latent)
            everywhere = partial(self._everywhere, latent, block or len(latent))
            if self.training and not self.seeded:
                self._seed(everywhere())
            codes = self.nearest(rows.detach())
            quantized = self.unrows(self.codebook[codes], latent.shape)
            if self.training:
                self._follow(rows.detach(), codes, everywhere)
            loss = self.commitment * F.mse_loss(latent, quantized)
            return Quantized(latent + (quantized - latent).detach(), loss, codes)

    def _everywhere(self, latent: Tensor, block: int) -> Tensor:
        return self.rows(ranks.gather(latent, block))

    @torch.no_grad()
    def _seed(self, rows: Tensor) -> None:
        self.codebook.copy_(self._pick(rows, self.codes))
        self.cluster_sum.copy_(self.codebook)
        self.seeded.fill_(True)

    @torch.no_grad()
    def _follow(self, rows: Tensor, codes: Tensor, everywhere: Callable[[], Tensor]) -> None:
        used = ranks.total(torch.bincount(codes, minlength=self.codes).to(rows.dtype))
        sums = ranks.total(torch.zeros_like(self.codebook).index_add_(0, codes, rows))
        self.cluster_size.lerp_(used, 1 - self.decay)
        self.cluster_sum.lerp_(sums, 1 - self.decay)
        total = self.cluster_size.sum()
        smoothed = (self.cluster_size + LAPLACE) / (total + self.codes * LAPLACE) * total
        self.codebook.copy_(self.cluster_sum / smoothed[:, None])
        self._revive(everywhere)

    def _revive(self, everywhere: Callable[[], Tensor]) -> None:
        dead = self.cluster_size < self.reseed_below
        count = int(dead.sum())
        if count:
            self.codebook[dead] = self._pick(everywhere(), count)
            self.cluster_size[dead] = 1.0
            self.cluster_sum[dead] = self.codebook[dead]

    @staticmethod
    def _pick(rows: Tensor, count: int) -> Tensor:
        return rows[torch.randint(len(rows), (count,), device=rows.device)]


def perplexity(codes: Tensor, size: int) -> Tensor:
    """exp of the entropy of code use: ``size`` when all are used alike, 1 when only one is."""
    share = torch.bincount(codes, minlength=size).double() / codes.numel()
    return torch.exp(-(share * torch.log(share.clamp_min(1e-12))).sum())
