"""Metrics against other people's implementations and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from train.metrics import compare, ssim_map

RNG = np.random.default_rng(0)
REFERENCE = RNG.uniform(-150, 150, (16, 24, 24)).astype(np.float32)
NOISY = REFERENCE + RNG.normal(0, 20, REFERENCE.shape).astype(np.float32)
ALL = np.ones(REFERENCE.shape, bool)
WINDOW = (-200.0, 200.0)


def test_ssim_agrees_with_torchmetrics() -> None:
    x, y = (torch.from_numpy(v + 200)[None, None] for v in (NOISY, REFERENCE))
    _, theirs = structural_similarity_index_measure(
        x, y, sigma=1.5, kernel_size=11, data_range=400.0, return_full_image=True
    )
    ours = ssim_map(NOISY + 200, REFERENCE + 200, 400.0)
    inner = (slice(5, -5),) * 3
    assert np.allclose(ours[inner], theirs[0, 0].numpy()[inner], atol=1e-4)


def test_psnr_agrees_with_torchmetrics() -> None:
    clipped = np.clip(NOISY, *WINDOW)
    theirs = peak_signal_noise_ratio(torch.from_numpy(clipped), torch.from_numpy(REFERENCE), data_range=400.0)
    assert compare(NOISY, REFERENCE, ALL, WINDOW)["psnr"] == pytest.approx(theirs.item(), rel=1e-4)


def test_errors_are_what_their_names_say() -> None:
    e = (np.clip(NOISY, *WINDOW) - REFERENCE).astype(np.float64)
    y = REFERENCE.astype(np.float64) + 200
    got = compare(NOISY, REFERENCE, ALL, WINDOW)
    assert got["mae_hu"] == pytest.approx(np.abs(e).mean(), rel=1e-4)
    assert got["rmse_hu"] == pytest.approx(np.sqrt((e**2).mean()), rel=1e-4)
    assert got["nmae_range"] == pytest.approx(np.abs(e).mean() / 400, rel=1e-4)
    assert got["nmae_l1"] == pytest.approx(np.abs(e).sum() / y.sum(), rel=1e-4)
    assert got["nmse"] == pytest.approx((e**2).sum() / (y**2).sum(), rel=1e-4)
    assert got["nrmse"] == pytest.approx(np.sqrt((e**2).mean()) / 400, rel=1e-4)


def test_equal_volumes_are_perfect() -> None:
    got = compare(REFERENCE, REFERENCE, ALL, WINDOW)
    assert got["mae_hu"] == 0
    assert got["ssim"] == pytest.approx(1.0)
    assert got["psnr"] > 150


def test_what_lies_outside_mask_or_window_does_not_count() -> None:
    spoiled = REFERENCE.copy()
    spoiled[:, :8] += 100
    mask = ALL.copy()
    mask[:, :8] = False
    assert compare(spoiled, REFERENCE, mask, WINDOW)["mae_hu"] == 0
    bright = np.full_like(REFERENCE, 3000)
    assert compare(bright, bright + 500, ALL, WINDOW)["mae_hu"] == 0
