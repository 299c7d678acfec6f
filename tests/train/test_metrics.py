"""Metrics against other people's implementations and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import (
    mean_squared_error,
    normalized_root_mse,
    structural_similarity,
)
from skimage.metrics import (
    peak_signal_noise_ratio as peak_signal_noise_ratio_skimage,
)
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)
from torchmetrics.functional.regression import (
    mean_absolute_error,
    weighted_mean_absolute_percentage_error,
)

from train.metrics import Comparison, compare, seam_ratio, slice_step_hu, ssim_map, z_flicker

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


def test_every_metric_agrees_with_scikit_image() -> None:
    """Independent code for each name, on the clipped window that ours measures in."""
    x, y = (np.clip(v, *WINDOW).astype(np.float64) + 200 for v in (NOISY, REFERENCE))
    got = compare(NOISY, REFERENCE, ALL, WINDOW)
    assert got["psnr"] == pytest.approx(peak_signal_noise_ratio_skimage(y, x, data_range=400), rel=1e-5)
    assert got["rmse_hu"] == pytest.approx(np.sqrt(mean_squared_error(y, x)), rel=1e-5)
    assert got["nmse"] == pytest.approx(normalized_root_mse(y, x, normalization="euclidean") ** 2, rel=1e-5)
    _, theirs = structural_similarity(
        y, x, data_range=400, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    inner = (slice(5, -5),) * 3
    mask = np.zeros_like(ALL)
    mask[inner] = True
    ours = compare(NOISY, REFERENCE, mask, WINDOW)["ssim"]
    assert ours == pytest.approx(theirs[inner].mean(), abs=1e-4)


def test_absolute_errors_agree_with_torchmetrics() -> None:
    x, y = (torch.from_numpy(np.clip(v, *WINDOW) + 200).flatten() for v in (NOISY, REFERENCE))
    got = compare(NOISY, REFERENCE, ALL, WINDOW)
    mae = mean_absolute_error(x, y).item()
    assert got["mae_hu"] == pytest.approx(mae, rel=1e-4)
    assert got["nmae_range"] == pytest.approx(mae / 400, rel=1e-4)
    assert got["nmae_l1"] == pytest.approx(weighted_mean_absolute_percentage_error(x, y).item(), rel=1e-4)


def test_one_comparison_serves_many_masks_and_the_whole_window() -> None:
    half = ALL.copy()
    half[:8] = False
    both = Comparison(NOISY, REFERENCE, WINDOW)
    assert both.within() == both.within(ALL)
    assert both.within(half) == compare(NOISY, REFERENCE, half, WINDOW)
    assert both.within(half) != both.within()


def test_a_volume_that_changes_as_much_from_slice_to_slice_does_not_flicker() -> None:
    assert z_flicker(REFERENCE, REFERENCE, ALL) == pytest.approx(1.0)
    assert z_flicker(np.zeros_like(REFERENCE), REFERENCE, ALL) == 0
    striped = REFERENCE + np.where(np.arange(16) % 2, 300.0, 0.0).astype(np.float32)[:, None, None]
    assert z_flicker(striped, REFERENCE, ALL) > 2


def test_steps_of_whole_slices_are_measured_in_hu() -> None:
    striped = REFERENCE + np.where(np.arange(16) % 2, 10.0, 0.0).astype(np.float32)[:, None, None]
    assert slice_step_hu(striped, REFERENCE, ALL) == pytest.approx(10, abs=1e-3)
    assert slice_step_hu(REFERENCE + 50, REFERENCE, ALL) == pytest.approx(0, abs=1e-3)


def test_a_step_where_tiles_meet_shows_as_a_seam() -> None:
    zones = [np.zeros(n - 1, bool) for n in REFERENCE.shape]
    zones[1][11] = True
    noise = RNG.normal(0, 1, REFERENCE.shape).astype(np.float32)
    assert seam_ratio(REFERENCE + noise, REFERENCE, ALL, zones) == pytest.approx(1, abs=0.1)
    broken = REFERENCE + noise
    broken[:, 12:] += 10
    found = seam_ratio(broken, REFERENCE, ALL, zones)
    assert found is not None
    assert found > 5
    assert seam_ratio(broken, REFERENCE, ALL, [np.zeros(n - 1, bool) for n in ALL.shape]) is None
