"""The terms of eq. 2 that are not similarity: reconstruction, its target x_F, and the patch adversary."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from train import ranks

UNSHARP_SIGMA = 1.0
UNSHARP_AMOUNT = 0.5
LAPLACIAN_AMOUNT = 0.25
ENHANCEMENT_UNIT_HU = 100.0
SURROUNDINGS = (7, 15, 15)
LOCAL = (3, 3, 3)
ADAPTIVE_MAX = 1e4


def high_frequency_target(x_c: Tensor, kind: Literal["none", "unsharp", "laplacian"]) -> Tensor:
    """x_F of eq. 2. It overshoots at edges by design: a target of training, never of evaluation."""
    if kind == "unsharp":
        return x_c + UNSHARP_AMOUNT * (x_c - _gaussian(x_c, UNSHARP_SIGMA))
    if kind == "laplacian":
        return x_c - LAPLACIAN_AMOUNT * _laplacian(x_c)
    return x_c


def reconstruction(
    painted: Tensor, target: Tensor, weight: Tensor | None = None, square: float = 0.0
) -> Tensor:
    """L_rec: mean of |e| + ``square`` e², weighted by ``weight`` (mean-normalised) where it is given.

    Under L1 alone noise, which is everywhere, drowns the enhancement of a small vessel for a thousand steps;
    the square lets large errors speak first, and its optimum is the mean HU that organs are judged by.
    """
    error = (painted - target).abs()
    if square:
        error = error + square * error.square()
    return error.mean() if weight is None else (error * weight).mean() / ranks.mean(weight.mean())


def contrast_error(painted: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error of local contrast, weighted like ``reconstruction``.

    Contrast is the mean over ``LOCAL`` voxels, in which hardly any noise is left, less that over
    ``SURROUNDINGS``, which takes out what a patient's level of enhancement does to a whole organ.
    """
    error = painted - target
    square = (_mean_around(error, LOCAL) - _mean_around(error, SURROUNDINGS)).square()
    return square.mean() if weight is None else (square * weight).mean() / ranks.mean(weight.mean())


def enhancement_weight(
    x_n: Tensor, x_c: Tensor, strength: float, window_width_hu: float, local: float = 0.0
) -> Tensor | None:
    """1 + ``strength`` a 100 HU of enhancement + ``local`` a 100 HU that it differs from its surroundings.

    Enhancement is smoothed over 3 × 5 × 5 voxels so as not to weigh noise, its surroundings over
    ``SURROUNDINGS``: ``local`` speaks for vessels in an organ that enhances too, which are few voxels.
    """
    if strength == 0 and local == 0:
        return None
    difference = _mean_around(x_c - x_n, (3, 5, 5)) * (window_width_hu / 2)
    weight = 1 + strength * difference.abs() / ENHANCEMENT_UNIT_HU
    if local:
        apart = difference - _mean_around(difference, SURROUNDINGS)
        weight = weight + local * apart.abs() / ENHANCEMENT_UNIT_HU
    return weight


def _mean_around(x: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Mean over an odd number of voxels each way, as many as x has at most; one axis after the other."""
    for axis, (n, have) in enumerate(zip(size, x.shape[2:], strict=True)):
        kernel, padding = [1, 1, 1], [0, 0, 0]
        kernel[axis] = min(n, have - 1 + have % 2)
        padding[axis] = kernel[axis] // 2
        x = F.avg_pool3d(x, kernel, stride=1, padding=padding, count_include_pad=False)
    return x


def frequency_loss(painted: Tensor, target: Tensor) -> Tensor:
    """L1 between the log-amplitudes of the in-plane spectra, where blur shows."""
    with torch.autocast(painted.device.type, enabled=False):
        return (_log_amplitude(painted.float()) - _log_amplitude(target.float())).abs().mean()


def discriminator_loss(on_real: Tensor, on_fake: Tensor, kind: Literal["hinge", "least_squares"]) -> Tensor:
    """What the discriminator minimises."""
    if kind == "hinge":
        return 0.5 * (F.relu(1 - on_real).mean() + F.relu(1 + on_fake).mean())
    return 0.5 * ((on_real - 1).square().mean() + on_fake.square().mean())


def generator_loss(on_fake: Tensor, kind: Literal["hinge", "least_squares"]) -> Tensor:
    """What the decoder minimises against the discriminator."""
    return -on_fake.mean() if kind == "hinge" else (on_fake - 1).square().mean()


def adaptive_weight(rec: Tensor, adversarial: Tensor, last_layer: nn.Parameter) -> Tensor:
    """VQ-GAN's λ: ‖∇L_rec‖ / ‖∇L_adv‖ at the decoder's last layer, at most 10⁴."""
    of_rec = torch.autograd.grad(rec, last_layer, retain_graph=True)[0]
    of_adversarial = torch.autograd.grad(adversarial, last_layer, retain_graph=True)[0]
    balance = ranks.mean(of_rec).norm() / (ranks.mean(of_adversarial).norm() + 1e-4)
    return balance.clamp(0.0, ADAPTIVE_MAX).detach()


def _log_amplitude(x: Tensor) -> Tensor:
    return torch.log1p(torch.fft.rfft2(x, norm="ortho").abs())


def _gaussian(x: Tensor, sigma: float) -> Tensor:
    offsets = torch.arange(-3, 4, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    for axis in range(3):
        shape, pad = [1, 1, 1, 1, 1], [0] * 6
        shape[2 + axis] = 7
        pad[2 * (2 - axis)] = pad[2 * (2 - axis) + 1] = 3
        x = F.conv3d(F.pad(x, pad, mode="replicate"), kernel.reshape(shape))
    return x


def _laplacian(x: Tensor) -> Tensor:
    padded = F.pad(x, [1] * 6, mode="replicate")
    core = slice(1, -1)
    neighbours = torch.zeros_like(x)
    for axis in (2, 3, 4):
        for shift in (slice(None, -2), slice(2, None)):
            index = [slice(None), slice(None), core, core, core]
            index[axis] = shift
            neighbours = neighbours + padded[tuple(index)]
    return neighbours - 6 * x
