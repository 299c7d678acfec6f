"""Cosine similarity of two latents and the two equations made of it. Always fp32, outside autocast."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from train import ranks
from train.config import Shape, SimilarityConfig

COSINE_EPS = 1e-6
AIR = -0.98


def cosine(e_n: Tensor, e_c: Tensor, axis: Literal["voxel", "channel"] = "voxel") -> Tensor:
    """⟨E_n, E_c⟩: ``voxel`` over channels, a map (B, 1, d, h, w); ``channel`` over space, (B, C, 1, 1, 1)."""
    dim = (1,) if axis == "voxel" else (2, 3, 4)
    with torch.autocast(e_n.device.type, enabled=False):
        e_n, e_c = e_n.float(), e_c.float()
        dot = (e_n * e_c).sum(dim, keepdim=True)
        norms = e_n.square().sum(dim, keepdim=True) * e_c.square().sum(dim, keepdim=True)
        return (dot * torch.rsqrt(norms.clamp_min(COSINE_EPS**2))).clamp(-1.0, 1.0)


def adaptive_similarity(c: Tensor, gamma: float, p_min: float = 1e-4) -> Tensor:
    """Eq. 1 element by element: −((1−c)/2)^γ · log((1+c)/2).

    The argument of the logarithm is held at or above ``p_min``, which the paper does not do: at c = −1 the
    printed form is infinite. Clamped, the focal factor keeps a gradient of −½ log(1/p_min) ≈ −4.6 there.
    """
    p = (1 + c) / 2
    return -((1 - p) ** gamma) * torch.log(p.clamp_min(p_min))


def l_sim(e_n: Tensor, e_c: Tensor, config: SimilarityConfig, body: Tensor | None = None) -> Tensor:
    """Eq. 1: the mean over the embeddings, over the body only where ``body`` (B, 1, d, h, w) is given."""
    if config.stop_grad == "target":
        e_c = e_c.detach()
    loss = adaptive_similarity(cosine(e_n, e_c, config.axis), config.gamma, config.p_min)
    if body is None or config.axis == "channel":
        return loss.mean()
    return (loss * body).sum() / ranks.mean(body.sum()).clamp_min(1.0)


def body_mask(x_n: Tensor, factor: Shape) -> Tensor:
    """Latent cells of which at least a quarter lies above the window's floor; (B, 1, d, h, w) of 0 and 1."""
    return (F.avg_pool3d((x_n > AIR).float(), factor) > 0.25).float()


def similarity_mask(c: Tensor, progress: float, alpha: float) -> Tensor:
    """Eq. 3: S = min[α τ/𝒯 + (1+c)/2, 1], with ``progress`` = τ/𝒯."""
    return (alpha * progress + (1 + c) / 2).clamp_max(1.0)


def bridge_weight(c: Tensor, progress: float, beta: float) -> Tensor:
    """1 + β(τ)(1−c)/2: S's curriculum as a weight; β rises linearly to ``beta`` at half the training."""
    return 1 + beta * min(2 * progress, 1.0) * (1 - c) / 2
