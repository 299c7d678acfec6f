"""Stage 2's readings of eq. 4: what the network sees, what it must answer, how much each voxel counts.

==============  ===========================================  ===============  =================
formulation     z_t                                          input            target
==============  ===========================================  ===============  =================
literal         √ᾱ (E_n ⊗ S) + √(1−ᾱ) ε                      z_t              ε (or v)
conditional     √ᾱ E_c + √(1−ᾱ) ε                            z_t ‖ E_n ⊗ S    ε (or v)
bridge          (1−t) E_n + t E_c + σ √(t(1−t)) ε            z_t ‖ E_n        E_c − E_n
==============  ===========================================  ===============  =================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from engine.bundle import SamplerSpec
from engine.schedule import scaled_linear
from train import ranks
from train.config import DiffusionConfig
from train.s2ldm.similarity import bridge_weight, cosine, similarity_mask


class Problem(NamedTuple):
    """One training question: (z_t, source, t in [0, 1]) in, ``target`` out, weighted by ``weight``."""

    z_t: Tensor
    source: Tensor
    t: Tensor
    target: Tensor
    weight: Tensor | None


def alpha_bar(config: DiffusionConfig, device: torch.device) -> Tensor:
    """ᾱ_t of the engine's scaled-linear schedule, (T,)."""
    schedule = scaled_linear(config.timesteps, *config.beta_schedule)
    return torch.from_numpy(schedule.alpha_bar).float().to(device)


def sampler_spec(config: DiffusionConfig) -> SamplerSpec:
    """What the engine is told about running this network."""
    return SamplerSpec(
        name=config.sampler.name,
        formulation=config.formulation,
        steps=config.sampler.steps,
        sigma=config.sigma if config.formulation == "bridge" else config.sampler.eta,
        T=config.timesteps,
        beta_start=config.beta_schedule[0],
        beta_end=config.beta_schedule[1],
        prediction=config.prediction,
        sdedit_strength=config.sampler.strength,
    )


def pose(
    config: DiffusionConfig,
    e_n: Tensor,
    e_c: Tensor,
    progress: float,
    generator: torch.Generator | None = None,
) -> Problem:
    """Draw t and ε and pose the configured formulation's question; ``progress`` is τ/𝒯 of eq. 3."""
    noise = ranks.randn(tuple(e_c.shape), e_c.device, generator)
    u = ranks.rand(len(e_c), e_c.device, generator)
    return POSE[config.formulation](config, e_n, e_c, progress, noise, u)


def literal(
    config: DiffusionConfig, e_n: Tensor, e_c: Tensor, progress: float, noise: Tensor, u: Tensor
) -> Problem:
    """Eq. 4 as printed: an unconditional model of masked NCCT latents; E_c enters through S alone."""
    return _diffuse(config, _masked(config, e_n, e_c, progress), e_n, noise, u)


def conditional(
    config: DiffusionConfig, e_n: Tensor, e_c: Tensor, progress: float, noise: Tensor, u: Tensor
) -> Problem:
    """The same symbols with E_c diffused and E_n ⊗ S as the condition."""
    return _diffuse(config, e_c, _masked(config, e_n, e_c, progress), noise, u)


def bridge(
    config: DiffusionConfig, e_n: Tensor, e_c: Tensor, progress: float, noise: Tensor, u: Tensor
) -> Problem:
    """A straight path from E_n to E_c; S's idea kept as a weight.

    With σ = 0 the answer for t > 0 can be read off the question, (z_t − E_n)/t: only t = 0 teaches
    translation, so ``start_share`` of the questions are posed there.
    """
    u = torch.relu(u - config.start_share) / max(1 - config.start_share, 1e-6)
    t = _spread(u)
    z_t = (1 - t) * e_n + t * e_c
    if config.sigma:
        z_t = z_t + config.sigma * (t * (1 - t)).sqrt() * noise
    weight = bridge_weight(cosine(e_n, e_c), progress, config.mask.beta) if config.mask.enabled else None
    return Problem(z_t, e_n, u, e_c - e_n, weight)


POSE = {"literal": literal, "conditional": conditional, "bridge": bridge}


NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": torch.abs,
    "l2": torch.square,
    "both": lambda error: error.abs() + error.square(),
}


def loss(config: DiffusionConfig, answer: Tensor, problem: Problem, cells: Tensor | None = None) -> Tensor:
    """Eq. 4's norm between answer and target, weighted (mean-normalised) where the formulation says so.

    ``cells`` (B, 1, d, h, w) weighs latent cells besides.
    """
    error = NORMS[config.norm](answer.float() - problem.target)
    weights = [weight for weight in (problem.weight, cells) if weight is not None]
    if not weights:
        return error.mean()
    weight = math.prod(weights[1:], start=weights[0])
    return (error * weight).mean() / ranks.mean(weight.mean())


def _masked(config: DiffusionConfig, e_n: Tensor, e_c: Tensor, progress: float) -> Tensor:
    if not config.mask.enabled:
        return e_n
    return e_n * similarity_mask(cosine(e_n, e_c), progress, config.mask.alpha)


def _diffuse(config: DiffusionConfig, z_0: Tensor, source: Tensor, noise: Tensor, u: Tensor) -> Problem:
    step = (u * config.timesteps).long().clamp_max(config.timesteps - 1)
    a = _spread(alpha_bar(config, z_0.device)[step])
    z_t = a.sqrt() * z_0 + (1 - a).sqrt() * noise
    target = noise if config.prediction == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * z_0
    return Problem(z_t, source, step / config.timesteps, target, None)


def _spread(per_case: Tensor) -> Tensor:
    return per_case.reshape(-1, 1, 1, 1, 1)
